"""What a sweep varies, and the points of it that are trained: shares of sources under caps, and levels of other keys.

The points are spread by greedy maximin over the roots of the shares, from candidates on faces of the simplex: ten such
points were worth more than 32 drawn at random, whatever was fitted to them. A face, where a source has no share at all,
is also what stays known when that source changes. Candidates lie half-way to the base and have half of the sources at
least: maximin takes the farthest, and where caps do not forbid it these are mixes of one source or two, which say
nothing of those that anybody would train.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.errors import DataError

F64 = npt.NDArray[np.float64]
Levels = npt.NDArray[np.int64]

GRAIN = 1000  # shares are whole thousandths, so that a recipe says them exactly
EPSILON = 0.01  # added to a share before its logarithm
CANDIDATES = 4000
ABOUT = 0.02  # two shares that are no farther apart are about the same
DROP = 0.35  # with which a candidate leaves a source out


@dataclass(frozen=True)
class Key:
    """A dotted key of the recipe and the values that it takes."""

    name: str
    values: tuple[Any, ...]

    def scaled(self) -> F64 | None:
        """Return the values from 0 to 1, by logarithms where all are above 0; None where some are no numbers."""
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in self.values):
            return None
        numbers = np.array(self.values, np.float64)
        if (numbers > 0).all():
            numbers = np.log(numbers)
        scaled: F64 = (numbers - numbers.min()) / (np.ptp(numbers) or 1)
        return scaled


@dataclass(frozen=True)
class Space:
    """What varies. Shares are of `sources`, which is empty where the mixture stays as it is."""

    sources: tuple[str, ...]
    base: tuple[float, ...]  # the shares of the base
    caps: tuple[float, ...]  # the largest share that each source may have
    keys: tuple[Key, ...] = ()
    base_levels: tuple[int, ...] = ()  # of the base


@dataclass(frozen=True)
class Point:
    """One recipe of the space: a share a source, and a place in the values of each key."""

    shares: tuple[float, ...]
    levels: tuple[int, ...] = ()


def base_point(space: Space) -> Point:
    """Return the point that the base recipe is."""
    return Point(space.base, space.base_levels)


def as_arrays(points: Sequence[Point]) -> tuple[F64, Levels]:
    """Return the shares (n, sources) and levels (n, keys) of points."""
    shares = np.array([point.shares for point in points], np.float64).reshape(len(points), -1)
    return shares, np.array([point.levels for point in points], np.int64).reshape(len(points), -1)


def within_caps(shares: F64, caps: F64) -> F64:
    """Return the rows (n, sources) scaled to sum to 1, what is above a cap handed to the others in proportion.

    Rows whose sources cannot fill the mixture are left out.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        result = shares / shares.sum(1, keepdims=True)
        full = np.zeros(shares.shape, bool)
        for _ in range(shares.shape[1]):
            full |= result > caps
            free = np.where(full, 0.0, result)
            room = 1 - np.where(full, caps, 0.0).sum(1, keepdims=True)
            result = np.where(full, caps, free * room / free.sum(1, keepdims=True))
    return result[np.abs(result.sum(1) - 1) < 1e-9]


def rounded(shares: F64, caps: F64) -> tuple[float, ...] | None:
    """Return shares (sources,) in whole GRAINs that sum to 1 and keep under the caps; None where rounding cannot."""
    most = np.floor(np.minimum(caps, 1.0) * GRAIN + 1e-6)
    whole = np.minimum(np.floor(shares * GRAIN + 1e-6), most)
    for _ in range(GRAIN - int(whole.sum())):
        open_to = (whole < most) & (shares > 0)
        if not open_to.any():
            return None
        whole[np.argmax(np.where(open_to, shares * GRAIN - whole, -np.inf))] += 1
    return tuple(float(round(n / GRAIN, 3)) for n in whole)


def equal_shares(space: Space) -> tuple[float, ...]:
    """Return equal shares under the caps (UniMax, arXiv:2304.09151). Raises DataError where the caps allow no mix."""
    caps = np.array(space.caps)
    found = within_caps(np.ones((1, len(caps))), caps)
    shares = rounded(found[0], caps) if len(found) else None
    if shares is None:
        room = ", ".join(f"{name} {cap:.1%}" for name, cap in zip(space.sources, space.caps, strict=True))
        raise DataError(f"the caps on repeats leave room for less than the whole mixture: {room}; raise max_epochs")
    return shares


