"""The store: outputs of units under their keys, records beside them, and the folders people use.

    <out>/store/<stage>/<k>/<key>/<attempt>.<file>   an output; its name is unique to the attempt
    <out>/store/<stage>/<k>/<key>/record.json        put last; names the outputs; the first valid one wins
    <out>/<recipe>/<folder>                          what people use: links on a disk, copies in a bucket

No rename is needed to commit, so a bucket works as a disk does. `Store` has what both share; LocalStore
(pipeline/engine/local_store.py) and ObjectStore (pipeline/engine/object_store.py) have what each does in its own way.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pipeline.engine.scratch import Scratch
from pipeline.errors import UserError
from stages.paths import escaped, file_system, is_remote, is_utf8, local_path, refuse_secrets
from stages.sources.files import remote_identity
from stages.stage import Record
from stages.task import Artifact
from train.data.manifest import RECIPE, check_types, options_noted
from train.files import sha256_file
from train.sealed import is_sealed, parse_sealed, sealed_text

RECORD = "record.json"
RUNNING = "running"  # a file here, and a lock on it, for each run
LOCK = "lock"  # held by all who use the store; see pipeline/engine/locks.py
INPUTS = "inputs"  # digests of source files
EVENTS = "events"  # what befell each run on a cluster; see pipeline/engine/journal.py
UNITS = "units"  # <out>/<recipe>/units/<stage>.json: the units of the last build
STAMP = "stamp"  # key of an output's `meta`: its file's stamp when it was stored


class FileState(NamedTuple):
    """What tells whether a stored file is still the one that was written."""

    size: int
    stamp: str  # changes when the file does: time of modification in ns, or an etag


class StoredFile(NamedTuple):
    """A file of the store, and how old it is."""

    path: str
    bytes: int
    modified: datetime  # by the clock of whoever keeps it


class StoredFolder(NamedTuple):
    """A folder of a unit or of a build, and every file in it."""

    path: str
    files: list[StoredFile]

    @property
    def bytes(self) -> int:
        """Sum of the sizes of its files."""
        return sum(file.bytes for file in self.files)


class StoredUnit(NamedTuple):
    """A unit that has left anything in the store."""

    stage: str
    key: str
    folder: StoredFolder


class Store(ABC):
    """`<out>` and all below it. `open_store` chooses between LocalStore and ObjectStore."""

    local: ClassVar[bool]  # whether files of the store have paths on this machine

    def __init__(self, out: str):
        self.out = out  # an absolute path, or an address with its scheme
        self.root = f"{out}/store"
        self.scratch = Scratch()
        # Outputs of a copied store whose contents were read: state, sha256.
        self._verified: dict[str, tuple[FileState, str]] = {}

    # -- what a disk and an object store do each in their own way ------------------------------------

    @abstractmethod
    def read(self, path: str) -> bytes:
        """Return the contents of a small stored file. Raises FileNotFoundError."""

    @abstractmethod
    def write(self, path: str, text: str) -> None:
        """Write a small file, atomically."""

    @abstractmethod
    def stat(self, path: str) -> FileState:
        """Return the state of a stored file. Raises FileNotFoundError."""

    @abstractmethod
    def sha256(self, path: str) -> str:
        """Return the sha256 of a stored file."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """List the names in `folder`; none if it is not there."""

    @abstractmethod
    def attempt_folder(self, stage: str, key: str) -> Path:
        """Return a local folder to write a unit's outputs into."""

    @abstractmethod
    def put_output(self, stage: str, key: str, file: Path) -> tuple[str, str]:
        """Put a finished output, a file of the attempt folder, into the store, durably.

        Returns its path there and its stamp.
        """

    @abstractmethod
    def put_record(self, record: Record) -> Record:
        """Commit a unit. The first valid record wins, and is returned."""

    @abstractmethod
    def publish(self, recipe: str, folder: str, files: Mapping[str, Artifact] | str) -> bool:
        """Make `files` appear as `<out>/<recipe>/<folder>/`. True if anything changed.

        A text instead of files is a folder of the store to link to: a training run, which is not copied.
        """

    @abstractmethod
    def published(self, recipe: str, folder: str) -> dict[str, str]:
        """Return name -> path of the files that people find as `<out>/<recipe>/<folder>/`; none if it is not there."""

    @abstractmethod
    def units(self) -> Iterator[StoredUnit]:
        """Yield every unit of the store, with its files."""

    @abstractmethod
    def unused_builds(self) -> Iterator[StoredFolder]:
        """Yield the published builds that nothing points to any more."""

    @abstractmethod
    def linked_units(self, recipe: str) -> Iterator[tuple[str, str]]:
        """Yield (stage, key) of units that a published folder of `recipe` is a link to: training runs."""

    @abstractmethod
    def remove(self, folder: StoredFolder) -> None:
        """Delete the files of a folder, and a unit's record before its outputs."""

    # -- units ---------------------------------------------------------------------------------------

    def folder(self, stage: str, key: str) -> str:
        """Return where a unit's outputs and record lie."""
        return f"{self.root}/{stage}/{key[:2]}/{key}"

    def absolute(self, artifact: Artifact) -> str:
        """Return an artifact's full path in this store; of source files and of inputs sent it is full already."""
        path = artifact.path
        return path if path.startswith("/") or is_remote(path) else f"{self.root}/{path}"

    def list_outputs(self, stage: str) -> None:  # noqa: B027 - a disk has no need of it
        """Prepare for looking up many units of `stage`: where a look is a request, list what is there at once."""

    def find(self, stage: str, key: str) -> Record | None:
        """Return a unit's record, if it is there and its outputs are: existence, length, and time or etag.

        An output whose stamp differs from the record's (a copied store) is read once and must have its sha256.
        """
        return self.look(stage, key)[0]

    def look(self, stage: str, key: str) -> tuple[Record | None, bool]:
        """Return what `find` gives, and whether there is a record at all, be it damaged or its outputs gone."""
        try:
            raw = self.read(f"{self.folder(stage, key)}/{RECORD}")
        except FileNotFoundError:
            return None, False
        try:
            record = Record.from_dict(parse_sealed(raw))
            if (record.stage, record.key) != (stage, key):
                raise ValueError("the record of another unit")
            if not is_sealed(raw):
                check_types(record, Record, "")
        except (ValueError, TypeError, KeyError, AttributeError):
            return None, True
        by_path = {artifact.path: artifact for artifact in record.outputs}  # slices of one file share it
        return (record if all(map(self._intact, by_path.values())) else None), True

    def _intact(self, artifact: Artifact) -> bool:
        path = self.absolute(artifact)
        try:
            state = self.stat(path)
        except FileNotFoundError:
            return False
        if state.size != artifact.bytes:
            return False
        if state.stamp == artifact.meta.get(STAMP) or self._verified.get(path) == (state, artifact.sha256):
            return True
        if self.sha256(path) != artifact.sha256:
            return False
        self._verified[path] = (state, artifact.sha256)
        return True

    def seal(self, stage: str, key: str, artifact: Artifact, sha256: str) -> Artifact:
        """Put a finished output into the store; `artifact.path` is local. Returns it as the record names it."""
        file = Path(artifact.path)
        target, stamp = self.put_output(stage, key, file)
        meta = {**artifact.meta, STAMP: stamp}
        relative = target.removeprefix(self.root + "/")
        size = file.stat().st_size
        return replace(artifact, path=relative, bytes=size, sha256=sha256, digest=artifact.digest or sha256, meta=meta)

    @abstractmethod
    def forget(self, stage: str, key: str) -> None:
        """Delete a unit, outputs and all; published folders keep their own copies of them or links to them."""

    # -- inputs --------------------------------------------------------------------------------------

    def fetch(self, artifact: Artifact) -> str:
        """Return a local path for an artifact or source file; remote ones are copied to scratch space once."""
        return self.local_copy(self.absolute(artifact))

    def local_copy(self, path: str) -> str:
        """Return a local path for a file of the store, or of a source; remote ones are copied to scratch space once."""
        if not is_remote(path):
            return local_path(path)
        fs, name = file_system(path)
        return self.scratch.copy(path, lambda target: fs.get_file(name, str(target)))

    def drop_scratch(self) -> None:
        """Delete all copies of remote files."""
        self.scratch.drop()

    def identify(self, path: str, *, remember: bool = True) -> tuple[str, int]:
        """Return the digest of a source file's contents and its size in bytes.

        The digest of a local file is its sha256, and a local store remembers it unless `remember` is false; of a
        remote file it is what its file system says of its version.
        """
        if is_remote(path):
            return remote_identity(path)
        file = Path(local_path(path))
        return self.file_digest(file, remember), file.stat().st_size

    def file_digest(self, file: Path, remember: bool) -> str:
        """Return the sha256 of a local source file."""
        return sha256_file(file)

    # -- what is known of a recipe -------------------------------------------------------------------

    def read_state(self, recipe: str, name: str) -> dict[str, Any] | None:
        """Return the object in a small JSON file of the recipe's folder, None where there is no file.

        Raises ValueError at a damaged one.
        """
        try:
            return parse_sealed(self.read(f"{self.out}/{recipe}/{name}"))
        except FileNotFoundError:
            return None

    def run_options(self, recipe: str) -> str:
        """Return the options with which the results of `recipe` were last made, as far as it was noted."""
        noted = None
        with contextlib.suppress(ValueError):
            noted = self.read_state(recipe, RECIPE)
        return options_noted(noted, self.out)

    def write_state(self, recipe: str, name: str, value: dict[str, Any]) -> None:
        """Write a small JSON file of the recipe's folder, atomically, and only if it says something new."""
        path, text = f"{self.out}/{recipe}/{name}", sealed_text(value)
        with contextlib.suppress(FileNotFoundError):
            if self.read(path) == text.encode():
                return
        self.write(path, text)


def open_store(out: str) -> Store:
    """Return the store at `out`, a folder or an address in a bucket; nothing is made yet.

    Raises UserError for an empty name, and for one that is no UTF-8: records and manifests are written in it.
    """
    from pipeline.engine.local_store import LocalStore  # both build on this module
    from pipeline.engine.object_store import ObjectStore

    try:
        refuse_secrets(out)
    except ValueError as error:
        raise UserError(f"--out: {error}") from None
    if not out:
        raise UserError("--out is empty; name a folder, `.` for the one that you stand in")
    if not is_utf8(out):
        raise UserError(f"--out {escaped(out)}: the name is no UTF-8, which records and manifests are; name another")
    return ObjectStore(out) if is_remote(out) else LocalStore(file_system(out)[1])
