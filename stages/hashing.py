"""Numbers drawn from document ids: who is held out, where a document lies in a mixture, who a partial epoch takes.

All of them are pure functions of the 128-bit id (and a seed), computed without state, so any process at any
time gets the same answer. Documents are never drawn with a random number generator.

The mixer is the finalizer of splitmix64 (Steele, Lea, Flood 2014; the constants are Stafford's variant 13),
a bijection of 64-bit integers. A draw folds tag, seed, both words of the id and its other arguments through
it, one after another; a different tag gives an independent draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Words = npt.NDArray[np.uint64]
# 16 bytes each: a list, a column of binary(16), or an array [n, 16].
Ids: TypeAlias = "Sequence[bytes] | pa.Array | pa.ChunkedArray | npt.NDArray[np.uint8]"

# A validation document is one whose draw under this tag falls below 1 % of 2**64. The rule has no seed and no
# recipe in it: a document held out once is held out in every build. Changing it makes old checkpoints
# incomparable, so the name carries a version that `init_from` compares.
VALIDATION_RULE = "splitmix64:validation-1:0.01"
VALIDATION_THRESHOLD = np.uint64(2**64 // 100)

# Tags are the first 8 bytes of BLAKE2b of their names, written out so that nobody can change one by renaming.
TAG_VALIDATION = 0xD1B54A32D192ED03
TAG_POSITION = 0x9E6C63D0876A9A47
TAG_ORDER = 0xA0761D6478BD642F
TAG_TAKE = 0xE7037ED1A0B428DB
TAG_SAMPLE = 0x8EBC6AF09C88C6E3


def mix64(x: Words) -> Words:
    """Return the splitmix64 finalizer of each element (after adding the golden-ratio increment). A bijection."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def power_of_two_at_least(number: int) -> int:
    """Return the least power of two that is not below `number`, from 1."""
    return 1 << max(0, number - 1).bit_length()


def distinct(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the values, each once, sorted. np.unique of 10 million takes half a minute since it hashes (numpy 2.3)."""
    values = np.sort(values)
    is_new = np.ones(len(values), bool)
    is_new[1:] = values[1:] != values[:-1]
    return values[is_new]


def id_words(ids: Ids) -> tuple[Words, Words]:
    """Return the two little-endian 64-bit words of each 16-byte id.

    Takes a list of bytes, a fixed-size binary arrow column without nulls, or an array of shape [n, 16].
    """
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    if isinstance(ids, pa.Array):
        start = ids.offset * 16
        raw = np.frombuffer(ids.buffers()[1], np.uint8)[start : start + 16 * len(ids)]
    elif isinstance(ids, np.ndarray):
        raw = np.ascontiguousarray(ids).reshape(-1)
    else:
        raw = np.frombuffer(b"".join(ids), np.uint8)
    words = raw.view("<u8").astype(np.uint64).reshape(-1, 2)
    return np.ascontiguousarray(words[:, 0]), np.ascontiguousarray(words[:, 1])


def draw(tag: int, ids: Ids, *numbers: int | npt.NDArray[np.integer]) -> Words:
    """Return one uint64 a document, uniform over ids; `numbers` (a seed, a part, a copy) select independent draws."""
    lo, hi = id_words(ids)
    state = mix64(np.full(len(lo), tag, np.uint64) ^ lo)
    state = mix64(state ^ hi)
    for number in numbers:
        # Two's complement: a negative seed is as good as any.
        state = mix64(state ^ np.asarray(number).astype(np.int64).astype(np.uint64))
    return state


def is_validation(ids: Ids) -> npt.NDArray[np.bool_]:
    """Return which documents are held out from training: one in a hundred, by VALIDATION_RULE."""
    return draw(TAG_VALIDATION, ids) < VALIDATION_THRESHOLD


def position(seed: int, ids: Ids, part: int | npt.NDArray[np.integer]) -> Words:
    """Return where (document, part) lies in a mixture, as a fraction of 2**64. Tokenized units are sorted by it."""
    return draw(TAG_POSITION, ids, seed, part)


def order(seed: int, ids: Ids, part: int | npt.NDArray[np.integer], copy: int | npt.NDArray[np.integer]) -> Words:
    """Return the key that sorts (document, part, copy) inside a shard; independent of `position`."""
    return draw(TAG_ORDER, ids, seed, part, copy)


def take(seed: int, ids: Ids, number: int = 0) -> Words:
    """Return what a partial epoch takes documents by: those with the smallest values; independent of `position`.

    Draw 0 is pretrain's. An anneal mixture has draw 1 of its own, unless it follows what pretrain showed.
    """
    return draw(TAG_TAKE, ids, seed, *([number] if number else []))


def sample(ids: Ids) -> Words:
    """Return the order in which documents enter the tokenizer's training sample; no seed, as the text has none."""
    return draw(TAG_SAMPLE, ids)
