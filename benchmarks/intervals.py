"""Whether the intervals of `python -m pipeline compare` cover what they say, in draws from the rows of real runs.

Two sides of runs are named, seeds of two recipes. Their documents are the population: each draw takes as many of each
source again, and for each side seeds with the deviation that the runs have; the truth is known, and the interval of
95 % holds it or does not. Printed are the intervals of each source and of all, for these weights and for the recipes;
in brackets, what documents alone would say of the recipes, which is why compare wants seeds.

    python -m benchmarks.intervals --a runs/a_s0,runs/a_s1,runs/a_s2 --b runs/b_s0,runs/b_s1,runs/b_s2 [--draws 4000]

It fails where one that compare prints covers less than 93 % or more than 97 %: a source of few documents has none.
"""

from __future__ import annotations

import math

import numpy as np

from benchmarks import measure
from stages.compare.compare import FEWEST, Common, Side, common_documents
from stages.compare.scored import open_scored
from stages.compare.stats import Deviation, Difference, combine, pooled, ratio, with_seeds

SEEDS = (2, 3, 5)  # a side
LEAST, MOST = 0.93, 0.97


def draw(common: Common, rng: np.random.Generator, x: np.ndarray, shift: float) -> dict[str, Difference]:
    """Return the differences of documents drawn again, by source and of all, with B worse by `shift` bits per byte."""
    total, parts, found = common.bytes.sum(), [], {}
    for number, name in enumerate(common.sources):
        own = np.flatnonzero(common.source == number)
        drawn = rng.choice(own, len(own))
        found[name] = ratio(x[drawn] + shift * common.bytes[drawn], common.bytes[drawn])
        parts.append((float(common.bytes[own].sum() / total), found[name]))
    return {**found, "all": combine(parts)} if len(found) > 1 else found


def main() -> None:
    """Draw, print, save."""
    options = measure.parser(__doc__, a=None, b=None, draws=4000, seed=0).parse_args()
    if not options.a or not options.b:
        raise SystemExit("error: name runs of two recipes with --a and --b, their seeds joined by commas")
    sides = [
        Side(letter, tuple(map(open_scored, names.split(","))))
        for letter, names in (("A", options.a), ("B", options.b))
    ]
    common = common_documents(*sides)
    scores = [(bits.sum(1) / common.bytes.sum()).tolist() for bits in (common.bits_a, common.bits_b)]
    deviation = pooled(*scores)
    if deviation is None:
        raise SystemExit("error: two seeds of a side at least are needed to know how far seeds are apart")
    x = common.bits_b.mean(0) - common.bits_a.mean(0)
    total = common.bytes.sum()
    truth = {
        name: float(x[common.source == i].sum() / common.bytes[common.source == i].sum())
        for i, name in enumerate(common.sources)
    }
    truth["all"] = float(x.sum() / total)
    rng, rows = np.random.default_rng(options.seed), []
    cases: list[tuple[str, int]] = [("weights", 0), *(("recipes", count) for count in SEEDS)]
    for what, count in cases:
        inside: dict[str, list[float]] = {}
        alone = []
        for _ in range(options.draws):
            seeds = rng.normal(0, deviation.value, (2, max(1, count)))
            shift = float(seeds[1].mean() - seeds[0].mean()) if count else 0.0
            spread = pooled(*seeds.tolist()) or Deviation(0.0, 1)
            for name, measured in draw(common, rng, x, shift).items():
                both = with_seeds(measured, spread, count, count) if count else measured
                low, high = both.interval()
                inside.setdefault(name, []).append(low <= truth[name] <= high)
                if name == "all":
                    low, high = measured.interval()
                    alone.append(low <= truth[name] <= high)
        label = what if not count else f"{what}, {count} seeds a side"
        rows += [(label, name, f"{np.mean(found):.3f}") for name, found in inside.items()]
        if count and alone:
            rows.append((f"documents alone, {count} seeds a side", "all", f"({np.mean(alone):.3f})"))
    measure.show(("interval", "of", "covers"), rows)
    error = math.sqrt(0.95 * 0.05 / options.draws)
    of = f"{len(common.keys):,} documents, deviation over seeds {deviation.value:.4f}"
    print(f"{options.draws:,} draws: +-{1.96 * error:.3f}; {of}")
    few = [name for i, name in enumerate(common.sources) if (common.source == i).sum() < FEWEST]
    judged = [(f"{label}: {name}", value) for label, name, value in rows if name not in few]
    printed = {what: float(value) for what, value in judged if not value.startswith("(")}
    result = {"documents": len(common.keys), "sources": common.sources, "deviation": deviation.value, "covers": rows}
    measure.save("intervals", {"machine": measure.machine(), **result})
    if wrong := [name for name, value in printed.items() if not LEAST <= value <= MOST]:
        raise SystemExit(f"error: outside {LEAST:.0%} to {MOST:.0%}: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
