"""The unit that writes one shard: documents of a range of positions, in the order of the in-shard hash."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages import hashing
from stages.pack.allocate import Allocation, boundary_at, selected_rows, up_to, with_copy
from stages.pack.best_fit import best_fit
from stages.pack.format import ROWS
from stages.task import Task
from stages.tokenize.token_file import (
    ROW_GROUP,
    TOKENIZED,
    Chunk,
    TokenFile,
    common_itemsize,
    token_chunks,
    token_files,
    total_order,
    write_chunks,
)
from train.data.format import Header, write_index
from train.data.tokens import token_dtype

# The in-shard hash decides; the others only make the order total where duplicates were left in.
TIES = ("document_id", "part", "copy", "source", "source_file", "source_row")
PICKED = pa.schema(
    [*TOKENIZED, *(ROWS.field(name) for name in ("copy", "truncated", "source")), pa.field("unit", pa.int32())]
)


def shard(task: Task) -> None:
    """Write one shard: outputs `bin`, `idx` and `rows`; counts tokens, documents and padding, in all and by source.

    Inputs: (docs, tokens) a unit; params: `units`, the source of each. For a training shard `allocations` {source:
    Allocation} and the positions `low`, `high` (text); for a validation shard `limits` {source: tokens}. Besides seed,
    window (of best-fit packing, or null), pad_id, build_id, vocab_size and bos_id.
    """
    params = task.params
    units = token_files(task, params["units"])
    picked = training_rows(params, units) if "allocations" in params else validation_rows(params, units)
    rows = pa.concat_tables([PICKED.empty_table(), *picked])
    order = hashing.order(params["seed"], rows["document_id"], rows["part"].to_numpy(), rows["copy"].to_numpy())
    rows = rows.take(pa.array(total_order(rows, order, TIES)))
    counts = rows["token_count"].to_numpy().astype(np.int64)
    starts, total = np.cumsum(counts) - counts, int(counts.sum())
    if params["window"] and len(counts):
        placed, starts, total = best_fit(counts, params["window"])
        rows = rows.take(pa.array(placed))
    write_shard(task, units, rows, starts, total)


def training_rows(params: dict[str, Any], units: list[TokenFile]) -> Iterator[pa.Table]:
    """Yield the training documents of the shard's range of positions (PICKED)."""
    allocations = {source: Allocation.from_dict(value) for source, value in params["allocations"].items()}
    low, high = int(params["low"]), int(params["high"])
    for number, unit in enumerate(units):
        for table in selected_rows(unit, allocations[unit.source], params["seed"], low, high):
            yield as_picked(table, unit.source, np.full(table.num_rows, number))


def validation_rows(params: dict[str, Any], units: list[TokenFile]) -> Iterator[pa.Table]:
    """Yield held-out documents of each source (PICKED): in take order until its limit, the last one shortened."""
    for source, limit in params["limits"].items():
        numbers = [i for i, unit in enumerate(units) if unit.source == source]
        tables = [units[i].rows() for i in numbers]
        table = pa.concat_tables([TOKENIZED.empty_table(), *tables])
        unit_of_row = np.repeat(numbers, [t.num_rows for t in tables])
        takes = hashing.take(params["seed"], table["document_id"])
        end = boundary_at(table, takes, limit)
        if end:
            keep, counts, truncated = up_to(end, table, takes)
        else:
            counts = table["token_count"].to_numpy()
            keep, truncated = np.ones(len(counts), bool), np.zeros(len(counts), bool)
        rows = as_picked(with_copy(table, counts, 0, truncated), source, unit_of_row)
        yield rows.filter(pa.array(keep))


def as_picked(table: pa.Table, source: str, units: npt.NDArray[np.integer[Any]]) -> pa.Table:
    """Return `table` as PICKED has it, with `source` and the number of each row's unit (n,)."""
    table = table.append_column("source", pa.array([source] * table.num_rows, pa.string()))
    return table.append_column("unit", pa.array(units, pa.int32())).select(PICKED.names)


def write_shard(
    task: Task, units: list[TokenFile], rows: pa.Table, starts: npt.NDArray[np.int64], num_tokens: int
) -> None:
    """Write the shard's three files.

    `rows` (PICKED) in order, their first tokens `starts` (n,), tokens in all. Raises AssertionError for a document on
    the wrong side of the validation rule.
    """
    held_out = hashing.is_validation(rows["document_id"])
    misplaced = held_out if "allocations" in task.params else ~held_out
    if misplaced.any():
        raise AssertionError("a document is on the wrong side of the validation rule")
    counts = rows["token_count"].to_numpy().astype(np.int64)
    padding = num_tokens - int(counts.sum())

    path = task.output("bin")
    sha256 = write_tokens(task, path, units, rows, starts, num_tokens)
    task.add("bin", path, tokens=num_tokens, rows=rows.num_rows, sha256=sha256)

    path = task.output("idx")
    write_index(path, counts, starts, token_dtype(task.params["vocab_size"]))
    task.add("idx", path, rows=rows.num_rows)

    column = rows.schema.get_field_index("token_start")
    shard_rows = rows.set_column(column, ROWS.field("token_start"), pa.array(starts)).select(ROWS.names)
    with task.table("rows", ROWS) as writer:
        for first in range(0, shard_rows.num_rows, ROW_GROUP):
            writer.write(shard_rows.slice(first, ROW_GROUP))

    task.counts.update({"tokens": num_tokens, "documents": rows.num_rows, "padding": padding})
    for group in rows.group_by("source").aggregate([("token_count", "sum"), ("token_count", "count")]).to_pylist():
        task.count(f"tokens.{group['source']}", group["token_count_sum"])
        task.count(f"documents.{group['source']}", group["token_count_count"])


def write_tokens(
    task: Task, path: str, units: list[TokenFile], rows: pa.Table, starts: npt.NDArray[np.int64], num_tokens: int
) -> str:
    """Write the shard's `.bin`: header, documents and padding; return its sha256. Arguments as of `write_shard`."""
    params = task.params
    counts = rows["token_count"].to_numpy().astype(np.int64)
    dtype = token_dtype(params["vocab_size"])
    if num_tokens and common_itemsize(units) != dtype.itemsize:
        raise AssertionError(f"tokens of {common_itemsize(units)} bytes for a shard of {dtype.itemsize}")
    header = Header(num_tokens, params["vocab_size"], params["bos_id"], rows.num_rows, params["build_id"], dtype)
    memories, token_starts = [unit.memory() for unit in units], rows["token_start"].to_numpy()
    chunks: Iterator[Chunk] = token_chunks(memories, rows["unit"].to_numpy(), token_starts, counts, dtype.itemsize)
    gaps = np.diff(starts, append=num_tokens) - counts
    if gaps.any():
        chunks = padded_chunks(chunks, gaps, np.array([params["pad_id"]], dtype).tobytes())
    return write_chunks(path, chunks, [unit.map for unit in units if unit.map], header.pack())


def padded_chunks(chunks: Iterator[Chunk], gaps: npt.NDArray[np.int64], pad: bytes) -> Iterator[Chunk]:
    """Yield `chunks`, each followed by as many tokens of padding, `pad`, as its entry in `gaps` (n,) says."""
    for chunk, gap in zip(chunks, gaps.tolist(), strict=True):
        yield chunk
        if gap:
            yield pad * gap
