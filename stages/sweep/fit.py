"""What the scores of a sweep say: a law for each source's loss, how far to trust it, and the best point by it.

Each target's loss has a law of its own, and predictions are averaged: fitted to the average the same laws rank far
worse, as every source pulls elsewhere. With bits per byte L and shares r,

    logshare      log L = a + sum b_j r_j + c_j log(r_j + .01)
    exponential   log (L - floor) = a + sum b_j r_j                     (arXiv:2403.16952)

both by ridge regression, whose penalty has the least generalized cross-validation error (Golub, Heath and Wahba 1979).
The first chooses, the second is asked whether it agrees. A gain by either is the gain of a winner, 1.5 to 2 times what
it turns out to be, and is never the result of a sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.sweep.space import (
    EPSILON,
    F64,
    Levels,
    Point,
    Space,
    as_arrays,
    base_point,
    draw_levels,
    draw_shares,
    key_features,
    rounded,
    within_caps,
)

PENALTIES = np.logspace(-8, 2, 41)  # times the largest squared singular value
MOST_FREEDOM = 0.75  # degrees of freedom of a fit for each point
FLOORS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98)  # of the exponential law, times the least loss
PERMUTATIONS = 400
DRAWN, STEPS, BEST = 20_000, (0.05, 0.02, 0.007), 10  # of the search: points at first, refinements of so many best
LEAST_CORRELATION = 0.5


@dataclass(frozen=True)
class Ridge:
    """Linear fits of several columns to standardized features, and what each says of a row when that is left out."""

    center: F64  # (p,)
    scale: F64
    weights: F64  # (p, columns)
    intercept: F64
    left_out: F64  # (n, columns)

    def predict(self, x: F64) -> F64:
        """Return the fits (n, columns) at rows of features."""
        fitted: F64 = self.intercept + ((x - self.center) / self.scale) @ self.weights
        return fitted


def ridge(x: F64, y: F64) -> Ridge:
    """Fit each column of y (n, columns) by features (n, p), with the penalty of its least cross-validation error."""
    center, scale = x.mean(0), x.std(0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    u, s, vt = np.linalg.svd((x - center) / scale, full_matrices=False)
    residual = y - y.mean(0)
    along = u.T @ residual  # (k, columns)
    shrunk = s**2 / (s**2 + PENALTIES[:, None] * s.max(initial=1e-12) ** 2)  # (penalties, k)
    freedom = 1 + shrunk.sum(1)
    beyond = (residual**2).sum(0) - (along**2).sum(0)  # what no weights reach
    squares = beyond + (1 - shrunk) ** 2 @ along**2  # (penalties, columns)
    allowed = (freedom <= MOST_FREEDOM * len(y))[:, None]
    errors = np.where(allowed, squares / (len(y) - np.minimum(freedom, len(y) - 0.5))[:, None] ** 2, np.inf)
    best = shrunk[np.argmin(errors, axis=0)].T  # (k, columns)
    leverage = 1 / len(y) + u**2 @ best
    left_out = y - (residual - u @ (best * along)) / (1 - leverage)
    weights = vt.T @ (best * along / np.where(s > 1e-12, s, np.inf)[:, None])
    return Ridge(center, scale, weights, y.mean(0), left_out)


@dataclass(frozen=True)
class Law:
    """A fit of every target's loss over a space; `weights` (targets,) are what each counts for in their mean."""

    kind: str  # logshare | exponential
    space: Space
    weights: F64
    floors: F64  # (targets,)
    fit: Ridge  # of log (loss - floor)

    def losses(self, shares: F64, levels: Levels) -> F64:
        """Return the losses (n, targets) at points."""
        x = features(self.kind, self.space, shares, levels)
        losses: F64 = self.floors + np.exp(self.fit.predict(x))
        return losses

    def mean(self, points: Sequence[Point]) -> F64:
        """Return the weighted mean of the losses at points."""
        mean: F64 = self.losses(*as_arrays(points)) @ self.weights
        return mean

    def left_out(self) -> F64:
        """Return the losses (n, targets) that it says of each of its points when that is left out."""
        losses: F64 = self.floors + np.exp(self.fit.left_out)
        return losses


def features(kind: str, space: Space, shares: F64, levels: Levels) -> F64:
    """Return what a law sees of points, (n, features)."""
    of_shares = [shares, np.log(shares + EPSILON)] if kind == "logshare" else [shares]
    return np.column_stack([*of_shares, *(key_features(key, levels[:, i]) for i, key in enumerate(space.keys))])


def fit_law(kind: str, space: Space, points: Sequence[Point], losses: F64, weights: F64) -> Law:
    """Fit a law to the losses (n, targets) of points."""
    x = features(kind, space, *as_arrays(points))
    floors = np.zeros(losses.shape[1])
    if kind == "exponential":
        tried = [share * losses.min(0) for share in FLOORS]
        said = [floor + np.exp(ridge(x, np.log(losses - floor)).left_out) for floor in tried]
        errors = [((each - losses) ** 2).sum(0) for each in said]
        floors = np.array(tried)[np.argmin(errors, axis=0), np.arange(len(floors))]
    return Law(kind, space, weights, floors, ridge(x, np.log(losses - floors)))


