"""Regroup: where a source has hundreds of units, what a shard must open would grow with units times shards.

So units are merged MERGED_UNITS (M) at a time into as many files, each holding one range of positions of the whole
group. With U units and S shards, U M + S U / M slices are read instead of S U. A group, once full, never changes when
the source grows; what does not fill one is read as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.stage import BuildContext, Record, Unit
from stages.task import Artifact
from stages.tokenize.merge import add_histograms, held_out, merge
from stages.tokenize.stage import TOKENIZE, TokenizedUnit
from stages.tokenize.token_file import BINS, HELD_BY_TAKE, NUM_POSITIONS, Histogram

MOST_UNITS = 256  # of a source that are read without merging, and that one unit of work reads
MERGED_UNITS = 128  # units merged, and ranges they become: about the root of the ten thousand shards of a large build


@dataclass(frozen=True)
class TokenRange:
    """Tokenized documents of `source` whose positions lie in [low, high)."""

    source: str
    low: int
    high: int
    docs: Artifact
    tokens: Artifact


def unit_groups(units: Sequence[TokenizedUnit]) -> list[Sequence[TokenizedUnit]]:
    """Return consecutive groups of at most MOST_UNITS units, each read by one unit of work."""
    return [units[i : i + MOST_UNITS] for i in range(0, len(units), MOST_UNITS)]


async def token_ranges(context: BuildContext, source: str, units: Sequence[TokenizedUnit]) -> list[TokenRange]:
    """Build the units of a source as shards read them: merged by ranges where there are more than MOST_UNITS."""
    whole_units = [TokenRange(source, 0, NUM_POSITIONS, u.output("docs"), u.output("tokens")) for u in units]
    if len(units) <= MOST_UNITS:
        return whole_units
    merged_units = len(units) // MERGED_UNITS * MERGED_UNITS
    width = NUM_POSITIONS // MERGED_UNITS
    ranges: list[tuple[int, int]] = []
    merges: list[Unit] = []
    for first in range(0, merged_units, MERGED_UNITS):
        group = whole_units[first : first + MERGED_UNITS]
        inputs = [artifact for unit in group for artifact in (unit.docs, unit.tokens)]
        weight = sum(unit.tokens.bytes for unit in group) // MERGED_UNITS
        for number in range(MERGED_UNITS):
            low, high = number * width, (number + 1) * width
            params = {"low": str(low), "high": str(high)}
            label = f"merge {first // MERGED_UNITS:04d} {number:03d}"
            ranges.append((low, high))
            merges.append(Unit(merge, params, inputs, label, source, weight))
    records = await context.map(TOKENIZE, merges)
    merged_ranges = [
        TokenRange(source, low, high, record.output("docs"), record.output("tokens"))
        for (low, high), record in zip(ranges, records, strict=True)
    ]
    return merged_ranges + whole_units[merged_units:]


async def total_histogram(context: BuildContext, source: str, units: Sequence[TokenizedUnit]) -> Histogram:
    """Return the sum of the histograms of a source's units."""
    files = [unit.output("histogram") for unit in units]
    if len(units) > MOST_UNITS:
        sums = [
            Unit(add_histograms, {}, [unit.output("histogram") for unit in group], f"histogram {i:04d}", source)
            for i, group in enumerate(unit_groups(units))
        ]
        files = [record.output("histogram") for record in await context.map(TOKENIZE, sums)]
    total = np.zeros((4, BINS), np.int64)
    for file in files:
        total += np.load(context.artifact_path(file))
    return total


async def held_out_records(
    context: BuildContext, source: str, units: Sequence[TokenizedUnit], histogram: Histogram, tokens: int
) -> list[Record]:
    """Return records of `held_out`: the first held-out documents of a source, of `tokens` tokens if it has as many."""
    bins = min(BINS, int(np.searchsorted(np.cumsum(histogram[HELD_BY_TAKE]), tokens)) + 1)
    params = {"seed": context.recipe.seed, "bins": bins}
    work = []
    for i, group in enumerate(unit_groups(units)):
        inputs = [unit.output(name) for unit in group for name in ("docs", "tokens")]
        work.append(Unit(held_out, params, inputs, f"held {i:04d} of {bins} bins", source))
    return await context.map(TOKENIZE, work)
