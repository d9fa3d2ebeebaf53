"""Statistics of the order of documents in a packed mixture, against the null that whole documents were permuted.

Each function takes what it judges as plain arrays and returns the chance that a random permutation looks at least
so bad. Formulas: Kolmogorov's limit law for the distance; Pearson's chi-square; the central limit theorem.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from train.data.manifest import load_manifest


@dataclass(frozen=True)
class Order:
    """The training documents of a mixture in their global order, over all shards; all arrays (n,)."""

    names: list[str]  # of the sources
    source: np.ndarray  # index into names
    row: np.ndarray  # place in the source's files
    copy: np.ndarray
    tokens: np.ndarray
    truncated: np.ndarray
    ids: np.ndarray  # bytes

    def take(self, index: np.ndarray) -> Order:
        """Some of the documents, in the order of `index`."""
        columns = (self.source, self.row, self.copy, self.tokens, self.truncated, self.ids)
        return Order(self.names, *(column[index] for column in columns))

    @property
    def place(self) -> np.ndarray:
        """Where each document begins, in [0, 1) of the mixture's tokens."""
        return (np.cumsum(self.tokens) - self.tokens) / self.tokens.sum()


def read_order(folder: Path) -> Order:
    """The order that the row tables of a published mixture tell. Rows of a source's files are numbered through."""
    manifest = load_manifest(str(folder))
    files = [manifest.file(s.rows) for s in manifest.shards if s.split == "train"]
    table = pa.concat_tables([pq.read_table(file, partitioning=None) for file in files])
    table = table.filter(pa.array(table["part"].to_numpy() == 0))
    names = sorted(table["source"].unique().to_pylist())
    file = table["source_file"].to_numpy(zero_copy_only=False)
    number = np.unique(file, return_inverse=True)[1].astype(np.int64)
    return Order(
        names,
        np.searchsorted(names, table["source"].to_numpy(zero_copy_only=False)),
        number * 2**40 + table["source_row"].to_numpy(),
        table["copy"].to_numpy(),
        table["token_count"].to_numpy().astype(np.int64),
        table["truncated"].to_numpy(zero_copy_only=False).astype(bool),
        np.array(table["document_id"].to_pylist(), object),
    )


def kolmogorov(distance: float) -> float:
    """Chance that Kolmogorov's statistic exceeds `distance`: 2 sum (-1)^(k-1) exp(-2 k^2 x^2)."""
    if distance < 0.2:
        return 1.0
    terms = (2 * (-1) ** (k - 1) * math.exp(-2 * (k * distance) ** 2) for k in range(1, 101))
    return min(1.0, max(0.0, sum(terms)))


def subset_is_even(mine: np.ndarray) -> float:
    """Chance that a random subset of so many of the n items, `mine` bool (n,), is spread as unevenly over the order.

    The two-sample Kolmogorov-Smirnov test of those inside against those outside: exact for draws without
    replacement, and so for a source that makes up most of a mixture.
    """
    inside, outside = int(mine.sum()), int((~mine).sum())
    if not inside or not outside:
        return 1.0
    gap = np.abs(np.cumsum(mine) / inside - np.cumsum(~mine) / outside).max()
    return kolmogorov(gap * math.sqrt(inside * outside / (inside + outside)))


def gamma_tail(half_freedom: float, x: float) -> float:
    """Chance that a chi-square variable of 2 * half_freedom degrees exceeds 2 x; Wilson and Hilferty 1931."""
    k = 2 * half_freedom
    z = ((2 * x / k) ** (1 / 3) - (1 - 2 / (9 * k))) / math.sqrt(2 / (9 * k))
    return normal_tail(z)


def normal_tail(z: float) -> float:
    """Chance that a standard normal variable exceeds z."""
    return math.erfc(z / math.sqrt(2)) / 2


def pairs_are_independent(source: np.ndarray) -> float:
    """Chi-square of the sources of consecutive documents, (n - 1) pairs, against the product of their shares."""
    kinds = int(source.max()) + 1
    seen = np.bincount(source[:-1] * kinds + source[1:], minlength=kinds**2).reshape(kinds, kinds)
    expected = np.outer(seen.sum(1), seen.sum(0)) / seen.sum()
    return gamma_tail((kinds - 1) ** 2 / 2, float(((seen - expected) ** 2 / expected).sum()) / 2)


def neighbours_are_strangers(row: np.ndarray) -> float:
    """Rank correlation of the rows of consecutive documents; under the null normal, mean -1/n, variance 1/n."""
    rank = np.argsort(np.argsort(row, kind="stable"), kind="stable").astype(float)
    rank -= rank.mean()
    n = len(rank)
    correlation = float((rank[:-1] * rank[1:]).sum() / (rank**2).sum())
    return 2 * normal_tail(abs(correlation + 1 / n) * math.sqrt(n))


def shares(source: np.ndarray, tokens: np.ndarray, window: int, kinds: int) -> np.ndarray:
    """Share of each source in consecutive windows of `window` tokens, float [windows, kinds]; the tail is left out."""
    ends = np.cumsum(tokens)
    edges = np.arange(0, int(ends[-1]) - window + 1, window)
    edges = np.append(edges, edges[-1] + window) if len(edges) else np.zeros(1)
    out = np.empty((len(edges) - 1, kinds))
    for kind in range(kinds):
        held = np.concatenate([[0], np.cumsum(np.where(source == kind, tokens, 0))])
        reached = np.interp(edges, np.concatenate([[0], ends]), held)  # a document that spans an edge counts by part
        out[:, kind] = np.diff(reached) / window
    return out


def windows_are_even(order: Order, window: int, permutations: int = 200, seed: int = 0) -> tuple[float, float]:
    """(chance of the most extreme share in any window, chance of so large a variance over windows), over all sources.

    Mean and deviation are those of `permutations` random orders of the very documents. Both chances are corrected
    for the number of windows and sources (Bonferroni).
    """
    kinds, rng = len(order.names), np.random.default_rng(seed)
    found = shares(order.source, order.tokens, window, kinds)
    drawn = []
    for _ in range(permutations):
        at = rng.permutation(len(order.source))
        drawn.append(shares(order.source[at], order.tokens[at], window, kinds))
    null = np.concatenate(drawn)
    mean, deviation = null.mean(0), null.std(0)
    z = np.abs((found - mean) / deviation)
    extreme = min(1.0, 2 * normal_tail(float(z.max())) * found.size)
    spread = min(gamma_tail(len(found) / 2, float((z[:, k] ** 2).sum()) / 2) for k in range(kinds))
    return extreme, min(1.0, spread * kinds)


def copies_apart(order: Order) -> float:
    """The least distance between two copies of one document, as a share of the mixture."""
    by = np.lexsort((order.place, order.ids.astype("S16")))
    same = order.ids[by][1:] == order.ids[by][:-1]
    return float(np.diff(order.place[by])[same].min()) if same.any() else 1.0
