"""The store: outputs of units under their keys, records beside them, and the folders people use.

    <out>/store/<stage>/<k>/<key>/<attempt>.<file>   an output; its name is unique to the attempt
    <out>/store/<stage>/<k>/<key>/record.json        put last; names the outputs; the first valid one wins
    <out>/<recipe>/<folder>                          a link to an immutable build of hard links

No rename is needed to commit, so an object store works as a disk does; there the published folders are
copies, with the manifest put last.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from stages.sources.files import remote_identity
from stages.stage import Record
from stages.task import Artifact
from train.files import fsync_path, sha256_file, write_atomic

RECORD = "record.json"
RUNNING = "running"  # a file here, and a lock on it, for each run
LOCK = "lock"  # held by all who use the store; see pipeline/engine/locks.py
UNITS = "units"  # <out>/<recipe>/units/<stage>.json: the units of the last build
BIG = 1 << 20  # input files above this have their digest cached


class Store:
    """`<out>` and all below it, local or behind an fsspec URI."""

    def __init__(self, out: str):
        self.fs, root = fsspec.core.url_to_fs(out)
        self.local = isinstance(self.fs, LocalFileSystem)
        self.out = os.path.abspath(root) if self.local else root.rstrip("/")  # noqa: PTH100 - keep links
        self.uri = self.out if self.local else out.rstrip("/")
        self.root = f"{self.out}/store"
        self.read: dict[str, tuple[str, str]] = {}  # outputs of a copied store that were read: stamp, sha256
        self.scratch: str | None = None

    # -- units ---------------------------------------------------------------------------------------

    def folder(self, stage: str, key: str) -> str:
        """Where the unit's outputs and record lie."""
        return f"{self.root}/{stage}/{key[:2]}/{key}"

    def absolute(self, artifact: Artifact) -> str:
        """The artifact's full path in this store; source files are already absolute."""
        path = artifact.path
        return path if path.startswith("/") or "://" in path else f"{self.root}/{path}"

    def find(self, stage: str, key: str) -> Record | None:
        """The unit's record, if it is there and its outputs are: existence, length, and time or etag.

        An output whose time differs from the record's (a copied store) is read once and must have its sha256.
        """
        return self.look(stage, key)[0]

    def look(self, stage: str, key: str) -> tuple[Record | None, bool]:
        """What `find` gives, and whether there is a record at all, whatever became of its outputs."""
        path = f"{self.folder(stage, key)}/{RECORD}"
        try:
            raw = Path(path).read_bytes() if self.local else self.fs.cat_file(path)
        except FileNotFoundError:
            return None, False
        try:
            record = Record.from_dict(json.loads(raw))
        except (ValueError, TypeError, KeyError):
            return None, True
        files = {a.path: a for a in record.outputs}  # slices of one file share it
        return (record if all(map(self._intact, files.values())) else None), True

    def _intact(self, artifact: Artifact) -> bool:
        path = self.absolute(artifact)
        try:
            info = self.stat(path)
        except FileNotFoundError:
            return False
        if info["size"] != artifact.bytes:
            return False
        if info["stamp"] == artifact.meta.get("stamp") or self.read.get(path) == (info["stamp"], artifact.sha256):
            return True
        if self.sha256(path) != artifact.sha256:
            return False
        self.read[path] = (info["stamp"], artifact.sha256)
        return True

    def stat(self, path: str) -> dict[str, Any]:
        """size, and a stamp that changes when the file does (mtime in ns, or an etag)."""
        if self.local:
            info = os.stat(path)  # noqa: PTH116 - a hot path: one call per output
            return {"size": info.st_size, "stamp": str(info.st_mtime_ns)}
        info = self.fs.info(path)
        stamp = info.get("ETag") or info.get("etag") or info.get("md5") or info.get("created") or ""
        return {"size": info["size"], "stamp": str(stamp)}

    def sha256(self, path: str) -> str:
        """sha256 of a stored file."""
        if self.local:
            return sha256_file(path)
        with self.fs.open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def attempt_folder(self, stage: str, key: str) -> Path:
        """A local folder to write outputs into: the unit's own, or scratch space for a remote store."""
        if self.local:
            folder = Path(self.folder(stage, key))
            folder.mkdir(parents=True, exist_ok=True)
            return folder
        return Path(tempfile.mkdtemp(prefix="shardmill-"))

    def seal(self, stage: str, key: str, artifact: Artifact, sha256: str) -> Artifact:
        """Move a finished output into the store and make it durable. `artifact.path` is local."""
        target = artifact.path
        if self.local:
            with Path(target).open("rb") as file:
                os.fsync(file.fileno())
        else:
            target = f"{self.folder(stage, key)}/{Path(artifact.path).name}"
            self.fs.put_file(artifact.path, target)
        info = self.stat(target)
        size = Path(artifact.path).stat().st_size
        relative = target.removeprefix(self.root + "/")
        meta = {**artifact.meta, "stamp": info["stamp"]}
        return replace(artifact, path=relative, bytes=size, sha256=sha256, digest=artifact.digest or sha256, meta=meta)

    def forget(self, stage: str, key: str) -> None:
        """Delete a unit, outputs and all; published folders keep their own links to them."""
        folder = self.folder(stage, key)
        if self.fs.exists(folder):
            self.fs.rm(folder, recursive=True)

    def put_record(self, record: Record) -> Record:
        """Commit: the first valid record wins, and is returned."""
        folder = self.folder(record.stage, record.key)
        text = json.dumps(record.to_dict(), sort_keys=True)
        if not self.local:
            found = self.find(record.stage, record.key)
            if found is None:
                self.fs.pipe_file(f"{folder}/{RECORD}", text.encode())
            return found or record
        temporary = Path(folder) / f"{record.attempt}.{RECORD}"
        write_atomic(temporary, text, sync_name=False)  # the record's own name is synced below
        final = Path(folder) / RECORD
        try:
            os.link(temporary, final)
        except FileExistsError:
            found = self.find(record.stage, record.key)
            if found is not None:
                temporary.unlink()
                return found
            temporary.replace(final)  # the record that stood there names outputs that are gone
        else:
            temporary.unlink()
        fsync_path(Path(folder))
        return record

    def fetch(self, artifact: Artifact) -> str:
        """A local path for an artifact or source file; remote ones are copied to scratch space once."""
        path = self.absolute(artifact)
        if "://" not in path and (self.local or artifact.path.startswith("/")):
            return path
        fs, remote = (self.fs, path) if "://" not in path else fsspec.core.url_to_fs(path)
        if self.scratch is None:
            self.scratch = tempfile.mkdtemp(prefix="shardmill-")
        suffix = "".join(Path(remote).suffixes[-2:])
        target = Path(self.scratch) / (hashlib.sha256(path.encode()).hexdigest()[:24] + suffix)
        if not target.exists():
            fs.get_file(remote, str(target) + ".part")
            Path(str(target) + ".part").replace(target)
        return str(target)

    def drop_scratch(self) -> None:
        """Delete what `fetch` copied."""
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)
            self.scratch = None

    # -- inputs --------------------------------------------------------------------------------------

    def identify(self, path: str, *, remember: bool = True) -> tuple[str, int]:
        """(digest of the contents, bytes) of a source file.

        Local: sha256, cached by size and time for files above 1 MiB; `remember` puts a new one into the cache.
        Remote: what its file system says of its version, and its size.
        """
        if "://" in path and not path.startswith("file://"):
            return remote_identity(path)
        path = path.removeprefix("file://")
        info = Path(path).stat()
        if info.st_size < BIG or not self.local:
            return sha256_file(path), info.st_size
        cache = Path(self.root) / "inputs" / f"{hashlib.sha256(path.encode()).hexdigest()[:32]}.json"
        stamp = {"size": info.st_size, "mtime_ns": info.st_mtime_ns, "inode": info.st_ino}
        try:
            known = json.loads(cache.read_text())
            if known["stamp"] == stamp:
                return known["sha256"], info.st_size
        except (FileNotFoundError, ValueError, KeyError):
            pass
        digest = sha256_file(path)
        if remember:
            cache.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(cache, json.dumps({"path": path, "stamp": stamp, "sha256": digest}), sync_name=False)
        return digest, info.st_size

    # -- results -------------------------------------------------------------------------------------

    def publish(self, recipe: str, folder: str, files: dict[str, Artifact] | str) -> bool:
        """Make `files` appear as `<out>/<recipe>/<folder>/`, all at once. True if anything changed.

        A text instead of files is a folder of the store to link to: a training run, which is not copied.
        """
        if isinstance(files, str):
            return switch_link(Path(self.out) / recipe / folder, Path(self.root) / files)
        if not self.local:
            return self._publish_copies(recipe, folder, files)
        names = json.dumps({name: a.sha256 for name, a in sorted(files.items())})
        build = hashlib.sha256(names.encode()).hexdigest()[:16]
        base = Path(self.out) / recipe
        name = f"{folder.replace('/', '-')}-{build}"
        linked = (base / folder).resolve()
        for target in [linked, *sorted((base / "builds").glob(f"{name}*"))]:
            if target.name.startswith(name) and all(same_file(target / n, self.absolute(a)) for n, a in files.items()):
                return switch_link(base / folder, target)
        target = base / "builds" / name
        temporary = target.with_name(f".{name}.{uuid.uuid4().hex[:8]}")
        temporary.mkdir(parents=True)
        for file, artifact in files.items():
            link_or_copy(Path(self.absolute(artifact)), temporary / file)
        try:
            temporary.rename(target)
        except OSError:  # another run built the same, or what stands there was damaged; `clean` takes it
            target = target.with_name(f"{name}-{uuid.uuid4().hex[:8]}")
            temporary.rename(target)
        return switch_link(base / folder, target)

    def _publish_copies(self, recipe: str, folder: str, files: dict[str, Artifact]) -> bool:
        base = f"{self.out}/{recipe}/{folder}"
        changed = False
        for name in sorted(files, key=lambda n: (n == "manifest.json", n)):
            artifact, target = files[name], f"{base}/{name}"
            mark = f"{target}.sha256"
            if self.fs.exists(mark) and self.fs.cat_file(mark).decode() == artifact.sha256:
                continue
            self.fs.copy(self.absolute(artifact), target)
            self.fs.pipe_file(mark, artifact.sha256.encode())
            changed = True
        return changed

    def read_state(self, recipe: str, name: str) -> Any:
        """A small JSON file of the recipe's folder, or None."""
        try:
            return json.loads(self.fs.cat_file(f"{self.out}/{recipe}/{name}"))
        except (FileNotFoundError, ValueError):
            return None

    def write_state(self, recipe: str, name: str, value: Any) -> None:
        """Write it, atomically, and only if it says something new."""
        path, text = f"{self.out}/{recipe}/{name}", json.dumps(value, sort_keys=True)
        with contextlib.suppress(FileNotFoundError):
            if self.fs.cat_file(path) == text.encode():
                return
        if self.local:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(Path(path), text, sync_name=False)
        else:
            self.fs.pipe_file(path, text.encode())

    def unit_folders(self) -> Iterator[tuple[str, str, str]]:
        """(stage, key, folder) of every unit in the store, a few thousand names in memory at a time."""
        for stage in sorted(self._names(self.root)):
            if stage in (RUNNING, "inputs", LOCK):
                continue
            for start in sorted(self._names(f"{self.root}/{stage}")):
                for key in sorted(self._names(f"{self.root}/{stage}/{start}")):
                    yield stage, key, f"{self.root}/{stage}/{start}/{key}"

    def files(self, folder: str) -> list[str]:
        """Every file below `folder`."""
        if not self.local:
            return list(self.fs.find(folder))
        return [f"{place}/{name}" for place, _, names in os.walk(folder) for name in names]

    def _names(self, folder: str) -> list[str]:
        try:
            if self.local:
                return [entry.name for entry in os.scandir(folder)]
            return [path.rstrip("/").rpartition("/")[2] for path in self.fs.ls(folder, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link, or a copy where the file system has none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def same_file(path: Path, stored: str) -> bool:
    """Whether a published file is the stored one: a link to it, or a copy of its length and time."""
    try:
        here, there = path.stat(), os.stat(stored)  # noqa: PTH116 - a text
    except FileNotFoundError:
        return False
    marks = [(info.st_size, info.st_mtime_ns) for info in (here, there)]
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino) or marks[0] == marks[1]


def switch_link(link: Path, target: Path) -> bool:
    """Point `link` at `target` atomically. True if it pointed elsewhere.

    A real folder that stands in the way is left alone: FileExistsError says so.
    """
    wanted = os.path.relpath(target, link.parent)
    if link.is_symlink() and os.readlink(link) == wanted:  # noqa: PTH115 - the text, not the path
        return False
    if link.exists() and not link.is_symlink():
        raise FileExistsError(f"{link} is a folder that Shardmill did not make; move it away")
    link.parent.mkdir(parents=True, exist_ok=True)
    temporary = link.with_name(f".{link.name}.{uuid.uuid4().hex[:8]}")
    temporary.symlink_to(wanted)
    temporary.replace(link)
    return True
