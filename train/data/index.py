"""Where the documents of a shard begin and end: what its Megatron index (`.idx`) says. No token is read for it."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from train.data.format import HEADER_BYTES, map_index, read_index
from train.data.manifest import Manifest, ManifestError, Shard
from train.data.sampler import I64
from train.data.tokens import token_dtype
from train.data.watch import FileWatch


@dataclass(frozen=True)
class Index:
    """Where the documents of a shard lie, in tokens from its first. Ranges are half open, sorted, and disjoint."""

    starts: I64  # (documents,)
    uncounted: I64  # (2, gaps): [first, last) of the inputs whose target does not count: they are padding, or it is


def read_shard_index(manifest: Manifest, shard: Shard) -> Index:
    """Read a shard's Megatron `.idx`. Raises ManifestError when it does not fit the shard."""
    path = manifest.file(shard.index)
    counts, starts = read_index(path, token_dtype(manifest.tokenizer.vocab_size))
    if len(counts) != shard.documents:
        raise ManifestError(f"{path}: {len(counts):,} documents, the manifest says {shard.documents:,}; pack again")
    first, last = np.append(0, starts + counts), np.append(starts, shard.tokens)  # of the gaps between documents
    if (last < first).any():
        raise ManifestError(f"{path}: its documents overlap, or leave the shard; pack again")
    gaps = np.stack([first, last])[:, last > first]
    padding = int((gaps[1] - gaps[0]).sum())
    if padding != shard.padding:
        raise ManifestError(f"{path}: {padding} tokens in no document, {shard.padding} by the manifest; pack again")
    return Index(starts, gaps - [[1], [0]])


def counted_targets(manifest: Manifest, shard: Shard) -> NDArray[np.bool_]:
    """(tokens - 1,): whether the target of each input of a shard counts. It does not in padding, nor right after it."""
    counts = np.ones(shard.tokens, bool)
    for first, last in read_shard_index(manifest, shard).uncounted.T:
        counts[max(0, first) : last] = False
    return counts[:-1]


class MappedIndex:
    """A shard's index where it lies, searched a few rows at a time: thousands of them in memory would be gigabytes."""

    def __init__(self, manifest: Manifest, shard: Shard, watch: FileWatch) -> None:
        """Raises ManifestError as `read_shard_index`, which reads it once to check it. The file is watched."""
        watch.add(manifest.file(shard.index), shard.index_sha256)
        read_shard_index(manifest, shard)
        self.tokens, self.itemsize = shard.tokens, token_dtype(manifest.tokenizer.vocab_size).itemsize
        self.counts, self.pointers = map_index(manifest.file(shard.index), shard.documents)

    def starts(self, first: int, last: int) -> list[int]:
        """Where documents begin, in [first, last)."""
        low, high = self._documents(first, last)
        return [(place - HEADER_BYTES) // self.itemsize for place in self.pointers[low:high]]

    def documents(self, first: int, last: int) -> tuple[int, list[int]]:
        """The number of the document that token `first` is of, and where the next ones begin, in (first, last).

        Padding is of the document before it.
        """
        low, high = self._documents(first + 1, last)
        starts = [(place - HEADER_BYTES) // self.itemsize for place in self.pointers[low:high]]
        return low - 1, starts

    def _documents(self, first: int, last: int) -> tuple[int, int]:
        """The documents that begin in [first, last): no more than tokens, as each has one."""
        low = bisect_left(self.pointers, HEADER_BYTES + self.itemsize * first)
        most = min(len(self.pointers), low + last - first)
        return low, bisect_left(self.pointers, HEADER_BYTES + self.itemsize * last, low, most)

    def uncounted(self, first: int, last: int) -> list[tuple[int, int]]:
        """The ranges within [first, last) of inputs whose target does not count."""
        low, high = self._documents(first + 1, last)
        low, high = max(0, low - 1), high + 1  # also the document that `first` is in or behind, and the next one
        starts = [(place - HEADER_BYTES) // self.itemsize for place in self.pointers[low:high]]
        ends = [start + count for start, count in zip(starts, self.counts[low:high], strict=True)]
        gaps = zip([0, *ends], [*starts, self.tokens], strict=True)  # the first may be none, but ends by `first` then
        return [(max(a - 1, first), min(b, last)) for a, b in gaps if a < b > first and a <= last]
