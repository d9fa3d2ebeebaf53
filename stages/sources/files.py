"""Files of a source: finding them, opening them wherever they are, batching small ones into units.

Everything goes through fsspec, so a path may be local, `memory://`, `s3://` or `hf://`; `stages.paths` decides which
it is. A file's name in the lineage is relative to the source's root: the folder given, or the folder that a pattern
begins in.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import fsspec
import zstandard

from stages import paths
from stages.errors import DataError, TransientError
from stages.paths import is_remote, local_path
from stages.sources import hub, retries
from stages.sources.base import UNIT_BYTES, FilesConfig, Identify, SourceUnit
from stages.task import Artifact

VERSION_FACTS = (
    "ETag",
    "etag",
    "oid",
    "md5",
    "checksum",
    "LastModified",
    "created",
    "mtime",
)  # of a version, by file system
ListedFile = tuple[str, str]  # its full path or URI, and its name in the lineage
ZSTD_SLICE = 4 << 10  # compressed bytes unpacked at a time: zstd makes at most 32,768 times as much of them
SMALL_BYTES = 64 << 20  # unpacked bytes up to which no ratio is suspicious


def files_of(config: FilesConfig) -> list[ListedFile]:
    """Return `list_files` of a source. Raises DataError."""
    return list_files(
        config.path, config.suffixes, config.storage_options, revision=config.revision, follow_links=config.follow_links
    )


def list_files(
    path: str | list[str],
    suffixes: tuple[str, ...],
    options: Mapping[str, Any] | None = None,
    *,
    revision: str = "",
    follow_links: bool = False,
) -> list[ListedFile]:
    """Return (full path or URI, name relative to the root) of each file, sorted by name. Those of the hub are pinned.

    A folder is searched for `suffixes` at any depth, hidden files aside; a file or a glob is taken as it is.
    Raises DataError when nothing matches, and at a link out of the folder unless `follow_links`.
    """
    found: dict[str, str] = {}
    for one in [path] if isinstance(path, str) else path:
        matches = files_at_path(one, suffixes, options or {}, revision, follow_links)
        if not matches:
            raise DataError(f"no files match {one}; check `path` (looked for {', '.join(suffixes)})")
        for full, name in matches:
            if found.setdefault(name, full) != full:
                raise DataError(f"{found[name]} and {full} would both be called {name}; list their folder")
    return sorted(((full, name) for name, full in found.items()), key=lambda pair: pair[1])


def files_at_path(
    path: str, suffixes: tuple[str, ...], options: Mapping[str, Any], revision: str, follow_links: bool
) -> list[ListedFile]:
    """Return files at one path. Raises DataError when its file system is unknown or cannot be asked."""
    try:
        if path.startswith(hub.PROTOCOL):
            path = hub.pin_address(path, revision)
            with hub.explain_errors(path):
                return search_files(path, *file_system(path, options), suffixes, follow_links)
        return search_files(path, *file_system(path, options), suffixes, follow_links)
    except FileNotFoundError:
        return []
    except DataError:
        raise
    except ImportError as error:
        raise DataError(f"{path}: {error}; install what it names into this environment") from error
    except Exception as error:  # every remote file system raises its client's own kinds
        if not is_remote(path):
            raise
        what = (str(error).splitlines() or [""])[0][:200]
        raise DataError(
            f"{path} cannot be listed ({type(error).__name__}: {what}); check the address, the network and access"
        ) from error


def file_system(path: str, options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """Return the file system of a path and its name there, as `paths.file_system` does; of the hub a patient one."""
    if path.startswith(hub.PROTOCOL):
        retries.install()
    return paths.file_system(path, options)


def search_files(path: str, fs: Any, inner: str, suffixes: tuple[str, ...], follow_links: bool) -> list[ListedFile]:
    """Return (full path or URI, name relative to the root) of the files that `inner`, in `fs`, stands for."""
    remote = is_remote(path)
    root, pattern = paths.split_pattern(fs, inner)
    if pattern:
        found = paths.glob_below(fs, root, pattern)  # which calls a link to a file a link
        names = [name for name, facts in found.items() if (facts["type"] == "file" if remote else Path(name).is_file())]
    elif fs.isdir(inner):
        root = inner.rstrip("/")
        names = [name for name in fs.find(inner) if name.endswith(suffixes)]
    elif fs.exists(inner):
        root, names = inner.rpartition("/")[0], [inner]
        follow_links = True  # it was named itself
    else:
        return []
    files = []
    for name in names:
        relative = name[len(root) :].lstrip("/")
        if any(part.startswith(".") for part in relative.split("/")):
            continue
        if not remote and not follow_links:
            check_link(root, name)
        files.append((fs.unstrip_protocol(name) if remote else name, relative))
    return files


def check_link(root: str, name: str) -> None:
    """Raise DataError when a file below `root` is a link that leads out of it."""
    inside, target = os.path.realpath(root), os.path.realpath(name)
    if os.path.commonpath([inside, target]) != inside:
        raise DataError(f"{name} is a link out of {root}; put the file itself there, or set follow_links: true")


def identify_file(path: str, params: Mapping[str, Any], identify: Identify) -> tuple[str, int]:
    """Return (digest of the contents, bytes) of a file of a source: a local one by `identify`. Raises DataError."""
    if is_remote(path):
        return remote_identity(path, params.get("options"))
    return identify(path)


def remote_identity(path: str, options: Mapping[str, Any] | None = None) -> tuple[str, int]:
    """Return (digest, bytes) of a remote file, from its size and what its file system says of its version."""
    fs, inner = file_system(path, options)
    if path.startswith(hub.PROTOCOL):
        return hub.identify(fs, path)
    info = fs.info(inner)
    marks = {name: str(info[name]) for name in VERSION_FACTS if info.get(name)}
    facts = json.dumps([path, info["size"], marks], sort_keys=True)
    return hashlib.sha256(facts.encode()).hexdigest(), info["size"]


@contextlib.contextmanager
def open_source(file: Artifact | str, options: Mapping[str, Any] | None = None) -> Iterator[IO[bytes]]:
    """Return a file for reading, seekable where its file system can; of an Artifact, only if it is what it was.

    A missing or changed file is a DataError; any other OSError of a remote file system is transient.
    """
    path = file if isinstance(file, str) else file.path
    try:
        if path.startswith(hub.PROTOCOL):
            digest, size = remote_identity(path, options) if isinstance(file, str) else (file.digest, file.bytes)
            yield hub.HubFile(path, digest, size)  # type: ignore[misc]
        elif is_remote(path):
            if not isinstance(file, str) and remote_identity(path, options) != (file.digest, file.bytes):
                raise DataError(f"{path} has changed since it was listed; run the same command again")
            with fsspec.open(path, "rb", **(options or {})) as stream:
                yield stream
        else:
            with Path(local_path(path)).open("rb") as stream:
                yield stream
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(f"{path} cannot be opened ({error}); it was there when the run was planned") from error
    except OSError as error:
        # Decoders raise OSError's subclasses too (gzip, pyarrow): their callers turn those into DataError first.
        if is_remote(path):
            raise TransientError(f"{path}: {error}") from error
        raise


def check_ratio(name: str, unpacked: int, packed: int, most: float) -> None:
    """Raise DataError when more than SMALL_BYTES came out, and `most` times what went in (0: no limit)."""
    if most and unpacked > max(SMALL_BYTES, most * packed):
        raise DataError(
            f"{name} unpacks to more than {most:g} times its size; if it is meant to, raise the source's max_ratio"
        )


def decompress_zstd(stream: IO[bytes], name: str, size: int = 1 << 20, max_ratio: float = 0) -> Iterator[bytes]:
    """Yield the decompressed bytes of all zstd frames in `stream`.

    Raises DataError when the last frame is cut off, and as `check_ratio` does. `zstandard`'s own reader ends quietly at
    a cut, which would lose rows without a word.
    """
    decoder = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
    inside = False
    packed = unpacked = 0
    try:
        while block := stream.read(size):
            for start in range(0, len(block), ZSTD_SLICE):
                chunk = block[start : start + ZSTD_SLICE]
                packed += len(chunk)
                while chunk:
                    inside = True
                    data = decoder.decompress(chunk)
                    unpacked += len(data)
                    check_ratio(name, unpacked, packed, max_ratio)
                    if data:
                        yield data
                    chunk = decoder.unused_data if decoder.eof else b""
                    if decoder.eof:
                        decoder = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
                        inside = False
    except zstandard.ZstdError as error:
        raise DataError(f"{name} is not valid zstd ({error}); fetch the file again") from error
    if inside:
        raise DataError(f"{name} is cut off in the middle of a zstd frame; fetch the file again")


def whole_file_units(
    files: list[ListedFile], params: dict[str, Any], identify: Identify, unit_bytes: int = UNIT_BYTES
) -> list[SourceUnit]:
    """Return units of files that cannot be entered in the middle: one a file, small neighbours batched together."""
    specs: list[SourceUnit] = []
    batch: list[Artifact] = []
    for full, name in files:
        digest, size = identify_file(full, params, identify)
        if batch and sum(a.bytes for a in batch) + size > unit_bytes:
            specs.append(batch_unit(batch, params))
            batch = []
        batch.append(Artifact(full, digest, name=name, bytes=size))
    return [*specs, batch_unit(batch, params)] if batch else specs


def batch_unit(batch: list[Artifact], params: dict[str, Any]) -> SourceUnit:
    names = [a.name for a in batch]
    more = f"+{len(names) - 1}" if len(names) > 1 else ""
    return SourceUnit(names[0] + more, batch, {**params, "files": names}, sum(a.bytes for a in batch))
