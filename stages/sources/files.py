"""Files of a source: finding them, opening them wherever they are, batching small ones into units.

Everything goes through fsspec, so a path may be local, `memory://`, `s3://` or `hf://`. A file's name in the
lineage is relative to the source's root: the folder given, or the part of a glob before its first wildcard.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import fsspec
import zstandard

from stages.base import Artifact, DataError, TransientError
from stages.sources.base import UNIT_BYTES, Identify, UnitSpec

MAGIC = "*?["


def list_files(path: str | list[str], suffixes: tuple[str, ...]) -> list[tuple[str, str]]:
    """(full path or URI, name relative to the root) of each file, sorted by name.

    A folder is searched for `suffixes` at any depth, hidden files aside; a file or a glob is taken as it is.
    Raises DataError when nothing matches.
    """
    found: dict[str, str] = {}
    for one in [path] if isinstance(path, str) else path:
        matches = _matches(one, suffixes)
        if not matches:
            raise DataError(f"no files match {one}; check `path` (looked for {', '.join(suffixes)})")
        for full, name in matches:
            if found.setdefault(name, full) != full:
                raise DataError(f"{found[name]} and {full} would both be called {name}; list their folder")
    return sorted(((full, name) for name, full in found.items()), key=lambda pair: pair[1])


def _matches(path: str, suffixes: tuple[str, ...]) -> list[tuple[str, str]]:
    """Files at one path. Raises DataError when its file system is unknown or cannot be asked."""
    try:
        fs, inner = fsspec.core.url_to_fs(path)
        return _search(fs, inner, suffixes, remote="://" in path)
    except FileNotFoundError:
        return []
    except ImportError as error:
        raise DataError(f"{path}: {error}; install what it names into this environment") from error
    except Exception as error:  # every remote file system raises its client's own kinds
        if "://" not in path:
            raise
        what = (str(error).splitlines() or [""])[0][:200]
        raise DataError(
            f"{path} cannot be listed ({type(error).__name__}: {what}); check the address, the network and access"
        ) from error


def _search(fs: Any, inner: str, suffixes: tuple[str, ...], *, remote: bool) -> list[tuple[str, str]]:
    if any(c in inner for c in MAGIC):
        first = next(i for i, c in enumerate(inner) if c in MAGIC)
        root = inner[:first].rpartition("/")[0]
        names = [n for n, info in fs.glob(inner, detail=True).items() if info["type"] == "file"]
    elif fs.isdir(inner):
        root = inner.rstrip("/")
        names = [n for n in fs.find(inner) if n.endswith(suffixes)]
    elif fs.exists(inner):
        root, names = inner.rpartition("/")[0], [inner]
    else:
        return []
    out = []
    for name in names:
        relative = name[len(root) :].lstrip("/")
        if not any(part.startswith(".") for part in relative.split("/")):
            out.append((fs.unstrip_protocol(name) if remote else name, relative))
    return out


@contextlib.contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """The file at `path` for reading, seekable where its file system can.

    A missing file is a DataError; any other OSError of a remote file system is transient.
    """
    try:
        if "://" in path:
            with fsspec.open(path, "rb") as stream:
                yield stream
        else:
            with Path(path).open("rb") as stream:
                yield stream
    except (FileNotFoundError, PermissionError) as error:
        raise DataError(f"{path} cannot be opened ({error}); it was there when the run was planned") from error
    except OSError as error:
        # Decoders raise OSError's subclasses too (gzip, pyarrow): their callers turn those into DataError first.
        if "://" in path:
            raise TransientError(f"{path}: {error}") from error
        raise


def unzstd(stream: IO[bytes], name: str, size: int = 1 << 20) -> Iterator[bytes]:
    """The decompressed bytes of all zstd frames in `stream`. Raises DataError when the last one is cut off.

    `zstandard`'s own reader ends quietly at a cut, which would lose rows without a word.
    """
    decoder = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
    inside = False
    try:
        while chunk := stream.read(size):
            while chunk:
                inside = True
                yield decoder.decompress(chunk)
                chunk = decoder.unused_data if decoder.eof else b""
                if decoder.eof:
                    decoder = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
                    inside = False
    except zstandard.ZstdError as error:
        raise DataError(f"{name} is not valid zstd ({error}); fetch the file again") from error
    if inside:
        raise DataError(f"{name} is cut off in the middle of a zstd frame; fetch the file again")


def whole_files(
    files: list[tuple[str, str]], params: dict[str, Any], identify: Identify, unit_bytes: int = UNIT_BYTES
) -> list[UnitSpec]:
    """Units of files that cannot be entered in the middle: one a file, small neighbours batched together."""
    specs: list[UnitSpec] = []
    batch: list[Artifact] = []
    for full, name in files:
        digest, size = identify(full)
        if batch and sum(a.bytes for a in batch) + size > unit_bytes:
            specs.append(_batch(batch, params))
            batch = []
        batch.append(Artifact(full, digest, name=name, bytes=size))
    return [*specs, _batch(batch, params)] if batch else specs


def _batch(batch: list[Artifact], params: dict[str, Any]) -> UnitSpec:
    names = [a.name for a in batch]
    more = f"+{len(names) - 1}" if len(names) > 1 else ""
    return UnitSpec(names[0] + more, batch, {**params, "files": names}, sum(a.bytes for a in batch))
