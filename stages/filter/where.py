"""The rules `where` and `sample`: what a recipe asks of measures and scores, and shares of a source as thresholds.

    rules:
      - gopher_quality
      - where: {edu: {top: 30%}, gopher_alphabetic: {min: 0.7}, language: {in: [en]}}
      - sample: {edu: {full: 0.9, power: 2}}

`top` and `bottom` are shares of the source's documents: all that were measured, whatever other rules say of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from stages.filter.verdict import BOUNDS, LANGUAGE, Rules, numbers
from stages.quantities import ratio
from stages.task import Artifact, Task

SHARES = {"top": "min", "bottom": "max"}  # what each is, once the source is measured
RULE_OF = {bound.measure: name for name, bounds in BOUNDS.items() for bound in bounds}


def check_where(given: dict[str, Any]) -> dict[str, Any]:
    """Return the tests of a rule `where`, shares as numbers. Raises ValueError for one that cannot be made."""
    if not given:
        raise ValueError("rule where names no measure; write {where: {gopher_alphabetic: {min: 0.7}}}")
    return {column: check_test(column, test) for column, test in sorted(given.items())}


def check_test(column: str, test: Any) -> dict[str, Any]:
    """Return one test of a rule `where`. Raises ValueError."""
    if not isinstance(test, dict) or not test or not {"min", "max", "in", *SHARES}.issuperset(test):
        raise ValueError(f"rule where: {column} must be tested by min, max, top, bottom or in, not {test!r}")
    if column == LANGUAGE[0] or "in" in test:
        if column != LANGUAGE[0] or list(test) != ["in"] or not all(isinstance(name, str) for name in test["in"]):
            raise ValueError(f"rule where: `in` is for language, as {{language: {{in: [en, de]}}}}, not {test!r}")
        return {"in": sorted(test["in"])}
    checked = {}
    for edge, value in test.items():
        number: Any = ratio(value) if edge in SHARES else value
        if not is_number(number):
            raise ValueError(f"rule where: {column}: {edge} must be a number, not {value!r}")
        if edge in SHARES and not 0 < number <= 1:
            raise ValueError(f"rule where: {column}: {edge} is a share, above 0 and at most 100%, not {value!r}")
        if SHARES.get(edge, edge) in checked or SHARES.get(edge) in test:
            raise ValueError(f"rule where: {column} is bounded twice on one side, by {' and '.join(test)}")
        checked[edge] = number
    return checked


def is_number(value: Any) -> bool:
    """Return whether a value is a number as recipes have them."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_sample(given: dict[str, Any]) -> dict[str, Any]:
    """Return what a rule `sample` says of each score. Raises ValueError."""
    if not given:
        raise ValueError("rule sample names no measure; write {sample: {edu: {full: 0.9, power: 2}}}")
    for column, how in given.items():
        if not isinstance(how, dict) or "full" not in how or not {"full", "power"}.issuperset(how):
            raise ValueError(f"rule sample: {column} takes {{full: 0.9, power: 2}}, power 1 by default, not {how!r}")
        if not all(is_number(value) and value > 0 for value in how.values()):
            raise ValueError(f"rule sample: {column}: full and power are numbers above 0, not {how!r}")
    return {column: {"power": 1, **how} for column, how in sorted(given.items())}


ON_MEASURES = {"where": check_where, "sample": check_sample}


def named_columns(rules: Rules) -> Iterator[tuple[str, str]]:
    """Yield (rule, column) of each column that the rules `where` and `sample` name."""
    for name, given in rules:
        if name in ON_MEASURES:
            yield from ((name, column) for column in given)


def asks_language(rules: Rules) -> bool:
    """Return whether `where` or `sample` name the language or its score."""
    return any(column in LANGUAGE for _, column in named_columns(rules))


def unlisted_rules(rules: Rules) -> list[str]:
    """Return the rules that measure what `where` and `sample` name, and that are not in the list themselves."""
    listed = {name for name, _ in rules}
    return sorted({RULE_OF[column] for _, column in named_columns(rules) if column in RULE_OF} - listed)


def check_columns(rules: Rules, scores: Collection[str]) -> None:
    """Raise ValueError where `where` or `sample` name what nothing measures."""
    if "c4" in unlisted_rules(rules):
        raise ValueError("the measures of c4 are those of its edits; list c4 among the rules, before where")
    known = [*scores, *LANGUAGE, "bytes", *RULE_OF]
    for name, column in named_columns(rules):
        if column not in known:
            raise ValueError(f"rule {name}: nothing measures {column!r}; there are {', '.join(known)}")
        if name == "sample" and column == LANGUAGE[0]:
            raise ValueError("rule sample: language is no number; language_score is")


def shares(rules: Rules) -> list[tuple[str, str, float]]:
    """Return (column, top or bottom, share) of all that `where` asks for, each once."""
    tests = [(column, test) for name, given in rules if name == "where" for column, test in given.items()]
    return sorted({(column, edge, test[edge]) for column, test in tests for edge in SHARES if edge in test})


def on_columns(rules: Rules, known: Collection[str]) -> list[tuple[str, dict[str, Any]]]:
    """Return the rules without what `where` and `sample` ask of columns that are not known."""
    return [
        (name, {column: how for column, how in given.items() if column in known} if name in ON_MEASURES else given)
        for name, given in rules
    ]


def with_thresholds(rules: Rules, thresholds: Sequence[float]) -> list[tuple[str, dict[str, Any]]]:
    """Return the rules with numbers for shares. thresholds: in the order of `shares`."""
    known = dict(zip(shares(rules), thresholds, strict=True))

    def plain(column: str, test: dict[str, Any]) -> dict[str, Any]:
        return {SHARES.get(edge, edge): known.get((column, edge, value), value) for edge, value in test.items()}

    return [
        (name, {column: plain(column, test) for column, test in given.items()} if name == "where" else given)
        for name, given in rules
    ]


def find_thresholds(task: Task) -> None:
    """Find what shares of a source's documents are as thresholds. Inputs: measures of its parts. Params: shares.

    Output: `thresholds`, a list (JSON), which its meta has too as `values`. Takes 8 bytes a document of memory.
    """
    values = [threshold_at(read_column(task, column), edge, share) for column, edge, share in task.params["shares"]]
    path = task.output("thresholds.json")
    Path(path).write_text(json.dumps(values) + "\n", encoding="utf-8")
    task.add("thresholds", path, values=values)


def read_column(task: Task, name: str) -> npt.NDArray[np.float64]:
    """Return one measure of all documents of a source that have it."""

    def read(artifact: Artifact) -> npt.NDArray[np.float64]:
        return numbers(pq.read_table(task.path(artifact), columns=[name])[name].combine_chunks())

    values = np.concatenate([read(artifact) for artifact in task.inputs])
    return values[~np.isnan(values)]


def threshold_at(values: npt.NDArray[np.float64], edge: str, share: float) -> float:
    """Return the least value in the top `share` of some, or the greatest in the bottom: as many, or more at a tie."""
    if not len(values):
        return 0.0
    number = min(len(values), max(1, math.ceil(share * len(values) - 1e-9)))
    place = len(values) - number if edge == "top" else number - 1
    return float(np.partition(values, place)[place])
