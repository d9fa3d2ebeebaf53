"""Gopher's rules (Rae et al. 2021, appendix A1.1 and table A1), readable.

They are read as datatrove reads them, with FineWeb's defaults, but for this:

* Words are those of `stages.filter.words`, which leaves out spaCy's exceptions.
* An n-gram that occurs once is no repetition, and an empty line is no line.

The rules are made for prose: `gopher_alphabetic` drops LaTeX, code and tables. `stages.kernels.gopher` compiles them,
and must decide exactly as these functions do.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from stages.comparable import comparable
from stages.filter.document import Document
from stages.filter.words import count_words, split_words

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
STRIPPED = ".,;:!?()[]\"'`*"  # from around a word before it is compared with STOP_WORDS
BULLETS = ("•", "-")  # datatrove's two


def gopher_quality(
    document: Document,
    *,
    min_words: int = 50,
    max_words: int = 100_000,
    min_mean_word_length: float = 3,
    max_mean_word_length: float = 10,
    max_symbol_ratio: float = 0.1,
    max_bullet_lines: float = 0.9,
    max_ellipsis_lines: float = 0.3,
    min_alphabetic_words: float = 0.8,
    min_stop_words: int = 2,
    words: str = "punctuation",
) -> str | None:
    """The quality rules of Gopher, tried in the paper's order.

    The number and mean length count words with at least one letter or digit (datatrove's "non-symbol words"). The
    symbol ratios are `#` and ellipses per word. Stop words count once each, in lower case, without punctuation around.
    """
    text = comparable(document.text)
    times = count_words(text, words)
    total = times.total()
    solid = {word: n for word, n in times.items() if word.isalnum() or any(map(str.isalnum, word))}
    solid_total = sum(solid.values())
    if solid_total < max(min_words, 1):
        return "gopher_short_doc"
    if solid_total > max_words:
        return "gopher_long_doc"
    mean_length = sum(len(word) * n for word, n in solid.items()) / solid_total
    if not min_mean_word_length <= mean_length <= max_mean_word_length:
        return "gopher_mean_word_length"
    hashes = text.count("#")
    ellipses = text.count("...") + text.count("…")
    if max(hashes, ellipses) / total > max_symbol_ratio:
        return "gopher_symbol_ratio"
    lines = text.splitlines()
    bullet_lines = sum(line.lstrip().startswith(BULLETS) for line in lines)
    if bullet_lines / len(lines) > max_bullet_lines:
        return "gopher_bullet_lines"
    ellipsis_lines = sum(line.rstrip().endswith(("...", "…")) for line in lines)
    if ellipsis_lines / len(lines) > max_ellipsis_lines:
        return "gopher_ellipsis_lines"
    alphabetic = sum(n for word, n in solid.items() if word.isalpha() or any(map(str.isalpha, word)))
    if alphabetic / total < min_alphabetic_words:
        return "gopher_alphabetic"
    stop_words = STOP_WORDS.intersection(word.strip(STRIPPED).lower() for word in solid)
    return "gopher_stop_words" if len(stop_words) < min_stop_words else None


def gopher_repetition(
    document: Document,
    *,
    max_paragraphs: float = 0.3,
    max_paragraph_chars: float = 0.2,
    max_lines: float = 0.3,
    max_line_chars: float = 0.2,
    max_top_2_gram: float = 0.2,
    max_top_3_gram: float = 0.18,
    max_top_4_gram: float = 0.16,
    max_5_grams: float = 0.15,
    max_6_grams: float = 0.14,
    max_7_grams: float = 0.13,
    max_8_grams: float = 0.12,
    max_9_grams: float = 0.11,
    max_10_grams: float = 0.1,
    words: str = "punctuation",
) -> str | None:
    """The repetition rules of Gopher: shares of the document that repeat something earlier in it.

    Repeated paragraphs (between empty lines) and lines, as a share of their number and of the document's characters;
    characters in the most frequent 2-, 3- and 4-gram of words (of equally frequent ones the first); characters in
    repeated 5- to 10-grams, none counted twice.
    """
    text = comparable(document.text)
    size = len(text)
    paragraphs = re.split(r"\n{2,}", text.strip())
    number, chars = count_repeated(paragraphs)
    if number / len(paragraphs) > max_paragraphs:
        return "gopher_repeated_paragraphs"
    if chars / size > max_paragraph_chars:
        return "gopher_repeated_paragraph_chars"
    lines = [line for line in text.split("\n") if line]
    number, chars = count_repeated(lines)
    if number / max(1, len(lines)) > max_lines:
        return "gopher_repeated_lines"
    if chars / size > max_line_chars:
        return "gopher_repeated_line_chars"
    words_in_order = split_words(text, words)
    for n, limit in ((2, max_top_2_gram), (3, max_top_3_gram), (4, max_top_4_gram)):
        if top_ngram_chars(words_in_order, n) / size > limit:
            return f"gopher_top_{n}_gram"
    limits = (max_5_grams, max_6_grams, max_7_grams, max_8_grams, max_9_grams, max_10_grams)
    for n, limit in enumerate(limits, 5):
        if repeated_ngram_chars(words_in_order, n) / size > limit:
            return f"gopher_repeated_{n}_grams"
    return None


def count_repeated(items: Iterable[str]) -> tuple[int, int]:
    """Return how many items are equal to an earlier one, and the characters in those."""
    seen: set[str] = set()
    number = chars = 0
    for item in items:
        if item in seen:
            number += 1
            chars += len(item)
        seen.add(item)
    return number, chars


def top_ngram_chars(words: Sequence[str], n: int) -> int:
    """Return the characters in all occurrences of the most frequent n-gram, its blanks included.

    0 if no n-gram occurs twice; of equally frequent ones the first counts.
    """
    times = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    top, most = max(times.items(), key=lambda item: item[1], default=((), 0))
    characters = sum(map(len, top)) + n - 1
    return most * characters if most > 1 else 0


def repeated_ngram_chars(words: Sequence[str], n: int) -> int:
    """Return the characters, without blanks, of n-grams that occurred before; after one, the next begins behind it."""
    seen: set[tuple[str, ...]] = set()
    chars = i = 0
    while i + n <= len(words):
        gram = tuple(words[i : i + n])
        if gram in seen:
            chars += sum(map(len, gram))
            i += n
        else:
            seen.add(gram)
            i += 1
    return chars
