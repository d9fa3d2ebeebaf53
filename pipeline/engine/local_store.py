"""A store in a folder of this machine: units are written in place, and published folders are hard links."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pipeline.engine.store import (
    EVENTS,
    INPUTS,
    LOCK,
    RECORD,
    RUNNING,
    FileState,
    Store,
    StoredFile,
    StoredFolder,
    StoredUnit,
)
from stages.stage import Record
from stages.task import Artifact
from train.files import fsync_path, sha256_file, write_atomic
from train.sealed import parse_sealed, sealed_text

BIG = 1 << 20  # bytes of a source file from which its digest is remembered


class LocalStore(Store):
    """`<out>` is a folder of this machine.

    `<out>/<recipe>/<folder>` is a link to `<out>/<recipe>/builds/<folder>-<hash>`, an immutable folder of hard links.
    """

    local = True

    def __init__(self, out: str):
        super().__init__(os.path.abspath(out))  # noqa: PTH100 - keep links

    def read(self, path: str) -> bytes:
        """Return the contents of a file. Raises FileNotFoundError."""
        return Path(path).read_bytes()

    def write(self, path: str, text: str) -> None:
        """Write a small file, atomically."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(Path(path), text, sync_name=False)

    def stat(self, path: str) -> FileState:
        """Return size and time of a file. Raises FileNotFoundError."""
        info = os.stat(path)  # noqa: PTH116 - a hot path: one call per output
        return FileState(info.st_size, str(info.st_mtime_ns))

    def sha256(self, path: str) -> str:
        """Return the sha256 of a file."""
        return sha256_file(path)

    def names(self, folder: str) -> list[str]:
        """List the names in `folder`; none if it is not there."""
        try:
            return [entry.name for entry in os.scandir(folder)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def attempt_folder(self, stage: str, key: str) -> Path:
        """Return the unit's own folder, where its outputs stay."""
        folder = Path(self.folder(stage, key))
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def put_output(self, stage: str, key: str, file: Path) -> tuple[str, str]:
        """Make an output durable where it is. Returns its path and its stamp."""
        fsync_path(file)
        return str(file), self.stat(str(file)).stamp

    def put_record(self, record: Record) -> Record:
        """Commit by a hard link, which only one of several attempts can make. The first valid record wins."""
        folder = Path(self.folder(record.stage, record.key))
        temporary, final = folder / f"{record.attempt}.{RECORD}", folder / RECORD
        # The name of the record itself is synced below.
        write_atomic(temporary, sealed_text(record.to_dict()), sync_name=False)
        try:
            os.link(temporary, final)
        except FileExistsError:
            first = self.find(record.stage, record.key)
            if first is not None:
                temporary.unlink()
                return first
            temporary.replace(final)  # the record that stood there names outputs that are gone
        else:
            temporary.unlink()
        fsync_path(folder)
        return record

    def forget(self, stage: str, key: str) -> None:
        """Delete a unit, outputs and all; published folders keep their own links to them."""
        folder = Path(self.folder(stage, key))
        if folder.exists():
            shutil.rmtree(folder)

    def units(self) -> Iterator[StoredUnit]:
        """Yield every unit of the store, with its files."""
        for stage in sorted(self.names(self.root)):
            if stage in (RUNNING, INPUTS, EVENTS, LOCK):
                continue
            for prefix in sorted(self.names(f"{self.root}/{stage}")):  # the first two digits of the keys
                for key in sorted(self.names(f"{self.root}/{stage}/{prefix}")):
                    yield StoredUnit(stage, key, stored_folder(f"{self.root}/{stage}/{prefix}/{key}"))

    def unused_builds(self) -> Iterator[StoredFolder]:
        """Yield published builds that no link points to."""
        for recipe in sorted({build.parent.parent for build in Path(self.out).glob("*/builds/*")}):
            linked = {path.resolve() for path in recipe.rglob("*") if path.is_symlink()}
            for build in sorted((recipe / "builds").iterdir()):
                if build.resolve() not in linked:
                    yield stored_folder(str(build))

    def linked_units(self, recipe: str) -> Iterator[tuple[str, str]]:
        """Yield (stage, key) of units in the store that a link in a recipe's folder leads to: training runs."""
        root = Path(self.root).resolve()
        for path in Path(self.out, recipe).rglob("*"):
            if path.is_symlink() and path.resolve().is_relative_to(root):
                parts = path.resolve().relative_to(root).parts  # stage, two digits of the key, the key
                if len(parts) >= 3:
                    yield parts[0], parts[2]

    def remove(self, folder: StoredFolder) -> None:
        """Delete a folder, or a single file."""
        if Path(folder.path).is_dir():
            shutil.rmtree(folder.path)
        else:
            Path(folder.path).unlink()

    def file_digest(self, file: Path, remember: bool) -> str:
        """Return the sha256 of a source file; of a big one it is known while size, time and inode stay."""
        info = file.stat()
        if info.st_size < BIG:
            return sha256_file(file)
        cache = Path(self.root) / INPUTS / f"{hashlib.sha256(os.fsencode(file)).hexdigest()[:32]}.json"
        stamp = {"size": info.st_size, "mtime_ns": info.st_mtime_ns, "inode": info.st_ino}
        try:
            known = parse_sealed(cache.read_bytes())
            if known.get("stamp") == stamp:
                return str(known["sha256"])
        except (FileNotFoundError, ValueError, KeyError):
            pass
        digest = sha256_file(file)
        if remember:
            self.write(str(cache), sealed_text({"path": str(file), "stamp": stamp, "sha256": digest}))
        return digest

    def publish(self, recipe: str, folder: str, files: Mapping[str, Artifact] | str) -> bool:
        """Make `files` appear as `<out>/<recipe>/<folder>/`, all at once. True if anything changed."""
        base = Path(self.out) / recipe
        if isinstance(files, str):
            return switch_link(base / folder, Path(self.root) / files)
        hashes = json.dumps({name: artifact.sha256 for name, artifact in sorted(files.items())})
        name = f"{folder.replace('/', '-')}-{hashlib.sha256(hashes.encode()).hexdigest()[:16]}"
        linked = (base / folder).resolve()
        for build in [linked, *sorted((base / "builds").glob(f"{name}*"))]:
            if build.name.startswith(name) and self._holds(build, files):
                return switch_link(base / folder, build)
        build = base / "builds" / name
        temporary = build.with_name(f".{name}.{uuid.uuid4().hex[:8]}")
        temporary.mkdir(parents=True)
        for file, artifact in files.items():
            link_or_copy(Path(self.absolute(artifact)), temporary / file)
        try:
            temporary.rename(build)
        except OSError:  # another run built the same, or what stands there was damaged; `clean` takes it
            build = build.with_name(f"{name}-{uuid.uuid4().hex[:8]}")
            temporary.rename(build)
        return switch_link(base / folder, build)

    def published(self, recipe: str, folder: str) -> dict[str, str]:
        """Return name -> path of the files in `<out>/<recipe>/<folder>/`; none if it is not there."""
        path = f"{self.out}/{recipe}/{folder}"
        return {name: f"{path}/{name}" for name in sorted(self.names(path))}

    def _holds(self, build: Path, files: Mapping[str, Artifact]) -> bool:
        """Whether a published folder has these files."""
        return all(same_file(build / name, self.absolute(artifact)) for name, artifact in files.items())


def stored_folder(path: str) -> StoredFolder:
    """Return a folder with every file below it."""
    files = []
    for parent, _, names in os.walk(path):
        for name in names:
            info = os.lstat(f"{parent}/{name}")
            files.append(StoredFile(f"{parent}/{name}", info.st_size, datetime.fromtimestamp(info.st_mtime, tz=UTC)))
    return StoredFolder(path, files)


def link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link, or a copy where the file system has none."""
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
    if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
        return True
    return (here.st_size, here.st_mtime_ns) == (there.st_size, there.st_mtime_ns)


def switch_link(link: Path, target: Path) -> bool:
    """Point `link` at `target` atomically. True if it pointed elsewhere.

    Raises FileExistsError at a real folder that stands in the way, and leaves it alone.
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
