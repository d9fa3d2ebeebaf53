"""Looks the n-grams of words of whole batches of documents up in an index of those of evaluation sets. Compiled.

`stages.decontaminate.ngrams.found_in` is the readable form. A sieve of the last words of every n-gram spares most
look-ups. Memory does not grow with a document: of its words only the last RING are known. Equal hashes are no proof:
who asks compares the words.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.kernels.jit import compiled, get, int64, uint64
from stages.kernels.scan import MIX
from stages.kernels.text_columns import utf8_buffers
from stages.kernels.words import BASE, folded, next_word, spread

RING = 128  # words remembered: more than an n-gram with one word left out spans
SPARSE = 16  # bits of the sieve for each n-gram


@compiled
def bits_of(h: Any) -> Any:
    """The two bits of a word of the sieve that stand for a hash; its upper bits say which word."""
    return uint64(1) << (h & uint64(63)) | uint64(1) << (h >> uint64(6) & uint64(63))


@compiled
def fill(hashes: Any, lasts: Any, sieve: Any, slots: Any, shift: Any) -> None:
    """Enter each n-gram's number in a hash table, and its last words in the sieve."""
    for i in range(len(hashes)):
        sieve[int64(lasts[i] >> uint64(12)) & (len(sieve) - 1)] |= bits_of(lasts[i])
        at = int64((hashes[i] * MIX) >> shift)
        while slots[at] >= 0:
            at = (at + 1) & (len(slots) - 1)
        slots[at] = i


@compiled
def number(g: Any, n: int, hashes: Any, lengths: Any, slots: Any, shift: Any) -> int:
    """The number of the n-gram with hash `g` and `n` words, or -1."""
    at = int64((g * MIX) >> shift)
    while slots[at] >= 0:
        gram = int64(slots[at])
        if hashes[gram] == g and lengths[gram] == n:
            return gram
        at = (at + 1) & (len(slots) - 1)
    return -1


@compiled
def ending(h: Any, words: int, ring: Any, sizes: Any, powers: Any, gap: int, index: Any, row: Any, k: int) -> int:
    """Write down the n-grams that end with the word just read, as (number, words spanned); returns how many, k before.

    One of `gap` words is also looked for with a word left out behind its first half, where `gap` is not 0.
    """
    hashes, lengths, slots, shift = index
    for j in range(len(sizes)):
        n = sizes[j]
        if n <= words:
            gram = number(spread(h - ring[(words - n) & (RING - 1)] * powers[j]), n, hashes, lengths, slots, shift)
            if gram >= 0:
                row[k, 0], row[k, 1] = gram, n
                k += 1
    if gap and words > gap:
        late = gap // 2
        tail = h - ring[(words - late) & (RING - 1)] * powers[len(sizes) + 1]
        head = ring[(words - late - 1) & (RING - 1)]
        head -= ring[(words - gap - 1) & (RING - 1)] * powers[len(sizes)]
        g = spread(head * powers[len(sizes) + 1] + tail)
        gram = number(g, gap, hashes, lengths, slots, shift)
        if gram >= 0:
            row[k, 0], row[k, 1] = gram, gap + 1
            k += 1
    return k


@compiled
def look_all(
    data: Any,
    offsets: Any,
    fold: Any,
    sizes: Any,
    powers: Any,
    gap: int,
    last: int,
    sieve: Any,
    index: Any,
    room: Any,
    found: Any,
) -> int:
    """Look up every n-gram, n among `sizes`, of documents [offsets[d], offsets[d + 1]); returns how many are found.

    gap: see `ending`, or 0. powers: BASE^n of each size, of the halves before and behind the gap, and of `last`: how
    many words the sieve has of each. index: hashes, sizes, slots and shift of the n-grams. room: (polynomials of the
    words read, where they start, scratch). found: (k, 4) of document, number of the n-gram, start and end in bytes of
    the document; what it has no room for is only counted.
    """
    ring, starts, row = room
    total, power = 0, powers[len(powers) - 1]
    for d in range(len(offsets) - 1):
        a, b = int64(offsets[d]), int64(offsets[d + 1])
        words, h, i = 0, uint64(0), a
        ring[0] = h
        while True:
            start, i, word = next_word(data, i, b, fold)
            if start == b:
                break
            starts[words & (RING - 1)] = start
            words += 1
            h = h * BASE + word
            ring[words & (RING - 1)] = h
            if words < last:
                continue
            g = spread(h - get(ring, (words - last) & (RING - 1)) * power)
            wanted = bits_of(g)
            if get(sieve, int64(g >> uint64(12)) & (len(sieve) - 1)) & wanted != wanted:
                continue
            for k in range(ending(h, words, ring, sizes, powers, gap, index, row, 0)):
                if total < len(found):
                    found[total, 0], found[total, 1] = d, row[k, 0]
                    found[total, 2], found[total, 3] = starts[(words - row[k, 1]) & (RING - 1)] - a, i - a
                total += 1
    return total


class Index:
    """N-grams to look for, no two with the same hash and size.

    lengths: how many words each has. lasts: hashes of the last `last` words of each. gap: a size whose n-grams are
    also found with a word more behind their first half, or 0.
    """

    def __init__(
        self, hashes: NDArray[np.uint64], lengths: NDArray[np.int64], lasts: NDArray[np.uint64], last: int, gap: int
    ):
        n = max(8, len(hashes))
        bits = (2 * n - 1).bit_length()
        slots = np.full(1 << bits, -1, np.int64)
        self.index = hashes.astype(np.uint64), lengths.astype(np.int64), slots, np.uint64(64 - bits)
        self.sieve = np.zeros(1 << (SPARSE * n // 64 - 1).bit_length(), np.uint64)
        fill(self.index[0], lasts.astype(np.uint64), self.sieve, slots, self.index[3])
        self.last, self.gap, self.sizes = last, gap, np.unique(self.index[1])
        sizes = [*self.sizes.tolist(), gap - gap // 2, gap // 2, last]
        self.powers = np.array([pow(int(BASE), size, 1 << 64) for size in sizes], np.uint64)

    def look(self, texts: pa.Array) -> NDArray[np.int64]:
        """(k, 4): row, number of the n-gram, start and end in bytes of the text, of each that is in a column."""
        data, offsets = utf8_buffers(texts)
        room = np.zeros(RING, np.uint64), np.zeros(RING, np.int64), np.zeros((len(self.sizes) + 1, 2), np.int64)
        keys = self.sizes, self.powers, self.gap, self.last, self.sieve, self.index, room
        found = np.zeros((4096 if len(self.sizes) else 0, 4), np.int64)
        while len(self.sizes):
            total = look_all(data, offsets, folded(), *keys, found)
            if total <= len(found):
                return found[:total]
            found = np.zeros((total, 4), np.int64)
        return found
