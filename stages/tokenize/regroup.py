"""Regroup: where a source has hundreds of units, what a shard must open would grow with units times shards.

So units are merged GROUP at a time into as many files, each holding one range of positions of the whole group.
With U units and S shards, U GROUP + S U / GROUP slices are read instead of S U. A group, once full, never changes
when the source grows; what does not fill one is read as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.stage import BuildContext, Record, Unit
from stages.task import Artifact
from stages.tokenize.merge import add_histograms, held_out, merge
from stages.tokenize.stage import TOKENIZE, TokenizedUnit
from stages.tokenize.token_file import BINS, FULL, HELD_BY_TAKE

ABOVE = 256  # units of a source that are read without merging
GROUP = 128  # units merged, and ranges they become: about the root of the ten thousand shards of a large build


@dataclass(frozen=True)
class TokenRange:
    """Tokenized documents of `source` whose positions lie in [low, high)."""

    source: str
    low: int
    high: int
    docs: Artifact
    tokens: Artifact


async def ranged(context: BuildContext, source: str, tokenised: Sequence[TokenizedUnit]) -> list[TokenRange]:
    """The units of a source as shards read them: merged by ranges where there are more than ABOVE."""
    units = [TokenRange(source, 0, FULL, unit.output("docs"), unit.output("tokens")) for unit in tokenised]
    whole = len(units) // GROUP * GROUP if len(units) > ABOVE else 0
    width = FULL // GROUP
    jobs = [(group, i * width, (i + 1) * width) for group in range(0, whole, GROUP) for i in range(GROUP)]
    merged = await context.map(
        TOKENIZE,
        (
            Unit(
                merge,
                {"low": str(low), "high": str(high)},
                [a for unit in units[group : group + GROUP] for a in (unit.docs, unit.tokens)],
                f"merge {group // GROUP:04d} {low // width:03d}",
                source,
                weight=sum(unit.tokens.bytes for unit in units[group : group + GROUP]) // GROUP,
            )
            for group, low, high in jobs
        ),
    )
    found = [
        TokenRange(source, low, high, record.output("docs"), record.output("tokens"))
        for (_, low, high), record in zip(jobs, merged, strict=True)
    ]
    return found + units[whole:]


async def total_histogram(context: BuildContext, source: str, units: Sequence[TokenizedUnit]) -> np.ndarray:
    """The sum of the histograms of a source's units, int64 [4, BINS]."""
    found = [unit.output("histogram") for unit in units]
    if len(found) > ABOVE:
        groups = [found[i : i + ABOVE] for i in range(0, len(found), ABOVE)]
        sums = await context.map(
            TOKENIZE,
            (Unit(add_histograms, {}, group, f"histogram {i:04d}", source) for i, group in enumerate(groups)),
        )
        found = [record.output("histogram") for record in sums]
    total: np.ndarray = sum(np.load(context.artifact_path(a)) for a in found)
    return total


async def held(
    context: BuildContext, source: str, units: Sequence[TokenizedUnit], histogram: np.ndarray, tokens: int
) -> list[Record]:
    """Records of `held_out` for a source: its first held-out documents, of `tokens` tokens or more if it has them."""
    bins = min(BINS, int(np.searchsorted(np.cumsum(histogram[HELD_BY_TAKE]), tokens)) + 1)
    groups = [units[i : i + ABOVE] for i in range(0, len(units), ABOVE)]
    return await context.map(
        TOKENIZE,
        (
            Unit(
                held_out,
                {"seed": context.recipe.seed, "bins": bins},
                [a for unit in group for a in map(unit.output, ("docs", "tokens"))],
                f"held {i:04d} of {bins} bins",
                source,
            )
            for i, group in enumerate(groups)
        ),
    )
