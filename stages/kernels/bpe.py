"""The merges of a byte-pair encoding from counts of words, compiled: those of the trainer of `tokenizers`.

That trainer (models/bpe/trainer.rs of huggingface/tokenizers) takes the pair of the highest count, of several the one
with the lowest ids, and puts its replacement from the left. Counts in the queue are brought up to date when they come
first. Two merges of one text, which no corpus has shown, would share an id and be queued again as they are there.
Its counts overflow at 2^31 of one pair; these do not before 2^63.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from stages.hashing import power_of_two_at_least
from stages.kernels.jit import compiled, int64, uint64
from stages.kernels.utf8 import MIX

Arrays = tuple[npt.NDArray[Any], ...]
Bytes = npt.NDArray[np.uint8]
Int64s = npt.NDArray[np.int64]
FIRST_PAIRS = 1 << 17  # that there is room for at first: more than bytes make
NOTHING = -1


@compiled
def pair_of(left: int, right: int, pairs: Any, used: Any) -> int:
    """Return the number of a pair of ids, entered with a count of 0 where it is new. There is room for one more."""
    keys, counts, fresh, _, slots = pairs
    key = left << 32 | right
    h = uint64(key) * MIX
    at = int64(h ^ (h >> uint64(32))) & (len(slots) - 1)
    while slots[at] >= 0:
        if keys[slots[at]] == key:
            return int64(slots[at])
        at = (at + 1) & (len(slots) - 1)
    pair = used[0]
    slots[at] = pair
    keys[pair], counts[pair], fresh[pair] = key, 0, 0
    used[0] = pair + 1
    return pair


@compiled
def fill_pair_slots(keys: Any, number: int, slots: Any) -> None:
    """Enter the pairs 0 to `number` in a hash table, all of whose `slots` are -1."""
    for pair in range(number):
        h = uint64(keys[pair]) * MIX
        at = int64(h ^ (h >> uint64(32))) & (len(slots) - 1)
        while slots[at] >= 0:
            at = (at + 1) & (len(slots) - 1)
        slots[at] = pair


@compiled
def comes_first(a: int, b: int, heap: Any, pairs: Any) -> bool:
    """Return whether entry `a` of the queue is merged before entry `b`; of one pair, the older one."""
    counts, entry_pairs = heap[0], heap[1]
    if counts[a] != counts[b]:
        return counts[a] > counts[b]
    keys = pairs[0]
    first, second = keys[entry_pairs[a]], keys[entry_pairs[b]]
    return first < second or (first == second and a < b)


@compiled
def push(entry: int, heap: Any, pairs: Any, used: Any) -> None:
    """Put an entry into the queue, a binary heap."""
    order = heap[2]
    i = used[1]
    used[1] = i + 1
    while i > 0:
        above = (i - 1) // 2
        if not comes_first(entry, order[above], heap, pairs):
            break
        order[i] = order[above]
        i = above
    order[i] = entry


@compiled
def sink(entry: int, heap: Any, pairs: Any, used: Any) -> None:
    """Put an entry in the place of the first one of the queue."""
    order = heap[2]
    i = 0
    while 2 * i + 1 < used[1]:
        below = 2 * i + 1
        if below + 1 < used[1] and comes_first(order[below + 1], order[below], heap, pairs):
            below += 1
        if not comes_first(order[below], entry, heap, pairs):
            break
        order[i] = order[below]
        i = below
    order[i] = entry


@compiled
def pop(heap: Any, pairs: Any, used: Any) -> int:
    """Take the entry to be merged next off the queue; NOTHING where no pair is left.

    Counts of entries are brought up to date only when they come first: until then they may be too high or too low.
    """
    counts, entry_pairs, order = heap[0], heap[1], heap[2]
    while used[1] > 0:
        entry = int64(order[0])
        count = pairs[1][entry_pairs[entry]]
        if counts[entry] != count:
            counts[entry] = count
            sink(entry, heap, pairs, used)
        elif count < 1:
            break
        else:
            used[1] -= 1
            if used[1] > 0:
                sink(int64(order[used[1]]), heap, pairs, used)
            return entry
    return NOTHING


@compiled
def note(pair: int, word: int, pairs: Any, changes: Any, used: Any) -> None:
    """Note that this step made a pair in a word, once a word."""
    fresh, last = pairs[2], pairs[3]
    if fresh[pair] == 0:
        changes[2][used[4]] = pair
        used[4] += 1
    elif last[pair] == word:
        return
    last[pair] = word
    fresh[pair] += 1
    changes[0][used[3]], changes[1][used[3]] = pair, word
    used[3] += 1


@compiled
def queue_pair(pair: int, pairs: Any, heap: Any, used: Any) -> None:
    """Queue a pair whose words are still to be put into `pool`; `last` says its entry from here on, or NOTHING."""
    counts, entry_pairs, _, starts, sizes = heap
    fresh, last = pairs[2], pairs[3]
    last[pair] = NOTHING
    if pairs[1][pair] > 0:
        entry = used[2]
        used[2] = entry + 1
        counts[entry], entry_pairs[entry] = pairs[1][pair], pair
        starts[entry], sizes[entry] = used[5], 0
        used[5] += fresh[pair]
        last[pair] = entry
        push(entry, heap, pairs, used)
    fresh[pair] = 0


@compiled
def queue_changes(pairs: Any, heap: Any, pool: Any, changes: Any, used: Any) -> None:
    """Queue the pairs that this step made, each with its words."""
    last = pairs[3]
    starts, sizes = heap[3], heap[4]
    for k in range(used[4]):
        queue_pair(int64(changes[2][k]), pairs, heap, used)
    for k in range(used[3]):
        entry = last[changes[0][k]]
        if entry != NOTHING:
            pool[starts[entry] + sizes[entry]] = changes[1][k]
            sizes[entry] += 1
    used[3] = used[4] = 0


@compiled
def count_pairs(words: Any, pairs: Any, heap: Any, used: Any) -> None:
    """Count the pairs of all words, and the words that have each; queue them, and leave the words to `fill_pool`."""
    symbols, starts, sizes, times = words
    fresh, last = pairs[2], pairs[3]
    for word in range(len(times)):
        start = starts[word]
        for i in range(start, start + sizes[word] - 1):
            pair = pair_of(int64(symbols[i]), int64(symbols[i + 1]), pairs, used)
            pairs[1][pair] += times[word]
            if fresh[pair] == 0 or last[pair] != word:
                fresh[pair] += 1
                last[pair] = word
    for pair in range(used[0]):
        queue_pair(pair, pairs, heap, used)


@compiled
def fill_pool(words: Any, pairs: Any, heap: Any, pool: Any, used: Any) -> None:
    """Put the words that have each pair into `pool`, once each."""
    symbols, starts, sizes, times = words
    first, number = heap[3], heap[4]
    for word in range(len(times)):
        start = starts[word]
        for i in range(start, start + sizes[word] - 1):
            entry = int64(pairs[3][pair_of(int64(symbols[i]), int64(symbols[i + 1]), pairs, used)])
            end = first[entry] + number[entry]
            if number[entry] == 0 or pool[end - 1] != word:
                pool[end] = word
                number[entry] += 1


@compiled
def symbols_in(entry: int, words: Any, heap: Any, pool: Any) -> int:
    """Return how many symbols the words of an entry have: no merge of it makes as many pairs."""
    total, start = 0, heap[3][entry]
    for k in range(start, start + heap[4][entry]):
        total += words[2][pool[k]]
    return total


@compiled
def merge(entry: int, replacement: int, words: Any, pairs: Any, heap: Any, pool: Any, changes: Any, used: Any) -> None:
    """Put `replacement` for the pair of an entry in each of its words, from the left; count and note what changes."""
    symbols, starts, sizes, times = words
    key = pairs[0][heap[1][entry]]
    left, right = key >> 32, key & 0xFFFFFFFF
    for k in range(heap[3][entry], heap[3][entry] + heap[4][entry]):
        word = int64(pool[k])
        n, start, stop = times[word], starts[word], starts[word] + sizes[word]
        i = o = start
        while i < stop:
            if symbols[i] != left or i + 1 == stop or symbols[i + 1] != right:
                symbols[o] = symbols[i]
                i, o = i + 1, o + 1
                continue
            if o > start:
                before = int64(symbols[o - 1])
                pairs[1][pair_of(before, left, pairs, used)] -= n
                made = pair_of(before, replacement, pairs, used)
                pairs[1][made] += n
                note(made, word, pairs, changes, used)
            if i + 2 < stop:
                behind = int64(symbols[i + 2])
                pairs[1][pair_of(right, behind, pairs, used)] -= n
                made = pair_of(replacement, behind, pairs, used)
                pairs[1][made] += n
                note(made, word, pairs, changes, used)
            symbols[o] = replacement
            i, o = i + 2, o + 1
        sizes[word] = o - start


class Merger:
    """Words as symbols, and the queue of pairs to be merged in them.

    text, starts, times: the words' bytes, where each begins and the last ends, and their counts. ids (256,): the symbol
    of each byte. Takes 8 bytes a byte of the words and 28 a word at first; a merge adds 4 for each pair that it makes
    in a word, and some 60 for one that is new, so that in the end it is at most twice as much.

    words: symbols, starts, sizes, counts. pairs: keys (left and right), counts, words of this step that have each, the
    last of them, slots. heap: counts and pairs of the entries, their order, where their words begin in `pool`, and how
    many these are. changes: pairs and words of this step, and each pair once. used: pairs, places in the order,
    entries, changes, pairs among them, and words in `pool`.
    """

    def __init__(self, text: Bytes, starts: Int64s, times: Int64s, ids: npt.NDArray[np.int32]):
        self.words: Arrays = (ids[text], starts, np.diff(starts).astype(np.int32), times)
        self.used = np.zeros(6, np.int64)
        self.pairs: Arrays = tuple(np.zeros(FIRST_PAIRS, kind) for kind in (np.int64, np.int64, np.int32, np.int32))
        self.pairs += (np.full(2 * FIRST_PAIRS, NOTHING, np.int32),)
        kinds = (np.int64, np.int32, np.int32, np.int64, np.int32)
        self.heap: Arrays = tuple(np.zeros(FIRST_PAIRS, kind) for kind in kinds)
        self.changes: Arrays = tuple(np.zeros(0, np.int32) for _ in range(3))
        count_pairs(self.words, self.pairs, self.heap, self.used)
        self.pool = np.zeros(self.used[5], np.int32)
        fill_pool(self.words, self.pairs, self.heap, self.pool, self.used)

    def next_entry(self) -> tuple[int, int, int] | None:
        """Take the entry that is merged next off the queue: its number, and the two ids; None where there is none."""
        entry = pop(self.heap, self.pairs, self.used)
        if entry == NOTHING:
            return None
        key = int(self.pairs[0][self.heap[1][entry]])
        return entry, key >> 32, key & 0xFFFFFFFF

    def merge(self, entry: int, replacement: int, ids: int) -> None:
        """Put the id `replacement` for the pair of an entry in its words. There are `ids` of them by now."""
        symbols = symbols_in(entry, self.words, self.heap, self.pool)
        self.make_room(symbols, min(symbols, 2 * ids))
        merge(entry, replacement, self.words, self.pairs, self.heap, self.pool, self.changes, self.used)
        queue_changes(self.pairs, self.heap, self.pool, self.changes, self.used)

    def make_room(self, changes: int, pairs: int) -> None:
        """Make room for a step with so many changes, of so many pairs."""
        if changes > len(self.changes[0]):
            self.changes = tuple(np.zeros(changes, np.int32) for _ in range(3))
        if self.used[5] + changes > len(self.pool):
            self.pool = np.resize(self.pool, self.used[5] + max(changes, len(self.pool) // 2))
        if self.used[2] + pairs > len(self.heap[0]):
            self.heap = tuple(np.resize(array, 2 * len(array) + pairs) for array in self.heap)
        if self.used[0] + pairs > len(self.pairs[0]):
            *arrays, slots = self.pairs
            self.pairs = tuple(np.resize(array, 2 * len(array) + pairs) for array in arrays)
            slots = np.full(power_of_two_at_least(2 * len(self.pairs[0])), NOTHING, np.int32)
            fill_pair_slots(self.pairs[0], int(self.used[0]), slots)
            self.pairs += (slots,)
