"""A store in a bucket: units are written to scratch space and uploaded, published builds are copies inside the bucket.

<out>/<recipe>/builds/<folder>-<hash>/<file>   a build: its name is a hash of its contents, and it never changes
<out>/<recipe>/builds/<folder>-<hash>.json     its files with size and etag, put when all of them are there
<out>/<recipe>/<folder>.json                   the same of the build that is published: the pointer, put last
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

from pipeline.engine.store import (
    EVENTS,
    INPUTS,
    RECORD,
    RUNNING,
    STAMP,
    UNITS,
    FileState,
    Store,
    StoredFile,
    StoredFolder,
    StoredUnit,
)
from stages.errors import TransientError
from stages.stage import Record
from stages.task import Artifact
from train.bucket import Bucket, StoredObject
from train.data.manifest import RECIPE
from train.sealed import parse_sealed, sealed_text

BUILDS = "builds"
COPIES = 8  # at a time
TRIES = 5  # of putting a record whose place changes hands


class ObjectStore(Store):
    """`<out>` is an address in a bucket, such as `s3://bucket/prefix`."""

    local = False

    def __init__(self, uri: str):
        self.bucket = Bucket(uri)
        out = f"{self.bucket.base}/{self.bucket.key(uri)}".rstrip("/")
        super().__init__(out)
        # Of the stages whose objects were listed: a hash of each output's path and state. Some 80 bytes each.
        self._listed: set[int] = set()

    def read(self, path: str) -> bytes:
        """Return the contents of an object. Raises FileNotFoundError."""
        return self.bucket.get(path)

    def write(self, path: str, text: str) -> None:
        """Write a small object; an upload is atomic."""
        self.bucket.put(path, text.encode())

    def stat(self, path: str) -> FileState:
        """Return size and etag of an object. Raises FileNotFoundError."""
        facts = self.bucket.head(path)
        return FileState(facts.size, facts.stamp)

    def sha256(self, path: str) -> str:
        """Read an object and return its sha256."""
        with Path(self.local_copy(path)).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def names(self, folder: str) -> list[str]:
        """List the names in `folder`; none if it is not there."""
        return self.bucket.names(folder)

    def local_copy(self, path: str) -> str:
        """Return a local path for an object of the store, or a file of a source; copied to scratch space once."""
        if not path.startswith(f"{self.out}/"):
            return super().local_copy(path)
        return self.scratch.copy(path, lambda target: self.bucket.download(path, target))

    def read_bytes(self, artifact: Artifact, start: int, stop: int) -> bytes:
        """Return the bytes [start, stop) of an output of the store."""
        return self.bucket.get_range(self.absolute(artifact), start, stop)

    # -- units ---------------------------------------------------------------------------------------

    def list_outputs(self, stage: str) -> None:
        """List a stage's objects, so that looking its units up takes one request each, and none for an output."""
        for found in self.bucket.objects(f"{self.root}/{stage}"):
            self._listed.add(hash((found.path, found.size, found.stamp)))

    def _intact(self, artifact: Artifact) -> bool:
        seen = hash((self.absolute(artifact), artifact.bytes, artifact.meta.get(STAMP)))
        return seen in self._listed or super()._intact(artifact)

    def attempt_folder(self, stage: str, key: str) -> Path:
        """Return a new folder in scratch space."""
        return self.scratch.new_folder()

    def put_output(self, stage: str, key: str, file: Path) -> tuple[str, str]:
        """Upload an output. Returns its path in the store and its etag."""
        target = f"{self.folder(stage, key)}/{file.name}"
        return target, self.bucket.put(target, file)

    def put_record(self, record: Record) -> Record:
        """Commit a unit by an object that only one of several attempts can make. The first valid record wins.

        What is there already may be ours, where the store's answer was lost, or of outputs that are gone.
        """
        path, text = f"{self.folder(record.stage, record.key)}/{RECORD}", sealed_text(record.to_dict()).encode()
        for _ in range(TRIES):
            try:
                self.bucket.put(path, text, create=True)
                return record
            except NotImplementedError:  # one run at a time then: see pipeline/engine/leases.py
                self.bucket.put(path, text)
                return record
            except FileExistsError:
                first, had_record = self.look(record.stage, record.key)
            if first is not None:
                if first.attempt != record.attempt:
                    self.bucket.delete([self.absolute(output) for output in record.outputs])
                return first
            if had_record:
                self.bucket.delete([path])
        raise TransientError(f"{path}: other attempts make and delete it all the time")

    def forget(self, stage: str, key: str) -> None:
        """Delete a unit, outputs and all; published builds have their own copies."""
        folder = self.folder(stage, key)
        self.remove(StoredFolder(folder, [as_file(found) for found in self.bucket.objects(folder)]))

    def units(self) -> Iterator[StoredUnit]:
        """Yield every unit of the store, with its objects, from one list of all of them."""

        def unit_of(found: StoredObject) -> tuple[str, ...]:
            return tuple(found.path.removeprefix(f"{self.root}/").split("/")[:3])  # stage, two digits of the key, key

        for place, objects in groupby(self.bucket.objects(self.root), unit_of):
            if len(place) == 3 and place[0] not in (RUNNING, INPUTS, EVENTS):
                files = [as_file(found) for found in objects]
                yield StoredUnit(place[0], place[2], StoredFolder("/".join([self.root, *place]), files))

    def remove(self, folder: StoredFolder) -> None:
        """Delete the objects of a folder, a record before the outputs that it names."""
        paths = [file.path for file in folder.files]
        self.bucket.delete(sorted(paths, key=lambda path: (not path.endswith(f"/{RECORD}"), path)))

    # -- builds --------------------------------------------------------------------------------------

    def publish(self, recipe: str, folder: str, files: Mapping[str, Artifact] | str) -> bool:
        """Copy `files` into a build of their own, the manifest last, then point to it. True if anything changed.

        A file of the build that is not the one that was copied, by size and etag, is copied again.
        """
        if isinstance(files, str):
            link = f"{self.out}/{recipe}/{folder}.json"
            text = sealed_text({"run": f"{self.root}/{files}"})
            with contextlib.suppress(FileNotFoundError):
                if self.read(link) == text.encode():
                    return False
            self.write(link, text)
            return True
        hashes = json.dumps({name: artifact.sha256 for name, artifact in sorted(files.items())})
        name = f"{folder.replace('/', '-')}-{hashlib.sha256(hashes.encode()).hexdigest()[:16]}"
        base, build = f"{self.out}/{recipe}", f"{self.out}/{recipe}/{BUILDS}/{name}"
        pointer = self._read_index(f"{base}/{folder}.json")
        index = pointer if pointer.get("build") == name else self._read_index(f"{build}.json")
        there = self._states(build)
        wanted = {file: state for file, state in index.get("files", {}).items() if there.get(file) == state}
        missing = sorted(files.keys() - wanted.keys(), key=lambda file: (file == "manifest.json", file))
        if missing:
            self._copy({f"{build}/{file}": files[file] for file in missing})
            there = self._states(build)
            sizes = {file: [artifact.bytes] for file, artifact in files.items()}
            if sizes != {file: there.get(file, [-1])[:1] for file in files}:
                raise TransientError(
                    f"{build}: the copies in it are not there, or have other sizes than what was copied"
                )
        index = {"build": name, "files": {file: there[file] for file in sorted(files)}}
        if missing:
            self.write(f"{build}.json", sealed_text(index))
        if pointer != index:
            self.write(f"{base}/{folder}.json", sealed_text(index))
        return bool(missing) or pointer != index

    def _copy(self, targets: Mapping[str, Artifact]) -> None:
        """Copy artifacts of the store, several at a time; the last one when all others are there."""
        *paths, last = targets
        with ThreadPoolExecutor(COPIES) as pool:
            list(pool.map(lambda path: self.bucket.copy(self.absolute(targets[path]), path), paths))
        self.bucket.copy(self.absolute(targets[last]), last)

    def _states(self, build: str) -> dict[str, list[Any]]:
        """Return file -> [size, etag] of what is in a build."""
        return {found.path.removeprefix(f"{build}/"): [found.size, found.stamp] for found in self.bucket.objects(build)}

    def _read_index(self, path: str) -> dict[str, Any]:
        """Return what a pointer, or the list of a build, says; nothing where there is none or it is damaged."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            index = parse_sealed(self.read(path))
            if isinstance(index.get("build"), str) and isinstance(index.get("files"), dict):
                return index
        return {}

    def published(self, recipe: str, folder: str) -> dict[str, str]:
        """Return name -> path of the objects that are published as `<out>/<recipe>/<folder>`; none if there are none.

        `builds/<name>` is a build itself.
        """
        index = self._read_index(f"{self.out}/{recipe}/{folder}.json")
        return {file: f"{self.out}/{recipe}/{BUILDS}/{index['build']}/{file}" for file in index.get("files", {})}

    def unused_builds(self) -> Iterator[StoredFolder]:
        """Yield published builds that no pointer names."""
        for recipe in sorted(self.names(self.out)):
            base = f"{self.out}/{recipe}"
            if base == self.root:
                continue
            used: set[str] = set()
            builds: dict[str, list[StoredFile]] = {}
            for found in self.bucket.objects(base):
                place, _, rest = found.path.removeprefix(f"{base}/").partition("/")
                if place == BUILDS:
                    builds.setdefault(rest.split("/")[0].removesuffix(".json"), []).append(as_file(found))
                elif place not in (UNITS, RECIPE) and found.path.endswith(".json"):
                    used.add(self._read_index(found.path).get("build", ""))
            for name in sorted(builds.keys() - used):
                yield StoredFolder(f"{base}/{BUILDS}/{name}", builds[name])

    def linked_units(self, recipe: str) -> Iterator[tuple[str, str]]:
        """Yield nothing: a bucket has no links."""
        return iter(())


def as_file(found: StoredObject) -> StoredFile:
    """Return a file of the store as a list of the bucket shows it."""
    return StoredFile(found.path, found.size, found.modified)
