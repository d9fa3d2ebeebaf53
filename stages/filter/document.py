"""What a rule looks at: one document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Document(NamedTuple):
    """One document: its text, and what its source says of it."""

    text: str
    meta: Mapping[str, float | str | None] = {}
