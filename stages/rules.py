"""Filter rules: each looks at one document and returns None to keep it or the reason to drop it.

A rule is a function of a document with its thresholds as keyword arguments, whose defaults are those of the
paper it comes from. A recipe names rules, and thresholds where it wants others:

    rules: [gopher_quality, {length: {min_chars: 200}}, {metadata: {int_score: {min: 3}}}]

To add one: write the function and name it in RULES. Reasons begin with the rule's name or its family's, and
are counted per source.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
BULLETS = ("•", "-")  # datatrove's two


class Document(NamedTuple):
    """What a rule may look at."""

    text: str
    meta: Mapping[str, float | str | None] = {}


Rule = Callable[..., str | None]


def gopher_quality(
    document: Document,
    *,
    min_words: int = 50,
    max_words: int = 100_000,
    min_mean_word_length: float = 3,
    max_mean_word_length: float = 10,
    max_symbol_ratio: float = 0.1,
    max_bullet_lines: float = 0.9,
    max_ellipsis_lines: float = 0.3,
    min_alphabetic_words: float = 0.8,
    min_stop_words: int = 2,
) -> str | None:
    """The quality rules of Gopher (Rae et al. 2021, appendix A1.1), tried in the paper's order.

    Words are what white space separates, punctuation attached; the number and mean length count words with
    at least one letter or digit (datatrove's "non-symbol words"). The symbol ratios are `#` and ellipses per
    word. Stop words count once each, compared in lower case without surrounding punctuation.

    These rules delete LaTeX, code and short questions with answers: name them for prose only.
    """
    words = Counter(document.text.split())  # most words repeat: looking at each once is several times faster
    total = words.total()
    solid = {w: n for w, n in words.items() if w.isalnum() or any(map(str.isalnum, w))}
    count = sum(solid.values())
    if count < max(min_words, 1):
        return "gopher_short_doc"
    if count > max_words:
        return "gopher_long_doc"
    if not min_mean_word_length <= sum(len(w) * n for w, n in solid.items()) / count <= max_mean_word_length:
        return "gopher_mean_word_length"
    ellipses = document.text.count("...") + document.text.count("…")
    if max(document.text.count("#"), ellipses) / total > max_symbol_ratio:
        return "gopher_symbol_ratio"
    lines = document.text.splitlines()
    if sum(line.lstrip().startswith(BULLETS) for line in lines) / len(lines) > max_bullet_lines:
        return "gopher_bullet_lines"
    if sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > max_ellipsis_lines:
        return "gopher_ellipsis_lines"
    if sum(n for w, n in solid.items() if w.isalpha() or any(map(str.isalpha, w))) / total < min_alphabetic_words:
        return "gopher_alphabetic"
    seen = STOP_WORDS.intersection(w.strip(".,;:!?()[]\"'`*").lower() for w in solid)
    if len(seen) < min_stop_words:
        return "gopher_stop_words"
    return None


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
    "length": length,
    "metadata": metadata,
}


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
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"rule {name}: {threshold} must be a number, not {value!r}")
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


def first_reason(document: Document, rules: list[tuple[str, dict[str, Any]]]) -> str | None:
    """The reason of the first rule that drops the document, or None. Empty text is always dropped."""
    if not document.text:
        return "empty"
    for name, thresholds in rules:
        if reason := RULES[name](document, **thresholds):
            return reason
    return None
