"""Paired differences of runs that share their seeds: mean, standard error, Student's t, and Holm's correction."""

from __future__ import annotations

import math
import statistics
from typing import Any

from stages.compare.stats import holm, p_value, t_quantile


def compare(scores: dict[str, dict[int, float]], against: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return each lever's paired differences, negative where it helps, their mean, its error and a verdict.

    `half_width` is that of the mean's interval of 95 %, over seeds; it has no correction for the number of levers.

    scores: bits per byte by lever and seed. against: what each lever is held against.
    """
    table: dict[str, dict[str, Any]] = {}
    for name, other in against.items():
        mine, theirs = scores.get(name, {}), scores.get(other, {})
        differences = [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]
        if differences and name != other:
            error = statistics.stdev(differences) / math.sqrt(len(differences)) if len(differences) > 1 else None
            mean = statistics.fmean(differences)
            table[name] = {"against": other, "differences": differences, "mean": mean, "error": error}
            df = len(differences) - 1
            table[name]["half_width"] = None if error is None else error * t_quantile(0.95, df)
            if error:
                table[name]["p"] = p_value(mean / error, df)
    corrected = holm({name: row["p"] for name, row in table.items() if "p" in row})
    for name, row in table.items():
        row["p_holm"] = corrected.get(name)
        sign = "better" if row["mean"] < 0 else "worse"
        if row["error"] is None:
            row["verdict"] = f"not known: {len(row['differences'])} seed"
        else:
            row["verdict"] = sign if corrected.get(name, 1.0) < 0.05 else "no difference shown"
    return table
