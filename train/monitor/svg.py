"""Line charts as SVG, in the standard library: a bare GPU image has no plotting package.

Without a background and in tones that read on white and on black: whoever shows the file as an image decides which of
them is behind it. The same numbers give the same bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 64, 18, 52, 40  # margins
COLORS = ("#3b82f6", "#e0742b", "#2da44e", "#a371f7", "#d4a72c")
INK, ALARM = "#80868f", "#e5484d"
MOST = 700  # points drawn of a series; of more, the least and the greatest of each of MOST / 2 stretches
SMALLEST = 1e-300  # on a logarithmic axis: whatever is less has no room below it in a float
LABEL = 18  # pixels a label of the vertical axis needs


class Series(NamedTuple):
    """A line, or with `dots` a line with its points marked. What is not finite is a gap."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    dots: bool = False


class Axis(NamedTuple):
    """Values [low, high] on pixels [start, stop]."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def place(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.stop - self.start) * (value - low) / (high - low)


def chart(title: str, series: Sequence[Series], zero: bool = False, marks: Sequence[float] = (), mark: str = "") -> str:
    """A chart over steps. The vertical axis is logarithmic where all values are above 0 and span a factor above 3,
    unless it begins at `zero`. `marks` are steps with a vertical line, called `mark` in the legend."""
    drawn = [s for s in (_finite(s) for s in series) if s.xs]
    ys = [y for s in drawn for y in s.ys] or [0.0, 1.0]
    end = max((x for s in drawn for x in s.xs), default=1.0)
    log = not zero and min(ys) > SMALLEST and max(ys) > 3 * min(ys)
    title += ", logarithmic" if log else ""
    y = Axis(*_range(min(ys), max(ys), zero, log), HEIGHT - BOTTOM, TOP, log)
    x = Axis(0, max(end, 1.0), LEFT, WIDTH - RIGHT)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="system-ui, sans-serif" font-size="12" fill="{INK}">',
        f"<title>{escape(title)}</title>",
        f'<text x="{LEFT}" y="18" font-size="14" font-weight="600">{escape(title)}</text>',
    ]
    out += _grid(x, y)
    for step in marks:
        at = f"{x.place(step):.1f}"
        out.append(f'<path d="M{at} {TOP}V{HEIGHT - BOTTOM}" stroke="{ALARM}" stroke-opacity=".5"/>')
    for s, color in zip(drawn, COLORS, strict=False):
        out += _line(s, color, x, y)
    named = [*zip([s.name for s in drawn], COLORS, strict=False), *([(mark, ALARM)] if marks else [])]
    out += _legend(named) if len(named) > 1 else []
    return "\n".join([*out, "</svg>"]) + "\n"


def ticks(low: float, high: float, count: int) -> list[float]:
    """At most `count` + 1 round values of [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(y: Axis) -> list[float]:
    """As many per power of ten as have room."""
    powers = range(math.floor(math.log10(y.low)), math.ceil(math.log10(y.high)))
    for steps in ((1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9), (1, 1.5, 2, 3, 4, 5, 7), (1, 2, 5)):
        values = [v for p in powers for m in steps if y.low <= (v := m * 10.0**p) <= y.high]
        if all(y.place(a) - y.place(b) >= LABEL for a, b in itertools.pairwise(values)):
            return values
    every = math.ceil(len(powers) / 8)
    return [v for p in powers if p % every == 0 and y.low <= (v := 10.0**p) <= y.high]


def short(value: float) -> str:
    """A figure in a few characters: 0, 0.002, 3.5, 1.2k, 25M."""
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        digits, _, power = f"{value:.1e}".partition("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.4g}"


def _finite(s: Series) -> Series:
    """Without what cannot be drawn, and not more points than can be seen."""
    pairs = [(x, y) for x, y in zip(s.xs, s.ys, strict=True) if math.isfinite(y)]
    if len(pairs) > MOST:
        cuts = [round(i * len(pairs) / (MOST // 2)) for i in range(MOST // 2 + 1)]
        parts = [pairs[a:b] for a, b in itertools.pairwise(cuts)]
        pairs = [p for part in parts for p in sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})]
    return s._replace(xs=[x for x, _ in pairs], ys=[y for _, y in pairs])


def _range(low: float, high: float, zero: bool, log: bool) -> tuple[float, float]:
    """With some room, and never empty."""
    if log:
        room = (high / low) ** 0.05
        return low / room, high * room
    low = min(0.0, low) if zero else low
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return (low if zero else low - room), high + room


def _grid(x: Axis, y: Axis) -> list[str]:
    out = []
    for value in _log_ticks(y) if y.log else ticks(y.low, y.high, 5):
        at = y.place(value)
        out.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="{INK}" stroke-opacity=".25"/>')
        out.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{short(value)}</text>')
    for value in ticks(x.low, x.high, min(8, math.ceil(x.high))):
        at = x.place(value)
        out.append(f'<path d="M{at:.1f} {HEIGHT - BOTTOM}v5" stroke="{INK}"/>')
        out.append(f'<text x="{at:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{short(value)}</text>')
    out.append(f'<path d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}" stroke="{INK}"/>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">step</text>')
    return out


def _line(s: Series, color: str, x: Axis, y: Axis) -> list[str]:
    points = [f"{x.place(a):.1f} {y.place(b):.1f}" for a, b in zip(s.xs, s.ys, strict=True)]
    thin = ' stroke-opacity=".5"' if s.dots else ""
    out = [f'<path d="M{"L".join(points)}" fill="none" stroke="{color}" stroke-width="1.25"{thin}/>']
    dots = s.dots or len(points) == 1
    return out + [f'<circle cx="{p.split()[0]}" cy="{p.split()[1]}" r="3" fill="{color}"/>' for p in points if dots]


def _legend(named: list[tuple[str, str]]) -> list[str]:
    out, at = [], LEFT
    for name, color in named:
        out.append(f'<path d="M{at} 36h16" stroke="{color}" stroke-width="3"/>')
        out.append(f'<text x="{at + 22}" y="40">{escape(name)}</text>')
        at += 40 + 7 * len(name)
    return out
