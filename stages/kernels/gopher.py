"""Gopher's measures, compiled: quality by the counters of a scan, and what repeats by the hashes that it leaves.

Equal hashes are compared byte by byte, so that the counts are exact. An n-gram can only occur twice where both (n - 1)-
grams in it do: so each length looks at few places. `stages.filter.gopher` has the readable form.
"""

from __future__ import annotations

from typing import Any

from stages.kernels.jit import compiled, get, int64, uint64
from stages.kernels.scan import (
    ALPHABETIC,
    ANY,
    BULLETS,
    CHARS,
    ELLIPSES,
    ELLIPSIS_ROWS,
    HASHES,
    LINES,
    ROWS,
    SOLID,
    SOLID_CHARS,
    STOPS,
    WORDS,
)
from stages.kernels.utf8 import MIX, hash_bytes, is_same
from stages.kernels.words import BASE

SHORTEST, LONGEST = 5, 10  # n-grams whose repetition counts anywhere
# What each rule measures, in the order in which it is written down.
QUALITY_MEASURES = (
    "gopher_words",
    "gopher_mean_word_length",
    "gopher_symbol_ratio",
    "gopher_bullet_lines",
    "gopher_ellipsis_lines",
    "gopher_alphabetic",
    "gopher_stop_words",
)
REPETITION_MEASURES = (
    "gopher_repeated_paragraphs",
    "gopher_repeated_paragraph_chars",
    "gopher_repeated_lines",
    "gopher_repeated_line_chars",
    *(f"gopher_top_{n}_gram" for n in (2, 3, 4)),
    *(f"gopher_repeated_{n}_grams" for n in range(SHORTEST, LONGEST + 1)),
)


@compiled
def gopher_quality(marks: Any, row: Any, at: int) -> None:
    """Write QUALITY_MEASURES of a scanned document to `row` from `at` on."""
    solid, words = marks[SOLID], marks[WORDS]
    row[at] = solid
    row[at + 1] = marks[SOLID_CHARS] / solid
    row[at + 2] = max(marks[HASHES], marks[ELLIPSES]) / words
    row[at + 3] = marks[BULLETS] / marks[ROWS]
    row[at + 4] = marks[ELLIPSIS_ROWS] / marks[ROWS]
    row[at + 5] = marks[ALPHABETIC] / words
    row[at + 6] = marks[STOPS]


@compiled
def clear_slots(slots: Any, n: int) -> int:
    """Empty a hash table for `n` entries; returns how many bits of a hash number its slots."""
    bits = 4
    while 1 << bits < 2 * n:
        bits += 1
    slots[: 1 << bits] = -1
    return bits


@compiled
def count_repeated(data: Any, items: Any, n: int, kind: int, slots: Any) -> tuple[int, int, int]:
    """Count the items (lines or paragraphs) of a kind, those that repeat an earlier one, and characters in these."""
    table, hashes = items
    bits = clear_slots(slots, n)
    shift, mask = uint64(64 - bits), (1 << bits) - 1
    total = number = size = 0
    for i in range(n):
        if table[i, 3] & kind != kind:
            continue
        total += 1
        at = int64((get(hashes, i) * MIX) >> shift)
        start, end = int64(table[i, 0]), int64(table[i, 1])
        while True:
            j = get(slots, at)
            if j < 0:
                slots[at] = i
                break
            alike = hashes[j] == get(hashes, i)
            if alike and is_same(data, int64(table[j, 0]), int64(table[j, 1]), data, start, end):
                number += 1
                size += table[i, 2]
                break
            at = (at + 1) & mask
    return total, number, size


@compiled
def fill_paragraphs(data: Any, words: Any, lines: Any, marks: Any, found: Any) -> int:
    """Fill `found`, like lines, with the paragraphs of the stripped text: what empty lines separate. Their number."""
    if not marks[WORDS]:
        return 0
    (spans, _), (table, hashes), (blocks, block_hashes) = words, lines, found
    first, last = get(spans, 3 * 0), get(spans, 3 * (marks[WORDS] - 1) + 1)
    n, end = 0, int64(-1)
    for line in range(marks[LINES]):
        a, b = max(int64(table[line, 0]), first), min(int64(table[line, 1]), last)
        if b <= a:
            continue
        h, size = get(hashes, line), int64(table[line, 2])
        if a > table[line, 0] or b < table[line, 1]:  # the first or the last: stripped
            h, size = hash_bytes(data, a, b), int64(0)
            for k in range(a, b):
                size += (get(data, k) & 0xC0) != 0x80
        if a == end + 1:
            block_hashes[n - 1] = (block_hashes[n - 1] ^ h) * BASE
            blocks[n - 1, 2] += size + 1
        else:
            blocks[n, 0], blocks[n, 2], blocks[n, 3], block_hashes[n] = a, size, ANY, h
            n += 1
        blocks[n - 1, 1] = end = b
    return n


