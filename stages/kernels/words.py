"""Words as near-duplicates and contamination compare them, compiled: letters, digits and marks, in lower case.

What stands between words (blanks, punctuation, markup) makes no difference, and neither does case. Combining marks
belong to the word they stand in; none begins one. Each character is taken by itself, so that a word is the same
wherever it stands: one that has no lower case of one character stays as it is. The kernels take texts in their
comparable form (`stages.comparable`). `words` is the readable form.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.comparable import comparable
from stages.kernels.jit import compiled, get, uint64
from stages.kernels.unicode import LIMIT, is_mark
from stages.kernels.utf8 import MIX, decode

MASK = (1 << 64) - 1
MARK = 1 << 31  # in `folded`, of what goes on with a word and begins none
POINT = MARK - 1
BASE = uint64(0xD6E8FEB86659FD93)  # of the polynomial that hashes an n-gram


def lower(c: str) -> str:
    """Return a character in lower case, or as it is where that is more than one character."""
    return c.lower() if len(c.lower()) == 1 else c


@functools.cache
def folded() -> NDArray[np.uint32]:
    """Return for each code point below LIMIT the one it counts as in a word, or 0 where it stands between words.

    Marks have MARK added.
    """
    characters = list(map(chr, range(LIMIT)))
    table = np.zeros(LIMIT, np.uint32)
    for c in filter(str.isalnum, characters):
        table[ord(c)] = ord(lower(c))
    for c in filter(is_mark, characters):
        table[ord(c)] = MARK | ord(c)
    return table


@compiled
def next_word(data: Any, i: int, b: int, fold: Any) -> tuple[int, int, Any]:
    """Return (start, end, hash) of the first word that begins in [i, b); start == b where there is none.

    The text must be valid UTF-8, and `i` no place within a word.
    """
    while i < b:
        c = get(data, i)
        if c < 128:
            if get(fold, c):
                break
            i += 1
        else:
            c, width = decode(data, i)
            if c < LIMIT and 0 < get(fold, c) < MARK:
                break
            i += width
    start, h = i, uint64(0)
    while i < b:
        c = get(data, i)
        if c < 128:  # most characters
            f = get(fold, c)
            if f == 0:
                break
            h = (h ^ uint64(f)) * MIX
            i += 1
        else:
            c, width = decode(data, i)
            f = get(fold, c) if c < LIMIT else 0
            if f == 0:
                break
            h = (h ^ uint64(f & POINT)) * MIX
            i += width
    return start, i, (h ^ (h >> uint64(32))) * BASE


@compiled
def spread(h: Any) -> Any:
    """Return a polynomial of word hashes spread over all bits: the hash of an n-gram.

    The polynomial of words w_1 ... w_n is w_1 BASE^(n-1) + ... + w_n, modulo 2^64: it rolls on in two steps.
    """
    return (h ^ (h >> uint64(32))) * MIX


@compiled
def fill_ngram_hashes(data: Any, b: int, fold: Any, ring: Any, found: Any) -> int:
    """Fill `found` with hashes of the n-grams of words of data[:b], in order; of all words where there are fewer.

    Returns their number; `found` holds as many as there may be words, (b + 1) // 2, or one. `ring` (n,) is all 0.
    """
    n = len(ring)
    power = uint64(1)  # BASE^n
    for _ in range(n):
        power *= BASE
    number = i = 0
    h = uint64(0)
    while True:
        start, i, word = next_word(data, i, b, fold)
        if start == b:
            break
        h = h * BASE + word - ring[number % n] * power
        ring[number % n] = word
        number += 1
        if number >= n:
            found[number - n] = spread(h)
    if 0 < number < n:
        found[0] = spread(h)
        return 1
    return max(0, number - n + 1)


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return split_words(comparable(text))


def split_words(form: str) -> list[str]:
    """Return the words of a text in its comparable form: the readable form of `next_word`."""
    runs = "".join(lower(c) if c.isalnum() else c if is_mark(c) else " " for c in form).split(" ")
    return [word for run in runs if (word := "".join(itertools.dropwhile(is_mark, run)))]


def word_hash(word: str) -> int:
    """Return the hash of a word, as `next_word` gives it."""
    h = 0
    for c in word:
        h = ((h ^ ord(c)) * int(MIX)) & MASK
    return ((h ^ (h >> 32)) * int(BASE)) & MASK


def ngram_hash(hashes: list[int]) -> int:
    """Return the hash of an n-gram from those of its words: the readable form of `spread` and its polynomial."""
    h = 0
    for word in hashes:
        h = (h * int(BASE) + word) & MASK
    return ((h ^ (h >> 32)) * int(MIX)) & MASK
