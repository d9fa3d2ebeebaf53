"""Where documents go: exact token counts, the end of each partial epoch, and the borders between shards.

No index file and no driver state are needed, because every (document, copy) has a *position* in [0, 2^64)
that is a hash of seed and document id, later copies rotated by the golden ratio so that repeats lie far
apart. Tokenised units are sorted by position, so a shard, which is a range of positions, reads one contiguous
slice of each unit and copy. A second, independent hash orders documents inside the shard. A third chooses
which documents a partial epoch takes: position must not, or a partial epoch would sit in a corner.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages import ids
from stages.base import Artifact, Task

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio: rotations by it never cluster
FULL = 1 << 64
BINS = 4096  # of the histograms that `tokenize` writes


def rotate(position: np.ndarray, copy: int) -> np.ndarray:
    """Positions of the `copy`-th repeat (uint64, wrapping)."""
    with np.errstate(over="ignore"):
        return position + np.uint64((copy * int(GOLDEN)) % FULL)


class Unit:
    """One tokenised unit: its documents' columns as arrays, in position order, and its tokens as a map."""

    def __init__(self, task: Task, docs: Artifact, tokens: Artifact, source: str):
        self.source, self.docs_path, self.tokens_path = source, task.path(docs), task.path(tokens)
        columns = ["document_id", "part", "position", "token_start", "token_count", "val"]
        table = pq.read_table(self.docs_path, columns=columns)
        self.ids = table["document_id"].combine_chunks()
        self.part = table["part"].to_numpy()
        self.position = table["position"].to_numpy()
        self.token_start = table["token_start"].to_numpy()
        self.token_count = table["token_count"].to_numpy()
        self.lineage: pa.Table | None = None
        self.val = np.asarray(table["val"].to_numpy(zero_copy_only=False), dtype=bool)

    def name(self, row: int) -> tuple[str, int, str, str, int]:
        """What tells a row from all others, duplicates included: id, part, source, source file and row."""
        if self.lineage is None:
            self.lineage = pq.read_table(self.docs_path, columns=["source_file", "source_row"])
        file, number = (self.lineage[column][row].as_py() for column in ("source_file", "source_row"))
        return self.ids[row].as_py().hex(), int(self.part[row]), self.source, file, number

    def tokens(self) -> np.ndarray:
        """All tokens (n,) uint16."""
        if Path(self.tokens_path).stat().st_size == 0:
            return np.zeros(0, np.uint16)
        return np.asarray(np.memmap(self.tokens_path, "<u2", "r"))

    def within(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """Row ranges whose position lies in [low, high), both taken modulo 2^64 (high may wrap)."""
        if high - low >= FULL:
            yield 0, len(self.position)
            return
        low, high = low % FULL, high % FULL
        ranges = [(low, high)] if low < high else [(low, FULL), (0, high)]
        for start, stop in ranges:
            first = int(np.searchsorted(self.position, np.uint64(start), "left"))
            last = len(self.position)
            if stop < FULL:
                last = int(np.searchsorted(self.position, np.uint64(stop), "left"))
            if first < last:
                yield first, last


def units_of(task: Task) -> Iterator[Unit]:
    """The tokenised units among the task's inputs: (docs, tokens) pairs, named by source in `params`."""
    pairs = task.inputs[: 2 * len(task.params["units"])]
    for i, source in enumerate(task.params["units"]):
        yield Unit(task, pairs[2 * i], pairs[2 * i + 1], source)


def layout(task: Task) -> None:
    """Decide, for each source, its full copies and where its partial epoch ends; then cut positions into shards.

    params: seed, shard_tokens, val_tokens, units (source per unit), targets {source: tokens}.
    inputs: (docs, tokens) per unit, then one histogram per unit.
    output: `layout.json` with sources, shards and the ids held out.
    """
    params = task.params
    units = list(units_of(task))
    histograms = [np.load(task.path(a)) for a in task.inputs[2 * len(units) :]]
    sources = {}
    density = np.zeros(BINS)
    for source, target in params["targets"].items():
        mine = [(u, h) for u, h in zip(units, histograms, strict=True) if u.source == source]
        positions = sum((h[0] for _, h in mine), np.zeros(BINS, np.int64))
        copies, rest = divmod(target, int(positions.sum())) if target else (0, 0)
        by_take = sum((h[1] for _, h in mine), np.zeros(BINS, np.int64))
        cut = partial_epoch([u for u, _ in mine], by_take, rest, params["seed"]) if rest else None
        sources[source] = {"copies": copies, "cut": cut, "tokens": target}
        weights = [1.0] * copies + ([rest / positions.sum()] if rest else [])
        for copy, weight in enumerate(weights):
            density += weight * rotated_histogram(positions, copy)
    borders = cut_positions(density, -(-sum(params["targets"].values()) // params["shard_tokens"]))
    result = {
        "sources": sources,
        "shards": shard_counts(units, sources, borders, params["seed"]),
        "val": held_out(units, params["val_tokens"], params["seed"]),
    }
    path = task.output("layout.json")
    Path(path).write_text(json.dumps(result))
    task.add("layout", path)


def partial_epoch(units: list[Unit], by_take: np.ndarray, rest: int, seed: int) -> dict[str, Any]:
    """Where the order of takes reaches `rest` training tokens.

    Only the documents of the histogram bin in which the count is reached are sorted.
    """
    reached = np.cumsum(by_take)
    bin_number = int(np.searchsorted(reached, rest, "left"))
    before = int(reached[bin_number - 1]) if bin_number else 0
    picked = []
    for unit in units:
        take = ids.take(seed, unit.ids)
        rows = np.flatnonzero(((take >> np.uint64(52)) == bin_number) & ~unit.val)
        picked.append((unit, rows, take[rows]))
    cut = cut_where(picked, rest - before)
    assert cut, "the histogram holds more tokens than the documents do"
    return cut


def cut_where(picked: list[tuple[Unit, np.ndarray, np.ndarray]], limit: int) -> dict[str, Any] | None:
    """The document at which `limit` tokens are reached in the order (take hash, name); None if they hold fewer.

    `picked`: units with some of their rows and these rows' take hashes. Returns `take` (uint64 as text), `name`
    of the document that is cut, and `keep`, the tokens left of it. Names break ties only.
    """
    takes = np.concatenate([np.zeros(0, np.uint64), *(take for _, _, take in picked)])
    counts = np.concatenate([np.zeros(0, np.int64), *(unit.token_count[rows] for unit, rows, _ in picked)])
    order = np.argsort(takes, kind="stable")
    place = int(np.searchsorted(np.cumsum(counts[order]), limit, "left"))
    if place == len(order):
        return None
    border = takes[order[place]]
    before = int(counts[takes < border].sum())
    tied = [(unit, int(row)) for unit, rows, take in picked for row in rows[take == border]]
    for name, count in sorted((unit.name(row), int(unit.token_count[row])) for unit, row in tied):
        if before + count >= limit:
            return {"take": str(border), "name": name, "keep": limit - before}
        before += count
    raise AssertionError("documents of one take hash hold fewer tokens than their sum")


def rotated_histogram(histogram: np.ndarray, copy: int) -> np.ndarray:
    """`histogram` over positions, as it looks after `rotate(.., copy)`; shares of bins are interpolated."""
    shift = (copy * int(GOLDEN)) % FULL / FULL * BINS
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


def selected(
    unit: Unit, source: dict[str, Any], seed: int, low: int, high: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """(copy, rows, token counts, truncated) of the training documents of `unit` in positions [low, high)."""
    copies = source["copies"] + (1 if source["cut"] else 0)
    for copy in range(copies):
        turn = (copy * int(GOLDEN)) % FULL
        for first, last in unit.within(low - turn, high - turn):
            rows = np.arange(first, last)[~unit.val[first:last]]
            counts = unit.token_count[rows].astype(np.int64)
            truncated = np.zeros(len(rows), bool)
            if copy == source["copies"]:
                rows, counts, truncated = apply_cut(unit, rows, source["cut"], seed)
            if len(rows):
                yield copy, rows, counts, truncated


def apply_cut(
    unit: Unit, rows: np.ndarray, cut: dict[str, Any], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of `rows`, those the partial epoch takes, with their counts; the document at the cut is shortened."""
    take, border = ids.take(seed, unit.ids.take(pa.array(rows))), np.uint64(int(cut["take"]))
    keep: np.ndarray = take < border
    truncated = np.zeros(len(rows), bool)
    counts = unit.token_count[rows].astype(np.int64)
    for i in np.flatnonzero(take == border):
        name = unit.name(int(rows[i]))
        keep[i] = name <= tuple(cut["name"])
        if name == tuple(cut["name"]):
            truncated[i] = counts[i] != cut["keep"]
            counts[i] = cut["keep"]
    return rows[keep], counts[keep], truncated[keep]


def shard_counts(units: list[Unit], sources: dict[str, Any], borders: list[int], seed: int) -> list[dict[str, Any]]:
    """Exact tokens and documents of each position range; empty ranges (beside a huge document) are dropped."""
    inner = np.array(borders[1:-1], dtype=np.uint64)
    tokens = np.zeros(len(borders) - 1, np.int64)
    documents = np.zeros(len(borders) - 1, np.int64)
    for unit in units:
        for copy, rows, counts, _ in selected(unit, sources[unit.source], seed, 0, FULL):
            where = np.searchsorted(inner, rotate(unit.position[rows], copy), "right")
            np.add.at(tokens, where, counts)
            np.add.at(documents, where, 1)
    return [
        {"low": str(borders[i]), "high": str(borders[i + 1]), "tokens": int(t), "documents": int(d)}
        for i, (t, d) in enumerate(zip(tokens, documents, strict=True))
        if t
    ]


def held_out(units: list[Unit], limit: int, seed: int) -> dict[str, Any]:
    """Which validation documents are packed: in take order until `limit` tokens are reached, the last one cut."""
    picked = []
    for unit in units:
        rows = np.flatnonzero(unit.val)
        picked.append((unit, rows, ids.take(seed, unit.ids.take(pa.array(rows)))))
    cut = cut_where(picked, limit)
    total = sum(int(unit.token_count[rows].sum()) for unit, rows, _ in picked)
    return {"cut": cut, "tokens": limit if cut else total}
