"""Gopher's rules, compiled: quality by the counters of a scan, and what repeats by the hashes that it leaves.

Equal hashes are compared byte by byte, so that the counts are exact. Most documents need none of the exact counts: an
upper bound that is cheap to get is already below the threshold. `stages.filter.gopher` has the readable form.
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
from stages.kernels.utf8 import MIX, hash_bytes
from stages.kernels.words import BASE

SHORTEST, LONGEST = 5, 10  # n-grams whose repetition counts anywhere
# What each rule may say, in the order of its code.
QUALITY_REASONS = (
    "gopher_short_doc",
    "gopher_long_doc",
    "gopher_mean_word_length",
    "gopher_symbol_ratio",
    "gopher_bullet_lines",
    "gopher_ellipsis_lines",
    "gopher_alphabetic",
    "gopher_stop_words",
)
REPETITION_REASONS = (
    "gopher_repeated_paragraphs",
    "gopher_repeated_paragraph_chars",
    "gopher_repeated_lines",
    "gopher_repeated_line_chars",
    *(f"gopher_top_{n}_gram" for n in (2, 3, 4)),
    *(f"gopher_repeated_{n}_grams" for n in range(SHORTEST, LONGEST + 1)),
)


@compiled
def gopher_quality(marks: Any, limit: Any) -> int:
    """Return what `stages.filter.gopher.gopher_quality` says of a scanned document: the code of its reason, or 0."""
    solid, words = marks[SOLID], marks[WORDS]
    if solid < max(limit[0], 1.0):
        return 1
    if solid > limit[1]:
        return 2
    if not limit[2] <= marks[SOLID_CHARS] / solid <= limit[3]:
        return 3
    if max(marks[HASHES], marks[ELLIPSES]) / words > limit[4]:
        return 4
    if marks[BULLETS] / marks[ROWS] > limit[5]:
        return 5
    if marks[ELLIPSIS_ROWS] / marks[ROWS] > limit[6]:
        return 6
    if marks[ALPHABETIC] / words < limit[7]:
        return 7
    return 8 if marks[STOPS] < limit[8] else 0


@compiled
def clear_slots(slots: Any, n: int) -> int:
    """Empty a hash table for `n` entries; returns how many bits of a hash number its slots."""
    bits = 4
    while 1 << bits < 2 * n:
        bits += 1
    slots[: 1 << bits] = -1
    return bits


@compiled
def same_bytes(data: Any, a: int, b: int, length: int) -> bool:
    """Return whether the bytes at `a` and `b` are the same."""
    k = 0
    while k < length and get(data, a + k) == get(data, b + k):
        k += 1
    return k == length


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
        start, length = int64(table[i, 0]), int64(table[i, 1] - table[i, 0])
        while True:
            j = get(slots, at)
            if j < 0:
                slots[at] = i
                break
            alike = hashes[j] == get(hashes, i) and table[j, 1] - table[j, 0] == length
            if alike and same_bytes(data, int64(table[j, 0]), start, length):
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
        a, b = get(spans, 3 * (i + k)), get(spans, 3 * (j + k))
        length = get(spans, 3 * (i + k) + 1) - a
        if get(spans, 3 * (j + k) + 1) - b != length or not same_bytes(data, a, b, length):
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
def bound_pairs(words: Any, n: int, sketch: Any) -> int:
    """Return how often any pair of words occurs at most: pairs with the same few bits of hash count as one."""
    hashes = words[1]
    bits = 8
    while 1 << bits < 2 * n and 1 << bits < len(sketch):
        bits += 1
    shift = uint64(64 - bits)
    sketch[: 1 << bits] = 0
    most = 0
    for i in range(n - 1):
        at = int64(((get(hashes, i) * BASE + get(hashes, i + 1)) * MIX) >> shift)
        sketch[at] += 1
        if sketch[at] > most:
            most = sketch[at]
    return most


@compiled
def longest_ngram_chars(words: Any, total: int, n: int) -> int:
    """Return the characters of the longest n-gram, blanks included."""
    spans = words[0]
    most = 0
    for i in range(total - n + 1):
        most = max(most, get(spans, 3 * (i + n) + 2) - get(spans, 3 * i + 2))
    return most + n - 1


@compiled
def top_ngram_chars(data: Any, words: Any, total: int, n: int, slots: Any, times: Any) -> int:
    """Return the characters in all occurrences of the most frequent n-gram, blanks included; 0 if none occurs twice."""
    bits = clear_slots(slots, total)
    shift, mask = uint64(64 - bits), (1 << bits) - 1
    for i in range(total - n + 1):
        times[i] = 0
        at = int64(hash_ngram(words[1], i, n) >> shift)
        while True:
            j = get(slots, at)
            if j < 0:
                slots[at], times[i] = i, 1
                break
            if same_words(data, words, i, j, n):
                times[j] += 1
                break
            at = (at + 1) & mask
    best = 0
    for i in range(1, total - n + 1):
        if times[i] > times[best]:
            best = i
    if total < n or times[best] < 2:
        return 0
    spans = words[0]
    return int64(times[best]) * (get(spans, 3 * (best + n) + 2) - get(spans, 3 * best + 2) + n - 1)


@compiled
def repeated_ngram_chars(data: Any, words: Any, total: int, n: int, slots: Any) -> int:
    """Return the characters, without blanks, of n-grams that occurred before; after one, the next begins behind it."""
    spans = words[0]
    bits = clear_slots(slots, total)
    shift, mask = uint64(64 - bits), (1 << bits) - 1
    size = i = 0
    while i + n <= total:
        at = int64(hash_ngram(words[1], i, n) >> shift)
        while True:
            j = get(slots, at)
            if j < 0:
                slots[at] = i
                i += 1
                break
            if same_words(data, words, i, j, n):
                size += get(spans, 3 * (i + n) + 2) - get(spans, 3 * i + 2)
                i += n
                break
            at = (at + 1) & mask
    return size


@compiled
def bound_repeated_ngram_chars(data: Any, words: Any, total: int, slots: Any, most: Any) -> None:
    """Fill `most` with upper bounds of `repeated_ngram_chars` for n = 5 to 10.

    Where an n-gram repeats, so do all 5-grams in it: it lies within a run of n - 4 or more 5-grams that have occurred
    before. So the words under such runs are all that can count.
    """
    spans = words[0]
    most[:] = 0
    bits = clear_slots(slots, total)
    shift, mask = uint64(64 - bits), (1 << bits) - 1
    run = 0
    for i in range(total - SHORTEST + 2):
        again = False
        if i + SHORTEST <= total:
            at = int64(hash_ngram(words[1], i, SHORTEST) >> shift)
            while get(slots, at) >= 0 and not again:
                again = same_words(data, words, i, get(slots, at), SHORTEST)
                at = (at + 1) & mask
            if not again:
                slots[at] = i
        if again:
            run += 1
        elif run:
            size = get(spans, 3 * (i + SHORTEST - 1) + 2) - get(spans, 3 * (i - run) + 2)
            for n in range(SHORTEST, min(LONGEST, SHORTEST + run - 1) + 1):
                most[n - SHORTEST] += size
            run = 0


@compiled
def gopher_repetition(data: Any, words: Any, lines: Any, marks: Any, limit: Any, spare: Any) -> int:
    """Return what `stages.filter.gopher.gopher_repetition` says of a scanned document: the code of its reason, or 0.

    `limit` has its thresholds in their order. `spare` is (paragraphs, as lines are; slots of a hash table; a counter a
    word; a sketch; bounds).
    """
    blocks, slots, times, sketch, most = spare
    size, total = marks[CHARS], marks[WORDS]
    n = fill_paragraphs(data, words, lines, marks, blocks)
    n, number, chars = count_repeated(data, blocks, n, ANY, slots)
    if number / max(1, n) > limit[0]:
        return 1
    if chars / size > limit[1]:
        return 2
    n, number, chars = count_repeated(data, lines, marks[LINES], ANY, slots)
    if number / max(1, n) > limit[2]:
        return 3
    if chars / size > limit[3]:
        return 4
    bound = bound_pairs(words, total, sketch) * longest_ngram_chars(words, total, min(total, 4))
    for n in range(2, 5):
        high = limit[n + 2]
        if bound / size > high and top_ngram_chars(data, words, total, n, slots, times) / size > high:
            return n + 3
    bound_repeated_ngram_chars(data, words, total, slots, most)
    for n in range(SHORTEST, LONGEST + 1):
        high = limit[n + 2]
        if most[n - SHORTEST] / size > high and repeated_ngram_chars(data, words, total, n, slots) / size > high:
            return n + 3
    return 0
