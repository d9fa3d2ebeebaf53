"""Which documents are the same: equal keys by range, and clusters by rounds.

`match_keys` reads one range of keys of all parts and writes, for each key that several documents have, a pair of each
of them with the first. `unite_pairs` unites the pairs that touch one range of documents. With one range that is the
end; with more, each hands what it found to the next round, until a round changes nothing: then each document is paired
with the first of its whole cluster, as in Rastogi et al. 2013, "Finding connected components on map-reduce in
logarithmic rounds".

A document is a 64-bit *label* whose order is the order of preference, so the first of a cluster is the one that is
kept: one bit (held out for validation before any other), 8 bits (rank of the source), the first 23 bits of the document
id, and 32 bits (its *number* in the corpus: parts in their order, rows in theirs).

All files are arrays, sorted or in sorted runs, of which a unit reads one range. A worker's memory is bounded by
the driver's ENTRIES and PAIRS, by RUN of `stages.dedup.keys`, and by 50 bytes a row of a part: 500 MB where nine keys
in ten are shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from stages.dedup.arrays import Entries, Range, read_ranges, save_array
from stages.dedup.keys import EXACT, NEAR
from stages.hashing import distinct
from stages.task import Artifact, Task

RANKS = 1 << 8  # sources that can be told apart
PAIR = np.dtype([("label", "<u8"), ("other", "<u8")])  # each pair both ways round, sorted by the number of `label`
Labels: TypeAlias = npt.NDArray[np.uint64]


def match_keys(task: Task) -> None:
    """Pair documents with the same key, of one range of keys. Inputs: files of keys, of parts or of several together.

    Params: range, of, a power of two; near, which keys they are; rows, the documents of each file; sources, a list of
    [name, number of files, rank]. Output: `pairs` (PAIR).
    """
    width = (1 << 64) // task.params["of"]
    low = task.params["range"] * width
    ranks = [rank for _, files, rank in task.params["sources"] for _ in range(files)]
    starts = first_numbers(task.params["rows"])[:-1].tolist()
    dtype = NEAR if task.params["near"] else EXACT
    wanted = Range(low, low + width, 1 << 64, lambda entry: int(entry["lo"]), dtype)
    pieces = read_ranges(task, task.inputs, wanted)
    for entries, start, rank in zip(pieces, starts, ranks, strict=True):
        entries["first"] |= np.uint32(rank << 23)
        entries["row"] += np.uint32(start)
    save_array(task, "pairs", both_ways(*equal_keys(np.concatenate(pieces))))


def first_numbers(rows: Sequence[int]) -> npt.NDArray[np.int64]:
    """Return the number of each part's first document, and of all documents. rows: documents of each part."""
    return np.cumsum([0, *rows], dtype=np.int64)


def equal_keys(entries: Entries) -> tuple[Labels, Labels]:
    """Return (label, the least label with the same key) of each entry that is not itself the least. `row` is a number.

    The entries are sorted by 64 bits at first, and by 128 bits only those that share them with another.
    """
    entries = entries[np.argsort(entries["lo"])]
    entries = entries[has_equal_neighbor(entries["lo"])]
    is_exact = "hi" in (entries.dtype.names or ())
    if is_exact:
        entries = entries[np.lexsort((entries["hi"], entries["lo"]))]
    labels = entries["first"].astype(np.uint64) << np.uint64(32) | entries["row"]
    if not len(labels):
        return labels, labels
    begins = np.ones(len(entries), bool)  # where another key begins
    begins[1:] = np.diff(entries["lo"]) != 0
    if is_exact:
        begins[1:] |= np.diff(entries["hi"]) != 0
    starts = np.flatnonzero(begins)
    lengths = np.diff(np.append(starts, len(labels)))
    least = np.repeat(np.minimum.reduceat(labels, starts), lengths)
    is_later = labels != least
    return labels[is_later], least[is_later]


def has_equal_neighbor(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return which of the sorted values stand beside their equal."""
    same_as_next = np.zeros(len(values) + 1, bool)
    same_as_next[1:-1] = values[1:] == values[:-1]
    return same_as_next[1:] | same_as_next[:-1]


def both_ways(labels: Labels, others: Labels) -> Entries:
    """Return the pairs (PAIR), each once in either direction, sorted by the number of the document in `label`."""
    pairs = np.empty(2 * len(labels), PAIR)
    pairs["label"] = np.concatenate([labels, others])
    pairs["other"] = np.concatenate([others, labels])
    pairs = pairs[np.lexsort((pairs["other"], document_numbers(pairs["label"])))]
    is_new = np.ones(len(pairs), bool)
    is_new[1:] = pairs[1:] != pairs[:-1]
    return pairs[is_new]


def document_numbers(labels: Labels) -> Labels:
    """Return the numbers of documents in the corpus."""
    return labels & np.uint64(0xFFFFFFFF)


def read_pairs(task: Task, artifacts: Sequence[Artifact], low: int, high: int, documents: int) -> Entries:
    """Return the pairs of the documents numbered [low, high), of all files. documents: of the corpus."""

    def number(pair: np.void) -> int:
        return int(pair["label"]) & 0xFFFFFFFF

    return np.concatenate(read_ranges(task, artifacts, Range(low, high, documents, number, PAIR)))


def unite_pairs(task: Task) -> None:
    """Unite the pairs of one range of documents. Inputs: files of pairs.

    Params: low, high; documents, of the corpus. Output: `pairs` (PAIR).
    """
    from stages.kernels.union_find import unite

    pairs = read_pairs(task, task.inputs, task.params["low"], task.params["high"], task.params["documents"])
    labels = distinct(np.concatenate([pairs["label"], pairs["other"]]))
    own = np.arange(len(labels))
    first = own.copy()  # of each label: where the first of its cluster stands in `labels`
    unite(first, np.searchsorted(labels, pairs["label"]), np.searchsorted(labels, pairs["other"]))
    is_later = first != own
    save_array(task, "pairs", both_ways(labels[is_later], labels[first[is_later]]))
