"""Paired differences and how sure they are: by document, by source, over seeds, and for several at once.

One source, n clusters of documents with x = bits of B - bits of A and b bytes each, summed over a cluster first:

    D = sum x / sum b,   e = x - D b,   se^2 = sum (e / (sum b - b))^2,   (sum b)^2 / sum b^2 - 1 degrees of freedom

That is the jackknife's, each cluster left out in turn, with as many degrees of freedom as clusters of one size would
have. Where all are of one size it is the linearised ratio's, n / (n - 1) sum e^2 / (sum b)^2, but for n / (n - 1); of
few and unlike documents that covered 89 to 95 % where this covers 91 to 96 (`python -m benchmarks.intervals`).

Sources with fixed weights w: D = sum w D_s, v_s = w_s^2 se_s^2, se^2 = sum v_s, Satterthwaite's degrees of freedom
(sum v_s)^2 / sum (v_s^2 / df_s). Seeds enter as one more term, v = s^2 (1 / Ka + 1 / Kb), where s is the deviation of
a run over seeds, pooled over both sides. Errors inside a document go together, so tokens are never counted as if each
were a draw of its own: such an interval covered 28 % where it said 95.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Name = TypeVar("Name", bound=Hashable)

LARGEST_DF = 1e5  # beyond it Student's distribution is the normal one, to four digits of a quantile
MOST_SEEDS = 10_000  # asked for at the most


# ---------------------------------------------------------------------------------------------------------------------
# Student's distribution


@functools.lru_cache(256)
def _angles(df: float) -> tuple[F64, F64]:
    """Return angles a and the probability that |t| < sqrt(df) tan(a): its density over angles is cos(a)^(df - 1)."""
    angles = np.linspace(0, math.pi / 2, 20_001)
    density = np.cos(angles) ** (df - 1)
    inside = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return angles, inside / inside[-1]


def p_value(t: float, df: float) -> float:
    """Return the two-sided p of Student's t with `df` degrees of freedom, 1 at least and not always whole."""
    df = min(max(df, 1.0), LARGEST_DF)
    angles, inside = _angles(df)
    return float(1 - np.interp(math.atan(abs(t) / math.sqrt(df)), angles, inside))


def t_quantile(level: float, df: float) -> float:
    """Return the t beyond which, on both sides together, 1 - `level` of Student's distribution lies."""
    df = min(max(df, 1.0), LARGEST_DF)
    angles, inside = _angles(df)
    return math.sqrt(df) * math.tan(float(np.interp(level, inside, angles)))


def holm(p: Mapping[Name, float]) -> dict[Name, float]:
    """Return p corrected for their number by Holm's rule."""
    corrected: dict[Name, float] = {}
    least = 0.0
    for rank, name in enumerate(sorted(p, key=lambda name: p[name])):
        least = max(least, min(1.0, p[name] * (len(p) - rank)))
        corrected[name] = least
    return corrected


# ---------------------------------------------------------------------------------------------------------------------
# Differences and their errors


