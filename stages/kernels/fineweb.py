"""The measures of FineWeb's own rules, compiled. `stages.filter.fineweb` has the readable form."""

from __future__ import annotations

from typing import Any

from stages.kernels.gopher import count_repeated
from stages.kernels.jit import compiled
from stages.kernels.scan import CHARS, ENDED, LINES, NEWLINES, NOT_BLANK, WORDS

# In the order in which they are written down.
FINEWEB_MEASURES = (
    "fineweb_lines",
    "fineweb_line_punctuation",
    "fineweb_short_lines",
    "fineweb_repeated_chars",
    "fineweb_newlines",
)


@compiled
def fineweb(data: Any, lines: Any, marks: Any, short: float, slots: Any, row: Any, at: int) -> None:
    """Write FINEWEB_MEASURES of a scanned document to `row` from `at` on. short: characters of a short line, at most.

    Of a document without lines that are not blank only that is known.
    """
    table, _ = lines
    total = ended = shorts = 0
    for line in range(marks[LINES]):
        if table[line, 3] & NOT_BLANK:
            total += 1
            ended += (table[line, 3] & ENDED) != 0
            shorts += table[line, 2] <= short
    row[at] = total
    if total:
        row[at + 1], row[at + 2] = ended / total, shorts / total
        repeated = count_repeated(data, lines, marks[LINES], NOT_BLANK, slots)[2]
        row[at + 3] = repeated / (marks[CHARS] - marks[NEWLINES])
        row[at + 4] = marks[NEWLINES] / marks[WORDS]
