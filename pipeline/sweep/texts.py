"""What came of a sweep, in words: the table of its points, the fit, the claim, and the recipe that follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.sweep.config import Sweep
from pipeline.sweep.notes import describe_point
from pipeline.sweep.outcome import Outcome, by_point, row_of_all
from pipeline.sweep.recipes import mixture_of, next_recipe, scored_sources
from pipeline.sweep.runs import named_shares
from stages.compare.stats import Difference
from stages.paths import is_remote, leads_anywhere
from stages.recipe import Recipe
from stages.sweep.space import Point, base_point


def score_table(sweep: Sweep, outcome: Outcome) -> list[list[Any]]:
    """Return the header and a row a point, the best first."""
    prepared = outcome.prepared
    weights = scored_sources(sweep, prepared.recipe)
    sources = prepared.recipe.mixtures[mixture_of(sweep, prepared.recipe)].sources
    shown = list(sources) if prepared.space.sources else []
    keys = [key.name for key in prepared.space.keys]
    rows: list[tuple[float, list[Any]]] = []
    for point, results in by_point(outcome.results).items():
        losses = {name: float(np.mean([result.losses[name] for result in results])) for name in weights}
        mean = sum(weights[name] * loss for name, loss in losses.items())
        shares = named_shares(sweep, prepared.recipe, prepared.space, prepared.base, point)
        values = describe_point(prepared.space, point)["values"]
        name = "base" if point == base_point(prepared.space) else results[0].trial.name.removeprefix(f"{sweep.name}-")
        mix = [f"{shares[source]:.3f}".rstrip("0").rstrip(".") for source in shown]
        own = f"{mean:.4f}"
        if len(results) > 1:
            own += f" ± {outcome.finding.seed_deviation:.4f}, {len(results)} seeds"
        rows.append((mean, [name, *mix, *(values[key] for key in keys), *(f"{x:.4f}" for x in losses.values()), own]))
    bits = [f"{name}, bits" for name in weights]
    return [["point", *shown, *keys, *bits, "mean"], *(row for _, row in sorted(rows, key=lambda row: row[0]))]


def mix_text(outcome: Outcome, point: Point) -> str:
    """Return a point as a line has it."""
    described = describe_point(outcome.prepared.space, point)
    shares = " ".join(f"{name} {share:g}" for name, share in described["shares"].items())
    return ", ".join([shares] * bool(shares) + [f"{key} {value}" for key, value in described["values"].items()])


def fit_lines(outcome: Outcome) -> list[str]:
    """Return what the fit says."""
    finding, base = outcome.finding, base_point(outcome.prepared.space)
    lines = [
        f"{'fit':10} log loss on shares and log shares, by source; points left out are ranked at "
        f"{finding.correlation:.2f} (by chance below {finding.by_chance:.2f}) and missed by {finding.error:.4f}",
        f"{'':10} points differ by {finding.spread:.4f}, seeds of one by {finding.seed_deviation:.4f}",
        f"{'best':10} {mix_text(outcome, finding.best)}",
    ]
    if finding.best == base:
        lines.append(f"{'':10} which is the base: no other mix pays for the move")
    elif not finding.doubts:
        predicted = finding.law.mean([base, finding.best])
        lines.append(
            f"{'':10} predicted {predicted[1] - predicted[0]:+.4f} against the base; such figures overstate, so it "
            "was run"
        )
    return lines


def verdict(sweep: Sweep, outcome: Outcome) -> list[str]:
    """Return the claim of a sweep, in sentences."""
    finding = outcome.finding
    if outcome.confirmed is None:
        if finding.best == base_point(outcome.prepared.space) and not finding.doubts:
            return ["The base stays: no point of the sweep is predicted to be better by more than a seed's chance."]
        more = max(4, len(outcome.prepared.points) // 2)
        return [
            f"The proxies cannot tell: {'; '.join(finding.doubts)}. Kept: the base.",
            f"To know more: points: {len(outcome.prepared.points) + more}, or larger proxies; what is done is kept.",
        ]
    row = row_of_all(outcome.confirmed)
    assert row.recipes is not None
    lines = [f"Confirmed with {sweep.confirm.seeds} fresh seeds a side: the best against the base {said(row.recipes)}."]
    low, high = row.recipes.interval()
    if low <= 0 <= high:
        lines.append("The proxies cannot tell the best mix from the base. Kept: the base.")
    elif low > 0:
        lines.append("The best mix of the proxies is worse than the base at this size. Kept: the base.")
    if outcome.dropped:
        names = ", ".join(outcome.dropped)
        if outcome.rest is None:
            lines.append(f"It is the base without {names}: all of the difference is that.")
        else:
            rest = row_of_all(outcome.rest).recipes
            assert rest is not None
            lines.append(f"Against the base without {names}: {said(rest)}; that much is not the leaving out alone.")
    return lines


def said(difference: Difference) -> str:
    """Write a difference and its interval."""
    low, high = difference.interval()
    return f"{difference.value:+.4f} bits per byte [{low:+.4f}, {high:+.4f}]"


def next_text(sweep: Sweep, given: Recipe, outcome: Outcome) -> str:
    """Return the recipe that follows, as text: the best mix where it was confirmed, else the base."""
    winner, best = outcome.winner, outcome.finding.best
    shares = named_shares(sweep, given, outcome.prepared.space, outcome.prepared.base, winner)
    text = recipe_text(next_recipe(sweep, given, winner, shares))
    lines = verdict(sweep, outcome)
    if winner != best:
        lines.append(f"Tried, and not better: {mix_text(outcome, best)}")
    return "".join(f"# {line}\n" for line in [f"Written by the sweep {sweep.name}.", *lines]) + text


def recipe_text(raw: dict[str, Any]) -> str:
    """Return a resolved recipe as YAML that means the same in any folder."""
    groups = [raw["sources"], raw.get("evals", {}), raw.get("decontaminate", {}).get("against", {})]
    places = [(entry, "path") for group in groups for entry in group.values()]
    for entry, key in [*places, (raw["tokenizer"], "from")]:
        written = entry.get(key)
        if isinstance(written, str) and not is_remote(written) and leads_anywhere(written):
            entry[key] = str(Path(written).absolute())
        elif isinstance(written, list):
            entry[key] = [
                str(Path(one).absolute()) if not is_remote(one) and leads_anywhere(one) else one for one in written
            ]
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)
