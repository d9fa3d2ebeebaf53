"""Where the documents of a mixture go: token counts by source, their allocations, and the borders between shards.

The driver's part, before any shard is written. It reads the histograms of the tokenized units, and of their tables
only the rows of the one bin in which a partial epoch ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import DataError
from stages.pack.allocate import (
    CANDIDATES,
    Allocation,
    EpochBoundary,
    boundary_bin,
    boundary_candidates,
    epoch_boundary,
    shard_borders,
)
from stages.pack.mixture import exact, solve
from stages.stage import BuildContext, Record, Stage, Unit
from stages.tokenize.regroup import TokenRange, held_out_records, token_ranges, total_histogram, unit_groups
from stages.tokenize.stage import TOKENIZE, TokenizedUnit
from stages.tokenize.token_file import BY_POSITION, HELD_BY_TAKE, Histogram

# By mixture: the stage that packs it.
PackStages = Mapping[str, Stage[Any]]


@dataclass(frozen=True)
class Layout:
    """Where the documents of a mixture go. Mappings are by source, in the mixture's order."""

    available: dict[str, int]  # training tokens that the mixture may take
    targets: dict[str, int]  # that it takes, exactly
    allocations: dict[str, Allocation]
    units: list[TokenRange]
    held_out: dict[str, list[Record]]  # see `stages.tokenize.merge.held_out`
    held_out_tokens: dict[str, int]  # in all
    borders: list[int]  # of positions, between training shards
    inputs: list[str]  # digests of all that decides the bytes


async def lay_out(context: BuildContext, stages: PackStages, name: str) -> Layout:
    """Solve `recipe.mixtures[name]` and decide where each document goes.

    `stages`: the stage that packs each mixture. Raises DataError when the recipe has no such mixture or a source falls
    short.
    """
    recipe = context.recipe
    if name not in recipe.mixtures:
        raise DataError(f"recipe {recipe.name} has no mixtures.{name}; add it, or run another stage")
    mixture = recipe.mixtures[name]
    sources = mixture.sources
    tokenized = await context.stage(TOKENIZE)
    context.check_quarantine()

    sums = await asyncio.gather(*(total_histogram(context, s, tokenized[s]) for s in sources))
    histograms = dict(zip(sources, sums, strict=True))
    pools = await source_pools(context, stages, name)
    available = {s: pool_tokens(histograms[s], pools[s], mixture.subsample) for s in sources}
    targets = solve(mixture, available)

    allocating = (
        allocate_source(context, stages[name], s, tokenized[s], histograms[s], pools[s], targets[s], available[s])
        for s in sources
    )
    allocations = dict(zip(sources, await asyncio.gather(*allocating), strict=True))
    ranges = await asyncio.gather(*(token_ranges(context, s, tokenized[s]) for s in sources))
    held_out = await asyncio.gather(
        *(held_out_records(context, s, tokenized[s], histograms[s], mixture.val_tokens) for s in sources)
    )
    return Layout(
        available=available,
        targets=targets,
        allocations=allocations,
        units=[unit for source_ranges in ranges for unit in source_ranges],
        held_out=dict(zip(sources, held_out, strict=True)),
        held_out_tokens={s: int(histograms[s][HELD_BY_TAKE].sum()) for s in sources},
        borders=shard_borders([(allocations[s], histograms[s]) for s in sources], recipe.shard_tokens),
        inputs=[unit.output(file).digest for s in sources for unit in tokenized[s] for file in ("docs", "tokens")],
    )


async def source_pools(context: BuildContext, stages: PackStages, name: str) -> dict[str, Allocation | None]:
    """Return the pool that mixture `name` takes from each source, in view of what the mixture pretrain takes."""
    mixture = context.recipe.mixtures[name]
    pretrain: dict[str, Allocation] = {}
    if "exclude" in mixture.seen.values():
        pretrain = (await lay_out(context, stages, "pretrain")).allocations
    return {s: source_pool(name, mixture.seen.get(s, "any"), pretrain.get(s)) for s in mixture.sources}


def source_pool(name: str, seen: str, pretrain: Allocation | None) -> Allocation | None:
    """Return the pool of a source as an allocation that takes nothing of it yet; None if nothing is left of it.

    `name`: of the mixture. `seen`: any, prefer or exclude what the mixture pretrain takes, which is `pretrain`.
    """
    if name == "pretrain" or seen == "prefer":
        return Allocation(draw=0)
    if seen == "any" or pretrain is None:
        return Allocation(draw=1)
    if pretrain.copies:
        return None
    if pretrain.end is None:
        return Allocation(draw=0)
    # The document at the boundary is shown in part, and left out whole.
    shown = pretrain.rest - pretrain.end.keep + pretrain.end.count
    return Allocation(draw=0, after=pretrain.end, shown=shown)


def pool_tokens(histogram: Histogram, pool: Allocation | None, subsample: float) -> int:
    """Return the training tokens of a source's pool, of which the mixture draws on the share `subsample`."""
    whole = int(int(histogram[BY_POSITION].sum()) * exact(subsample))
    return 0 if pool is None else max(0, whole - pool.shown)


async def allocate_source(
    context: BuildContext,
    stage: Stage[Any],
    source: str,
    units: Sequence[TokenizedUnit],
    histogram: Histogram,
    pool: Allocation | None,
    target: int,
    available: int,
) -> Allocation:
    """Return the allocation of exactly `target` tokens out of a pool of `available` tokens."""
    if pool is None or not target:
        return pool or Allocation(draw=0)
    copies, rest = divmod(target, available)
    allocation = replace(pool, copies=copies, rest=rest)
    if copies and available < int(histogram[BY_POSITION].sum()) - pool.shown:
        whole = replace(pool, rest=available)
        pool_end = await find_boundary(context, stage, source, units, histogram, whole, "subsample")
        allocation = replace(allocation, pool=available, pool_end=pool_end)
    if not rest:
        return allocation
    end = await find_boundary(context, stage, source, units, histogram, allocation, "cut")
    return replace(allocation, end=end)


async def find_boundary(
    context: BuildContext,
    stage: Stage[Any],
    source: str,
    units: Sequence[TokenizedUnit],
    histogram: Histogram,
    allocation: Allocation,
    label: str,
) -> EpochBoundary:
    """Return where the partial epoch of a source ends. `label` begins the names of its units."""
    params = {
        "seed": context.recipe.seed,
        "draw": allocation.draw,
        "bin": boundary_bin(histogram, allocation),
    }
    work = [
        Unit(boundary_candidates, params, [unit.output("docs") for unit in group], f"{label} {i:04d}", source)
        for i, group in enumerate(unit_groups(units))
    ]
    records = await context.map(stage, work)
    tables = [pq.read_table(context.artifact_path(record.output("candidates"))) for record in records]
    return epoch_boundary(histogram, allocation, pa.concat_tables([CANDIDATES.empty_table(), *tables]))
