"""A tokenised unit: a file of uint16 tokens, and a table that accounts for every one of them.

Documents lie in the order of their *position* in [0, 2^64), a hash of seed and document id, so that any range of
positions is one contiguous slice of every unit: what a shard reads. Row groups are small and carry the smallest and
largest position, so a reader of a range touches only its own.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from io import BytesIO
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.schemas import ID
from stages.task import Artifact, Task

TOKENIZED = pa.schema(
    [
        ("document_id", ID),
        ("part", pa.int32()),  # 0 but for documents longer than a shard
        ("position", pa.uint64()),
        ("token_start", pa.int64()),  # in this unit's token file
        ("token_count", pa.int32()),  # the BOS of part 0 included
        ("val", pa.bool_()),
        ("source_file", pa.string()),
        ("source_row", pa.int64()),
        ("url", pa.string()),
    ]
)
NAMES = ("document_id", "part", "source_file", "source_row")  # what tells a row of a source from all others
FULL = 1 << 64
GROUP = 1 << 14  # rows of a row group: what a reader of a narrow range must read at least
BINS = 4096  # of the histograms: the top 12 bits of a 64-bit draw
# Rows of the histogram. Tokens of training documents by position and by the two draws of a partial epoch; tokens of
# held-out documents by the first of them.
BY_POSITION, BY_TAKE, BY_TAKE_1, HELD_BY_TAKE = range(4)
RUN = 1 << 13  # documents joined at a time: bounds the memory beside the tokens themselves
MAPPED = 256 << 20  # bytes of maps that may stay resident while a file is put together from them

Pieces = Iterator[bytes | memoryview]


def full_order(table: pa.Table, first: np.ndarray, keys: Sequence[str] = NAMES) -> np.ndarray:
    """The order of `first` (n,), a hash; where duplicates were left in, `keys` break its ties."""
    order: np.ndarray = np.argsort(first, kind="stable")
    ordered = first[order]
    if (ordered[1:] != ordered[:-1]).all():
        return order
    table = table.select(keys).append_column("first", pa.array(first))
    found = pc.sort_indices(table, sort_keys=[(key, "ascending") for key in ("first", *keys)])
    total: np.ndarray = found.to_numpy()
    return total


def write_joined(path: str, pieces: Pieces, maps: Sequence[mmap.mmap] = (), head: bytes = b"") -> str:
    """Write `head`, then all `pieces` one after another; returns the sha256 of the file.

    Pages of `maps` that were read are given back from time to time, so that memory stays bounded at any size.
    """
    digest = hashlib.sha256(head)
    crowded = sum(len(m) for m in maps) > MAPPED
    with Path(path).open("wb") as out:
        out.write(head)
        for run in in_runs(pieces):
            block = b"".join(run)
            digest.update(block)
            out.write(block)
            for each in maps if crowded else ():
                each.madvise(mmap.MADV_DONTNEED)
    return digest.hexdigest()


def in_runs(pieces: Pieces) -> Iterator[list[bytes | memoryview]]:
    """Lists of up to RUN pieces, fewer where these are long."""
    run: list[bytes | memoryview] = []
    size = 0
    for piece in pieces:
        run.append(piece)
        size += len(piece)
        if len(run) >= RUN or size >= 32 << 20:
            yield run
            run, size = [], 0
    yield run


def slices(memory: memoryview, starts: np.ndarray, counts: np.ndarray) -> Pieces:
    """The bytes of tokens [start, start + count) of `memory` (bytes of uint16), one piece a document."""
    ends = 2 * (starts + counts)
    for a, b in zip((2 * starts).tolist(), ends.tolist(), strict=True):
        yield memory[a:b]


def after(mark: bytes, where: np.ndarray, pieces: Pieces) -> Pieces:
    """`pieces`, with `mark` before each of those that `where` (n,) bool names."""
    return chain.from_iterable(
        (mark, piece) if marked else (piece,) for marked, piece in zip(where.tolist(), pieces, strict=True)
    )


def write_docs(task: Task, table: pa.Table) -> None:
    """Write a table of the schema TOKENIZED, already in order, as output `docs`."""
    with task.table("docs", TOKENIZED) as writer:
        for at in range(0, table.num_rows, GROUP):
            writer.write(table.slice(at, GROUP))


def write_histogram(task: Task, value: np.ndarray) -> None:
    """Write output `histogram`, an .npy file."""
    path = task.output("histogram.npy")
    buffer = BytesIO()
    np.save(buffer, value)
    Path(path).write_bytes(buffer.getvalue())  # not np.save to a path, whose error on a full disk names no errno
    task.add("histogram", path)


class TokenFile:
    """A tokenized unit, read by ranges of positions."""

    def __init__(self, task: Task, docs: Artifact, tokens: Artifact, source: str = ""):
        self.source = source
        self.docs_path, self.tokens_path = task.path(docs), task.path(tokens)
        self.map: mmap.mmap | None = None

    def rows(self, low: int = 0, high: int = FULL, columns: list[str] | None = None) -> pa.Table:
        """Documents whose position lies in [low, high), in order. `position` is always among the columns."""
        wanted = [f.name for f in TOKENIZED] if columns is None else [*columns, "position"]
        with pq.ParquetFile(self.docs_path) as file:
            column = file.schema_arrow.get_field_index("position")
            groups = []
            for i in range(file.num_row_groups):
                found = file.metadata.row_group(i).column(column).statistics
                if found is None or not found.has_min_max or (found.min < high and found.max >= low):
                    groups.append(i)
            table = file.read_row_groups(groups, columns=wanted, use_threads=False)
        if low <= 0 and high >= FULL:
            return table
        position = table["position"].to_numpy()
        first = int(np.searchsorted(position, np.uint64(low), "left"))
        last = len(position) if high >= FULL else int(np.searchsorted(position, np.uint64(high), "left"))
        return table.slice(first, max(0, last - first))

    def memory(self) -> memoryview:
        """The token file's bytes, mapped."""
        if self.map is None:
            with Path(self.tokens_path).open("rb") as file:
                if Path(self.tokens_path).stat().st_size == 0:
                    return memoryview(b"")
                self.map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        return memoryview(self.map)


def ring(low: int, high: int) -> list[tuple[int, int]]:
    """[low, high), taken modulo 2^64, as ranges that do not wrap."""
    if high - low >= FULL:
        return [(0, FULL)]
    low, high = low % FULL, high % FULL or FULL
    return [(low, high)] if low < high else [r for r in ((low, FULL), (0, high)) if r[0] < r[1]]


def pieces_of(memories: Sequence[memoryview], unit: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> Pieces:
    """The bytes of each document: tokens [start, start + count) of the unit it lies in. All of shape (n,)."""
    ends = 2 * (starts + counts)
    for u, a, b in zip(unit.tolist(), (2 * starts).tolist(), ends.tolist(), strict=True):
        yield memories[u][a:b]
