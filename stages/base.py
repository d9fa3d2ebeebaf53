"""What a stage is made of: artifacts in, artifacts out, and the task that stands between them.

A *unit* of work is one call of a module-level function `work(task)` in some process on some machine.
It reads `task.inputs`, writes files through `task`, counts what it did, and returns nothing: the engine
hashes what was written, puts a record beside it, and that record is the only thing later stages see.

A *stage* is a name, the stages it needs, and an async function `build(context)` that runs in the driver,
cuts the work into units and awaits them. The same `build` serves `run` and the dry run of `plan`.
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.schemas import TableDigest


class DataError(Exception):
    """Permanent: the input itself is at fault. Says what, where, and how to mend it; never retried."""


class TransientError(Exception):
    """Passing: the network, a busy server, a lost worker. The engine tries again, with backoff."""


class Unfinished(Exception):  # noqa: N818 - reads as what happened
    """The unit was asked to stop before its end, and has saved what it did; never retried in the same run."""


@dataclass(frozen=True, slots=True)
class Artifact:
    """One file a unit reads or writes.

    `digest` stands for the contents: sha256 of the bytes, or the logical digest of a table (its values,
    not the parquet file's bytes). `path` is relative to the store, or absolute / a URI for source files.
    `rows_from`/`rows_to` make it a slice of a table whose digest covers that slice only.
    """

    path: str
    digest: str
    name: str = ""
    bytes: int = 0
    sha256: str = ""
    rows: int = 0
    tokens: int = 0
    rows_from: int = -1
    rows_to: int = -1
    meta: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The artifact as JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}


class TableWriter:
    """Writes a parquet file batch by batch and digests its values on the way; a context manager."""

    def __init__(self, task: Task, name: str, schema: pa.Schema, meta: dict[str, Any]):
        self.task, self.name, self.meta = task, name, meta
        self.path = task.output(name + ".parquet")
        self.digest = TableDigest(schema)
        self.rows = 0
        self.writer = pq.ParquetWriter(self.path, schema, compression="zstd", compression_level=1)
        self.schema = schema

    def write(self, table: pa.Table) -> None:
        """Append `table` (columns in the schema's order) as one row group."""
        table = table.cast(self.schema)
        self.writer.write_table(table, row_group_size=max(1, table.num_rows))
        self.digest.update(table)
        self.rows += table.num_rows

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        self.writer.close()
        if kind is None:
            self.task.add(
                self.name,
                self.path,
                digest=self.digest.hexdigest(),
                rows=self.rows,
                **self.meta,
            )


@dataclass
class Task:
    """One unit as its function sees it: parameters, inputs as local paths, and a place for outputs."""

    params: dict[str, Any]
    inputs: list[Artifact]
    folder: Path  # where outputs go
    attempt: str  # makes file names unique to this attempt
    locate: Callable[[Artifact], str]  # fetches a remote artifact into scratch space when it must
    places: dict[str, str] = field(default_factory=dict)  # paths that stay out of the key
    launch: Callable[[str, list[str], int, Path], bool] | None = None  # starts a training job
    outputs: list[Artifact] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def path(self, artifact: Artifact) -> str:
        """A local path for `artifact`, fetched first if the store is remote."""
        return self.locate(artifact)

    def output(self, filename: str) -> str:
        """A local path to write an output to. Register it with `add` once it is complete."""
        return str(self.folder / f"{self.attempt}.{filename}")

    def add(
        self, name: str, path: str, *, digest: str = "", sha256: str = "", rows: int = 0, tokens: int = 0, **meta: Any
    ) -> None:
        """Register a finished output. Without `digest` the sha256 of the file stands for it.

        `sha256`, where the writer has hashed the very bytes it wrote, saves reading them back.
        """
        self.outputs.append(Artifact(path, digest, name=name, sha256=sha256, rows=rows, tokens=tokens, meta=meta))

    def table(self, name: str, schema: pa.Schema, **meta: Any) -> TableWriter:
        """A writer for a parquet output called `name`, digested by value."""
        return TableWriter(self, name, schema, meta)

    def count(self, what: str, n: int = 1) -> None:
        """Add to a counter of the record, such as `rows_in` or `dropped.gopher_short`."""
        self.counts[what] += n


@dataclass(frozen=True, slots=True)
class Record:
    """What a finished unit leaves behind. `outputs` name files; `counts` are sums, folded over units."""

    key: str
    stage: str
    label: str
    inputs: list[str]  # digests
    outputs: list[Artifact]
    counts: dict[str, int]
    seconds: float
    peak_mb: float
    versions: dict[str, str]
    started: float
    finished: float
    attempt: str
    cached: bool = False  # found, not run; never stored

    def output(self, name: str) -> Artifact:
        """The output called `name`. Raises KeyError."""
        for artifact in self.outputs:
            if artifact.name == name:
                return artifact
        raise KeyError(f"{self.stage} {self.label} has no output {name!r}")

    def named(self, prefix: str) -> list[Artifact]:
        """All outputs whose name starts with `prefix`, in the order they were written."""
        return [a for a in self.outputs if a.name.startswith(prefix)]

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON values."""
        value = {name: getattr(self, name) for name in self.__slots__ if name != "cached"}
        return {**value, "outputs": [a.to_dict() for a in self.outputs]}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Record:
        """The inverse of `to_dict`. Names that repeat in every record are kept once."""
        outputs = [Artifact(**{**a, "name": sys.intern(a["name"])}) for a in value["outputs"]]
        counts = {sys.intern(name): n for name, n in value["counts"].items()}
        return cls(**{**value, "outputs": outputs, "counts": counts})


# Work is named, not passed: "stages.filter.stage:work" travels to another process as text.
Work = Callable[[Task], None]


def work_name(work: Work) -> str:
    """`module:function` of a module-level function."""
    return f"{work.__module__}:{work.__qualname__}"


def find_work(name: str) -> Work:
    """The inverse of `work_name`."""
    module, function = name.split(":")
    found: Work = getattr(importlib.import_module(module), function)
    return found


@dataclass(frozen=True)
class Stage:
    """A named step of the graph. `build(context)` awaits its units and returns what later stages need."""

    name: str
    reads: str  # one line for `pipeline list`
    writes: str
    build: Callable[[Any], Awaitable[Any]]
    after: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()  # whose versions are part of every unit's key
    # Folder that people use -> file name -> artifact, or a folder of the store to link to.
    publish: Callable[[Any], dict[str, Any]] | None = None
    # Raises DataError for a result that no later stage can use; it is published before, for people to look at.
    check: Callable[[Any, Any], None] | None = None  # of the context and the result
    # What a long unit says of itself while it runs: (its folder, its params) -> a line, or "".
    news: Callable[[str, dict[str, Any]], str] | None = None
    stops: bool = False  # a unit looks for the file places["stop"]; when it is there it saves and raises Unfinished
    cpus: int = 1  # that a unit keeps busy itself; 0 when it only starts a job that asks for its own
