"""The units that read many tokenized units at once: ranges of them merged, histograms summed, held-out documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.hashing import take
from stages.task import Task
from stages.tokenize.token_file import (
    TOKENIZED,
    TokenFile,
    full_order,
    pieces_of,
    write_docs,
    write_histogram,
    write_joined,
)


def merge(task: Task) -> None:
    """Documents of one range of positions, of many units. Inputs: (docs, tokens) a unit. Params: low, high (text).

    Outputs: `tokens` and `docs`, as a tokenised unit has them.
    """
    units = token_files(task)
    tables = [unit.rows(int(task.params["low"]), int(task.params["high"])) for unit in units]
    write_unit(task, units, tables)


def write_unit(task: Task, units: Sequence[TokenFile], tables: Sequence[pa.Table]) -> None:
    """Write rows of several units, `tables` of TOKENIZED, as one unit: outputs `docs` and `tokens`."""
    table = pa.concat_tables([TOKENIZED.empty_table(), *(t.select(TOKENIZED.names) for t in tables)])
    number = np.repeat(np.arange(len(tables)), [t.num_rows for t in tables])
    rank = full_order(table, table["position"].to_numpy())
    table, number = table.take(pa.array(rank)), number[rank]
    starts, counts = table["token_start"].to_numpy(), table["token_count"].to_numpy().astype(np.int64)
    pieces = pieces_of([unit.memory() for unit in units], number, starts, counts)
    path, total = task.output("tokens.bin"), int(counts.sum())
    sha256 = write_joined(path, pieces, [unit.map for unit in units if unit.map])
    task.add("tokens", path, tokens=total, sha256=sha256)
    at = TOKENIZED.get_field_index("token_start")
    table = table.set_column(at, TOKENIZED.field(at), pa.array(np.cumsum(counts) - counts))
    write_docs(task, table)


def token_files(task: Task) -> list[TokenFile]:
    """The task's inputs, (docs, tokens) a unit."""
    pairs = zip(task.inputs[::2], task.inputs[1::2], strict=True)
    return [TokenFile(task, docs, tokens) for docs, tokens in pairs]


def add_histograms(task: Task) -> None:
    """The sum of the histograms of many units."""
    write_histogram(task, sum(np.load(task.path(a)) for a in task.inputs))


def held_out(task: Task) -> None:
    """What units hold back for validation. Inputs: (docs, tokens) a unit. Params: seed, bins.

    Outputs: `ids` (the 16-byte ids of all of them, sorted) and, of those whose draw `take` falls into the first
    `bins` of the histogram's bins, `docs` and `tokens`, as a tokenised unit has them.
    """
    units, tables, found = token_files(task), [], []
    for unit in units:
        table = unit.rows()
        table = table.filter(table["val"])
        found += table["document_id"].to_pylist()
        draw = take(task.params["seed"], table["document_id"]) >> np.uint64(52)
        tables.append(table.filter(pa.array(draw < task.params["bins"])))
    write_unit(task, units, tables)
    path = task.output("ids.bin")
    Path(path).write_bytes(b"".join(sorted(set(found))))
    task.add("ids", path, rows=len(set(found)))
