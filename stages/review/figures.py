"""The figure that each reason of a rule is about, measured on one text, and the stretches of the text that make it up.

The rules say yes or no; a person who judges a rule must see by how much. Each figure is what its rule compares with a
threshold: `tests/stages/review/test_figures.py` holds the two equal.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from stages.comparable import comparable
from stages.filter.gopher import (
    BULLETS,
    STOP_WORDS,
    STRIPPED,
    count_repeated,
    repeated_ngram_chars,
    top_ngram_chars,
)
from stages.filter.words import count_words, split_words, word_spans
from stages.kernels.unicode import TERMINAL

LINE = re.compile(r"[^\n]+")
Spans = list[tuple[int, int]]  # [start, stop) of characters
Thresholds = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """What a reason is about. A document goes where the figure is below the threshold `low`, or above `high`."""

    title: str  # of the axis
    low: str = ""  # name of a threshold of the rule
    high: str = ""
    is_share: bool = False  # a share of 1; else a number
    is_count: bool = False  # a whole number, shown on a logarithmic axis
    slow: bool = False  # measured on a part of the documents
    marks: str = ""  # what is marked in the text

    def bounds(self, thresholds: Thresholds) -> tuple[float | None, float | None]:
        """Return the thresholds, None where there is none on that side."""
        return (thresholds[self.low] if self.low else None), (thresholds[self.high] if self.high else None)


NGRAM = "repeated words"
FIGURES: dict[str, Figure] = {
    "length_short": Figure("characters", low="min_chars", is_count=True),
    "length_long": Figure("characters", high="max_chars", is_count=True),
    "gopher_short_doc": Figure("words with a letter or digit", low="min_words", is_count=True),
    "gopher_long_doc": Figure("words with a letter or digit", high="max_words", is_count=True),
    "gopher_mean_word_length": Figure(
        "mean length of its words",
        low="min_mean_word_length",
        high="max_mean_word_length",
        marks="words that are longer",
    ),
    "gopher_symbol_ratio": Figure(
        "# or ellipses to a word", high="max_symbol_ratio", is_share=True, marks="# and ellipses"
    ),
    "gopher_bullet_lines": Figure(
        "lines that begin with a bullet", high="max_bullet_lines", is_share=True, marks="those lines"
    ),
    "gopher_ellipsis_lines": Figure(
        "lines that end in an ellipsis", high="max_ellipsis_lines", is_share=True, marks="those lines"
    ),
    "gopher_alphabetic": Figure(
        "words with a letter", low="min_alphabetic_words", is_share=True, marks="words without a letter"
    ),
    "gopher_stop_words": Figure(
        "different stop words", low="min_stop_words", is_count=True, marks="the stop words that it has"
    ),
    "gopher_repeated_paragraphs": Figure(
        "repeated paragraphs", high="max_paragraphs", is_share=True, marks="paragraphs seen before"
    ),
    "gopher_repeated_paragraph_chars": Figure(
        "characters in repeated paragraphs", high="max_paragraph_chars", is_share=True, marks="paragraphs seen before"
    ),
    "gopher_repeated_lines": Figure("repeated lines", high="max_lines", is_share=True, marks="lines seen before"),
    "gopher_repeated_line_chars": Figure(
        "characters in repeated lines", high="max_line_chars", is_share=True, marks="lines seen before"
    ),
    **{
        f"gopher_top_{n}_gram": Figure(
            f"characters in its commonest {n} words in a row",
            high=f"max_top_{n}_gram",
            is_share=True,
            slow=True,
            marks="them",
        )
        for n in (2, 3, 4)
    },
    **{
        f"gopher_repeated_{n}_grams": Figure(
            f"characters in {n} words in a row seen before",
            high=f"max_{n}_grams",
            is_share=True,
            slow=True,
            marks="words seen before in a row",
        )
        for n in range(5, 11)
    },
    "fineweb_line_punctuation": Figure(
        "lines that end in punctuation", low="min_line_punctuation", is_share=True, marks="lines that do not"
    ),
    "fineweb_short_lines": Figure("short lines", high="max_short_lines", is_share=True, marks="short lines"),
    "fineweb_repeated_chars": Figure(
        "characters in repeated lines", high="max_repeated_chars", is_share=True, marks="lines seen before"
    ),
    "fineweb_newlines": Figure("line breaks to a word", high="max_newlines_per_word", is_share=True),
}


@dataclass(frozen=True)
class Form:
    """A text that is not empty, as rules compare it; what several figures need is worked out once.

    counting: what counts as words, the source's key `words`.
    """

    written: str
    counting: str = "punctuation"

    @cached_property
    def text(self) -> str:
        """The comparable form."""
        return comparable(self.written)

    @cached_property
    def words(self) -> list[str]:
        """Its words."""
        return split_words(self.text, self.counting)

    @cached_property
    def solid(self) -> Counter[str]:
        """The words with a letter or digit, and how often each occurs."""
        times = count_words(self.text, self.counting)
        return Counter({word: n for word, n in times.items() if word.isalnum() or any(map(str.isalnum, word))})


def mean_length(form: Form, _: Thresholds) -> float:
    """Return the mean length of words with a letter or digit."""
    return sum(len(word) * n for word, n in form.solid.items()) / max(1, form.solid.total())


def symbol_ratio(form: Form, _: Thresholds) -> float:
    """Return the `#` or the ellipses, whichever are more, to a word."""
    text = form.text
    return max(text.count("#"), text.count("...") + text.count("…")) / max(1, len(form.words))


def alphabetic(form: Form, _: Thresholds) -> float:
    """Return the share of all words that has a letter."""
    with_letter = sum(n for word, n in form.solid.items() if word.isalpha() or any(map(str.isalpha, word)))
    return with_letter / max(1, len(form.words))


def is_stop_word(word: str) -> bool:
    """Return whether a word counts as a stop word."""
    return word.strip(STRIPPED).lower() in STOP_WORDS


def line_share(test: Callable[[str, Thresholds], bool], lines_of: Callable[[str], list[str]]) -> Any:
    """Return a measure: the share of lines that pass a test."""

    def share(form: Form, thresholds: Thresholds) -> float:
        lines = lines_of(form.text)
        return sum(test(line, thresholds) for line in lines) / max(1, len(lines))

    return share


def filled_lines(text: str) -> list[str]:
    """Return the lines that are not blank."""
    return [line for line in text.split("\n") if line.strip()]


def repeated(pieces_of: Callable[[str], list[str]], chars: bool) -> Any:
    """Return a measure: the share of pieces that repeat an earlier one, by number, or by characters of the text."""

    def share(form: Form, _: Thresholds) -> float:
        pieces = pieces_of(form.text)
        number, size = count_repeated(pieces)
        return size / len(form.text) if chars else number / max(1, len(pieces))

    return share


def paragraphs(text: str) -> list[str]:
    """Return the paragraphs as `gopher_repetition` has them."""
    return re.split(r"\n{2,}", text.strip())


def lines(text: str) -> list[str]:
    """Return the lines that are not empty."""
    return [line for line in text.split("\n") if line]


def fineweb_repeated(form: Form, _: Thresholds) -> float:
    """Return the characters in repeated lines, as a share of all but line feeds."""
    return count_repeated(filled_lines(form.text))[1] / max(1, len(form.text) - form.text.count("\n"))


def begins_with_bullet(line: str, _: Thresholds = {}) -> bool:  # noqa: B006 - never written to
    """Return whether a line is an item of a list."""
    return line.lstrip().startswith(BULLETS)


def ends_in_ellipsis(line: str, _: Thresholds = {}) -> bool:  # noqa: B006
    """Return whether a line ends in an ellipsis."""
    return line.rstrip().endswith(("...", "…"))


def is_punctuated(line: str, _: Thresholds = {}) -> bool:  # noqa: B006
    """Return whether a line that is not blank ends in terminal punctuation."""
    return line.rstrip()[-1] in TERMINAL


def is_short(line: str, thresholds: Thresholds) -> bool:
    """Return whether a line is short, as `fineweb` has it."""
    return len(line) <= int(thresholds["short_line_chars"])


def top_ngram(n: int) -> Any:
    """Return the measure of `gopher_top_<n>_gram`."""
    return lambda form, _: top_ngram_chars(form.words, n) / len(form.text)


def repeated_ngrams(n: int) -> Any:
    """Return the measure of `gopher_repeated_<n>_grams`."""
    return lambda form, _: repeated_ngram_chars(form.words, n) / len(form.text)


MEASURES: dict[str, Callable[[Form, Thresholds], float]] = {  # reason -> its figure
    "length_short": lambda form, _: len(form.written),
    "length_long": lambda form, _: len(form.written),
    "gopher_short_doc": lambda form, _: form.solid.total(),
    "gopher_long_doc": lambda form, _: form.solid.total(),
    "gopher_mean_word_length": mean_length,
    "gopher_symbol_ratio": symbol_ratio,
    "gopher_bullet_lines": line_share(begins_with_bullet, str.splitlines),
    "gopher_ellipsis_lines": line_share(ends_in_ellipsis, str.splitlines),
    "gopher_alphabetic": alphabetic,
    "gopher_stop_words": lambda form, _: len(STOP_WORDS & {word.strip(STRIPPED).lower() for word in form.solid}),
    "gopher_repeated_paragraphs": repeated(paragraphs, chars=False),
    "gopher_repeated_paragraph_chars": repeated(paragraphs, chars=True),
    "gopher_repeated_lines": repeated(lines, chars=False),
    "gopher_repeated_line_chars": repeated(lines, chars=True),
    **{f"gopher_top_{n}_gram": top_ngram(n) for n in (2, 3, 4)},
    **{f"gopher_repeated_{n}_grams": repeated_ngrams(n) for n in range(5, 11)},
    "fineweb_line_punctuation": line_share(is_punctuated, filled_lines),
    "fineweb_short_lines": line_share(is_short, filled_lines),
    "fineweb_repeated_chars": fineweb_repeated,
    "fineweb_newlines": lambda form, _: form.text.count("\n") / max(1, len(form.words)),
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


def has_no_letter(word: str, _: Thresholds) -> bool:
    """Return whether a word has no letter."""
    return not any(map(str.isalpha, word))


def is_long(word: str, thresholds: Thresholds) -> bool:
    """Return whether a word is longer than their mean may be."""
    return len(word) > thresholds["max_mean_word_length"] and any(map(str.isalnum, word))


def has_symbol(word: str, _: Thresholds) -> bool:
    """Return whether a word has a `#` or an ellipsis."""
    return "#" in word or "..." in word or "…" in word


WORD_TESTS: dict[str, Callable[[str, Thresholds], bool]] = {
    "gopher_mean_word_length": is_long,
    "gopher_symbol_ratio": has_symbol,
    "gopher_alphabetic": has_no_letter,
    "gopher_stop_words": lambda word, _: is_stop_word(word),
}
LINE_TESTS: dict[str, Callable[[str, Thresholds], bool]] = {
    "gopher_bullet_lines": begins_with_bullet,
    "gopher_ellipsis_lines": ends_in_ellipsis,
    "fineweb_line_punctuation": lambda line, _: not is_punctuated(line),
    "fineweb_short_lines": is_short,
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
