"""Where documents go: exact token counts, the end of each partial epoch, and the borders between shards.

No index file and no driver state are needed, because every (document, copy) has a *position* in [0, 2^64)
that is a hash of seed and document id, later copies rotated by the golden ratio so that repeats lie far
apart. Tokenised units are sorted by position, so a shard, which is a range of positions, reads one contiguous
slice of each unit and copy. A second, independent hash orders documents inside the shard. A third chooses
which documents a partial epoch takes: position must not, or a partial epoch would sit in a corner.

All of it follows from histograms of tokens by these hashes, and from the few documents of the one bin in which a
partial epoch ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages import hashing
from stages.schemas import ID
from stages.task import Task
from stages.tokenize.token_file import BINS, BY_POSITION, BY_TAKE, FULL, NAMES, TokenFile, full_order, ring

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


@dataclass(frozen=True)
class Cut:
    """A place in the order of (take hash, name): the last document that is taken, and how much of it."""

    take: str  # uint64 as text: JSON has no such integers
    name: tuple[str, int, str, int]  # document id as hex, part, source file and row: breaks ties only
    keep: int  # of its tokens
    count: int  # that it has

    def split(self, table: pa.Table, takes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(documents up to and with this one, this one itself), bool (n,) each, of `table` with its `takes` (n,)."""
        border = np.uint64(int(self.take))
        inside: np.ndarray = takes < border
        itself = np.zeros(len(takes), bool)
        for row in np.flatnonzero(takes == border).tolist():
            name = row_name(table, row)
            inside[row], itself[row] = name <= self.name, name == self.name
        return inside, itself


@dataclass(frozen=True)
class Part:
    """What a mixture takes of one source: whole copies of its pool, then `rest` tokens of it, up to `cut`.

    The pool is all training documents, or those after `floor`: another mixture has shown the `shown` tokens up to it.
    """

    draw: int  # of the take order
    copies: int
    rest: int
    cut: Cut | None = None
    floor: Cut | None = None
    shown: int = 0

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Part:
        """The inverse of `to_dict`."""
        cuts = {
            key: value[key] and Cut(**{**value[key], "name": tuple(value[key]["name"])}) for key in ("cut", "floor")
        }
        return cls(**{**value, **cuts})


def row_name(table: pa.Table, row: int) -> tuple[str, int, str, int]:
    """What tells a document of a source from all others."""
    identity, part, file, number = (table[name][row].as_py() for name in NAMES)
    return identity.hex(), part, file, number


def cut_bin(histogram: np.ndarray, part: Part) -> int:
    """The histogram's bin in which the partial epoch ends."""
    return int(np.searchsorted(np.cumsum(histogram[BY_TAKE + part.draw]), part.shown + part.rest, "left"))


def candidates(task: Task) -> None:
    """Training documents whose draw `take` lies in one bin. Inputs: docs of many units. Params: seed, draw, bin.

    Output: `candidates` (CANDIDATES).
    """
    with task.table("candidates", CANDIDATES) as writer:
        for artifact in task.inputs:
            table = pq.read_table(task.path(artifact), columns=[*CANDIDATES.names[1:], "val"], use_threads=False)
            takes = hashing.take(task.params["seed"], table["document_id"], task.params["draw"])
            mine = ((takes >> np.uint64(52)) == task.params["bin"]) & ~table["val"].to_numpy()
            table = table.add_column(0, "take", pa.array(takes)).filter(pa.array(mine))
            if table.num_rows:
                writer.write(table.select(CANDIDATES.names))


def find_cut(histogram: np.ndarray, part: Part, found: pa.Table) -> Cut:
    """The document at which the partial epoch has its `rest` tokens; `found` are those of `cut_bin`, in any order."""
    number = cut_bin(histogram, part)
    before = int(histogram[BY_TAKE + part.draw][:number].sum())
    cut = cut_at(found, found["take"].to_numpy(), part.shown + part.rest - before)
    assert cut, "the histogram holds more tokens than the documents do"
    return cut


