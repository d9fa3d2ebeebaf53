"""The page of a sweep, to open from the disk: what was claimed, the fit, every point, and the curve of each source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from pipeline.report.charts import Axes, plot
from pipeline.report.site import STYLE, environment
from pipeline.sweep.outcome import Outcome, by_point
from stages.sweep.space import Point, base_point
from train.files import write_atomic


def write_page(folder: Path, outcome: Outcome, values: dict[str, Any], rows: list[list[Any]]) -> None:
    """Write index.html and its style sheet. rows: the table of points, its header first."""
    text = (
        environment()
        .get_template("sweep.html")
        .render(
            sweep=outcome.prepared.sweep,
            result=values,
            header=rows[0],
            rows=rows[1:],
            curves=[(name, curve(outcome, i)) for i, name in enumerate(outcome.prepared.space.sources)],
        )
    )
    write_atomic(folder / "index.html", text)
    static = Path(__file__).parents[1] / "report" / "static" / STYLE
    write_atomic(folder / STYLE, static.read_text(encoding="utf-8"))


def curve(outcome: Outcome, source: int) -> Markup:
    """Return a chart: the mean that the fit says over the share of one source, the others in the best's proportion.

    Dots are the points that were trained, wherever their other shares lie.
    """
    space, best = outcome.prepared.space, outcome.finding.best
    cap = space.caps[source]
    rest = np.array([0.0 if i == source else max(share, 1e-3) for i, share in enumerate(best.shares)])
    shares = np.linspace(0, cap, 60)
    mixes = (1 - shares)[:, None] * rest / rest.sum()
    mixes[:, source] = shares
    said = outcome.finding.law.mean([Point(tuple(row), best.levels) for row in mixes.tolist()])
    trained = {
        point: float(np.mean([outcome.prepared.mean(result.losses) for result in results]))
        for point, results in by_point(outcome.results).items()
    }
    every = [*said.tolist(), *trained.values()]
    low, high = min(every), max(every)
    axes = Axes(0, cap, low - 0.05 * (high - low), high + 0.05 * (high - low))
    base = base_point(space)
    width = 0.006 * cap
    dots = [
        axes.box(point.shares[source] - width, point.shares[source] + width, mean, mean + 0.03 * (high - low), "bar")
        for point, mean in trained.items()
    ]
    shapes = [axes.grid([low, high]), axes.line(zip(shares.tolist(), said.tolist(), strict=True)), *dots]
    shapes.append(axes.upright(best.shares[source]))
    labels = [
        axes.ticks_below([(0, "0%"), (cap, f"{cap:.0%}")]),
        axes.ticks_left([(low, f"{low:.3f}"), (high, f"{high:.3f}")]),
    ]
    name = space.sources[source]
    summary = f"Bits per byte over the share of {name}: best {best.shares[source]:.1%}, base {base.shares[source]:.1%}"
    return plot(shapes, labels, summary)
