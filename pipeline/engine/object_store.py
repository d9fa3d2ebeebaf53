"""A store behind an fsspec URI: units are written to scratch space and uploaded, published folders are copies."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path

import fsspec

from pipeline.engine.sealed import sealed_text
from pipeline.engine.store import RECORD, FileState, Store
from stages.paths import has_wildcard
from stages.stage import Record
from stages.task import Artifact


class ObjectStore(Store):
    """`<out>` is a URI. `<out>/<recipe>/<folder>` holds copies, each with a file `<name>.sha256` beside it."""

    local = False

    def __init__(self, uri: str, fs: fsspec.AbstractFileSystem, path: str):
        super().__init__(fs, path.rstrip("/"), uri.rstrip("/"))

    def read(self, path: str) -> bytes:
        """Return the contents of an object. Raises FileNotFoundError."""
        contents: bytes = self.fs.cat_file(path)
        return contents

    def write(self, path: str, text: str) -> None:
        """Write a small object; an upload is atomic."""
        self.fs.pipe_file(path, text.encode())

    def stat(self, path: str) -> FileState:
        """Return size and etag of an object. Raises FileNotFoundError."""
        info = self.fs.info(path)
        stamp = info.get("ETag") or info.get("etag") or info.get("md5") or info.get("created") or ""
        return FileState(info["size"], str(stamp))

    def sha256(self, path: str) -> str:
        """Read an object and return its sha256."""
        with self.fs.open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def files(self, folder: str) -> list[str]:
        """List every object below `folder`."""
        return list(self.fs.find(folder))

    def names(self, folder: str) -> list[str]:
        """List the names in `folder`; none if it is not there."""
        try:
            return [path.rstrip("/").rpartition("/")[2] for path in self.fs.ls(folder, detail=False)]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def attempt_folder(self, stage: str, key: str) -> Path:
        """Return a new folder in scratch space."""
        return Path(tempfile.mkdtemp(dir=self.scratch_folder()))

    def put_output(self, stage: str, key: str, file: Path) -> str:
        """Upload an output. Returns its path in the store."""
        target = f"{self.folder(stage, key)}/{file.name}"
        self.fs.put_file(str(file), target)
        return target

    def put_record(self, record: Record) -> Record:
        """Commit a unit, unless it has a valid record, which is returned."""
        first = self.find(record.stage, record.key)
        if first is None:
            text = sealed_text(record.to_dict())
            self.write(f"{self.folder(record.stage, record.key)}/{RECORD}", text)
        return first or record

    def remove(self, folder: str) -> None:
        """Delete all objects below `folder`, whatever characters are in it: `rm` would take brackets for a pattern."""
        if not has_wildcard(folder):
            self.fs.rm(folder, recursive=True)
        elif files := self.files(folder):
            for file in files:
                self.fs.rm_file(file)
        else:
            self.fs.rm_file(folder)

    def fetch(self, artifact: Artifact) -> str:
        """Return a local path for an artifact or source file; remote ones are copied to scratch space once."""
        path = self.absolute(artifact)
        if path.startswith(f"{self.root}/"):
            return self._fetch_from(self.fs, path, address=path)
        return super().fetch(artifact)

    def publish(self, recipe: str, folder: str, files: Mapping[str, Artifact] | str) -> bool:
        """Copy `files` to `<out>/<recipe>/<folder>/`, the manifest last. True if anything changed."""
        if isinstance(files, str):
            raise ValueError(f"{self.uri} is an object store, which has no link to {files}")
        changed = False
        for name in sorted(files, key=lambda name: (name == "manifest.json", name)):
            artifact, target = files[name], f"{self.out}/{recipe}/{folder}/{name}"
            mark = f"{target}.sha256"
            if self.fs.exists(mark) and self.read(mark).decode() == artifact.sha256:
                continue
            self.fs.cp_file(self.absolute(artifact), target)  # `copy` would take brackets for a pattern
            self.write(mark, artifact.sha256)
            changed = True
        return changed