@compiled
def same_words(data: Any, words: Any, i: int, j: int, n: int) -> bool:
    """Return whether the n-grams of words at `i` and `j` are the same."""
    spans, hashes = words
    for k in range(n):
        if get(hashes, i + k) != get(hashes, j + k):
            return False
    for k in range(n):
        a, b = 3 * (i + k), 3 * (j + k)
        if not is_same(data, get(spans, a), get(spans, a + 1), data, get(spans, b), get(spans, b + 1)):
            return False
    return True


@compiled
def hash_ngram(hashes: Any, i: int, n: int) -> Any:
    """Return a hash of the n-gram at `i`, spread over all bits."""
    h = get(hashes, i)
    for k in range(i + 1, i + n):
        h = h * BASE + get(hashes, k)
    return (h ^ (h >> uint64(32))) * MIX


@compiled
def likely_pairs(words: Any, total: int, sketch: Any, places: Any) -> int:
    """List in `places` where a pair of words may occur twice: its few bits of hash do. Returns how many places."""
    hashes = words[1]
    bits = 8
    while 1 << bits < 8 * total and 1 << bits < len(sketch):
        bits += 1
    shift = uint64(64 - bits)
    sketch[: 1 << bits] = 0
    for i in range(total - 1):
        at = int64(((get(hashes, i) * BASE + get(hashes, i + 1)) * MIX) >> shift)
        sketch[at] += get(sketch, at) < 2
    n = 0
    for i in range(total - 1):
        places[n] = i
        n += get(sketch, int64(((get(hashes, i) * BASE + get(hashes, i + 1)) * MIX) >> shift)) > 1
    return n


@compiled
def keep_repeated(
    data: Any, words: Any, n: int, places: Any, number: int, slots: Any, times: Any
) -> tuple[int, int, int]:
    """Leave in `places`, in order, those where n-grams stand that occur twice. It has all of them, and `number` in all.

    Returns (the first of the most frequent, how often it occurs, places left); 0 times where there is none.
    """
    bits = clear_slots(slots, number)
    shift, mask = uint64(64 - bits), (1 << bits) - 1
    for k in range(number):
        i = get(places, k)
        times[i] = 1
        at = int64(hash_ngram(words[1], i, n) >> shift)
        while True:
            j = get(slots, at)
            if j < 0:
                slots[at] = i
                break
            if same_words(data, words, i, j, n):
                times[j] += 1
                times[i] = 0  # as often as its first
                break
            at = (at + 1) & mask
    best = most = left = 0
    for k in range(number):
        i = get(places, k)
        if get(times, i) != 1:
            places[left] = i
            left += 1
            if get(times, i) > most:
                best, most = i, get(times, i)
    return best, most, left


@compiled
def keep_longer(places: Any, number: int) -> int:
    """Leave in `places` of n-grams that occur twice those where (n + 1)-grams may: the next place is there too."""
    left = 0
    for k in range(number - 1):
        i = get(places, k)
        places[left] = i
        left += get(places, k + 1) == i + 1
    return left


@compiled
def repeated_ngram_chars(data: Any, words: Any, n: int, places: Any, number: int, slots: Any) -> int:
    """Return the characters, without blanks, of n-grams that occurred before; after one, the next begins behind it.

    `places`, so many, are those of n-grams that occur twice.
    """
    spans = words[0]
    bits = clear_slots(slots, number)
    shift, mask = uint64(64 - bits), (1 << bits) - 1
    size = free = 0
    for k in range(number):
        i = get(places, k)
        if i < free:
            continue
        at = int64(hash_ngram(words[1], i, n) >> shift)
        while True:
            j = get(slots, at)
            if j < 0:
                slots[at] = i
                break
            if same_words(data, words, i, j, n):
                size += get(spans, 3 * (i + n) + 2) - get(spans, 3 * i + 2)
                free = i + n
                break
            at = (at + 1) & mask
    return size


@compiled
def gopher_repetition(data: Any, words: Any, lines: Any, marks: Any, spare: Any, row: Any, at: int) -> None:
    """Write REPETITION_MEASURES of a scanned document to `row` from `at` on.

    `spare` is (paragraphs, as lines are; slots of a hash table; a counter a word; a sketch; a place a word).
    """
    blocks, slots, times, sketch, places = spare
    spans = words[0]
    size, total = marks[CHARS], marks[WORDS]
    n = fill_paragraphs(data, words, lines, marks, blocks)
    n, number, chars = count_repeated(data, blocks, n, ANY, slots)
    row[at], row[at + 1] = number / max(1, n), chars / size
    n, number, chars = count_repeated(data, lines, marks[LINES], ANY, slots)
    row[at + 2], row[at + 3] = number / max(1, n), chars / size
    row[at + 4 : at + 4 + LONGEST - 1] = 0.0
    number = likely_pairs(words, total, sketch, places)
    for n in range(2, LONGEST + 1):
        best, most, number = keep_repeated(data, words, n, places, number, slots, times)
        if not number:
            break
        if n < SHORTEST:
            chars = get(spans, 3 * (best + n) + 2) - get(spans, 3 * best + 2) + n - 1
            row[at + n + 2] = int64(most) * chars / size
        else:
            row[at + n + 2] = repeated_ngram_chars(data, words, n, places, number, slots) / size
        number = keep_longer(places, number)
