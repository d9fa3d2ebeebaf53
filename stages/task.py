"""What a worker sees of a unit of work: its inputs, its parameters, and where its outputs go.

A *unit* of work is one call of a module-level function `work(task)` in some process on some machine.
It reads `task.inputs`, writes files through `task`, counts what it did, and returns nothing: the engine
hashes what was written, puts a record beside it, and that record is the only thing later stages see.

Every work function imports this module, so each edit of its code runs every unit again. What only the driver needs is
in `stages.stage`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.schemas import TableDigest


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
    read_bytes: Callable[[Artifact, int, int], bytes] | None = None  # [start, stop) of a remote one; None: use `path`
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


Work = Callable[[Task], None]
