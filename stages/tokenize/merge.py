"""The units that read many tokenized units at once: ranges of them merged, histograms summed, held-out documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.hashing import take
from stages.task import Task
from stages.tokenize.token_file import (
    BINS,
    TOKENIZED,
    TokenFile,
    bins_of,
    common_itemsize,
    token_chunks,
    token_files,
    total_order,
    write_chunks,
    write_docs,
    write_histogram,
)


def merge(task: Task) -> None:
    """Merge the documents of one range of positions of many units.

    Inputs: (docs, tokens) a unit. Params: low, high (text). Outputs: `tokens` and `docs`, as a tokenized unit has them.
    """
    units = token_files(task)
    tables = [unit.rows(int(task.params["low"]), int(task.params["high"])) for unit in units]
    write_unit(task, units, tables)


def write_unit(task: Task, units: Sequence[TokenFile], tables: Sequence[pa.Table]) -> None:
    """Write rows of several units, a table of TOKENIZED for each, as one unit: outputs `docs` and `tokens`."""
    table = pa.concat_tables([TOKENIZED.empty_table(), *(t.select(TOKENIZED.names) for t in tables)])
    unit_of_row = np.repeat(np.arange(len(tables)), [t.num_rows for t in tables])
    order = total_order(table, table["position"].to_numpy())
    table, unit_of_row = table.take(pa.array(order)), unit_of_row[order]
    starts, counts = table["token_start"].to_numpy(), table["token_count"].to_numpy().astype(np.int64)
    itemsize = common_itemsize(units)
    chunks = token_chunks([unit.memory() for unit in units], unit_of_row, starts, counts, itemsize)
    path = task.output("tokens.bin")
    sha256 = write_chunks(path, chunks, [unit.map for unit in units if unit.map])
    task.add("tokens", path, tokens=int(counts.sum()), sha256=sha256, itemsize=itemsize)
    column = TOKENIZED.get_field_index("token_start")
    table = table.set_column(column, TOKENIZED.field(column), pa.array(np.cumsum(counts) - counts))
    write_docs(task, table)


def add_histograms(task: Task) -> None:
    """Write the sum of the histograms of many units. Output: `histogram`."""
    total = np.zeros((4, BINS), np.int64)
    for artifact in task.inputs:
        total += np.load(task.path(artifact))
    write_histogram(task, total)


def held_out(task: Task) -> None:
    """Collect what units hold back for validation. Inputs: (docs, tokens) a unit. Params: seed, bins.

    Outputs: `ids` (the 16-byte ids of all of them, sorted) and, of those whose draw `take` falls into the first
    `bins` of the histogram's bins, `docs` and `tokens`, as a tokenized unit has them.
    """
    units = token_files(task)
    tables: list[pa.Table] = []
    ids: set[bytes] = set()
    for unit in units:
        table = unit.rows()
        table = table.filter(table["val"])
        ids.update(table["document_id"].to_pylist())
        bins = bins_of(take(task.params["seed"], table["document_id"]))
        tables.append(table.filter(pa.array(bins < task.params["bins"])))
    write_unit(task, units, tables)
    path = task.output("ids.bin")
    Path(path).write_bytes(b"".join(sorted(ids)))
    task.add("ids", path, rows=len(ids))
