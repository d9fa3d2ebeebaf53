"""The published rule sets for web text, readable: what `stages.kernels.rules` compiles must decide exactly as these do.

Gopher (Rae et al. 2021, appendix A1.1 and table A1), C4 (Raffel et al. 2020, section 2.2, and its code) and FineWeb
(Penedo et al. 2024, section 3.5), read as datatrove reads them, with FineWeb's defaults. Where they differ from it:

* Words are what white space separates, as in Gopher's paper; datatrove splits off punctuation and parts of words
  (spaCy), so that it counts more words, and more of them without a letter.
* C4's sentences end at a word that ends in terminal punctuation, closing quotes and brackets aside.
* An n-gram that occurs once is no repetition; an empty line is no line; blanks at the end of a line hide no full stop.

They are made for prose: C4's curly bracket and Gopher's alphabetic rule delete LaTeX, code and questions with answers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from stages.kernels.unicode import CLOSERS, TERMINAL

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
STRIPPED = ".,;:!?()[]\"'`*"  # from around a word before it is compared with STOP_WORDS
BULLETS = ("•", "-")  # datatrove's two
CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


class Document(NamedTuple):
    """What a rule may look at."""

    text: str
    meta: Mapping[str, float | str | None] = {}


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
) -> str | None:
    """The quality rules of Gopher, tried in the paper's order.

    The number and mean length count words with at least one letter or digit (datatrove's "non-symbol words"). The
    symbol ratios are `#` and ellipses per word. Stop words count once each, in lower case, without punctuation around.
    """
    words = Counter(document.text.split())  # most words repeat: looking at each once is several times faster
    total = words.total()
    solid = {w: n for w, n in words.items() if w.isalnum() or any(map(str.isalnum, w))}
    count = sum(solid.values())
    if count < max(min_words, 1):
        return "gopher_short_doc"
    if count > max_words:
        return "gopher_long_doc"
    if not min_mean_word_length <= sum(len(w) * n for w, n in solid.items()) / count <= max_mean_word_length:
        return "gopher_mean_word_length"
    ellipses = document.text.count("...") + document.text.count("…")
    if max(document.text.count("#"), ellipses) / total > max_symbol_ratio:
        return "gopher_symbol_ratio"
    lines = document.text.splitlines()
    if sum(line.lstrip().startswith(BULLETS) for line in lines) / len(lines) > max_bullet_lines:
        return "gopher_bullet_lines"
    if sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > max_ellipsis_lines:
        return "gopher_ellipsis_lines"
    if sum(n for w, n in solid.items() if w.isalpha() or any(map(str.isalpha, w))) / total < min_alphabetic_words:
        return "gopher_alphabetic"
    seen = STOP_WORDS.intersection(w.strip(STRIPPED).lower() for w in solid)
    return "gopher_stop_words" if len(seen) < min_stop_words else None


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
) -> str | None:
    """The repetition rules of Gopher: shares of the document that repeat something earlier in it.

    Repeated paragraphs (between empty lines) and lines, as a share of their number and of the document's characters;
    characters in the most frequent 2-, 3- and 4-gram of words (of equally frequent ones the first); characters in
    repeated 5- to 10-grams, none counted twice.
    """
    text = document.text
    size = len(text)
    paragraphs = re.split(r"\n{2,}", text.strip())
    number, chars = repeated(paragraphs)
    if number / len(paragraphs) > max_paragraphs:
        return "gopher_repeated_paragraphs"
    if chars / size > max_paragraph_chars:
        return "gopher_repeated_paragraph_chars"
    lines = [line for line in text.split("\n") if line]
    number, chars = repeated(lines)
    if number / max(1, len(lines)) > max_lines:
        return "gopher_repeated_lines"
    if chars / size > max_line_chars:
        return "gopher_repeated_line_chars"
    words = text.split()
    for n, limit in ((2, max_top_2_gram), (3, max_top_3_gram), (4, max_top_4_gram)):
        if top_ngram_chars(words, n) / size > limit:
            return f"gopher_top_{n}_gram"
    limits = (max_5_grams, max_6_grams, max_7_grams, max_8_grams, max_9_grams, max_10_grams)
    for n, limit in enumerate(limits, 5):
        if repeated_ngram_chars(words, n) / size > limit:
            return f"gopher_repeated_{n}_grams"
    return None


def repeated(items: Iterable[str]) -> tuple[int, int]:
    """(number, characters) of items equal to an earlier one."""
    seen: set[str] = set()
    number = chars = 0
    for item in items:
        if item in seen:
            number, chars = number + 1, chars + len(item)
        seen.add(item)
    return number, chars


def top_ngram_chars(words: Sequence[str], n: int) -> int:
    """Characters in all occurrences of the most frequent n-gram, its blanks included; 0 if none occurs twice."""
    grams = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    top, times = max(grams.items(), key=lambda item: item[1], default=((), 0))
    return times * (sum(map(len, top)) + n - 1) if times > 1 else 0


def repeated_ngram_chars(words: Sequence[str], n: int) -> int:
    """Characters, without blanks, of n-grams that occurred before; after one, the next begins behind it."""
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


def c4(
    document: Document,
    *,
    min_sentences: int = 5,
    min_words_per_line: int = 3,
    max_word_length: int = 1000,
    terminal_punctuation: bool = False,
    curly_bracket: bool = True,
    lorem_ipsum: bool = True,
    javascript: bool = True,
    policy: bool = True,
    citations: bool = True,
) -> str | Document:
    """C4's rules, in its code's order. An edit: gives the document with the lines that stay, or why none does.

    Lines go that have few words, a word beyond `max_word_length` characters, "javascript" or a policy phrase (in any
    case), or, where `terminal_punctuation` is on (FineWeb has it off), no full stop, question or exclamation mark or
    quote at their end. A line with `{` or "lorem ipsum" takes the document with it. Citations such as [3], [edit] and
    [citation needed] are cut out. The lines that stay are stripped and joined by line feeds.
    """
    kept = []
    sentences = 0
    for line in document.text.splitlines():
        line = line.strip()
        words = line.split()
        if any(len(word) > max_word_length for word in words):
            continue
        if citations:
            line = CITATION.sub("", line)
        if terminal_punctuation and (not line.endswith((".", "?", "!", '"', "'")) or line.endswith("...")):
            continue
        if len(words) < min_words_per_line:
            continue
        lower = line.lower()
        if lorem_ipsum and "lorem ipsum" in lower:
            return "c4_lorem_ipsum"
        if javascript and "javascript" in lower:
            continue
        if curly_bracket and "{" in line:
            return "c4_curly_bracket"
        if policy and any(phrase in lower for phrase in POLICY):
            continue
        sentences += sentences_in(line)
        kept.append(line)
    if sentences < min_sentences:
        return "c4_few_sentences"
    return document._replace(text="\n".join(kept).strip())


def sentences_in(line: str) -> int:
    """Words that end in terminal punctuation, closing quotes and brackets aside, and 1 if the last does not."""
    ends = [word.rstrip(CLOSERS)[-1:] in TERMINAL for word in line.split()]
    return sum(ends) + (bool(ends) and not ends[-1])


def fineweb(
    document: Document,
    *,
    min_line_punctuation: float = 0.12,
    max_short_lines: float = 0.67,
    short_line_chars: int = 30,
    max_repeated_chars: float = 0.01,
    max_newlines_per_word: float = 0.3,
) -> str | None:
    """FineWeb's own rules: lists, menus and text that was broken into lines.

    Of the lines that are not blank: the share that ends in terminal punctuation, the share of at most
    `short_line_chars` characters, and the characters in repeated ones as a share of all but line feeds.
    """
    lines = [line for line in document.text.split("\n") if line.strip()]
    if not lines:
        return "fineweb_blank"
    if sum(line.rstrip()[-1] in TERMINAL for line in lines) / len(lines) < min_line_punctuation:
        return "fineweb_line_punctuation"
    if sum(len(line) <= short_line_chars for line in lines) / len(lines) > max_short_lines:
        return "fineweb_short_lines"
    newlines = document.text.count("\n")
    if repeated(lines)[1] / (len(document.text) - newlines) > max_repeated_chars:
        return "fineweb_repeated_chars"
    return "fineweb_newlines" if newlines / len(document.text.split()) > max_newlines_per_word else None
