"""The vocabulary and the merges of a byte-level BPE, from counts of words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from stages.errors import DataError

if TYPE_CHECKING:
    from stages.kernels.pretokens import WordCounts

Pair = tuple[int, int]
BYTES_A_WORD, BYTES_A_BYTE = 100, 30  # that counts and merges take at most


class Merges(NamedTuple):
    """A vocabulary, an id by its bytes, in the order of ids, and the pairs that are merged, in order."""

    vocabulary: dict[bytes, int]
    pairs: list[Pair]


def find_merges(counts: WordCounts, vocab_size: int, specials: Sequence[bytes], alphabet: Sequence[int]) -> Merges:
    """Return what the trainer of `tokenizers` makes of the words: see `stages.kernels.bpe`.

    Ids are those of `specials`, of the bytes in the order of `alphabet`, then of what merges give, which is a text that
    has an id already where a pair comes twice or two pairs make one text; then a pair's last merge is the one that
    counts. There are fewer than `vocab_size` where the words run out of pairs.
    """
    from stages.kernels.bpe import Merger

    texts = list(specials) + [bytes([byte]) for byte in alphabet]
    vocabulary = {text: i for i, text in enumerate(texts)}
    ids = np.array([vocabulary[bytes([byte])] for byte in range(256)], np.int32)
    number = len(counts)
    starts = counts.starts[: number + 1]
    check_memory(number, int(starts[-1]))
    merger = Merger(counts.text[: starts[-1]], starts, counts.counts[:number], ids)
    ranks: dict[Pair, None] = {}
    while len(vocabulary) < vocab_size:
        found = merger.next_entry()
        if found is None:
            break
        entry, left, right = found
        text = texts[left] + texts[right]
        made = vocabulary.setdefault(text, len(texts))
        if made == len(texts):
            texts.append(text)
        ranks.pop((left, right), None)
        ranks[left, right] = None
        merger.merge(entry, made, len(texts))
    return Merges(vocabulary, list(ranks))


def check_memory(words: int, text_bytes: int) -> None:
    """Raise DataError where the merges of so many distinct words need more memory than this machine has."""
    needed = BYTES_A_WORD * words + BYTES_A_BYTE * text_bytes
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise DataError(
            f"the tokenizer's sample has {words:,} distinct words, whose merges need {needed / 1e9:.0f} GB of memory, "
            f"and this machine has {memory / 1e9:.0f}: lower tokenizer.sample, or run build_tokenizer on a larger one"
        )
