"""FineWeb's own rules, compiled. `stages.filter.fineweb` has the readable form."""

from __future__ import annotations

from typing import Any

from stages.kernels.gopher import count_repeated
from stages.kernels.jit import compiled
from stages.kernels.scan import CHARS, ENDED, LINES, NEWLINES, NOT_BLANK, WORDS

# In the order of their code.
FINEWEB_REASONS = (
    "fineweb_blank",
    "fineweb_line_punctuation",
    "fineweb_short_lines",
    "fineweb_repeated_chars",
    "fineweb_newlines",
)
TOO_FEW_WORDS = len(FINEWEB_REASONS)  # the code of the last


@compiled
def fineweb(data: Any, lines: Any, marks: Any, limit: Any, slots: Any) -> int:
    """Return what `stages.filter.fineweb.fineweb` says of a scanned document: the code of its reason, or 0."""
    table, _ = lines
    total = ended = short = 0
    for line in range(marks[LINES]):
        if table[line, 3] & NOT_BLANK:
            total += 1
            ended += (table[line, 3] & ENDED) != 0
            short += table[line, 2] <= limit[2]
    if not total:
        return 1
    if ended / total < limit[0]:
        return 2
    if short / total > limit[1]:
        return 3
    if count_repeated(data, lines, marks[LINES], NOT_BLANK, slots)[2] / (marks[CHARS] - marks[NEWLINES]) > limit[3]:
        return 4
    return TOO_FEW_WORDS if marks[NEWLINES] / marks[WORDS] > limit[4] else 0
