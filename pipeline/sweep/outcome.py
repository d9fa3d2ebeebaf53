"""What comes out of a sweep: the fit and its doubts, the runs that confirm, and the recipe that follows."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.sweep.notes import describe_point
from pipeline.sweep.recipes import CONFIRM_SEED
from pipeline.sweep.runs import Prepared, Result, run_trials
from stages.compare.compare import Compared, Row, Side, compare, to_dict
from stages.compare.stats import Difference
from stages.sweep.fit import Finding, find_best, pooled_deviation
from stages.sweep.space import Point, base_point, rounded, within_caps

LITTLE = 0.1  # of the base's share, and LEAST of all: at most so much is about nothing
LEAST = 0.02


@dataclass(frozen=True)
class Outcome:
    """All that a sweep found."""

    prepared: Prepared
    results: list[Result]  # of the trials
    finding: Finding
    confirmed: Compared | None  # the base against the best point; None where none was worth it
    dropped: tuple[str, ...]  # sources that the best point has about nothing of
    rest: Compared | None  # the base without these against the best point

    @property
    def winner(self) -> Point:
        """The best point where it was confirmed to be better, else the base.

        Where the base without what the best leaves out was better still, it is that.
        """
        base, best = base_point(self.prepared.space), self.finding.best
        if self.confirmed is None or difference_of(self.confirmed).interval()[1] >= 0:
            return base
        if self.rest is not None and difference_of(self.rest).interval()[0] > 0:
            return without(self.prepared, best, self.dropped) or best
        return best


def row_of_all(compared: Compared) -> Row:
    """Return the row of all sources together, or of the only one."""
    return next((row for row in compared.rows if row.kind == "all"), compared.rows[0])


def difference_of(compared: Compared) -> Difference:
    """Return the difference of the two recipes over all sources; a sweep confirms with seeds, so it is known."""
    difference = row_of_all(compared).recipes
    assert difference is not None
    return difference


def by_point(results: Sequence[Result]) -> dict[Point, list[Result]]:
    """Return the runs of each point, in order."""
    points: dict[Point, list[Result]] = {}
    for result in results:
        points.setdefault(result.trial.point, []).append(result)
    return points


def find(prepared: Prepared, results: Sequence[Result]) -> Finding:
    """Fit what the trials scored."""
    own = np.array(list(prepared.weights.values()))
    runs = {point: np.array([list(one.losses.values()) for one in same]) for point, same in by_point(results).items()}
    deviation = pooled_deviation([scores @ own for scores in runs.values()])
    losses = np.array([scores.mean(0) for scores in runs.values()])
    return find_best(prepared.space, list(runs), losses, own, deviation, prepared.sweep.seed)


def left_out(prepared: Prepared, best: Point) -> tuple[str, ...]:
    """Return the sources of the base that the best point has about nothing of."""
    space = prepared.space
    triples = zip(space.sources, space.base, best.shares, strict=True)
    return tuple(name for name, share, now in triples if share > LEAST and now <= max(LEAST, LITTLE * share))


def without(prepared: Prepared, best: Point, dropped: Sequence[str]) -> Point | None:
    """Return the base without some sources, the others in proportion; None where it is no mix or the best itself."""
    space = prepared.space
    shares = np.array([0.0 if n in dropped else s for n, s in zip(space.sources, space.base, strict=True)])
    found = within_caps(shares[None], np.array(space.caps)) if shares.any() else np.empty((0, 0))
    mix = rounded(found[0], np.array(space.caps)) if len(found) else None
    point = None if mix is None else Point(mix, space.base_levels)
    return None if point == best else point


async def confirm(prepared: Prepared, results: list[Result], parallel: int) -> Outcome:
    """Train the base, the best point, and the base without what that leaves out, with fresh seeds, and compare them."""
    finding, sweep = find(prepared, results), prepared.sweep
    best, base = finding.best, base_point(prepared.space)
    if finding.doubts or best == base:
        return Outcome(prepared, results, finding, None, (), None)
    dropped = left_out(prepared, best)
    points = [base, best]
    if dropped and (other := without(prepared, best, dropped)) is not None:
        points.append(other)
    prepared.data.say(f"confirming the best mix with {sweep.confirm.seeds} fresh seeds a side")
    seeds = range(CONFIRM_SEED, CONFIRM_SEED + sweep.confirm.seeds)
    trials = [prepared.trial(prepared.confirm, point, seed) for point in points for seed in seeds]
    made = by_point(await run_trials(prepared, trials, parallel))
    sides = [Side(letter, tuple(one.run for one in made[point])) for letter, point in zip("ABC", points, strict=False)]

    def against(side: Side) -> Compared:
        (compared,) = compare([side, sides[1]], sweep.interest, None, prepared.weights)
        return compared

    rest = against(sides[2]) if len(sides) > 2 else None
    return Outcome(prepared, results, finding, against(sides[0]), dropped, rest)


# ---------------------------------------------------------------------------------------------------------------------
# As values


def score_rows(outcome: Outcome) -> list[dict[str, Any]]:
    """Return a row a trial: its run, seed, mix, keys, bits per byte of each source, and their mean."""
    prepared, rows = outcome.prepared, []
    for result in outcome.results:
        shares = prepared.shares(result.trial.point)
        row: dict[str, Any] = {"run": result.trial.name, "seed": result.trial.seed}
        row |= {f"share.{name}": share for name, share in shares.items()}
        row |= describe_point(prepared.space, result.trial.point)["values"]
        row |= {f"bits.{name}": round(loss, 6) for name, loss in result.losses.items()}
        rows.append(row | {"mean": round(prepared.mean(result.losses), 6)})
    return rows


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a table of text."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_values(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome as JSON values."""
    finding, space, sweep = outcome.finding, outcome.prepared.space, outcome.prepared.sweep
    best, base = finding.best, base_point(space)
    predicted = finding.law.mean([base, best])
    confirmed = None if outcome.confirmed is None else to_dict(outcome.confirmed, sweep.interest)
    return {
        "name": sweep.name,
        "trials": score_rows(outcome),
        "fit": {
            "rank_correlation": finding.correlation,
            "by_chance": finding.by_chance,
            "left_out_error": finding.error,
            "spread": finding.spread,
            "seed_deviation": finding.seed_deviation,
            "best": describe_point(space, best),
            "predicted_and_not_a_result": float(predicted[1] - predicted[0]),
            "doubts": list(finding.doubts),
        },
        "confirmed": confirmed,
        "left_out": list(outcome.dropped),
        "beyond_leaving_out": None if outcome.rest is None else to_dict(outcome.rest, sweep.interest),
        "next": describe_point(space, outcome.winner),
        "is_the_base": outcome.winner == base,
    }
