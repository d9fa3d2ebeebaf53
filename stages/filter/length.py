"""The rule `length`. Its measure is a counter of `stages.kernels.scan`; both must decide alike."""

from __future__ import annotations

from stages.filter.document import Document


def length(document: Document, *, min_chars: int = 1, max_chars: int = 10**9) -> str | None:
    """Length of the text in characters, both ends allowed."""
    if len(document.text) < min_chars:
        return "length_short"
    return "length_long" if len(document.text) > max_chars else None