def rank_correlation(a: F64, b: F64) -> float:
    """Return Spearman's rank correlation; 0 where one of them is constant."""
    if not (np.ptp(a) and np.ptp(b)):
        return 0.0
    ranks = np.array([np.argsort(np.argsort(values)) for values in (a, b)], np.float64)
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def search(law: Law, kept_near: float, seed: int = 0) -> Point:
    """Return the point that has the least mean loss by a law, under the caps.

    kept_near: bits per byte that one nat of Kullback-Leibler divergence from the base's shares costs, so that moves
    which the scores cannot pay for are not made.
    """
    space, rng = law.space, np.random.default_rng(seed)
    caps, base = np.array(space.caps), base_point(space)
    near = np.array(base.shares) + EPSILON

    def cost(shares: F64, levels: Levels) -> F64:
        moved = (shares * np.log(np.maximum(shares, 1e-12) / near)).sum(1)
        total: F64 = law.losses(shares, levels) @ law.weights + kept_near * moved
        return total

    shares = draw_shares(space, DRAWN, rng)
    levels = draw_levels(space, len(shares), rng)
    own_shares, own_levels = as_arrays([base])
    shares, levels = np.concatenate([own_shares, shares]), np.concatenate([own_levels, levels])
    for step in STEPS if space.sources else ():
        best = np.argsort(cost(shares, levels))[:BEST]
        moved = np.repeat(shares[best], DRAWN // 10 // BEST, axis=0)
        moved = np.maximum(moved + rng.normal(0, step, moved.shape) * (rng.random(moved.shape) < 0.5), 0)
        kept_levels = np.repeat(levels[best], DRAWN // 10 // BEST, axis=0)
        legal = [(row, level) for row, level in zip(moved, kept_levels, strict=True) if row.sum() > 0]
        near_shares = within_caps(np.array([row for row, _ in legal]), caps)
        if len(near_shares) == len(legal):
            levels = np.concatenate([levels[best], np.array([level for _, level in legal])])
            shares = np.concatenate([shares[best], near_shares])
    for i in np.argsort(cost(shares, levels)).tolist():
        found = rounded(shares[i], caps) if space.sources else ()
        if found is not None:
            return Point(found, tuple(levels[i].tolist()))
    return base


@dataclass(frozen=True)
class Finding:
    """What the scores say: the point to try, and why they cannot tell, where that is so."""

    law: Law
    other: Law
    best: Point
    correlation: float  # of ranks, predicted with each point left out against measured
    by_chance: float  # that a twentieth of permuted scores reach
    error: float  # root of the mean square of what is said of a point left out, in the mean of the targets
    spread: float  # deviation of the mean over the points
    seed_deviation: float  # of one point over seeds
    doubts: tuple[str, ...]


def find_best(
    space: Space, points: Sequence[Point], losses: F64, weights: F64, seed_deviation: float, seed: int = 0
) -> Finding:
    """Fit both laws to the losses (n, targets) of points and look for the best point."""
    law, other = (fit_law(kind, space, points, losses, weights) for kind in ("logshare", "exponential"))
    measured = losses @ weights
    said = law.left_out() @ weights
    correlation, by_chance = rank_correlation(said, measured), chance(law, points, losses, seed)
    best, least = search(law, seed_deviation, seed), int(np.argmin(measured))
    base = base_point(space)
    said_of_best, said_of_base = law.mean([best, base])
    own_score = measured[points.index(base)] if base in points else said_of_base
    if measured[least] - own_score < said_of_best - said_of_base - seed_deviation:
        best = points[least]  # the fit misses by more than seeds do, and promises a smaller gain than was seen
    spread = float(measured.std(ddof=1)) if len(points) > 1 else 0.0
    doubts = []
    if correlation < max(LEAST_CORRELATION, by_chance):
        doubts.append(
            f"the fit ranks points that it has not seen at {correlation:.2f}, where {LEAST_CORRELATION} is needed and "
            f"chance reaches {by_chance:.2f}"
        )
    if spread < 2 * seed_deviation:
        doubts.append(
            f"the points differ by {spread:.4f} bits per byte, less than twice what two seeds do, {seed_deviation:.4f}"
        )
    again, own = other.mean([best, base])
    if best != base and again >= own:
        doubts.append("the exponential law does not agree that the best mix is better than the base")
    error = float(np.sqrt(((said - measured) ** 2).mean()))
    return Finding(law, other, best, correlation, by_chance, error, spread, seed_deviation, tuple(doubts))


def chance(law: Law, points: Sequence[Point], losses: F64, seed: int) -> float:
    """Return the rank correlation that a twentieth of fits to permuted scores reach."""
    rng, x = np.random.default_rng(seed), features(law.kind, law.space, *as_arrays(points))
    shuffled = [losses[rng.permutation(len(losses))] for _ in range(PERMUTATIONS)]
    said = np.exp(ridge(x, np.log(np.concatenate(shuffled, axis=1))).left_out)
    pairs = zip(np.split(said, PERMUTATIONS, axis=1), shuffled, strict=True)
    found = [rank_correlation(left_out @ law.weights, drawn @ law.weights) for left_out, drawn in pairs]
    return float(np.quantile(found, 0.95))


def pooled_deviation(groups: Sequence[npt.ArrayLike]) -> float:
    """Return the deviation inside groups of scores, pooled; 0 where none has two."""
    arrays = [np.asarray(group, np.float64) for group in groups]
    freedom = sum(len(group) - 1 for group in arrays)
    return float(np.sqrt(sum(((group - group.mean()) ** 2).sum() for group in arrays) / freedom)) if freedom else 0.0
