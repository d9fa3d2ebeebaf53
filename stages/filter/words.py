"""Words as the rules count them, readable.

`punctuation` cuts as datatrove does, which made FineWeb: by spaCy's lists for English (spacy/lang/punctuation.py), but
without its exceptions (Mr., don't, addresses of pages). `blanks` is Gopher's paper: what white space separates.
`stages.kernels.cut` compiles it, and must cut exactly as `split_words` does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from stages.kernels.unicode import HYPHENS, leading_marks, trailing_marks

PART = re.compile(r"\S+")
DOTS = re.compile(r"\.{2,}")
MARK = re.compile(r"\.+|[^.]", re.DOTALL)  # all full stops in a row are one
SAME_HYPHENS = re.compile(rf"([{HYPHENS}])\1*")


def split_words(text: str, words: str = "punctuation") -> list[str]:
    """Return the words of a text, in order; `words` is a recipe's key of that name."""
    parted = text.split()
    return parted if words == "blanks" else [word for part in parted for word in cut_word(part)]


def word_spans(text: str, words: str = "punctuation") -> Iterator[tuple[int, int]]:
    """Yield where the words of a text lie, [start, stop) of characters, in order."""
    for part in PART.finditer(text):
        start = part.start()
        for word in split_words(part[0], words):
            yield start, start + len(word)
            start += len(word)


def count_words(text: str, words: str = "punctuation") -> Counter[str]:
    """Return how often each word of a text occurs. Most repeat: each is cut once."""
    times = Counter(text.split())
    if words == "blanks":
        return times
    cut_times: Counter[str] = Counter()
    for part, n in times.items():
        for word in cut_word(part):
            cut_times[word] += n
    return cut_times


def cut_word(part: str) -> Iterator[str]:
    """Yield the words of what white space separates: marks at its ends, hyphens between letters, and what is left."""
    start, stop = leading_end(part), len(part)
    while stop > start and part[stop - 1] in trailing_marks():
        stop -= 1
    yield from MARK.findall(part[:start])
    done = start
    for hyphens in SAME_HYPHENS.finditer(part, start, stop):
        before, behind = hyphens.span()
        if start < before and behind < stop and part[before - 1].isalpha() and part[behind].isalpha():
            yield part[done:before]
            yield hyphens[0]
            done = behind
    if done < stop:
        yield part[done:stop]
    yield from MARK.findall(part[stop:])


def leading_end(part: str) -> int:
    """Return where the marks end that `part` begins with; one full stop is none, as in .5 and .txt."""
    end = 0
    while end < len(part):
        if dots := DOTS.match(part, end):
            end = dots.end()
        elif part[end] in leading_marks():
            end += 1
        else:
            break
    return end
