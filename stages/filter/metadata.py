"""The rule `metadata`: it reads what a source says of its documents, and no text. It is not compiled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stages.filter.document import Document


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


def check_metadata(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the tests that `given` holds, by column, in the columns' order.

    name: what a recipe calls them, for the message. Raises ValueError for a test that cannot be made.
    """
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
