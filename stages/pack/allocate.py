"""Where documents go: exact token counts, the end of each partial epoch, and the borders between shards.

No index file and no driver state are needed, because every (document, copy) has a *position* in [0, 2^64)
that is a hash of seed and document id, later copies rotated by the golden ratio so that repeats lie far
apart. Tokenized units are sorted by position, so a shard, which is a range of positions, reads one contiguous
slice of each unit and copy. A second, independent hash orders documents inside the shard. A third, `take`, chooses
which documents a partial epoch takes: position must not, or a partial epoch would sit in a corner.

All of it follows from histograms of tokens by these hashes, and from the few documents of the one bin in which a
partial epoch ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages import hashing
from stages.schemas import ID
from stages.task import Task
from stages.tokenize.token_file import (
    BINS,
    BY_POSITION,
    BY_TAKE,
    NUM_POSITIONS,
    ROW_KEY,
    Histogram,
    TokenFile,
    Words,
    bins_of,
    total_order,
    unwrap_range,
)

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: rotations by it never cluster
CANDIDATES = pa.schema(
    [
        ("take", pa.uint64()),
        ("document_id", ID),
        ("part", pa.int32()),
        ("source_file", pa.string()),
        ("source_row", pa.int64()),
        ("token_count", pa.int32()),
    ]
)

Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.integer[Any]]  # tokens of each row


@dataclass(frozen=True)
class EpochBoundary:
    """The last document that a partial epoch takes, in the order of (take hash, row key), and how much of it."""

    take: str  # uint64 as text: JSON has no such integers
    name: tuple[str, int, str, int]  # its row key: document id as hex, part, source file and row; breaks ties only
    keep: int  # of its tokens
    count: int  # that it has

    def split(self, table: pa.Table, takes: Words) -> tuple[Mask, Mask]:
        """Return masks of the rows of `table` up to and with this document, and of this document itself.

        `takes` (n,) are the draws of the rows.
        """
        boundary_take = np.uint64(int(self.take))
        inside: Mask = takes < boundary_take
        itself = np.zeros(len(takes), bool)
        for row in np.flatnonzero(takes == boundary_take).tolist():
            key = row_key(table, row)
            inside[row] = key <= self.name
            itself[row] = key == self.name
        return inside, itself


@dataclass(frozen=True)
class Allocation:
    """What a mixture takes of one source: whole copies of its pool, then `rest` tokens of it, up to `end`.

    The pool is all training documents, or those after the boundary `after`: another mixture has shown the `shown`
    tokens up to it. Of a subsample it ends at `pool_end`, where it has `pool` tokens.
    """

    draw: int  # of the take order
    copies: int = 0
    rest: int = 0
    end: EpochBoundary | None = None
    after: EpochBoundary | None = None
    shown: int = 0
    pool: int = 0
    pool_end: EpochBoundary | None = None

    @property
    def num_copies(self) -> int:
        """Copies in all, a partial one included."""
        return self.copies + (1 if self.end else 0)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values. The build id is a hash of them: the keys stay as they are."""
        subsample = {"pool": self.pool, "pool_end": asdict(self.pool_end)} if self.pool_end else {}
        return {
            "draw": self.draw,
            "copies": self.copies,
            "rest": self.rest,
            "cut": asdict(self.end) if self.end else None,
            "floor": asdict(self.after) if self.after else None,
            "shown": self.shown,
            **subsample,
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Allocation:
        """Build the allocation that `to_dict` described."""
        end, after = boundary_from_dict(value["cut"]), boundary_from_dict(value["floor"])
        pool_end = boundary_from_dict(value.get("pool_end"))
        counts = value["draw"], value["copies"], value["rest"]
        return cls(*counts, end, after, value["shown"], value.get("pool", 0), pool_end)


def boundary_from_dict(value: dict[str, Any] | None) -> EpochBoundary | None:
    """Build the boundary that `Allocation.to_dict` described."""
    return EpochBoundary(**{**value, "name": tuple(value["name"])}) if value else None


def row_key(table: pa.Table, row: int) -> tuple[str, int, str, int]:
    """Return what tells a row of a source from all others."""
    identity, part, file, number = (table[name][row].as_py() for name in ROW_KEY)
    return identity.hex(), part, file, number


def boundary_bin(histogram: Histogram, allocation: Allocation) -> int:
    """Return the histogram's bin in which the partial epoch ends."""
    reached = np.cumsum(histogram[BY_TAKE + allocation.draw])
    return int(np.searchsorted(reached, allocation.shown + allocation.rest, "left"))


def boundary_candidates(task: Task) -> None:
    """Write training documents whose draw `take` lies in one bin. Inputs: docs of many units. Params: seed, draw, bin.

    Output: `candidates` (CANDIDATES).
    """
    with task.table("candidates", CANDIDATES) as writer:
        for artifact in task.inputs:
            table = pq.read_table(task.path(artifact), columns=[*CANDIDATES.names[1:], "val"], use_threads=False)
            takes = hashing.take(task.params["seed"], table["document_id"], task.params["draw"])
            in_bin = (bins_of(takes) == task.params["bin"]) & ~table["val"].to_numpy()
            table = table.add_column(0, "take", pa.array(takes)).filter(pa.array(in_bin))
            if table.num_rows:
                writer.write(table.select(CANDIDATES.names))


def epoch_boundary(histogram: Histogram, allocation: Allocation, documents: pa.Table) -> EpochBoundary:
    """Return the document at which the partial epoch has its `rest` tokens.

    `documents` (CANDIDATES) are those of `boundary_bin`, in any order.
    """
    bin_number = boundary_bin(histogram, allocation)
    before_bin = int(histogram[BY_TAKE + allocation.draw][:bin_number].sum())
    boundary = boundary_at(documents, documents["take"].to_numpy(), allocation.shown + allocation.rest - before_bin)
    assert boundary, "the histogram holds more tokens than the documents do"
    return boundary


def boundary_at(table: pa.Table, takes: Words, limit: int) -> EpochBoundary | None:
    """Return the document at which `limit` tokens are reached in the order (take, row key); None if all hold fewer."""
    order = total_order(table, takes)
    reached = np.cumsum(table["token_count"].to_numpy().astype(np.int64)[order])
    rank = int(np.searchsorted(reached, limit, "left"))
    if rank == len(order):
        return None
    row = int(order[rank])
    count = int(table["token_count"][row].as_py())
    beyond = int(reached[rank]) - limit
    return EpochBoundary(str(takes[row]), row_key(table, row), count - beyond, count)


def shard_borders(sources: Sequence[tuple[Allocation, Histogram]], shard_tokens: int) -> list[int]:
    """Return borders in [0, 2^64] between shards of about equal size, `shard_tokens` on average or a little less.

    `sources`: what each source gives, and its histogram.
    """
    density, total = np.zeros(BINS, np.float64), 0
    for allocation, histogram in sources:
        whole = int(histogram[BY_POSITION].sum()) - allocation.shown
        pool = allocation.pool if allocation.pool_end else whole
        total += allocation.copies * pool + allocation.rest
        weights = [pool / max(1, whole)] * allocation.copies + [allocation.rest / max(1, whole)]
        for copy, weight in enumerate(weights):
            density += weight * rotated_histogram(histogram[BY_POSITION], copy)
    return equal_borders(density, -(-total // shard_tokens))


def rotation(copy: int) -> int:
    """Return how far the positions of the `copy`-th repeat are rotated."""
    return (copy * int(GOLDEN)) % NUM_POSITIONS


def rotate_positions(positions: Words, copy: int) -> Words:
    """Return the positions of the `copy`-th repeat (uint64, wrapping)."""
    with np.errstate(over="ignore"):
        return positions + np.uint64(rotation(copy))


def rotated_histogram(by_position: npt.NDArray[np.int64], copy: int) -> npt.NDArray[np.float64]:
    """Return a histogram over positions (BINS,) as it looks after `rotate_positions`; bins' shares are interpolated."""
    shift = rotation(copy) / NUM_POSITIONS * BINS
    whole_bins = int(shift)
    fraction = shift - whole_bins
    lower, upper = np.roll(by_position, whole_bins), np.roll(by_position, whole_bins + 1)
    rotated: npt.NDArray[np.float64] = (1 - fraction) * lower + fraction * upper
    return rotated


def equal_borders(density: npt.NDArray[np.float64], shards: int) -> list[int]:
    """Return `shards` + 1 borders in [0, 2^64] between which about equal numbers of tokens lie.

    `density` (BINS,) are the tokens of each range of positions.
    """
    reached = np.concatenate([[0.0], np.cumsum(density)])
    wanted = reached[-1] * np.arange(1, shards) / shards
    inner = np.interp(wanted, reached, np.arange(BINS + 1)) / BINS
    return [0, *(int(x * (1 << 52)) << 12 for x in inner), NUM_POSITIONS]


def copy_ranges(copy: int, low: int, high: int) -> list[tuple[int, int]]:
    """Return the positions of documents whose `copy`-th repeat lies in [low, high)."""
    return unwrap_range(low - rotation(copy), high - rotation(copy))


def selected_rows(unit: TokenFile, allocation: Allocation, seed: int, low: int, high: int) -> Iterator[pa.Table]:
    """Yield what of `unit` lies in positions [low, high) of the mixture, a table for each copy and range.

    Columns are those of TOKENIZED, and `copy` and `truncated` of ROWS. Counts are those kept: the document at the end
    of a partial epoch is shortened.
    """
    for copy in range(allocation.num_copies):
        end = allocation.end if copy == allocation.copies else allocation.pool_end
        for start, stop in copy_ranges(copy, low, high):
            table = unit.rows(start, stop)
            keep = ~table["val"].to_numpy()
            counts = table["token_count"].to_numpy()
            truncated = np.zeros(len(keep), bool)
            if end or allocation.after:
                takes = hashing.take(seed, table["document_id"], allocation.draw)
            if allocation.after:
                keep &= ~allocation.after.split(table, takes)[0]
            if end:
                inside, counts, truncated = up_to(end, table, takes)
                keep &= inside
            if keep.any():
                yield with_copy(table, counts, copy, truncated).filter(pa.array(keep))


def up_to(boundary: EpochBoundary, table: pa.Table, takes: Words) -> tuple[Mask, Counts, Mask]:
    """Return which rows of `table` lie up to `boundary`, the token counts that are kept, and which rows it shortens."""
    inside, itself = boundary.split(table, takes)
    counts = np.where(itself, boundary.keep, table["token_count"].to_numpy())
    return inside, counts, itself & (boundary.keep < boundary.count)


def with_copy(table: pa.Table, counts: Counts, copy: int, truncated: Mask) -> pa.Table:
    """Return `table` with the token counts `counts` (n,), and columns `copy` and `truncated`."""
    column = table.schema.get_field_index("token_count")
    table = table.set_column(column, table.schema.field(column), pa.array(counts, pa.int32()))
    table = table.append_column("copy", pa.array(np.full(len(counts), copy), pa.int32()))
    return table.append_column("truncated", pa.array(truncated))
