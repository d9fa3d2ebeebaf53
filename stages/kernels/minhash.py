"""MinHash of word n-grams over hashes, compiled. `stages.dedup.minhash` says what it is for."""

from __future__ import annotations

from typing import Any

import numpy as np

from stages.kernels.jit import compiled, get, uint64
from stages.kernels.utf8 import MIX
from stages.kernels.words import BASE, next_word, spread

MOST = np.uint32(2**32 - 1)


@compiled
def lower_signature(signature: Any, factors: Any, terms: Any, x: Any) -> None:
    """Take the shingle `x` (uint32) into a signature: the least value of each permutation."""
    for k in range(len(signature)):
        signature[k] = min(signature[k], np.uint32(factors[k] * x + terms[k]))


@compiled
def fill_band_keys(
    data: Any, offsets: Any, fold: Any, rows: int, factors: Any, terms: Any, scratch: Any, keys: Any
) -> None:
    """Fill `keys` (documents, bands) with a hash of each band's `rows` least values; 0 where there is no word.

    `scratch` is room for a word each of an n-gram (n,) uint64, and for a signature (bands x rows,) uint32.
    """
    ring, signature = scratch
    n = len(ring)
    power = uint64(1)  # BASE^n
    for _ in range(n):
        power *= BASE
    for d in range(len(keys)):
        signature[:] = MOST
        ring[:] = 0
        number, h = 0, uint64(0)
        i, b = get(offsets, d), get(offsets, d + 1)
        while True:
            start, i, word = next_word(data, i, b, fold)
            if start == b:
                break
            at = number % n
            h = h * BASE + word - ring[at] * power
            ring[at] = word
            number += 1
            if number >= n:
                lower_signature(signature, factors, terms, np.uint32(spread(h) >> uint64(32)))
        if 0 < number < n:
            lower_signature(signature, factors, terms, np.uint32(spread(h) >> uint64(32)))
        for band in range(keys.shape[1]):
            key = uint64(band)
            for k in range(band * rows, (band + 1) * rows):
                key = (key ^ uint64(signature[k])) * MIX
                key ^= key >> uint64(32)
            keys[d, band] = key if number else uint64(0)
