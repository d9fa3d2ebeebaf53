"""The search for n-grams of words of evaluation sets in whole batches of documents, compiled.

`stages.decontaminate.ngrams.find_readably` is the readable form. A sieve of the last words of every n-gram spares most
look-ups. Memory does not grow with a document: of its words only the last RING are known. Equal hashes are no proof:
who asks compares the words.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.hashing import power_of_two_at_least
from stages.kernels.jit import compiled, get, int64, uint64
from stages.kernels.text_columns import utf8_buffers
from stages.kernels.utf8 import MIX
from stages.kernels.words import BASE, folded, next_word, spread

RING = 128  # words remembered: more than an n-gram with one word left out spans
SPARSE = 16  # bits of the sieve for each n-gram
FIRST_ROOM = 4096  # hits of a batch that are written down without a second search


@compiled
def bits_of(h: Any) -> Any:
    """Return the two bits of a word of the sieve that stand for a hash; its upper bits say which word."""
    return uint64(1) << (h & uint64(63)) | uint64(1) << (h >> uint64(6) & uint64(63))


@compiled
def fill_tables(hashes: Any, lasts: Any, sieve: Any, slots: Any, shift: Any) -> None:
    """Enter each n-gram's number in a hash table, and its last words in the sieve."""
    for i in range(len(hashes)):
        sieve[int64(lasts[i] >> uint64(12)) & (len(sieve) - 1)] |= bits_of(lasts[i])
        at = int64((hashes[i] * MIX) >> shift)
        while slots[at] >= 0:
            at = (at + 1) & (len(slots) - 1)
        slots[at] = i


@compiled
def number_of(g: Any, n: int, hashes: Any, lengths: Any, slots: Any, shift: Any) -> int:
    """Return the number of the n-gram with hash `g` and `n` words, or -1."""
    at = int64((g * MIX) >> shift)
    while slots[at] >= 0:
        gram = int64(slots[at])
        if hashes[gram] == g and lengths[gram] == n:
            return gram
        at = (at + 1) & (len(slots) - 1)
    return -1


@compiled
def find_ending(h: Any, words: int, ring: Any, sizes: Any, powers: Any, gap: int, index: Any, row: Any, k: int) -> int:
    """Write down the n-grams that end with the word just read, as (number, words spanned); returns how many, k before.

    One of `gap` words is also looked for with a word left out behind its first half, where `gap` is not 0.
    """
    hashes, lengths, slots, shift = index
    for j in range(len(sizes)):
        n = sizes[j]
        if n <= words:
            gram = number_of(spread(h - ring[(words - n) & (RING - 1)] * powers[j]), n, hashes, lengths, slots, shift)
            if gram >= 0:
                row[k, 0], row[k, 1] = gram, n
                k += 1
    if gap and words > gap:
        late = gap // 2
        tail = h - ring[(words - late) & (RING - 1)] * powers[len(sizes) + 1]
        head = ring[(words - late - 1) & (RING - 1)]
        head -= ring[(words - gap - 1) & (RING - 1)] * powers[len(sizes)]
        g = spread(head * powers[len(sizes) + 1] + tail)
        gram = number_of(g, gap, hashes, lengths, slots, shift)
        if gram >= 0:
            row[k, 0], row[k, 1] = gram, gap + 1
            k += 1
    return k


@compiled
def find_all(
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

    gap: see `find_ending`, or 0. powers: BASE^n of each size, of the halves before and behind the gap, and of `last`:
    how many words the sieve has of each. index: hashes, sizes, slots and shift of the n-grams. room: (polynomials of
    the words read, where they start, scratch). found: (k, 4) of document, number of the n-gram, start and end in bytes
    of the document; what it has no room for is only counted.
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
            for k in range(find_ending(h, words, ring, sizes, powers, gap, index, row, 0)):
                if total < len(found):
                    found[total, 0], found[total, 1] = d, row[k, 0]
                    found[total, 2], found[total, 3] = starts[(words - row[k, 1]) & (RING - 1)] - a, i - a
                total += 1
    return total


class NgramSearch:
    """The search for some n-grams, no two with the same hash and size.

    lengths: how many words each has. lasts: hashes of the last `last` words of each. gap: a size whose n-grams are
    also found with a word more behind their first half, or 0.
    """

    def __init__(
        self,
        hashes: npt.NDArray[np.uint64],
        lengths: npt.NDArray[np.int64],
        lasts: npt.NDArray[np.uint64],
        last: int,
        gap: int,
    ):
        ngrams = max(8, len(hashes))
        slots = np.full(power_of_two_at_least(2 * ngrams), -1, np.int64)
        shift = np.uint64(65 - len(slots).bit_length())  # leaves as many bits of a hash as number the slots
        self.index = hashes.astype(np.uint64), lengths.astype(np.int64), slots, shift
        self.sieve = np.zeros(power_of_two_at_least(SPARSE * ngrams // 64), np.uint64)
        fill_tables(self.index[0], lasts.astype(np.uint64), self.sieve, slots, shift)
        self.last, self.gap = last, gap
        self.sizes = np.unique(self.index[1])
        exponents = [*self.sizes.tolist(), gap - gap // 2, gap // 2, last]
        self.powers = np.array([pow(int(BASE), exponent, 1 << 64) for exponent in exponents], np.uint64)

    def find(self, texts: pa.Array) -> npt.NDArray[np.int64]:
        """Return (k, 4): row, number of the n-gram, start and end in bytes of the text, of each that is in a column."""
        if not len(self.sizes):
            return np.zeros((0, 4), np.int64)
        data, offsets = utf8_buffers(texts)
        scratch = np.zeros(RING, np.uint64), np.zeros(RING, np.int64), np.zeros((len(self.sizes) + 1, 2), np.int64)
        wanted = self.sizes, self.powers, self.gap, self.last, self.sieve, self.index
        room = FIRST_ROOM
        while True:
            hits = np.zeros((room, 4), np.int64)
            total = find_all(data, offsets, folded(), *wanted, scratch, hits)
            if total <= room:
                return hits[:total]
            room = total
