"""Charts: shapes are SVG that stretches with the page, labels are HTML that does not. One chart serves every width."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pipeline.report.markup import attribute, escape

Point = tuple[float, float]
Tick = tuple[float, str]
LEFT, RIGHT = "left", "right"  # on which side of its place a note stands


def percent(value: float) -> str:
    """Return a length of CSS."""
    return f"{100 * value:.3f}".rstrip("0").rstrip(".") + "%"


@dataclass(frozen=True)
class Axes:
    """Values on a box of 1000 by 1000, whose origin is the lower left corner."""

    left: float
    right: float
    low: float
    high: float
    log: bool = False  # the horizontal one

    def x(self, value: float) -> float:
        """Return the place of a value, 0 to 1."""
        if self.log:
            value, left, right = (math.log(max(v, 1e-12)) for v in (value, self.left, self.right))
        else:
            left, right = self.left, self.right
        return min(1.0, max(0.0, (value - left) / ((right - left) or 1)))

    def y(self, value: float) -> float:
        """Return the height of a value, 0 to 1."""
        return min(1.0, max(0.0, (value - self.low) / ((self.high - self.low) or 1)))

    def point(self, x: float, y: float) -> str:
        """Return a point of SVG."""
        return f"{1000 * self.x(x):.1f},{1000 * (1 - self.y(y)):.1f}"

    def line(self, points: Iterable[Point], kind: str = "line") -> Markup:
        """Return a line through points."""
        path = " ".join(self.point(x, y) for x, y in points)
        return Markup(f'<polyline class="{kind}" points="{path}"/>')

    def box(self, left: float, right: float, low: float, high: float, kind: str) -> Markup:
        """Return a rectangle."""
        x, width = 1000 * self.x(left), 1000 * (self.x(right) - self.x(left))
        y, height = 1000 * (1 - self.y(high)), 1000 * (self.y(high) - self.y(low))
        place = f'x="{x:.1f}" y="{y:.1f}" width="{max(0.6, width):.1f}" height="{max(0.0, height):.1f}"'
        return Markup(f'<rect class="{kind}" {place}/>')

    def upright(self, x: float, kind: str = "threshold") -> Markup:
        """Return a line over the whole height."""
        return Markup(f'<path class="{kind}" d="M{1000 * self.x(x):.1f} 0V1000"/>')

    def grid(self, values: Iterable[float]) -> Markup:
        """Return level lines, and the one at the bottom."""
        lines = "".join(f'<path class="grid" d="M0 {1000 * (1 - self.y(v)):.1f}H1000"/>' for v in values)
        return Markup(lines + '<path class="axis" d="M0 1000H1000"/>')

    def ticks_below(self, ticks: Iterable[Tick]) -> Markup:
        """Return the labels of the horizontal axis; the outermost stay inside the chart."""
        spans = []
        for value, text in ticks:
            place = self.x(value)
            edge = " first" if place < 0.03 else " last" if place > 0.94 else ""
            spans.append(Markup(f'<span class="below{edge}" style="left:{percent(place)}">') + escape(text) + END)
        return Markup("").join(spans)

    def ticks_left(self, ticks: Iterable[Tick]) -> Markup:
        """Return the labels of the vertical axis."""
        spans = (
            Markup(f'<span class="beside" style="bottom:{percent(self.y(value))}">') + escape(text) + END
            for value, text in ticks
        )
        return Markup("").join(spans)

    def note(self, x: float, y: float, text: str, side: str = RIGHT, kind: str = "") -> Markup:
        """Return a word at a place of the chart, to its left, right or above it."""
        style = f"left:{percent(self.x(x))};bottom:{percent(self.y(y))}"
        return Markup(f'<span class="note {side} {kind}" style="{style}">') + escape(text) + END


END = Markup("</span>")


def plot(
    shapes: Iterable[Markup], labels: Iterable[Markup], summary: str, height: int = 150, series: str = ""
) -> Markup:
    """Return a chart. `summary` says it in words to who cannot see it; `series` is the id of its values, for a reader.

    The values are in a `<script type="application/json">`; without JavaScript the chart says all that it draws.
    """
    data = f' data-series="{series}" role="group"' if series else ' role="img"'
    return Markup(
        f'<div class="plot"{data} aria-label="{attribute(summary)}" style="--h:{height}px">'
        '<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" aria-hidden="true" focusable="false">'
        f"{Markup('').join(shapes)}</svg>{Markup('').join(labels)}</div>"
    )


def data_script(name: str, value: Any) -> Markup:
    """Return values for the script of the page: JSON in which no text can close or open a tag."""
    text = json.dumps(value, separators=(",", ":"), sort_keys=True)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(f'<script type="application/json" id="{name}">{text}</script>')


def bar(part: float, hot: bool = False) -> Markup:
    """Return a bar of a table, `part` of its full length."""
    kind = ' class="hot"' if hot else ""
    inner = f'<i{kind} style="width:{percent(min(1.0, part))}"></i>' if part > 0 else ""
    return Markup(f'<span class="bar" aria-hidden="true">{inner}</span>')


def strip(pieces: Sequence[tuple[float, str]], whole: float) -> Markup:
    """Return a strip of pieces (value, kind), on a scale on which `whole` is its full length."""
    inner = "".join(
        f'<i class="{kind}" style="width:{percent(value / whole)}"></i>'
        for value, kind in pieces
        if value > 0 and whole
    )
    return Markup(f'<span class="strip" aria-hidden="true">{inner}</span>')


def round_ticks(top: float, about: int = 3) -> list[float]:
    """Return round numbers from 0 to at most `top`, about so many steps."""
    if top <= 0:
        return [0.0]
    step = 10 ** math.floor(math.log10(top / about))
    step = next(step * factor for factor in (1, 2, 2.5, 5, 10) if top / (step * factor) <= about + 0.5)
    return [step * i for i in range(int(top / step * 1.0001) + 1)]


def power_ticks(low: float, high: float) -> list[float]:
    """Return the powers of ten between two positive numbers."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    return [10.0**power for power in range(first, last + 1)]


def series(rows: Iterable[Mapping[str, Any]], key: str) -> list[Point]:
    """Return a figure over the steps of a run that have it and where it is finite."""
    points = [(float(row["step"]), float(row[key])) for row in rows if isinstance(row.get(key), int | float)]
    return [point for point in points if math.isfinite(point[1])]


def thinned(points: Sequence[Point], most: int = 2000) -> list[Point]:
    """Return the points of a curve: all, or the least and the greatest of each of `most` / 2 stretches."""
    if len(points) <= most:
        return list(points)
    kept: list[Point] = []
    stretches = most // 2
    for i in range(stretches):
        stretch = range(i * len(points) // stretches, (i + 1) * len(points) // stretches)
        ends = {min(stretch, key=lambda j: points[j][1]), max(stretch, key=lambda j: points[j][1])}
        kept += [points[j] for j in sorted(ends)]
    return kept
