"""The rules of a recipe, read and checked: `rules: [gopher_quality, {length: {min_chars: 200}}]`."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from stages.filter.metadata import check_metadata
from stages.filter.rules import RULES, ParsedRule, Rule
from stages.filter.where import ON_MEASURES


def parse_rules(rules: Sequence[str | dict[str, dict[str, Any]]], words: str = "punctuation") -> list[ParsedRule]:
    """Return the rules of a source with all their thresholds: naming a default changes nothing.

    words: the source's key, which those that count words have among their thresholds. Raises ValueError on an unknown
    rule or threshold, or a threshold of the wrong type, with the allowed ones.
    """
    parsed = []
    for rule in rules:
        for name, given in ({rule: {}} if isinstance(rule, str) else rule).items():
            if name in ON_MEASURES:
                parsed.append((name, ON_MEASURES[name](given or {})))
                continue
            if name not in RULES:
                raise ValueError(f"no rule {name!r}; the rules are {', '.join([*RULES, *ON_MEASURES])}")
            check = check_metadata if name == "metadata" else check_thresholds
            how = {"words": words} if "words" in inspect.signature(RULES[name]).parameters else {}
            parsed.append((name, check(name, given or {}) | how))
    return parsed


def default_thresholds(rule: Rule) -> dict[str, float]:
    """Return the thresholds of a rule that a recipe may set, with their defaults."""
    keywords = [p for p in inspect.signature(rule).parameters.values() if p.kind is p.KEYWORD_ONLY]
    return {p.name: p.default for p in keywords if p.name != "words"}


def check_thresholds(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return all thresholds of a rule, `given` over its defaults. Raises ValueError."""
    defaults = default_thresholds(RULES[name])
    for threshold, value in given.items():
        if threshold not in defaults:
            raise ValueError(f"rule {name} has no threshold {threshold!r}; it has {', '.join(defaults)}")
        is_switch = isinstance(defaults[threshold], bool)
        if isinstance(value, bool) != is_switch or not isinstance(value, int | float):
            allowed = "true or false" if is_switch else "a number"
            raise ValueError(f"rule {name}: {threshold} must be {allowed}, not {value!r}")
    return {**defaults, **given}
