"""Rows in, parts out: the half of every download that does not depend on the source.

Rows that cannot be text go to the quarantine with a reason; the rest get their document id, once and for
all, and are written in parts of bounded size so that later stages can work on them side by side. A stream of which a
budget may need only the beginning is read by slices of parts: each reads from the start, as a stream must be, writes
and counts what belongs to its parts alone, and stops at its end.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from stages.errors import DataError
from stages.paths import is_utf8
from stages.schemas import DOCUMENTS, QUARANTINE, document_id
from stages.sources.base import BadRow, Row, type_name
from stages.task import TableWriter, Task

PART_BYTES = 128 << 20  # text in a part, at most (but for one larger document)
GROUP_BYTES = 4 << 20  # text in a row group: what a later stage holds in memory at a time
GROUP_ROWS = 1 << 14  # rows of it at most: a million empty texts are a row group of nothing
MAX_FIRST_BAD = 1000  # bad rows in a row, from the first on, that make a unit fail
TEXT_BYTES = 1 << 30  # an arrow string column holds 2 GiB; no document comes near


def parts_schema(meta: dict[str, str]) -> pa.Schema:
    """Return DOCUMENTS with a `meta.<column>` for each metadata column (`number` or `string`)."""
    types = {"number": pa.float64(), "string": pa.string()}
    return pa.schema([*DOCUMENTS, *((f"meta.{name}", types[kind]) for name, kind in meta.items())])


def rejection_reason(row: Row, meta: Iterable[str] = (), largest: int = TEXT_BYTES) -> str | None:
    """Return why the row cannot be a document, or None. meta: the names of its metadata."""
    if row.text is None:
        return "text is null"
    if not isinstance(row.text, str):
        return f"text is {type_name(row.text)}, not a string"
    try:
        size = len(row.text.encode("utf-8"))
    except UnicodeEncodeError as error:
        return f"lone surrogate at character {error.start}: no valid UTF-8"
    for name, value in zip(("url", *meta), (row.url, *row.meta), strict=False):
        if isinstance(value, str) and not value.isascii() and not is_utf8(value):
            return f"field {name!r} has a lone surrogate: no valid UTF-8"
    return None if size <= largest else f"text of {size} bytes is larger than {largest}; see largest_document"


def write_parts(task: Task, rows: Iterable[Row | BadRow], part_bytes: int = PART_BYTES) -> None:
    """Write `rows` as outputs `part-000`, `part-001`, ... and `quarantine`.

    Params, where there are any: meta, largest (bytes of a document), part_bytes, parts ([start, stop): the slice to
    write). Counts rows_in, rows_out, quarantined and text_bytes (UTF-8) of the slice. The quarantine's meta names the
    commonest reason, and says with `more` that rows follow. Raises DataError when the first thousand rows are all bad:
    a wrong column, not bad luck.
    """
    params = task.params
    meta: dict[str, str] = params.get("meta", {})
    largest = params.get("largest", TEXT_BYTES)
    start, stop = params.get("parts", (0, sys.maxsize))
    reasons: Counter[str] = Counter()
    more = False
    with task.table("quarantine", QUARANTINE) as table:
        quarantine = Quarantine(table)
        writer = PartWriter(task, parts_schema(meta), params.get("part_bytes", part_bytes), start)
        for row in rows:
            reason = row.reason if isinstance(row, BadRow) else rejection_reason(row, meta, largest)
            if reason is None:
                assert isinstance(row, Row)
                size = len(row.text.encode("utf-8"))
                more = writer.part_of(size) >= stop
                if more:
                    break
                task.count("rows_in", writer.add(row, size))
            elif writer.part >= start:
                task.count("rows_in")
                excerpt = row.excerpt if isinstance(row, BadRow) else str(row.text)[:200]
                quarantine.add(row.file, row.row, reason, excerpt)
                reasons[reason] += 1
                task.count("quarantined")
                if task.counts["quarantined"] == MAX_FIRST_BAD and not task.counts["rows_out"] and not start:
                    raise DataError(
                        f"{row.file}: none of the first {MAX_FIRST_BAD} rows can be used; row {row.row}: {reason}"
                    )
        writer.close()
        quarantine.flush()
        table.meta["commonest"] = min(reasons, key=lambda r: (-reasons[r], r), default="")
        table.meta["more"] = more


class PartWriter:
    """Collects rows into row groups and row groups into parts; those before part `start` are only measured."""

    def __init__(self, task: Task, schema: pa.Schema, part_bytes: int, start: int = 0):
        self.task, self.schema, self.part_bytes, self.start = task, schema, part_bytes, start
        self.rows: list[tuple[Any, ...]] = []
        self.group_size = self.part_size = self.part = 0
        self.writer: TableWriter | None = None

    def part_of(self, size: int) -> int:
        """Return the part that a row of `size` bytes would be in."""
        return self.part + bool(self.part_size and self.part_size + size > self.part_bytes)

    def add(self, row: Row, size: int) -> int:
        """Append a row whose text is known to be valid, `size` bytes of it. Returns how many rows that made."""
        if self.part_of(size) > self.part:
            self.close()
            self.part += 1
        self.part_size += size
        if self.part < self.start:
            return 0
        self.rows.append((document_id(row.text), row.text, row.file, row.row, row.url, *row.meta))
        self.group_size += size
        self.task.counts["rows_out"] += 1
        self.task.counts["text_bytes"] += size
        if self.group_size >= GROUP_BYTES or len(self.rows) >= GROUP_ROWS:
            self.flush()
        return 1

    def flush(self) -> None:
        """Write the rows collected so far as one row group."""
        if not self.rows:
            return
        if self.writer is None:
            self.writer = self.task.table(f"part-{self.part:03d}", self.schema)
        columns = [pa.array(list(c), f.type) for c, f in zip(zip(*self.rows, strict=True), self.schema, strict=True)]
        self.writer.write(pa.Table.from_arrays(columns, schema=self.schema))
        self.rows, self.group_size = [], 0

    def close(self) -> None:
        """Finish the part at hand; the next row starts another."""
        self.flush()
        if self.writer is not None:
            self.writer.meta["text_bytes"] = self.part_size
            self.writer.__exit__(None)
        self.writer, self.part_size = None, 0


class Quarantine:
    """Collects rejected rows; excerpts are made safe to write."""

    def __init__(self, writer: TableWriter):
        self.writer = writer
        self.rows: list[tuple[str, int, str, str]] = []

    def add(self, file: str, row: int, reason: str, excerpt: str) -> None:
        """Note one bad row."""
        safe = [s.encode("utf-8", "backslashreplace").decode() for s in (reason, excerpt)]
        self.rows.append((file, row, safe[0][:500], safe[1][:200]))
        if len(self.rows) >= 10_000:
            self.flush()

    def flush(self) -> None:
        """Write what has been collected."""
        if self.rows:
            arrays = [pa.array(list(c), f.type) for c, f in zip(zip(*self.rows, strict=True), QUARANTINE, strict=True)]
            self.writer.write(pa.Table.from_arrays(arrays, schema=QUARANTINE))
            self.rows = []
