"""Filter rules: each looks at one document and says whether it stays, goes, or stays with another text.

A rule is a function of a document with its thresholds as keyword arguments, whose defaults are those of the
paper it comes from. It returns None to keep the document, the reason to drop it, or the document edited. A recipe
names rules, and thresholds where it wants others:

    rules: [gopher_quality, {length: {min_chars: 200}}, {metadata: {int_score: {min: 3}}}]

To add one, write the function in a file of its family and name it in RULES. A reason begins with the rule's name or
its family's, and is counted for each source. A rule runs as it is written, unless a kernel of its family
(`stages.kernels.rules` lists them) compiles it as well; then the kernel runs, and must decide exactly as it does.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from stages.filter.c4 import c4
from stages.filter.document import Document
from stages.filter.fineweb import fineweb
from stages.filter.gopher import gopher_quality, gopher_repetition
from stages.filter.length import length
from stages.filter.metadata import check_metadata, metadata

Rule = Callable[..., str | Document | None]
ParsedRule = tuple[str, dict[str, Any]]  # its name, and all its thresholds

RULES: dict[str, Rule] = {
    "gopher_quality": gopher_quality,
    "gopher_repetition": gopher_repetition,
    "c4": c4,
    "fineweb": fineweb,
    "length": length,
    "metadata": metadata,
}
EDITING = ("c4",)  # rules that leave another text


def parse_rules(rules: Sequence[str | dict[str, dict[str, Any]]], words: str = "punctuation") -> list[ParsedRule]:
    """Return the rules of a source with all their thresholds: naming a default changes nothing.

    words: the source's key, which those that count words have among their thresholds. Raises ValueError on an unknown
    rule or threshold, or a threshold of the wrong type, with the allowed ones.
    """
    parsed = []
    for rule in rules:
        for name, given in ({rule: {}} if isinstance(rule, str) else rule).items():
            if name not in RULES:
                raise ValueError(f"no rule {name!r}; the rules are {', '.join(RULES)}")
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


def apply_rules(document: Document, rules: Sequence[ParsedRule]) -> tuple[str | None, Document]:
    """Return the reason of the first rule that drops the document, or None; and the document as the rules left it.

    Text that is empty, or that an edit leaves empty, is always dropped.
    """
    for name, thresholds in rules:
        if not document.text:
            break
        outcome = RULES[name](document, **thresholds)
        if isinstance(outcome, str):
            return outcome, document
        document = outcome or document
    return (None if document.text else "empty"), document
