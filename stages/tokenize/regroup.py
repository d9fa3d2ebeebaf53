"""Merge: where a source has hundreds of units, what a shard must open would grow with units times shards.

So units are merged GROUP at a time into as many files, each holding one range of positions of the whole group.
With U units and S shards, U GROUP + S U / GROUP slices are read instead of S U. A group, once full, never changes
when the source grows; what does not fill one is read as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.base import Artifact, Record, Task
from stages.hashing import take
from stages.tokenize.token_file import (
    BINS,
    FULL,
    HELD_BY_TAKE,
    TOKENISED,
    Tokenised,
    Unit,
    full_order,
    pieces_of,
    write_docs,
    write_histogram,
    write_joined,
)

ABOVE = 256  # units of a source that are read without merging
GROUP = 128  # units merged, and ranges they become: about the root of the ten thousand shards of a large build


@dataclass(frozen=True)
class Ranged:
    """Tokenised documents of `source` whose positions lie in [low, high)."""

    source: str
    low: int
    high: int
    docs: Artifact
    tokens: Artifact


def merge(task: Task) -> None:
    """Documents of one range of positions, of many units. Inputs: (docs, tokens) a unit. Params: low, high (text).

    Outputs: `tokens` and `docs`, as a tokenised unit has them.
    """
    units = units_of(task)
    tables = [unit.rows(int(task.params["low"]), int(task.params["high"])) for unit in units]
    write_unit(task, units, tables)


def write_unit(task: Task, units: Sequence[Unit], tables: Sequence[pa.Table]) -> None:
    """Write rows of several units, `tables` of TOKENISED, as one unit: outputs `docs` and `tokens`."""
    table = pa.concat_tables([TOKENISED.empty_table(), *(t.select(TOKENISED.names) for t in tables)])
    number = np.repeat(np.arange(len(tables)), [t.num_rows for t in tables])
    rank = full_order(table, table["position"].to_numpy())
    table, number = table.take(pa.array(rank)), number[rank]
    starts, counts = table["token_start"].to_numpy(), table["token_count"].to_numpy().astype(np.int64)
    pieces = pieces_of([unit.memory() for unit in units], number, starts, counts)
    path, total = task.output("tokens.bin"), int(counts.sum())
    sha256 = write_joined(path, pieces, [unit.map for unit in units if unit.map])
    task.add("tokens", path, tokens=total, sha256=sha256)
    at = TOKENISED.get_field_index("token_start")
    table = table.set_column(at, TOKENISED.field(at), pa.array(np.cumsum(counts) - counts))
    write_docs(task, table)


def units_of(task: Task) -> list[Unit]:
    """The task's inputs, (docs, tokens) a unit."""
    pairs = zip(task.inputs[::2], task.inputs[1::2], strict=True)
    return [Unit(task, docs, tokens) for docs, tokens in pairs]


def add_histograms(task: Task) -> None:
    """The sum of the histograms of many units."""
    write_histogram(task, sum(np.load(task.path(a)) for a in task.inputs))


def held_out(task: Task) -> None:
    """What units hold back for validation. Inputs: (docs, tokens) a unit. Params: seed, bins.

    Outputs: `ids` (the 16-byte ids of all of them, sorted) and, of those whose draw `take` falls into the first
    `bins` of the histogram's bins, `docs` and `tokens`, as a tokenised unit has them.
    """
    units, tables, found = units_of(task), [], []
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


async def ranged(context: Any, source: str, tokenised: Sequence[Tokenised]) -> list[Ranged]:
    """The units of a source as shards read them: merged by ranges where there are more than ABOVE."""
    units = [Ranged(source, 0, FULL, unit.output("docs"), unit.output("tokens")) for unit in tokenised]
    whole = len(units) // GROUP * GROUP if len(units) > ABOVE else 0
    width = FULL // GROUP
    jobs = [(group, i * width, (i + 1) * width) for group in range(0, whole, GROUP) for i in range(GROUP)]
    merged = await context.gather(
        context.run(
            "tokenize",
            merge,
            {"low": str(low), "high": str(high)},
            [a for unit in units[group : group + GROUP] for a in (unit.docs, unit.tokens)],
            f"merge {group // GROUP:04d} {low // width:03d}",
            source,
            weight=sum(unit.tokens.bytes for unit in units[group : group + GROUP]) // GROUP,
        )
        for group, low, high in jobs
    )
    found = [
        Ranged(source, low, high, record.output("docs"), record.output("tokens"))
        for (_, low, high), record in zip(jobs, merged, strict=True)
    ]
    return found + units[whole:]


async def total_histogram(context: Any, source: str, units: Sequence[Tokenised]) -> np.ndarray:
    """The sum of the histograms of a source's units, int64 [4, BINS]."""
    found = [unit.output("histogram") for unit in units]
    if len(found) > ABOVE:
        groups = [found[i : i + ABOVE] for i in range(0, len(found), ABOVE)]
        sums = await context.gather(
            context.run("tokenize", add_histograms, {}, group, f"histogram {i:04d}", source)
            for i, group in enumerate(groups)
        )
        found = [record.output("histogram") for record in sums]
    total: np.ndarray = sum(np.load(context.artifact_path(a)) for a in found)
    return total


async def held(
    context: Any, source: str, units: Sequence[Tokenised], histogram: np.ndarray, tokens: int
) -> list[Record]:
    """Records of `held_out` for a source: its first held-out documents, of `tokens` tokens or more if it has them."""
    bins = min(BINS, int(np.searchsorted(np.cumsum(histogram[HELD_BY_TAKE]), tokens)) + 1)
    groups = [units[i : i + ABOVE] for i in range(0, len(units), ABOVE)]
    found: list[Record] = await context.gather(
        context.run(
            "tokenize",
            held_out,
            {"seed": context.recipe.seed, "bins": bins},
            [a for unit in group for a in map(unit.output, ("docs", "tokens"))],
            f"held {i:04d} of {bins} bins",
            source,
        )
        for i, group in enumerate(groups)
    )
    return found
