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
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec

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
READERS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json_array",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".md": "text",
    ".warc": "warc",
    ".wet": "warc",
}
NOTES: ContextVar[list[str] | None] = ContextVar("notes", default=None)  # takes what people should know of a listing


class Listing(NamedTuple):
    """What one path stands for: files, and of a folder how many it has of other endings (ending -> files)."""

    files: list[ListedFile]
    left_out: Counter[str]


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

    A folder is searched for `suffixes` at any depth, hidden files aside; a file or a glob is taken as it is. A file
    that several of the paths or links lead to is read once, by the first of its names. A name that is no UTF-8 is
    escaped in the lineage. What is left out goes to NOTES. Raises DataError when nothing matches, at a link out of the
    folder unless `follow_links`, and at what is no regular file.
    """
    found: dict[str, str] = {}
    name_of: dict[str, str] = {}  # by what tells a file from all others
    folders: dict[str, str] = {}
    again = []
    for one in [path] if isinstance(path, str) else path:
        listing = files_at_path(one, suffixes, options or {}, revision, follow_links)
        if not listing.files:
            raise DataError(no_files(one, suffixes, listing.left_out))
        if listing.left_out:
            note(f"{paths.escaped(one)}: {in_words(listing.left_out)} left out; name them in `path` to read them")
        for full, raw_name in sorted(listing.files, key=lambda pair: pair[1]):
            name = paths.escaped(raw_name)
            identity = full if is_remote(full) else file_identity(full, folders)
            if name_of.setdefault(identity, name) != name:
                again.append(name)
            elif found.setdefault(name, full) != full and identity != file_identity(found[name], folders):
                raise DataError(
                    f"{paths.escaped(found[name])} and {paths.escaped(full)} would both be called {name}; "
                    "list their folder"
                )
    if again:
        more = f" and {len(again) - 1:,} more" if len(again) > 1 else ""
        note(f"{again[0]}{more}: read once, though `path` or a link leads to the same file again")
    return sorted(((full, name) for name, full in found.items()), key=lambda pair: pair[1])


def file_identity(path: str, folders: dict[str, str]) -> str:
    """Return what tells a local file from all others: its path without links, or its inode where it has several names.

    `folders` remembers what its folders are without links.
    """
    facts = os.stat(path)  # noqa: PTH116 - a hot path: one call a file
    if facts.st_nlink > 1:
        return f"{facts.st_dev}:{facts.st_ino}"
    if os.path.islink(path):  # noqa: PTH114 - a hot path: one call a file
        return os.path.realpath(path)
    folder, _, name = path.rpartition("/")
    if folder not in folders:
        folders[folder] = os.path.realpath(folder or "/")
    return f"{folders[folder]}/{name}"


def with_notes(list_units: Callable[[], list[SourceUnit]]) -> tuple[list[SourceUnit], list[str]]:
    """Return what `list_units` lists, and what people should know of it. Raises as it does."""
    notes: list[str] = []
    token = NOTES.set(notes)
    try:
        return list_units(), notes
    finally:
        NOTES.reset(token)


def note(text: str) -> None:
    """Tell whoever lists sources what a person should know of them."""
    notes = NOTES.get()
    if notes is not None:
        notes.append(text)


def in_words(left_out: Counter[str]) -> str:
    """Say how many files of which other endings a folder has."""
    total = left_out.total()
    kinds = [f"{count:,} {ending or 'without one'}" for ending, count in left_out.most_common(4)]
    rest = ", ..." if len(left_out) > 4 else ""
    return f"{total:,} file{'s' * (total != 1)} of other endings ({', '.join(kinds)}{rest})"


def no_files(path: str, suffixes: tuple[str, ...], left_out: Counter[str]) -> str:
    """Return the message about a path without files: where it was looked for, and what is there instead."""
    place = "" if is_remote(path) or local_path(path).startswith("/") else f" (that is {file_system(path)[1]})"
    readers = [f"`from: {kind}` reads {ending}" for ending, kind in READERS.items() if left_out[ending]]
    there = "; ".join(["", f"there are {in_words(left_out)}", *readers]) if left_out else ""
    return paths.escaped(f"no files match {path}{place}; check `path` (looked for {', '.join(suffixes)}){there}")


def files_at_path(
    path: str, suffixes: tuple[str, ...], options: Mapping[str, Any], revision: str, follow_links: bool
) -> Listing:
    """Return files at one path. Raises DataError when its file system is unknown or cannot be asked."""
    try:
        if path.startswith(hub.PROTOCOL):
            path = hub.pin_address(path, revision)
            with hub.explain_errors(path):
                return search_files(path, *file_system(path, options), suffixes, follow_links)
        return search_files(path, *file_system(path, options), suffixes, follow_links)
    except FileNotFoundError:
        return Listing([], Counter())
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


def search_files(path: str, fs: Any, inner: str, suffixes: tuple[str, ...], follow_links: bool) -> Listing:
    """Return the files that `inner`, in `fs`, stands for, by full path or URI and name relative to the root."""
    remote = is_remote(path)
    root, pattern = paths.split_pattern(fs, inner)
    left_out: Counter[str] = Counter()
    if pattern:
        found = paths.glob_below(fs, root, pattern)  # which calls a link to a file a link
        names = [name for name, facts in found.items() if (facts["type"] == "file" if remote else not is_folder(name))]
    elif fs.isdir(inner):
        root = inner.rstrip("/")
        names = fs.find(inner) if remote else local_files(root or "/")
    elif fs.exists(inner) or (not remote and os.path.lexists(inner)):
        root, names = inner.rpartition("/")[0], [inner]
        follow_links = True  # it was named itself
    else:
        return Listing([], left_out)
    files = []
    for name in names:
        relative = name[len(root) :].lstrip("/")
        if any(part.startswith(".") for part in relative.split("/")) and names != [inner]:
            continue
        if not pattern and names != [inner] and not name.lower().endswith(suffixes):
            is_link = not remote and os.path.islink(name) and is_folder(name)  # noqa: PTH114 - a hot path
            left_out["links to folders" if is_link else Path(name).suffix.lower()] += 1
            continue
        if not remote:
            check_file(root, name, follow_links)
        files.append((fs.unstrip_protocol(name) if remote else name, relative))
    return Listing(files, left_out)


def local_files(folder: str) -> list[str]:
    """Return all files below a local folder, hidden ones aside, and links to folders, which are not entered.

    Raises DataError at a folder that cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise DataError(f"{paths.escaped(str(error.filename))} cannot be listed ({error.strerror}); make it readable")

    names = []
    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [name for name in folders if os.path.islink(f"{parent}/{name}")]  # noqa: PTH114 - a hot path
        names += [f"{parent.rstrip('/')}/{name}" for name in (*files, *links)]
    return names


