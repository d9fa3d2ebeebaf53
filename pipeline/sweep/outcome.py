"""What comes out of a sweep: the fit and its doubts, the runs that confirm, and the recipe that follows."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.sweep.config import Sweep
from pipeline.sweep.notes import Notes, describe_point
from pipeline.sweep.recipes import CONFIRM_SEED, Trial, mixture_of, scored_sources, trial
from pipeline.sweep.runs import Prepared, Result, named_shares, run_trials
from stages.compare.compare import Compared, Row, Side, compare, to_dict
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
        """The best point where it was confirmed to be better, else the base."""
        base = base_point(self.prepared.space)
        if self.confirmed is None:
            return base
        difference = row_of_all(self.confirmed).recipes
        return self.finding.best if difference is not None and difference.interval()[1] < 0 else base


def row_of_all(compared: Compared) -> Row:
    """Return the row of all sources together, or of the only one."""
    return next((row for row in compared.rows if row.kind == "all"), compared.rows[0])


def by_point(results: Sequence[Result]) -> dict[Point, list[Result]]:
    """Return the runs of each point, in order."""
    points: dict[Point, list[Result]] = {}
    for result in results:
        points.setdefault(result.trial.point, []).append(result)
    return points


def find(sweep: Sweep, prepared: Prepared, results: Sequence[Result]) -> Finding:
    """Fit what the trials scored."""
    weights = scored_sources(sweep, prepared.recipe)
    own = np.array(list(weights.values()))
    scores = {
        point: np.array([list(result.losses.values()) for result in runs]) for point, runs in by_point(results).items()
    }
    deviation = pooled_deviation([runs @ own for runs in scores.values()])
    losses = np.array([runs.mean(0) for runs in scores.values()])
    return find_best(prepared.space, list(scores), losses, own, deviation, sweep.seed)


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


async def confirm(
    sweep: Sweep, prepared: Prepared, results: list[Result], notes: Notes, parallel: int, finding: Finding
) -> Outcome:
    """Train the base, the best point, and the base without what that leaves out, with fresh seeds, and compare them."""
    best, base = finding.best, base_point(prepared.space)
    if finding.doubts or best == base:
        return Outcome(prepared, results, finding, None, (), None)
    dropped = left_out(prepared, best)
    points = [base, best]
    if dropped and (other := without(prepared, best, dropped)) is not None:
        points.append(other)

    def runs_of(point: Point) -> list[Trial]:
        shares = named_shares(sweep, prepared.recipe, prepared.space, prepared.base, point)
        seeds = range(CONFIRM_SEED, CONFIRM_SEED + sweep.confirm.seeds)
        return [trial(sweep, prepared.recipe, prepared.confirm, point, shares, seed) for seed in seeds]

    prepared.data.say(f"confirming the best mix with {sweep.confirm.seeds} fresh seeds a side")
    made = await run_trials(sweep, prepared, [each for point in points for each in runs_of(point)], notes, parallel)
    sides = [tuple(result.run for result in runs) for runs in by_point(made).values()]
    weights = scored_sources(sweep, prepared.recipe)

    def against(a: int, b: int) -> Compared:
        (compared,) = compare([Side("A", sides[a]), Side("B", sides[b])], sweep.interest, None, weights)
        return compared

    return Outcome(prepared, results, finding, against(0, 1), dropped, against(2, 1) if len(points) > 2 else None)


# ---------------------------------------------------------------------------------------------------------------------
# As values


def score_rows(sweep: Sweep, outcome: Outcome) -> list[dict[str, Any]]:
    """Return a row a trial: its run, seed, mix, keys, bits per byte of each source, and their mean."""
    weights = scored_sources(sweep, outcome.prepared.recipe)
    sources = outcome.prepared.recipe.mixtures[mixture_of(sweep, outcome.prepared.recipe)].sources
    rows = []
    for result in outcome.results:
        ratios = next(iter(result.trial.recipe.mixtures.values())).ratios
        row: dict[str, Any] = {"run": result.trial.name, "seed": result.trial.seed}
        row |= {f"share.{name}": ratios.get(name, 0.0) for name in sources}
        row |= describe_point(outcome.prepared.space, result.trial.point)["values"]
        row |= {f"bits.{name}": round(loss, 6) for name, loss in result.losses.items()}
        rows.append(row | {"mean": round(sum(weights[name] * loss for name, loss in result.losses.items()), 6)})
    return rows


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a table of text."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def as_values(sweep: Sweep, outcome: Outcome) -> dict[str, Any]:
    """Return the outcome as JSON values."""
    finding, space = outcome.finding, outcome.prepared.space
    best, base = finding.best, base_point(space)
    predicted = finding.law.mean([base, best])
    confirmed = None if outcome.confirmed is None else to_dict(outcome.confirmed, sweep.interest)
    return {
        "name": sweep.name,
        "trials": score_rows(sweep, outcome),
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
