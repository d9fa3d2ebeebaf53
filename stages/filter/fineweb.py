"""FineWeb's own rules (Penedo et al. 2024, section 3.5), readable.

They are read as datatrove reads them, but blanks at the end of a line hide no full stop. `stages.kernels.fineweb`
compiles them, and must decide exactly as `fineweb` does.
"""

from __future__ import annotations

from stages.comparable import comparable
from stages.filter.document import Document
from stages.filter.gopher import count_repeated
from stages.filter.words import split_words
from stages.kernels.unicode import TERMINAL


def fineweb(
    document: Document,
    *,
    min_line_punctuation: float = 0.12,
    max_short_lines: float = 0.67,
    short_line_chars: int = 30,
    max_repeated_chars: float = 0.01,
    max_newlines_per_word: float = 0.3,
    words: str = "punctuation",
) -> str | None:
    """FineWeb's own rules: lists, menus and text that was broken into lines.

    Of the lines that are not blank: the share that ends in terminal punctuation, the share of at most
    `short_line_chars` characters, and the characters in repeated ones as a share of all but line feeds.
    """
    text = comparable(document.text)
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "fineweb_blank"
    punctuated = sum(line.rstrip()[-1] in TERMINAL for line in lines)
    if punctuated / len(lines) < min_line_punctuation:
        return "fineweb_line_punctuation"
    short = sum(len(line) <= short_line_chars for line in lines)
    if short / len(lines) > max_short_lines:
        return "fineweb_short_lines"
    newlines = text.count("\n")
    _, repeated_chars = count_repeated(lines)
    if repeated_chars / (len(text) - newlines) > max_repeated_chars:
        return "fineweb_repeated_chars"
    return "fineweb_newlines" if newlines / len(split_words(text, words)) > max_newlines_per_word else None
