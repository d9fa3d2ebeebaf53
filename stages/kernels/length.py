"""The rule `length`, compiled. `stages.filter.length` has the readable form."""

from __future__ import annotations

from typing import Any

from stages.kernels.jit import compiled
from stages.kernels.scan import CHARS

LENGTH_REASONS = ("length_short", "length_long")  # in the order of their code


@compiled
def length(marks: Any, limit: Any) -> int:
    """Return what `stages.filter.length.length` says of a scanned document: the code of its reason, or 0."""
    if marks[CHARS] < limit[0]:
        return 1
    return 2 if marks[CHARS] > limit[1] else 0
