"""What a larger model will lose, from three or more smaller ones: L = E + A C^-a over their compute C.

Compute is 6 N D with N the weights that multiply once a token: with all parameters the same law was off by .08 to .18
nats at ninety times the compute, with these by .05 (research on the runs of mlfoundations/scaling). Three points do not
say what E and a are, so the prediction is a mixture over a grid of both (uniform in E up to the least loss, and in a),
with A by least squares for each, the noise of a run, and a misfit of the law that grows with the decades beyond.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.errors import DataError

EXPONENTS = np.linspace(0.03, 0.25, 56)  # those of published ladders lie within
FLOORS = np.linspace(0.0, 0.95, 96)  # E, by the least loss
NOISE = 0.01  # nats of one run, at least: what the law and a seed leave on text of the training distribution
MISFIT = 0.05  # nats a decade of compute beyond the largest run
FARTHEST = 2.1  # decades: some hundred times
COVERAGE = 0.95

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """The loss at some compute, nats a token: the middle and the ends of a 95 % interval."""

    middle: float
    low: float
    high: float
    decades: float  # beyond the largest run


def predict(compute: Sequence[float], losses: Sequence[float], at: float, noise: float = NOISE) -> Prediction:
    """Predict the loss at compute `at`. compute, losses: of each run. noise: nats, the deviation of a run.

    Raises DataError for fewer than three sizes, losses that do not fall, and more than FARTHEST decades.
    """
    x, y = np.asarray(compute, float), np.asarray(losses, float)
    order = np.argsort(x)
    x, y = x[order], y[order]
    if len(np.unique(x)) < 3:
        raise DataError("a ladder takes three sizes, or more")
    if y[-1] >= y[0]:
        raise DataError(f"the largest run ({y[-1]:.4f} nats) is no better than the smallest ({y[0]:.4f}); look at them")
    decades = max(0.0, math.log10(at / x[-1]))
    if decades > FARTHEST:
        raise DataError(
            f"the target takes {10**decades:,.0f} times the compute of the largest run; add a size, as beyond some 100 "
            "times the law says nothing"
        )
    means, deviations, weights = over_grid(x, y, at, max(noise, NOISE))
    deviations = np.hypot(deviations, MISFIT * decades)
    tail = (1 - COVERAGE) / 2
    low, middle, high = (quantile(means, deviations, weights, p) for p in (tail, 0.5, 1 - tail))
    return Prediction(middle, low, high, decades)


def over_grid(x: Floats, y: Floats, at: float, noise: float) -> tuple[Floats, Floats, Floats]:
    """Return for each floor and exponent the prediction at `at`, its deviation and its posterior weight, flat."""
    floors = FLOORS[:, None] * y.min()
    # relative to the geometric mean, so that powers are near 1
    unit = math.exp(np.log(x).mean())
    powers = (x / unit) ** -EXPONENTS[:, None]  # (exponents, runs)
    squares = (powers**2).sum(1)  # (exponents,)
    scale = ((y[None, None] - floors[..., None]) * powers).sum(-1) / squares  # (floors, exponents)
    residual = ((y[None, None] - floors[..., None] - scale[..., None] * powers) ** 2).sum(-1)
    log_weight = -residual / (2 * noise**2) - 0.5 * np.log(squares)
    weights = np.exp(log_weight - log_weight.max())
    power = (at / unit) ** -EXPONENTS
    means = floors + scale * power
    deviations = np.broadcast_to(noise * np.sqrt(1 + power**2 / squares), means.shape)
    return means.ravel(), deviations.ravel(), (weights / weights.sum()).ravel()


def quantile(means: Floats, deviations: Floats, weights: Floats, p: float) -> float:
    """Return where a mixture of normal distributions has probability `p` below it, by bisection."""
    keep = weights > 1e-7
    means, deviations, weights = means[keep], deviations[keep], weights[keep] / weights[keep].sum()
    low, high = float((means - 9 * deviations).min()), float((means + 9 * deviations).max())
    for _ in range(40):
        middle = (low + high) / 2
        below = float((weights * normal_cdf((middle - means) / deviations)).sum())
        low, high = (middle, high) if below < p else (low, middle)
    return (low + high) / 2


def normal_cdf(z: Floats) -> Floats:
    """Return the normal distribution's probability below each z."""
    erf: Floats = np.vectorize(math.erf, otypes=[float])(z / math.sqrt(2))
    return (1 + erf) / 2


@dataclass(frozen=True)
class Optimum:
    """The best rate among three, by a parabola over log rate: a factor of the middle one, with a 95 % interval."""

    factor: float
    low: float
    high: float


def best_rate(losses: Sequence[float], step: float, noise: float = NOISE) -> Optimum | None:
    """Return the optimum of three losses at rates 1/step, 1 and step; None where it lies outside of them.

    The interval is the delta method's, for runs that deviate by `noise` nats.
    """
    below, middle, above = losses
    slope, curve = (above - below) / 2, (above + below) / 2 - middle
    if curve <= 0 or abs(slope) > 2 * curve:
        return None
    at = -slope / (2 * curve)
    # at = -slope / 2 curve; the variances of slope and curve are noise^2 / 2 and 3 noise^2 / 2, and they do not covary
    deviation = noise / (2 * curve) * math.sqrt(0.5 + 1.5 * (slope / curve) ** 2)
    return Optimum(step**at, step ** (at - 1.96 * deviation), step ** (at + 1.96 * deviation))
