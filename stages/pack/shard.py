"""The unit that writes one shard: documents of a range of positions, in the order of the in-shard hash."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from stages import hashing
from stages.pack.allocate import Part, cut_at, selected, with_facts
from stages.pack.best_fit import best_fit
from stages.pack.format import ROWS
from stages.task import Task
from stages.tokenize.token_file import GROUP, TOKENIZED, TokenFile, full_order, pieces_of, write_joined
from train.data.format import Header, write_index

# The in-shard hash decides; the others only make the order total where duplicates were left in.
TIES = ("document_id", "part", "copy", "source", "source_file", "source_row")
PICKED = pa.schema(
    [*TOKENIZED, *(ROWS.field(name) for name in ("copy", "truncated", "source")), pa.field("unit", pa.int32())]
)


def shard(task: Task) -> None:
    """Write one shard: outputs `bin`, `idx` and `rows`; counts tokens, documents and padding, in all and by source.

    Inputs: (docs, tokens) a unit; params: `units`, the source of each. For a training shard `parts` {source: Part}
    and the positions `low`, `high` (text); for a validation shard `limits` {source: tokens}. Besides seed, window
    (of best-fit packing, or null), pad_id, build_id, vocab_size and bos_id.
    """
    params = task.params
    pairs = zip(task.inputs[::2], task.inputs[1::2], params["units"], strict=True)
    units = [TokenFile(task, docs, tokens, source) for docs, tokens, source in pairs]
    picked = list(training(params, units) if "parts" in params else validation(params, units))
    rows = pa.concat_tables([PICKED.empty_table(), *picked])
    order = hashing.order(params["seed"], rows["document_id"], rows["part"].to_numpy(), rows["copy"].to_numpy())
    rows = rows.take(pa.array(full_order(rows, order, TIES)))
    counts = rows["token_count"].to_numpy().astype(np.int64)
    starts, total = np.cumsum(counts) - counts, int(counts.sum())
    if params["window"] and len(counts):
        placed, starts, total = best_fit(counts, params["window"])
        rows, counts = rows.take(pa.array(placed)), counts[placed]
    write(task, units, rows, starts, total)


def training(params: dict[str, Any], units: list[TokenFile]) -> Iterator[pa.Table]:
    """The training documents of the shard's range of positions (PICKED)."""
    parts = {source: Part.from_dict(value) for source, value in params["parts"].items()}
    for number, unit in enumerate(units):
        for table in selected(unit, parts[unit.source], params["seed"], int(params["low"]), int(params["high"])):
            yield named(table, unit.source, np.full(table.num_rows, number))


def validation(params: dict[str, Any], units: list[TokenFile]) -> Iterator[pa.Table]:
    """Held-out documents of each source (PICKED): in take order until its limit is reached, the last one cut."""
    for source, limit in params["limits"].items():
        numbers = [i for i, unit in enumerate(units) if unit.source == source]
        tables = [units[i].rows() for i in numbers]
        table = pa.concat_tables([TOKENIZED.empty_table(), *tables])
        where = np.repeat(numbers, [t.num_rows for t in tables])
        takes = hashing.take(params["seed"], table["document_id"])
        cut = cut_at(table, takes, limit)
        counts = table["token_count"].to_numpy()
        keep, truncated = np.ones(len(counts), bool), np.zeros(len(counts), bool)
        if cut:
            keep, itself = cut.split(table, takes)
            counts = np.where(itself, cut.keep, counts)
            truncated = itself & (cut.keep < cut.count)
        yield named(with_facts(table, counts, 0, truncated), source, where).filter(pa.array(keep))


def named(table: pa.Table, source: str, unit: np.ndarray) -> pa.Table:
    """`table` with the columns `source` and `unit` (n,), as PICKED has them."""
    table = table.append_column("source", pa.array([source] * table.num_rows, pa.string()))
    return table.append_column("unit", pa.array(unit, pa.int32())).select(PICKED.names)


def write(task: Task, units: list[TokenFile], rows: pa.Table, starts: np.ndarray, total: int) -> None:
    """The shard's three files. `rows` (PICKED) in order, their first tokens `starts` (n,), tokens in all."""
    params = task.params
    held = hashing.is_validation(rows["document_id"])
    if (held if "parts" in params else ~held).any():
        raise AssertionError("a document is on the wrong side of the validation rule")
    counts = rows["token_count"].to_numpy().astype(np.int64)
    header = Header(total, params["vocab_size"], params["bos_id"], rows.num_rows, params["build_id"])
    memories = [unit.memory() for unit in units]
    pieces = pieces_of(memories, rows["unit"].to_numpy(), rows["token_start"].to_numpy(), counts)
    padding = total - int(counts.sum())
    if padding:
        pieces = padded(pieces, np.diff(starts, append=total) - counts, params["pad_id"])
    path = task.output("bin")
    sha256 = write_joined(path, pieces, [unit.map for unit in units if unit.map], header.pack())
    task.add("bin", path, tokens=total, rows=rows.num_rows, sha256=sha256)
    path = task.output("idx")
    write_index(path, counts, starts)
    task.add("idx", path, rows=rows.num_rows)
    at = rows.schema.get_field_index("token_start")
    rows = rows.set_column(at, ROWS.field("token_start"), pa.array(starts)).select(ROWS.names)
    with task.table("rows", ROWS) as writer:
        for at in range(0, rows.num_rows, GROUP):
            writer.write(rows.slice(at, GROUP))
    task.counts.update({"tokens": total, "documents": rows.num_rows, "padding": padding})
    for group in rows.group_by("source").aggregate([("token_count", "sum"), ("token_count", "count")]).to_pylist():
        task.count(f"tokens.{group['source']}", group["token_count_sum"])
        task.count(f"documents.{group['source']}", group["token_count_count"])


def padded(pieces: Iterator[bytes | memoryview], gaps: np.ndarray, pad_id: int) -> Iterator[bytes | memoryview]:
    """`pieces`, each followed by as many tokens of padding as its entry in `gaps` (n,) says."""
    pad = np.array([pad_id], "<u2").tobytes()
    for piece, gap in zip(pieces, gaps.tolist(), strict=True):
        yield piece
        if gap:
            yield pad * gap
