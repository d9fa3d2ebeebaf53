"""What came of a sweep, in words: the table of its points, the fit, the claim, and the recipe that follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pipeline.sweep.notes import describe_point, point_text
from pipeline.sweep.outcome import Outcome, by_point, difference_of
from pipeline.sweep.recipes import next_recipe
from stages.compare.compare import FEWEST
from stages.compare.stats import Difference
from stages.paths import is_remote, leads_anywhere
from stages.recipe import Recipe
from stages.sweep.space import base_point


def score_table(outcome: Outcome) -> list[list[Any]]:
    """Return the header and a row a point, the best first."""
    prepared = outcome.prepared
    space, prefix = prepared.space, f"{prepared.sweep.name}-"
    rows: list[tuple[float, list[Any]]] = []
    for point, results in by_point(outcome.results).items():
        losses = {name: float(np.mean([result.losses[name] for result in results])) for name in prepared.weights}
        mean = prepared.mean(losses)
        name = "base" if point == base_point(space) else results[0].trial.name.removeprefix(prefix)
        seeds = f" ± {outcome.finding.seed_deviation:.4f}, {len(results)} seeds" if len(results) > 1 else ""
        values = describe_point(space, point)["values"].values()
        shares = (f"{share:g}" for share in point.shares)
        rows.append((mean, [name, *shares, *values, *(f"{x:.4f}" for x in losses.values()), f"{mean:.4f}{seeds}"]))
    keys, bits = [key.name for key in space.keys], [f"{name}, bits" for name in prepared.weights]
    return [["point", *space.sources, *keys, *bits, "mean"], *(row for _, row in sorted(rows, key=lambda row: row[0]))]


def fit_lines(outcome: Outcome) -> list[str]:
    """Return what the fit says."""
    finding, base = outcome.finding, base_point(outcome.prepared.space)
    lines = [
        f"{'fit':10} log loss on shares and log shares, by source; points left out are ranked at "
        f"{finding.correlation:.2f} (by chance below {finding.by_chance:.2f}) and missed by {finding.error:.4f}",
        f"{'':10} points differ by {finding.spread:.4f}, seeds of one by {finding.seed_deviation:.4f}",
        f"{'best':10} {point_text(outcome.prepared.space, finding.best)}",
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


def verdict(outcome: Outcome) -> list[str]:
    """Return the claim of a sweep, in sentences."""
    finding, seeds = outcome.finding, outcome.prepared.sweep.confirm.seeds
    if outcome.confirmed is None:
        if finding.best == base_point(outcome.prepared.space) and not finding.doubts:
            return ["The base stays: no point of the sweep is predicted to be better by more than a seed's chance."]
        more = max(4, len(outcome.prepared.points) // 2)
        return [
            f"The proxies cannot tell: {'; '.join(finding.doubts)}. Kept: the base.",
            f"To know more: points: {len(outcome.prepared.points) + more}, or larger proxies; what is done is kept.",
        ]
    difference = difference_of(outcome.confirmed)
    lines = [f"With {seeds} fresh seeds a side, the best against the base: {said(difference)}."]
    low, high = difference.interval()
    if low <= 0 <= high:
        lines.append("The proxies cannot tell the best mix from the base. Kept: the base.")
    elif low > 0:
        lines.append("The best mix of the proxies is worse than the base at this size. Kept: the base.")
    if outcome.dropped:
        names = ", ".join(outcome.dropped)
        if outcome.rest is None:
            lines.append(f"It is the base without {names}: all of the difference is that.")
        else:
            rest = difference_of(outcome.rest)
            low, high = rest.interval()
            beyond = "that much is not the leaving out alone"
            if high >= 0:
                beyond = "no more is shown than what leaving out does" if low <= 0 else "leaving out alone does more"
            lines.append(f"Against the base without {names}: {said(rest)}; {beyond}.")
    return lines


def said(difference: Difference) -> str:
    """Write a difference and its interval, or why it has none."""
    if difference.df <= 0:
        few = f"fewer than {FEWEST} documents are held out of what is scored; raise held_out"
        return f"{difference.value:+.4f} bits per byte, without an interval, as {few}"
    low, high = difference.interval()
    return f"{difference.value:+.4f} bits per byte [{low:+.4f}, {high:+.4f}]"


def next_text(given: Recipe, outcome: Outcome) -> str:
    """Return the recipe that follows, as text: the best mix where it was confirmed, else the base, which is `given`."""
    prepared, winner, best = outcome.prepared, outcome.winner, outcome.finding.best
    lines = [f"Written by the sweep {prepared.sweep.name}.", *verdict(outcome)]
    if winner != best:
        lines.append(f"Tried, and not better: {point_text(prepared.space, best)}")
    text = recipe_text(next_recipe(prepared.sweep, given, winner, prepared.shares(winner)))
    return "".join(f"# {line}\n" for line in lines) + text


def recipe_text(raw: dict[str, Any]) -> str:
    """Return a resolved recipe as YAML that means the same in any folder."""
    groups = [raw["sources"], raw.get("evals", {}), raw.get("decontaminate", {}).get("against", {})]
    places = [(entry, "path") for group in groups for entry in group.values()]
    for entry, key in [*places, (raw["tokenizer"], "from")]:
        written = entry.get(key)
        if isinstance(written, list):
            entry[key] = [absolute(path) for path in written]
        elif written is not None:
            entry[key] = absolute(written)
    return yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def absolute(path: str) -> str:
    """Return the absolute path of what is on this machine; another address as it is."""
    return str(Path(path).absolute()) if not is_remote(path) and leads_anywhere(path) else path
