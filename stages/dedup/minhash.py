"""Near-duplicates by MinHash (Broder 1997): what is compared, and how likely a pair is found.

A document is the set of its word n-grams (`stages.kernels.words` says what a word is). Of each of `bands` x `rows`
permutations of all n-grams it keeps the least; two documents agree in one of them with a probability that is their
Jaccard similarity s, and are found when they agree in all `rows` of any band: 1 - (1 - s^rows)^bands. The defaults, 14
bands of 8 over 5-grams, are FineWeb's (Penedo et al. 2024): half of the pairs at .72, 92 % at .8.

A permutation is x -> (a x + b) mod 2^32 with an odd a, over the upper half of an n-gram's 64-bit hash.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.comparable import comparable, comparable_texts
from stages.hashing import distinct, mix64
from stages.kernels.words import fill_ngram_hashes, folded

SALT = 0x6E656172  # of the permutations


@functools.cache
def permutations(number: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Return the factors and the terms of so many permutations, always the same."""
    counters = np.arange(2 * number, dtype=np.uint64) + np.uint64(SALT)
    drawn = (mix64(counters) >> np.uint64(32)).astype(np.uint32)
    factors, terms = drawn[:number] | np.uint32(1), drawn[number:]
    return factors, terms


def band_keys(texts: pa.Array, ngram: int, bands: int, rows: int) -> npt.NDArray[np.uint64]:
    """Return keys of shape (documents, bands): documents with the same key in a column are candidates.

    0 for a text without a word.
    """
    from stages.kernels.minhash import fill_band_keys
    from stages.kernels.text_columns import utf8_buffers

    data, offsets = utf8_buffers(comparable_texts(texts)[0])
    keys = np.empty((len(texts), bands), np.uint64)
    scratch = np.empty(ngram, np.uint64), np.empty(bands * rows, np.uint32)
    fill_band_keys(data, offsets, folded(), rows, *permutations(bands * rows), scratch, keys)
    return keys


def shingle_hashes(text: str, ngram: int) -> npt.NDArray[np.uint64]:
    """Return the hashes of the word n-grams of a text, each once, sorted; of all its words where there are fewer."""
    from stages.kernels.text_columns import utf8_buffers

    data, offsets = utf8_buffers(pa.array([comparable(text)]))
    size = int(offsets[1])
    hashes = np.empty(size // 2 + 1, np.uint64)
    number = fill_ngram_hashes(data, size, folded(), np.zeros(ngram, np.uint64), hashes)
    return distinct(hashes[:number])


def jaccard(a: str, b: str, ngram: int) -> float:
    """Return of all n-grams that two texts have the share that both have, by their 64-bit hashes."""
    left, right = shingle_hashes(a, ngram), shingle_hashes(b, ngram)
    in_either = len(distinct(np.concatenate([left, right])))
    in_both = len(left) + len(right) - in_either
    return in_both / max(1, in_either)


def chance_found(similarity: float, bands: int, rows: int) -> float:
    """Return how likely two documents of a Jaccard similarity are found: the S-curve."""
    return float(1 - (1 - similarity**rows) ** bands)


def describe_minhash(ngram: int, bands: int, rows: int) -> dict[str, Any]:
    """Return the parameters and the S-curve, for a report."""
    curve = {f"{s / 100:.2f}": round(chance_found(s / 100, bands, rows), 4) for s in range(30, 101, 5)}
    return {"ngram": ngram, "bands": bands, "rows": rows, "chance to be found by Jaccard similarity": curve}
