"""Words as a tokenizer's split leaves them, found and counted in whole batches of documents, compiled.

The regular expressions that say what a word is are in `stages.tokenizer.split`, and so is the class of each character.
A word may begin with a blank or a sign. Words are bytes here; one longer than LONGEST_WORD is counted in pieces.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stages.kernels.jit import compiled, copy, get, int64, load, uint64
from stages.kernels.utf8 import MIX, decode

OTHER, LETTER, NUMBER, BLANK, NEWLINE = range(5)  # classes of characters
LONGEST_WORD = 4096  # bytes of UTF-8
Bytes = npt.NDArray[np.uint8]
Int64s = npt.NDArray[np.int64]
QUOTE, SPACE = 0x27, 0x20
NO_LIMIT = 1 << 62  # digits in a word
FIRST_WORDS = 1 << 14  # that there is room for at first
SHORT, LONG = (0x73, 0x74, 0x6D, 0x64), ((0x72, 0x65), (0x76, 0x65), (0x6C, 0x6C))  # behind it: s t m d, re ve ll
FOLDED_S = 0xBFC5  # U+017F in UTF-8, which is an s in another case


@compiled
def class_at(data: Any, i: int, b: int, table: Any) -> tuple[int, int]:
    """Return (class, bytes) of the character at `i`; (-1, 0) at the end of the text."""
    if i >= b:
        return -1, 0
    c = get(data, i)
    if c < 128:
        return get(table, c), 1
    c, width = decode(data, i)
    return get(table, c), width


@compiled
def run_end(data: Any, i: int, b: int, table: Any, kind: int, most: int) -> int:
    """Return where the run of characters of class `kind` that begins at `i` ends, at most `most` of them."""
    while most > 0:
        found, width = class_at(data, i, b, table)
        if found != kind:
            break
        i += width
        most -= 1
    return i


@compiled
def contraction(data: Any, i: int, b: int, folds: bool) -> int:
    """Return the bytes of the contraction at the quote `i`, or 0: 's, 't, 're, 've, 'm, 'll, 'd. `folds`: any case."""
    if i + 1 >= b:
        return 0
    case = 0x20 if folds else 0
    first = get(data, i + 1) | case
    if first in SHORT:
        return 2
    if i + 2 >= b:
        return 0
    if folds and get(data, i + 1) | get(data, i + 2) << 8 == FOLDED_S:
        return 3
    second = get(data, i + 2) | case
    return 3 if (first, second) in LONG else 0


@compiled
def blanks_end(data: Any, i: int, b: int, table: Any) -> int:
    """Return where a word of blanks ends that begins at `i`: behind the last line end; else before the last blank.

    A run of blanks leaves its last one to what follows, but where that is the end of the text, or it is the only one.
    """
    line = last = j = i
    while True:
        kind, width = class_at(data, j, b, table)
        if kind != BLANK and kind != NEWLINE:
            break
        last, j = j, j + width
        if kind == NEWLINE:
            line = j
    if line > i:
        return line
    return j if j == b or last == i else last


@compiled
def word_end(data: Any, i: int, b: int, table: Any, gpt4: bool, digits: int) -> int:
    """Return where the word ends that begins at `i` < `b`."""
    c = get(data, i)
    if c == QUOTE:
        size = contraction(data, i, b, gpt4)
        if size > 0:
            return i + size
    kind, width = class_at(data, i, b, table)
    j = i + width
    if kind == LETTER:
        return run_end(data, j, b, table, LETTER, NO_LIMIT)
    following, _ = class_at(data, j, b, table)
    if following == LETTER and (c == SPACE or (gpt4 and kind in (OTHER, BLANK))):
        return run_end(data, j, b, table, LETTER, NO_LIMIT)
    if kind == NUMBER:
        return run_end(data, j, b, table, NUMBER, digits - 1)
    if following == NUMBER and c == SPACE and not gpt4:
        return run_end(data, j, b, table, NUMBER, digits)
    if kind == OTHER or (c == SPACE and following == OTHER):
        end = run_end(data, j, b, table, OTHER, NO_LIMIT)
        return run_end(data, end, b, table, NEWLINE, NO_LIMIT) if gpt4 else end
    return blanks_end(data, i, b, table)


@compiled
def hash_of(data: Any, i: int, end: int) -> Any:
    """Return the hash of data[i:end]; up to 7 bytes beyond are read, and make no difference."""
    h = uint64(end - i)
    while i + 8 <= end:
        h = (h ^ load(data, i)) * MIX
        h ^= h >> uint64(29)
        i += 8
    if i < end:
        h = (h ^ load(data, i) << uint64(8 * (8 - (end - i)))) * MIX
    return (h ^ (h >> uint64(32))) * MIX


@compiled
def equal(data: Any, i: int, other: Any, j: int, size: int) -> bool:
    """Return whether data[i:i + size] and other[j:j + size] are the same; up to 7 bytes beyond are read."""
    while size >= 8:
        if load(data, i) != load(other, j):
            return False
        i, j, size = i + 8, j + 8, size - 8
    return size == 0 or (load(data, i) ^ load(other, j)) << uint64(8 * (8 - size)) == uint64(0)


