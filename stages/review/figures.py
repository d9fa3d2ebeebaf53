"""What each reason of a rule is about, as people read it, and the stretches of a text that make its measure up.

The rules say yes or no; a person who judges a rule must see by how much. The figures are the measures of
`stages.filter.measure`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stages.filter.gopher import BULLETS, STOP_WORDS, STRIPPED
from stages.filter.words import word_spans
from stages.kernels.unicode import TERMINAL

LINE = re.compile(r"[^\n]+")
Spans = list[tuple[int, int]]  # [start, stop) of characters
Thresholds = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """What a reason is about, as people read it; its threshold is in `stages.filter.verdict.BOUNDS`."""

    title: str  # of the axis
    is_share: bool = False  # a share of 1; else a number
    is_count: bool = False  # a whole number, shown on a logarithmic axis
    marks: str = ""  # what is marked in the text


FIGURES: dict[str, Figure] = {
    "length_short": Figure("characters", is_count=True),
    "length_long": Figure("characters", is_count=True),
    "gopher_short_doc": Figure("words with a letter or digit", is_count=True),
    "gopher_long_doc": Figure("words with a letter or digit", is_count=True),
    "gopher_mean_word_length": Figure(
        "mean length of its words",
        marks="words that are longer",
    ),
    "gopher_symbol_ratio": Figure("# or ellipses to a word", is_share=True, marks="# and ellipses"),
    "gopher_bullet_lines": Figure("lines that begin with a bullet", is_share=True, marks="those lines"),
    "gopher_ellipsis_lines": Figure("lines that end in an ellipsis", is_share=True, marks="those lines"),
    "gopher_alphabetic": Figure("words with a letter", is_share=True, marks="words without a letter"),
    "gopher_stop_words": Figure("different stop words", is_count=True, marks="the stop words that it has"),
    "gopher_repeated_paragraphs": Figure("repeated paragraphs", is_share=True, marks="paragraphs seen before"),
    "gopher_repeated_paragraph_chars": Figure(
        "characters in repeated paragraphs", is_share=True, marks="paragraphs seen before"
    ),
    "gopher_repeated_lines": Figure("repeated lines", is_share=True, marks="lines seen before"),
    "gopher_repeated_line_chars": Figure("characters in repeated lines", is_share=True, marks="lines seen before"),
    **{
        f"gopher_top_{n}_gram": Figure(
            f"characters in its commonest {n} words in a row",
            is_share=True,
            marks="them",
        )
        for n in (2, 3, 4)
    },
    **{
        f"gopher_repeated_{n}_grams": Figure(
            f"characters in {n} words in a row seen before",
            is_share=True,
            marks="words seen before in a row",
        )
        for n in range(5, 11)
    },
    "fineweb_line_punctuation": Figure("lines that end in punctuation", is_share=True, marks="lines that do not"),
    "fineweb_short_lines": Figure("short lines", is_share=True, marks="short lines"),
    "fineweb_repeated_chars": Figure("characters in repeated lines", is_share=True, marks="lines seen before"),
    "fineweb_newlines": Figure("line breaks to a word", is_share=True),
}


# ---------------------------------------------------------------------------------------------------------------------
# Evidence: stretches of the text as it is written


def evidence(reason: str, text: str, thresholds: Thresholds) -> Spans:
    """Return the stretches of a text, in order, that make up the figure of a reason; none where there are none."""
    counting = thresholds.get("words", "punctuation")
    if reason in WORD_TESTS:
        test = WORD_TESTS[reason]
        return [(start, stop) for start, stop in word_spans(text, counting) if test(text[start:stop], thresholds)]
    if reason in LINE_TESTS:
        line_test = LINE_TESTS[reason]
        lines = (match for match in LINE.finditer(text) if match[0].strip())
        return [match.span() for match in lines if line_test(match[0], thresholds)]
    if reason in ("gopher_repeated_paragraphs", "gopher_repeated_paragraph_chars"):
        return repeated_matches(re.finditer(r"(?:[^\n]+\n?)+", text))
    if reason in ("gopher_repeated_lines", "gopher_repeated_line_chars", "fineweb_repeated_chars"):
        return repeated_matches(LINE.finditer(text))
    if match := re.fullmatch(r"gopher_(top|repeated)_(\d+)_grams?", reason):
        spans = list(word_spans(text, counting))
        words = [text[start:stop] for start, stop in spans]
        return list(ngram_spans(words, spans, int(match[2]), top=match[1] == "top"))
    return []


# Whether a word, or a line that is not blank, is one of those that a figure counts: by it and the rule's thresholds.
WORD_TESTS: dict[str, Callable[[str, Thresholds], bool]] = {
    "gopher_mean_word_length": lambda word, thresholds: (
        len(word) > thresholds["max_mean_word_length"] and any(map(str.isalnum, word))
    ),
    "gopher_symbol_ratio": lambda word, _: any(symbol in word for symbol in ("#", "...", "…")),
    "gopher_alphabetic": lambda word, _: not any(map(str.isalpha, word)),
    "gopher_stop_words": lambda word, _: word.strip(STRIPPED).lower() in STOP_WORDS,
}
LINE_TESTS: dict[str, Callable[[str, Thresholds], bool]] = {
    "gopher_bullet_lines": lambda line, _: line.lstrip().startswith(BULLETS),
    "gopher_ellipsis_lines": lambda line, _: line.rstrip().endswith(("...", "…")),
    "fineweb_line_punctuation": lambda line, _: line.rstrip()[-1] not in TERMINAL,
    "fineweb_short_lines": lambda line, thresholds: len(line) <= int(thresholds["short_line_chars"]),
    "c4_curly_bracket": lambda line, _: "{" in line,
    "c4_lorem_ipsum": lambda line, _: "lorem ipsum" in line.lower(),
}


def repeated_matches(matches: Iterator[re.Match[str]]) -> Spans:
    """Return the spans of matches whose text was matched before."""
    seen: set[str] = set()
    spans = []
    for match in matches:
        piece = match[0].strip("\n")
        if piece in seen:
            spans.append(match.span())
        seen.add(piece)
    return spans


def ngram_spans(words: Sequence[str], spans: Spans, n: int, top: bool) -> Iterator[tuple[int, int]]:
    """Yield where the commonest n-gram of words stands, or all that occurred before, as the rule counts them."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    times = Counter(grams)
    if top:
        commonest, most = max(times.items(), key=lambda item: item[1], default=((), 0))
        for i, gram in enumerate(grams):
            if gram == commonest and most > 1:
                yield spans[i][0], spans[i + n - 1][1]
        return
    seen: set[tuple[str, ...]] = set()
    i = 0
    while i < len(grams):
        if grams[i] in seen:
            yield spans[i][0], spans[i + n - 1][1]
            i += n
        else:
            seen.add(grams[i])
            i += 1