@dataclass(frozen=True)
class Difference:
    """B - A, its standard error and the degrees of freedom of that; infinite and 0 where one unit alone was paired."""

    value: float
    error: float
    df: float

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return the interval of a level, all numbers where there is no error to make it of."""
        if self.df <= 0:
            return -math.inf, math.inf
        half = t_quantile(level, self.df) * self.error
        return self.value - half, self.value + half

    @property
    def p(self) -> float:
        """The two-sided p of no difference."""
        if self.df <= 0:
            return 1.0
        if self.error == 0:
            return 0.0 if self.value else 1.0
        return p_value(self.value / self.error, self.df)


def ratio(x: F64, size: F64, clusters: npt.NDArray[np.integer] | None = None) -> Difference:
    """Return sum x / sum size over documents, (n,) each; documents of equal `clusters` count as one."""
    if clusters is not None:
        _, group = np.unique(clusters, return_inverse=True)
        x, size = np.bincount(group, x).astype(np.float64), np.bincount(group, size).astype(np.float64)
    n, total = len(x), float(size.sum())
    value = float(x.sum()) / total
    if n < 2:
        return Difference(value, math.inf, 0)
    moves = (x - value * size) / (total - size)  # the ratio, when each is left out
    return Difference(value, math.sqrt(float(moves @ moves)), max(1.0, total**2 / float(size @ size) - 1))


def combine(parts: Sequence[tuple[float, Difference]]) -> Difference:
    """Return the sum of independent differences, each with a fixed weight."""
    value = sum(weight * part.value for weight, part in parts)
    if any(part.df <= 0 for _, part in parts):
        return Difference(value, math.inf, 0)
    variances = [(weight * part.error) ** 2 for weight, part in parts]
    return Difference(value, math.sqrt(sum(variances)), satterthwaite(variances, [part.df for _, part in parts]))


def satterthwaite(variances: Sequence[float], dfs: Sequence[float]) -> float:
    """Return the degrees of freedom of a sum of variances (Satterthwaite 1946)."""
    total = sum(variances)
    if total == 0:
        return min(dfs)
    return total**2 / sum(v**2 / df for v, df in zip(variances, dfs, strict=True))


@dataclass(frozen=True)
class Deviation:
    """The standard deviation of a run's score over seeds, and its degrees of freedom."""

    value: float
    df: int


def pooled(*sides: Sequence[float]) -> Deviation | None:
    """Return the deviation inside sides, pooled; None where none has two scores."""
    df = sum(len(side) - 1 for side in sides if side)
    if df < 1:
        return None
    squares = sum(float(((np.array(side) - np.mean(side)) ** 2).sum()) for side in sides if side)
    return Deviation(math.sqrt(squares / df), df)


def with_seeds(documents: Difference, seeds: Deviation, count_a: int, count_b: int) -> Difference:
    """Return the difference of two recipes, of which so many seeds were trained, with the error of these in it."""
    if documents.df <= 0:
        return documents
    variances = [seeds.value**2 * (1 / count_a + 1 / count_b), documents.error**2]
    df = satterthwaite(variances, [seeds.df, documents.df])
    return Difference(documents.value, math.sqrt(sum(variances)), df)


def paired_right(only_a: float, only_b: float, items: int) -> Difference:
    """Return the difference of shares right of two runs: `only_a` of `items` has A alone right, `only_b` has B.

    One is added to either (Agresti and Min 2005), so that few items do not look surer than they are.
    """
    n = items + 2
    value = (only_b - only_a) / n
    return Difference(value, math.sqrt(only_a + only_b + 1 - (only_b - only_a) ** 2 / n) / n, LARGEST_DF)


# ---------------------------------------------------------------------------------------------------------------------
# Verdicts


def verdict(difference: Difference, corrected_p: float, interest: float) -> str:
    """Return `different`, `equal` (within `interest`, by two one-sided tests) or `unknown`.

    corrected_p: for all that is judged together.
    """
    if corrected_p < 0.05:
        return "different"
    low, high = difference.interval(0.90)
    return "equal" if -interest < low and high < interest else "unknown"


def seeds_needed(documents: Difference, seeds: Deviation, interest: float) -> int | None:
    """Return how many seeds a side make an interval of 95 % no wider than +-`interest`.

    MOST_SEEDS stands for more; None where the documents alone are too few for that.
    """
    if documents.df <= 0 or t_quantile(0.95, documents.df) * documents.error >= interest:
        return None

    def enough(count: int) -> bool:
        spread = Deviation(seeds.value, 2 * count - 2)
        low, high = with_seeds(documents, spread, count, count).interval()
        return high - low <= 2 * interest

    low, high = 1, 2
    while not enough(high):
        if high > MOST_SEEDS:
            return MOST_SEEDS
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
