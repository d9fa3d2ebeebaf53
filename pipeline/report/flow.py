"""The flow of a source, from what was read to what is trained on: a band from which pieces peel off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from pipeline.report.markup import attribute, escape

WIDTH, HEIGHT = 1040, 230  # of the drawing, and of all bands together
THINNEST = 1.5
PEEL, FALL = 112, 24  # how far a piece travels to the right and down
LABEL = 9  # from the end of a piece to its words


class Loss(NamedTuple):
    """What left a source somewhere."""

    kind: str  # class of its color: out, again, held
    label: str
    amount: float
    small: str  # what it is made of


class Flow(NamedTuple):
    """A source's way."""

    name: str
    read: float
    losses: Sequence[Loss]
    left: float
    read_label: str
    left_label: str


def bands(flows: Sequence[Flow], unit: str) -> Markup:
    """Return the drawing: a band a source, all on one scale."""
    scale = HEIGHT / max(1.0, sum(flow.read for flow in flows))
    top, pieces = 30.0, []
    for flow in flows:
        drawing, bottom = band(flow, scale, top)
        pieces.append(drawing)
        top = bottom + 46
    label = attribute(f"From source to training text, in {unit}; the table says the same")
    return Markup(f'<svg viewBox="0 0 {WIDTH} {top - 36:.0f}" role="img" aria-label="{label}">') + Markup("").join(
        [*pieces, Markup("</svg>")]
    )


def band(flow: Flow, scale: float, top: float) -> tuple[Markup, float]:
    """Return one band whose upper edge is at `top`, and where it ends."""
    bottom = top + max(2.0, flow.read * scale)
    words = [
        text_at(0, top - 11, flow.name, "strong", after=flow.read_label),
        text_at(WIDTH, top - 11, flow.left_label, "strong", anchor="end"),
    ]
    steps = [(0.0, bottom)]  # the lower edge from left to right: where it is at which height
    lowest, pieces = bottom, []
    gap = 310 if len(flow.losses) <= 3 else 240
    for i, loss in enumerate(flow.losses):
        gate, thick = 120.0 + gap * i, max(THINNEST, loss.amount * scale)
        middle, upper = gate + PEEL / 2, bottom - thick
        end, low = gate + PEEL, bottom + FALL
        pieces.append(
            f'<path class="{loss.kind}" d="M{gate:g} {upper:.1f}'
            f"C{middle:g} {upper:.1f} {middle:g} {upper + FALL:.1f} {end:g} {upper + FALL:.1f}V{low:.1f}"
            f'C{middle:g} {low:.1f} {middle:g} {bottom:.1f} {gate:g} {bottom:.1f}Z"/>'
        )
        first = max(bottom - thick / 2 + FALL - 2, upper + FALL + 9)
        kind = "warm" if loss.kind == "out" else ""
        words.append(text_at(gate + PEEL + LABEL, first, loss.label, kind))
        words.append(text_at(gate + PEEL + LABEL, first + 17, loss.small, "faint"))
        lowest = max(lowest, bottom + FALL, first + 22)
        bottom = upper
        steps.append((gate, bottom))
    edge = f"M0 {top:.1f}H{WIDTH}V{bottom:.1f}"
    for (gate, _), (_, before) in zip(reversed(steps[1:]), reversed(steps[:-1]), strict=True):
        edge += f"H{gate:g}V{before:.1f}"
    return Markup(f'<path class="stay" d="{edge}H0Z"/>{"".join(pieces)}') + Markup("").join(words), lowest


def text_at(x: float, y: float, text: str, kind: str, anchor: str = "start", after: str = "") -> Markup:
    """Return words of the drawing, with others behind them in a quieter tone."""
    behind = Markup('<tspan dx="10" font-weight="400">') + escape(after) + Markup("</tspan>") if after else Markup("")
    opening = Markup(f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">')
    return opening + escape(text) + behind + Markup("</text>")
