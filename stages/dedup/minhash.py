"""Near-duplicates by MinHash (Broder 1997): what is compared, how likely a pair is found, and the readable form.

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
import pyarrow as pa
from numpy.typing import NDArray

from stages.hashing import distinct, mix64
from stages.kernels.words import MASK, folded, ngram_hash, ngrams, word_hash, words

SALT = 0x6E656172  # of the permutations


@functools.cache
def permutations(number: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """(factors, terms) of so many permutations, always the same."""
    drawn = (mix64(np.arange(2 * number, dtype=np.uint64) + np.uint64(SALT)) >> np.uint64(32)).astype(np.uint32)
    return drawn[:number] | np.uint32(1), drawn[number:]


def band_keys(texts: pa.Array, ngram: int, bands: int, rows: int) -> NDArray[np.uint64]:
    """(documents, bands): documents with the same key in a column are candidates; 0 for a text without a word."""
    from stages.kernels.minhash import sign
    from stages.kernels.text_columns import utf8_buffers

    data, offsets = utf8_buffers(texts)
    keys = np.empty((len(texts), bands), np.uint64)
    scratch = np.empty(ngram, np.uint64), np.empty(bands * rows, np.uint32)
    sign(data, offsets, folded(), rows, *permutations(bands * rows), scratch, keys)
    return keys


def shingles(text: str, ngram: int) -> set[tuple[str, ...]]:
    """The word n-grams of a text; all its words where there are fewer; nothing of a text without words."""
    found = words(text)
    return {tuple(found[i : i + ngram]) for i in range(max(1, len(found) - ngram + 1))} if found else set()


def hashes(text: str, ngram: int) -> NDArray[np.uint64]:
    """The hashes of `shingles`, sorted."""
    from stages.kernels.text_columns import utf8_buffers

    data, offsets = utf8_buffers(pa.array([text]))
    found = np.empty(int(offsets[1]) // 2 + 1, np.uint64)
    return distinct(found[: ngrams(data, int(offsets[1]), folded(), np.zeros(ngram, np.uint64), found)])


def jaccard(a: str, b: str, ngram: int) -> float:
    """Of all n-grams that two texts have, the share that both have, by their 64-bit hashes."""
    left, right = hashes(a, ngram), hashes(b, ngram)
    either = len(distinct(np.concatenate([left, right])))
    return (len(left) + len(right) - either) / max(1, either)


def chance(similarity: float, bands: int, rows: int) -> float:
    """How likely two documents of a Jaccard similarity are found: the S-curve."""
    return float(1 - (1 - similarity**rows) ** bands)


def readable_keys(text: str, ngram: int, bands: int, rows: int) -> list[int]:
    """`band_keys` of one text, step by step."""
    factors, terms = (values.tolist() for values in permutations(bands * rows))
    drawn = {ngram_hash([word_hash(word) for word in shingle]) >> 32 for shingle in shingles(text, ngram)}
    if not drawn:
        return [0] * bands
    least = [min((a * x + b) % 2**32 for x in drawn) for a, b in zip(factors, terms, strict=True)]
    keys = []
    for band in range(bands):
        key = band
        for value in least[band * rows : (band + 1) * rows]:
            key = ((key ^ value) * 0x9E3779B97F4A7C15) & MASK
            key ^= key >> 32
        keys.append(key)
    return keys


def describe(ngram: int, bands: int, rows: int) -> dict[str, Any]:
    """The parameters and the S-curve, for a report."""
    curve = {f"{s / 100:.2f}": round(chance(s / 100, bands, rows), 4) for s in range(30, 101, 5)}
    return {"ngram": ngram, "bands": bands, "rows": rows, "chance to be found by Jaccard similarity": curve}
