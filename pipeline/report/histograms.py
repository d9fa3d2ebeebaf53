"""Histograms of figures of documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from pipeline.report.charts import LEFT, RIGHT, Axes, plot, power_ticks, round_ticks
from pipeline.report.markup import number, share, short

Floats = npt.NDArray[np.float64]
Format = Callable[[float], str]
BINS = 40
FEW = 20  # documents below which each is a line of its own
HEADROOM = 1.24  # of the axis above the highest bar, for words


def span_of(values: Floats, log: bool) -> tuple[float, float]:
    """Return the ends of an axis: all values, or 98 of 100 of them where a few lie far away."""
    low, high = float(values.min()), float(values.max())
    near_low, near_high = (float(value) for value in np.quantile(values, (0.01, 0.99)))
    if log:
        low, high = max(1.0, near_low), max(2.0, high)
        return low, max(high, low * 2)
    if high - low > 2 * (near_high - near_low) > 0:
        low, high = near_low, near_high
    return (low, high) if high > low else (low, low + (abs(low) / 10 or 0.01))


def edges_of(low: float, high: float, log: bool, bins: int = BINS, border: float | None = None) -> Floats:
    """Return the edges of bins; `border`, a threshold between the ends, is one of them."""

    def between(first: float, last: float, n: int) -> Floats:
        return np.geomspace(first, last, n + 1) if log else np.linspace(first, last, n + 1)

    if border is None or not low < border < high:
        return between(low, high, bins)
    whole = np.log(high / low) if log else high - low
    part = (np.log(border / low) if log else border - low) / whole
    below = min(bins - 1, max(1, round(float(bins * part))))
    return np.concatenate([between(low, border, below)[:-1], between(border, high, bins - below)])


def horizontal_ticks(low: float, high: float, log: bool, shown: Format) -> list[tuple[float, str]]:
    """Return the labels of a horizontal axis."""
    if log:
        powers = [(value, number(value) if value < 1e5 else short(value)) for value in power_ticks(low, high)]
        return powers or [(low, short(low)), (high, short(high))]
    step = (round_ticks(high - low, 4)[1:] or [high - low])[0]
    first = np.ceil(low / step - 1e-9) * step
    return [(float(value), shown(float(value))) for value in np.arange(first, high + step * 1e-6, step)]


def lengths(values: Floats, unit: str, summary: str) -> Markup:
    """Return documents by a whole number, on a logarithmic axis."""
    return histogram(values, unit, summary, log=True, shown=number)


def shares(values: Floats, summary: str) -> Markup:
    """Return documents by a share."""
    return histogram(values, "", summary, log=False, shown=share)


def histogram(values: Floats, unit: str, summary: str, log: bool, shown: Format, height: int = 130) -> Markup:
    """Return documents by a figure, with its median. Of few documents each is a line."""
    low, high = span_of(values, log)
    median = float(np.median(values))
    if len(values) < FEW:
        axes = Axes(low, high, 0, 1, log)
        shapes = [axes.grid([]), *(axes.box(v, v, 0, 0.5, "area") for v in values.tolist())]
        return plot(shapes, [axes.ticks_below(horizontal_ticks(low, high, log, shown))], summary, 60)
    edges = edges_of(low, high, log)
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    top = float(counts.max())
    axes = Axes(low, high, 0, top * HEADROOM, log)
    levels = round_ticks(top, 2)
    shapes = [axes.grid(levels[1:]), *bars(axes, edges, counts), axes.upright(median, "median")]
    side = LEFT if axes.x(median) > 0.55 else RIGHT
    labels = [
        axes.ticks_below(with_unit(horizontal_ticks(low, high, log, shown), unit)),
        axes.ticks_left([(level, short(level)) for level in levels]),
        axes.note(median, top * 1.14, f"median {shown(median)}", side),
    ]
    return plot(shapes, labels, f"{summary}; the median is {shown(median)}", height)


def bars(axes: Axes, edges: Floats, counts: Floats, hot: Sequence[bool] = ()) -> list[Markup]:
    """Return the bars of a histogram; those that are `hot` in the other color."""
    kinds = ["area hot" if warm else "area" for warm in hot] or ["area"] * len(counts)
    return [
        axes.box(float(left), float(right), 0, float(count), kind)
        for left, right, count, kind in zip(edges, edges[1:], counts, kinds, strict=False)
        if count
    ]


def with_unit(ticks: list[tuple[float, str]], unit: str) -> list[tuple[float, str]]:
    """Return the ticks with a unit behind the last."""
    if not ticks or not unit:
        return ticks
    value, text = ticks[-1]
    return [*ticks[:-1], (value, f"{text} {unit}")]
