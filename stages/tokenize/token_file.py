"""A tokenized unit: a file of tokens, and a table that accounts for every one of them.

Documents lie in the order of their *position* in [0, 2^64), a hash of seed and document id, so that any range of
positions is one contiguous slice of every unit: what a shard reads. Row groups are small and carry the smallest and
largest position, so a reader of a range touches only its own.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.errors import DataError
from stages.schemas import ID
from stages.task import Artifact, Task
from train.data.tokens import UINT16

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
ROW_KEY = ("document_id", "part", "source_file", "source_row")  # what tells a row of a source from all others
NUM_POSITIONS = 1 << 64
ROW_GROUP = 1 << 14  # rows of a row group: what a reader of a narrow range must read at least
BINS = 4096  # of the histograms: the top 12 bits of a 64-bit draw
# Rows of the histogram. Tokens of training documents by position and by the two draws of a partial epoch; tokens of
# held-out documents by the first of them.
BY_POSITION, BY_TAKE, BY_TAKE_1, HELD_BY_TAKE = range(4)
MAX_JOINED = 1 << 13  # chunks joined at a time: bounds the memory beside the tokens themselves
MAX_JOINED_BYTES = 32 << 20  # and no more bytes than these, but for one long chunk
FETCHED_BYTES = 64 << 20  # of one request
MAPPED_BYTES = 256 << 20  # of maps that may stay resident while a file is put together from them

Chunk: TypeAlias = bytes | memoryview
Words: TypeAlias = npt.NDArray[np.uint64]  # positions and draws
Histogram: TypeAlias = npt.NDArray[np.int64]  # (4, BINS)


def bins_of(draws: Words) -> npt.NDArray[np.int64]:
    """Return the histogram's bin of each draw."""
    return (draws >> np.uint64(52)).astype(np.int64)


def total_order(table: pa.Table, draws: Words, keys: Sequence[str] = ROW_KEY) -> npt.NDArray[np.int64]:
    """Return the order of rows by `draws` (n,), a hash; columns `keys` break ties, where duplicates were left in."""
    order = np.argsort(draws, kind="stable")
    in_order = draws[order]
    if (in_order[1:] != in_order[:-1]).all():
        return order
    table = table.select(keys).append_column("draw", pa.array(draws))
    indices = pc.sort_indices(table, sort_keys=[(key, "ascending") for key in ("draw", *keys)])
    ranked: npt.NDArray[np.int64] = indices.to_numpy()
    return ranked


def write_chunks(path: str, chunks: Iterator[Chunk], maps: Sequence[mmap.mmap] = (), head: bytes = b"") -> str:
    """Write `head`, then all `chunks` one after another; return the sha256 of the file.

    Pages of `maps` that were read are given back from time to time, so that memory stays bounded at any size.
    """
    digest = hashlib.sha256(head)
    release = sum(len(mapped) for mapped in maps) > MAPPED_BYTES
    with Path(path).open("wb") as out:
        out.write(head)
        for batch in batched_chunks(chunks):
            block = b"".join(batch)
            digest.update(block)
            out.write(block)
            if release:
                for mapped in maps:
                    mapped.madvise(mmap.MADV_DONTNEED)
    return digest.hexdigest()


def batched_chunks(chunks: Iterator[Chunk]) -> Iterator[list[Chunk]]:
    """Yield lists of up to MAX_JOINED chunks, fewer where these are long."""
    batch: list[Chunk] = []
    size = 0
    for chunk in chunks:
        batch.append(chunk)
        size += len(chunk)
        if len(batch) >= MAX_JOINED or size >= MAX_JOINED_BYTES:
            yield batch
            batch, size = [], 0
    yield batch


def token_chunks(
    memories: Sequence[memoryview],
    units: npt.NDArray[np.integer[Any]],
    starts: npt.NDArray[np.integer[Any]],
    counts: npt.NDArray[np.integer[Any]],
    itemsize: int,
) -> Iterator[memoryview]:
    """Yield the bytes of each row's tokens [start, start + count), read from the memory of the unit it lies in.

    `memories` hold tokens of `itemsize` bytes; `units`, `starts` and `counts` are of shape (n,).
    """
    first_bytes, end_bytes = itemsize * starts, itemsize * (starts + counts)
    for unit, first, end in zip(units.tolist(), first_bytes.tolist(), end_bytes.tolist(), strict=True):
        yield memories[unit][first:end]


def write_docs(task: Task, table: pa.Table) -> None:
    """Write a table of the schema TOKENIZED, already in order, as output `docs`."""
    with task.table("docs", TOKENIZED) as writer:
        for start in range(0, table.num_rows, ROW_GROUP):
            writer.write(table.slice(start, ROW_GROUP))