def cut_at(table: pa.Table, takes: np.ndarray, limit: int) -> Cut | None:
    """The document at which `limit` tokens are reached in the order (take, name); None if all hold fewer."""
    order = full_order(table, takes)
    reached = np.cumsum(table["token_count"].to_numpy().astype(np.int64)[order])
    place = int(np.searchsorted(reached, limit, "left"))
    if place == len(order):
        return None
    row = int(order[place])
    count = int(table["token_count"][row].as_py())
    return Cut(str(takes[row]), row_name(table, row), limit - int(reached[place]) + count, count)


def shard_borders(parts: Sequence[tuple[Part, np.ndarray]], shard_tokens: int) -> list[int]:
    """Borders in [0, 2^64] between shards of about equal size, `shard_tokens` on average or a little less.

    `parts`: what each source gives, and its histogram.
    """
    density, total = np.zeros(BINS), 0
    for part, histogram in parts:
        pool = int(histogram[BY_POSITION].sum()) - part.shown
        total += part.copies * pool + part.rest
        for copy, weight in enumerate([1.0] * part.copies + [part.rest / max(1, pool)]):
            density += weight * rotated_histogram(histogram[BY_POSITION], copy)
    return cut_positions(density, -(-total // shard_tokens))


def rotate(position: np.ndarray, copy: int) -> np.ndarray:
    """Positions of the `copy`-th repeat (uint64, wrapping)."""
    with np.errstate(over="ignore"):
        return position + np.uint64(turn(copy))


def turn(copy: int) -> int:
    """How far the `copy`-th repeat is rotated."""
    return (copy * int(GOLDEN)) % FULL


def rotated_histogram(histogram: np.ndarray, copy: int) -> np.ndarray:
    """`histogram` over positions, as it looks after `rotate(.., copy)`; shares of bins are interpolated."""
    shift = turn(copy) / FULL * BINS
    whole = int(shift)
    part = shift - whole
    rolled: np.ndarray = (1 - part) * np.roll(histogram, whole) + part * np.roll(histogram, whole + 1)
    return rolled


def cut_positions(density: np.ndarray, shards: int) -> list[int]:
    """`shards` + 1 borders in [0, 2^64] between which about equal numbers of tokens lie."""
    reached = np.concatenate([[0.0], np.cumsum(density)])
    wanted = reached[-1] * np.arange(1, shards) / shards
    inner = np.interp(wanted, reached, np.arange(BINS + 1)) / BINS
    return [0, *(int(x * (1 << 52)) << 12 for x in inner), FULL]


def selected(unit: TokenFile, part: Part, seed: int, low: int, high: int) -> Iterator[pa.Table]:
    """What of `unit` lies in positions [low, high) of the mixture, a table a copy and range: TOKENIZED, and `copy`
    and `truncated` of ROWS. Counts are those kept: the document at the cut is shortened.
    """
    for copy in range(part.copies + (1 if part.cut else 0)):
        for start, stop in ring(low - turn(copy), high - turn(copy)):
            table = unit.rows(start, stop)
            keep = ~table["val"].to_numpy()
            counts = table["token_count"].to_numpy()
            truncated = np.zeros(len(keep), bool)
            last = part.cut if copy == part.copies else None
            if last or part.floor:
                takes = hashing.take(seed, table["document_id"], part.draw)
                if part.floor:
                    keep &= ~part.floor.split(table, takes)[0]
                if last:
                    inside, itself = last.split(table, takes)
                    keep &= inside
                    counts = np.where(itself, last.keep, counts)
                    truncated = itself & (last.keep < last.count)
            if keep.any():
                yield with_facts(table, counts, copy, truncated).filter(pa.array(keep))


def with_facts(table: pa.Table, counts: np.ndarray, copy: int, truncated: np.ndarray) -> pa.Table:
    """`table` with other token counts (n,), and columns `copy` and `truncated`."""
    at = table.schema.get_field_index("token_count")
    table = table.set_column(at, table.schema.field(at), pa.array(counts, pa.int32()))
    table = table.append_column("copy", pa.array(np.full(len(counts), copy), pa.int32()))
    return table.append_column("truncated", pa.array(truncated))