def without_each(space: Space) -> list[tuple[float, ...]]:
    """Return the base's shares without each source in turn, as far as the caps leave room for the others."""
    caps, base = np.array(space.caps), np.array(space.base)
    rows = [np.where(np.arange(len(base)) == i, 0.0, base) for i in np.flatnonzero(base)]
    found = [within_caps(row[None], caps) for row in rows if row.sum() > 0]
    shares = [rounded(one[0], caps) for one in found if len(one)]
    return [row for row in shares if row is not None]


def is_about(point: Point, other: Point) -> bool:
    """Say whether two points have the same sources and levels, and about the same shares."""
    shares, others = np.array(point.shares), np.array(other.shares)
    same = point.levels == other.levels and ((shares > 0) == (others > 0)).all()
    return bool(same and np.abs(shares - others).max(initial=0.0) <= ABOUT)


def draw_shares(space: Space, count: int, rng: np.random.Generator) -> F64:
    """Return about so many rows of shares: uniform on the simplex, sources left out at random, under the caps."""
    number = len(space.sources)
    if not number:
        return np.empty((count, 0))
    drawn = rng.dirichlet(np.ones(number), count) * (rng.random((count, number)) >= DROP)
    return within_caps(drawn[drawn.sum(1) > 0], np.array(space.caps))


def draw_candidates(space: Space, count: int, rng: np.random.Generator) -> F64:
    """Return at most so many rows of shares: half-way to the base, of at least half of the sources."""
    number = len(space.sources)
    if not number:
        return np.empty((count, 0))
    kept = rng.random((count, number)) >= DROP
    drawn = (rng.dirichlet(np.ones(number), count) + np.array(space.base)) / 2 * kept
    return within_caps(drawn[2 * kept.sum(1) >= number], np.array(space.caps))


def draw_levels(space: Space, count: int, rng: np.random.Generator) -> Levels:
    """Return so many rows of levels."""
    columns = [rng.integers(0, len(key.values), count) for key in space.keys]
    return np.array(columns, np.int64).reshape(len(space.keys), count).T


def coordinates(space: Space, shares: F64, levels: Levels) -> F64:
    """Return where points lie for the eye of the design: roots of the shares, and what `key_features` has of a key."""
    keys = [key_features(key, levels[:, i], squares=False) for i, key in enumerate(space.keys)]
    return np.column_stack([np.sqrt(shares), *keys])


def key_features(key: Key, level: Levels, squares: bool = True) -> F64:
    """Return (n, features) of one key: its scaled value and the square of it, or a column a value that is no number."""
    scaled = key.scaled()
    if scaled is None:
        return np.eye(len(key.values))[level] / math.sqrt(2)
    value = scaled[level]
    return np.column_stack([value, value**2] if squares and len(key.values) > 2 else [value])


def design(space: Space, count: int, kept: Sequence[Point] = (), seed: int = 0) -> list[Point]:
    """Return at least `count` points: the first ones, those that are kept, then what is farthest from all.

    The first are the base, equal shares, and the base without each source, which says what that is worth. Those that
    the base or a kept point is about are left out: a source that grows changes the caps, and with them these shares.

    Raises DataError where the caps allow no mix at all.
    """
    rng = np.random.default_rng(seed)
    caps, base = np.array(space.caps), base_point(space)
    wanted = [equal_shares(space), *without_each(space)] if space.sources else []
    first = [Point(shares, space.base_levels) for shares in wanted]
    new = [point for point in first if not any(is_about(point, other) for other in (base, *kept))]
    points = list(dict.fromkeys([base, *new, *kept]))
    drawn = list(draw_candidates(space, CANDIDATES, rng))
    levels = draw_levels(space, len(drawn), rng).tolist()
    made = (
        Point(shares, tuple(level))
        for row, level in zip(drawn, levels, strict=True)
        if (shares := rounded(row, caps) if space.sources else ()) is not None
    )
    candidates = list(dict.fromkeys(made))
    places = coordinates(space, *as_arrays(candidates))
    nearest = np.full(len(candidates), np.inf)
    for place in coordinates(space, *as_arrays(points)):
        nearest = np.minimum(nearest, ((places - place) ** 2).sum(1))
    while len(points) < count and nearest.max(initial=0.0) > 0:
        best = int(np.argmax(nearest))
        points.append(candidates[best])
        nearest = np.minimum(nearest, ((places - places[best]) ** 2).sum(1))
    return points
