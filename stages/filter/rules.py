"""Filter rules: each looks at one document and says whether it stays, goes, or stays with another text.

A rule is a function of a document with its thresholds as keyword arguments, whose defaults are those of the
paper it comes from. It returns None to keep the document, the reason to drop it, or the document edited. A recipe
names rules, and thresholds where it wants others:

    rules: [gopher_quality, {length: {min_chars: 200}}, {metadata: {int_score: {min: 3}}}]

To add one: write the function and name it in RULES. Reasons begin with the rule's name or its family's, and
are counted per source. What is compiled as well (`stages.kernels.rules`) runs compiled; the rest runs as it is here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from stages.filter.rules_web import Document, c4, fineweb, gopher_quality, gopher_repetition

Rule = Callable[..., str | Document | None]


def length(document: Document, *, min_chars: int = 1, max_chars: int = 10**9) -> str | None:
    """Length of the text in characters, both ends allowed."""
    if len(document.text) < min_chars:
        return "length_short"
    return "length_long" if len(document.text) > max_chars else None


def metadata(document: Document, **columns: Mapping[str, Any]) -> str | None:
    """What the source itself says of a document: `{int_score: {min: 3}, language: {in: [en]}}`.

    `min` and `max` are allowed values at the ends. A null is dropped: nothing is known of it.
    """
    for column, test in columns.items():
        value = document.meta.get(column)
        if value is None:
            return f"metadata_{column}_missing"
        if "in" in test and value not in test["in"]:
            return f"metadata_{column}"
        if isinstance(value, float) and not test.get("min", value) <= value <= test.get("max", value):
            return f"metadata_{column}"
    return None


RULES: dict[str, Rule] = {
    "gopher_quality": gopher_quality,
    "gopher_repetition": gopher_repetition,
    "c4": c4,
    "fineweb": fineweb,
    "length": length,
    "metadata": metadata,
}
EDITING = ("c4",)  # leave another text


def parse_rules(rules: list[str | dict[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """(name, thresholds) of each rule of a recipe, defaults filled in so that naming a default changes nothing.

    Raises ValueError on an unknown rule or threshold, or a threshold of the wrong type, with the allowed ones.
    """
    parsed = []
    for rule in rules:
        for name, given in ({rule: {}} if isinstance(rule, str) else rule).items():
            if name not in RULES:
                raise ValueError(f"no rule {name!r}; the rules are {', '.join(RULES)}")
            check = check_metadata if name == "metadata" else check_thresholds
            parsed.append((name, check(name, given or {})))
    return parsed


def check_thresholds(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """All thresholds of a rule, `given` over its defaults. Raises ValueError."""
    signature = inspect.signature(RULES[name]).parameters.values()
    known = {p.name: p.default for p in signature if p.kind is p.KEYWORD_ONLY}
    for threshold, value in given.items():
        if threshold not in known:
            raise ValueError(f"rule {name} has no threshold {threshold!r}; it has {', '.join(known)}")
        switch = isinstance(known[threshold], bool)
        if isinstance(value, bool) != switch or not isinstance(value, int | float):
            raise ValueError(
                f"rule {name}: {threshold} must be {'true or false' if switch else 'a number'}, not {value!r}"
            )
    return {**known, **given}


def check_metadata(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The tests of the rule `metadata`, by column. Raises ValueError."""
    if not given:
        raise ValueError("rule metadata names no column; write {metadata: {int_score: {min: 3}}}")
    for column, test in given.items():
        if not isinstance(test, dict) or not test or not {"min", "max", "in"}.issuperset(test):
            raise ValueError(f"rule {name}: {column} must be tested by min, max or in, as {{min: 3}}, not {test!r}")
        if "in" in test and (len(test) > 1 or not isinstance(test["in"], list)):
            raise ValueError(f"rule {name}: {column}: `in` takes a list of strings and stands alone")
        if "in" in test and not all(isinstance(v, str) for v in test["in"]):
            raise ValueError(f"rule {name}: {column}: `in` compares strings; use min and max for numbers")
        for bound in ("min", "max"):
            if bound in test and (isinstance(test[bound], bool) or not isinstance(test[bound], int | float)):
                raise ValueError(f"rule {name}: {column}: {bound} must be a number, not {test[bound]!r}")
    return dict(sorted(given.items()))


def judge(document: Document, rules: list[tuple[str, dict[str, Any]]]) -> tuple[str | None, Document]:
    """(the reason of the first rule that drops the document, or None; the document as the rules before left it).

    Text that is empty, or that an edit leaves empty, is always dropped.
    """
    for name, thresholds in rules:
        if not document.text:
            break
        found = RULES[name](document, **thresholds)
        if isinstance(found, str):
            return found, document
        document = found or document
    return (None if document.text else "empty"), document