@compiled
def enter(data: Any, i: int, end: int, times: int, table: Any, used: Any) -> None:
    """Add `times` to the count of the word data[i:end], which is entered where it is new. There is room for it."""
    text, starts, hashes, counts, slots = table
    h = hash_of(data, i, end)
    at = int64(h) & (len(slots) - 1)
    while slots[at] >= 0:
        word = int64(slots[at])
        if hashes[word] == h:
            start = starts[word]
            if starts[word + 1] - start == end - i and equal(data, i, text, start, end - i):
                counts[word] += times
                return
        at = (at + 1) & (len(slots) - 1)
    word = used[0]
    slots[at] = word
    copy(text, starts[word], data, i, end - i)
    starts[word + 1] = starts[word] + end - i
    hashes[word], counts[word] = h, times
    used[0] = word + 1


@compiled
def has_room(table: Any, used: Any, size: int) -> bool:
    """Return whether one more word of `size` bytes can be entered."""
    text, starts, hashes, _, _ = table
    return used[0] < len(hashes) and starts[used[0]] + size + 8 <= len(text)


@compiled
def count_all(
    data: Any, offsets: Any, classes: Any, gpt4: bool, digits: int, at: Any, table: Any, used: Any, long: Any
) -> bool:
    """Count the words of documents [offsets[d], offsets[d + 1]). Returns False where `table` has no more room.

    at: the document, the byte and the end of the word at which it goes on. long: how many words are longer than
    LONGEST_WORD, and the longest.
    """
    while at[0] < len(offsets) - 1:
        b = offsets[at[0] + 1]
        i, end = at[1], at[2]
        while i < b:
            if i == end:
                end = word_end(data, i, b, classes, gpt4, digits)
                if end - i > LONGEST_WORD:
                    long[0] += 1
                    long[1] = max(long[1], end - i)
            piece = min(end, i + LONGEST_WORD)
            if not has_room(table, used, piece - i):
                at[1], at[2] = i, end
                return False
            enter(data, i, piece, 1, table, used)
            i = piece
        at[0] += 1
        at[1] = at[2] = b
    return True


@compiled
def add_all(data: Any, offsets: Any, times: Any, at: Any, table: Any, used: Any) -> bool:
    """Add the counts `times` of words [offsets[k], offsets[k + 1]). Returns False where `table` has no more room."""
    while at[0] < len(times):
        k = at[0]
        if not has_room(table, used, offsets[k + 1] - offsets[k]):
            return False
        enter(data, offsets[k], offsets[k + 1], times[k], table, used)
        at[0] = k + 1
    return True


@compiled
def fill_slots(hashes: Any, number: int, slots: Any) -> None:
    """Enter the words 0 to `number` in a hash table, all of whose `slots` are -1."""
    for word in range(number):
        at = int64(hashes[word]) & (len(slots) - 1)
        while slots[at] >= 0:
            at = (at + 1) & (len(slots) - 1)
        slots[at] = word


class WordCounts:
    """Distinct words, in the order in which they were first met, and how often each occurs.

    Takes some 40 bytes a word and its bytes, twice that while it grows.
    """

    def __init__(self) -> None:
        self.used, self.long = np.zeros(1, np.int64), np.zeros(2, np.int64)
        self.text, self.starts = np.zeros(16 * FIRST_WORDS, np.uint8), np.zeros(FIRST_WORDS + 1, np.int64)
        self.hashes, self.counts = np.zeros(FIRST_WORDS, np.uint64), np.zeros(FIRST_WORDS, np.int64)
        self.slots = np.full(2 * FIRST_WORDS, -1, np.int32)

    def __len__(self) -> int:
        return int(self.used[0])

    @property
    def table(self) -> tuple[npt.NDArray[Any], ...]:
        """Return what the kernels fill."""
        return self.text, self.starts, self.hashes, self.counts, self.slots

    def grow(self) -> None:
        """Make room for more words: at least for one of LONGEST_WORD bytes."""
        size = len(self)
        if size == len(self.hashes):
            self.starts = np.resize(self.starts, 2 * size + 1)
            self.hashes, self.counts = np.resize(self.hashes, 2 * size), np.resize(self.counts, 2 * size)
            self.slots = np.full(4 * size, -1, np.int32)
            fill_slots(self.hashes, size, self.slots)
        if self.starts[size] + LONGEST_WORD + 8 > len(self.text):
            self.text = np.resize(self.text, 2 * len(self.text))

    def count(self, data: Bytes, offsets: Int64s, split: tuple[Bytes, bool, int]) -> None:
        """Count the words of documents: UTF-8 as `text_columns.utf8_buffers` gives it. split: `split.Split`."""
        at = np.array([0, offsets[0], offsets[0]], np.int64)
        while not count_all(data, offsets, *split, at, self.table, self.used, self.long):
            self.grow()

    def add(self, data: Bytes, offsets: Int64s, times: Int64s) -> None:
        """Add words that were counted elsewhere: their bytes, where each begins and the last ends, and their counts."""
        at = np.zeros(1, np.int64)
        while not add_all(data, offsets, times, at, self.table, self.used):
            self.grow()