def write_histogram(task: Task, histogram: Histogram) -> None:
    """Write output `histogram`, an .npy file."""
    path = task.output("histogram.npy")
    buffer = BytesIO()
    np.save(buffer, histogram)
    Path(path).write_bytes(buffer.getvalue())  # not np.save to a path, whose error on a full disk names no errno
    task.add("histogram", path)


class TokenFile:
    """A tokenized unit, read by ranges of positions.

    Of one in a bucket the tokens of the rows that were asked for are fetched, and no others.
    """

    def __init__(self, task: Task, docs: Artifact, tokens: Artifact, source: str = ""):
        self.source, self.task, self.tokens = source, task, tokens
        self.docs_path = task.path(docs)
        self.itemsize: int = tokens.meta.get("itemsize", UINT16.itemsize)
        self.map: mmap.mmap | None = None
        self.spans: list[tuple[int, int]] = []  # tokens of the rows that were asked for

    def rows(self, low: int = 0, high: int = NUM_POSITIONS) -> pa.Table:
        """Return the rows whose position lies in [low, high), in order; all of them before `memory` is called."""
        assert self.map is None
        table = self._read_rows(low, high)
        if table.num_rows:
            last = table.slice(table.num_rows - 1)
            end = last["token_start"][0].as_py() + last["token_count"][0].as_py()
            self.spans.append((table["token_start"][0].as_py(), end))
        return table

    def _read_rows(self, low: int, high: int) -> pa.Table:
        with pq.ParquetFile(self.docs_path) as file:
            column = file.schema_arrow.get_field_index("position")
            groups = []
            for group in range(file.num_row_groups):
                stats = file.metadata.row_group(group).column(column).statistics
                if stats is None or not stats.has_min_max or (stats.min < high and stats.max >= low):
                    groups.append(group)
            table = file.read_row_groups(groups, columns=TOKENIZED.names, use_threads=False)
        if low <= 0 and high >= NUM_POSITIONS:
            return table
        position = table["position"].to_numpy()
        first = int(np.searchsorted(position, np.uint64(low), "left"))
        last = len(position) if high >= NUM_POSITIONS else int(np.searchsorted(position, np.uint64(high), "left"))
        return table.slice(first, max(0, last - first))

    def memory(self) -> memoryview:
        """Return the token file's bytes, mapped; of one in a bucket those of rows that were asked for, among zeros."""
        if self.map is None:
            path = Path(self.task.path(self.tokens)) if self.task.read_bytes is None else self._fetch()
            with path.open("rb") as file:
                if path.stat().st_size == 0:
                    return memoryview(b"")
                self.map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        return memoryview(self.map)

    def _fetch(self) -> Path:
        """Write the tokens of `spans` into a file with holes, and return its path."""
        assert self.task.read_bytes is not None
        path = Path(self.task.output(f"{id(self):x}.tokens"))
        with path.open("wb") as out:
            out.truncate(self.tokens.bytes)
            done = 0
            for start, end in sorted(self.spans):
                for first in range(max(done, start) * self.itemsize, end * self.itemsize, FETCHED_BYTES):
                    out.seek(first)
                    last = min(end * self.itemsize, first + FETCHED_BYTES)
                    out.write(self.task.read_bytes(self.tokens, first, last))
                done = max(done, end)
        return path


def token_files(task: Task, sources: Sequence[str] | None = None) -> list[TokenFile]:
    """Open the task's inputs, a pair (docs, tokens) a unit; `sources` names the source of each unit."""
    docs, tokens = task.inputs[::2], task.inputs[1::2]
    names = [""] * len(docs) if sources is None else sources
    return [TokenFile(task, *unit) for unit in zip(docs, tokens, names, strict=True)]


def common_itemsize(units: Sequence[TokenFile]) -> int:
    """Return the bytes of a token in all `units`. Raises DataError, naming two of them, where they differ."""
    widths = {unit.itemsize: unit.tokens.path for unit in units if unit.spans}
    if len(widths) > 1:
        named = " and ".join(f"{path} ({width} bytes a token)" for width, path in sorted(widths.items()))
        raise DataError(f"tokens of different widths cannot be mixed: {named}; run tokenize again with --force")
    return next(iter(widths), UINT16.itemsize)


def unwrap_range(low: int, high: int) -> list[tuple[int, int]]:
    """Return the positions [low, high), taken modulo 2^64, as ranges that do not wrap."""
    if high - low >= NUM_POSITIONS:
        return [(0, NUM_POSITIONS)]
    low, high = low % NUM_POSITIONS, high % NUM_POSITIONS or NUM_POSITIONS
    if low < high:
        return [(low, high)]
    return [(start, stop) for start, stop in ((low, NUM_POSITIONS), (0, high)) if start < stop]
