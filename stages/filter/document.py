"""What a rule looks at: one document; and what columns of its measures are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

META = "meta."  # begins the names of columns that the source itself has
SAID = "said."  # begins the names of columns with what rules say that are not compiled

# A rule to measure by: its name, the settings that change what it measures, and what ends the names of its columns.
MeasuredRule = tuple[str, dict[str, Any], str]


class Document(NamedTuple):
    """One document: its text, and what its source says of it."""

    text: str
    meta: Mapping[str, float | str | None] = {}