def is_folder(name: str) -> bool:
    """Return whether a local name is a folder's."""
    return Path(name).is_dir()


def check_file(root: str, name: str, follow_links: bool) -> None:
    """Raise DataError when a local name below `root` is no regular file, or a link out of it that is not followed."""
    if not follow_links:
        check_link(root, name)
    try:
        found = Path(name).stat()
    except FileNotFoundError:
        raise DataError(f"{paths.escaped(name)} is a link to what is not there; mend it or take it away") from None
    except OSError as error:
        raise DataError(f"{paths.escaped(name)} cannot be read ({error.strerror})") from error
    if stat.S_ISDIR(found.st_mode):
        raise DataError(f"{paths.escaped(name)} is a link to a folder; name that folder in `path`")
    if kind := what_instead(name, found):
        raise DataError(
            f"{paths.escaped(name)} is {kind}, which cannot be read twice and has no size; write it to a file first"
        )


def what_instead(name: str, found: os.stat_result) -> str:
    """Return what a local name is that is no file on a disk, for people, or ""."""
    if not stat.S_ISREG(found.st_mode):
        return "a FIFO" if stat.S_ISFIFO(found.st_mode) else "a socket" if stat.S_ISSOCK(found.st_mode) else "a device"
    is_made_up = found.st_size == 0 and os.statvfs(name).f_blocks == 0  # as /proc and /sys have them
    return "made up by the kernel" if is_made_up else ""


def check_link(root: str, name: str) -> None:
    """Raise DataError when a file below `root` is a link that leads out of it."""
    inside, target = os.path.realpath(root), os.path.realpath(name)
    if os.path.commonpath([inside, target]) != inside:
        raise DataError(
            f"{paths.escaped(name)} is a link out of {paths.escaped(root)}; put the file itself there, or set "
            "follow_links: true"
        )


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
    """Return the unit that reads some small files."""
    names = [a.name for a in batch]
    more = f"+{len(names) - 1}" if len(names) > 1 else ""
    return SourceUnit(names[0] + more, batch, {**params, "files": names}, sum(a.bytes for a in batch))
