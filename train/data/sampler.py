"""Which tokens a step reads: a pure function of (manifest, seed, step), whatever the number of ranks.

A shard of n tokens holds (n - 1) // T windows; window k is tokens [k T, k T + T + 1): T inputs and, one further on,
T targets. Windows never cross shards; what is left at a shard's end is counted and reported. All windows of all
training shards, in the manifest's order, are numbered 0..n-1. Each epoch visits them in the order of a permutation
keyed by (seed, epoch), so step s takes rows [s B, (s+1) B) of the epochs written one after another, and rank r takes
every world_size-th of them, from r on.

That is `train.order: shuffled`. `sequential` is the order of the parameter-golf scripts, see `Stream`.

The permutation is a Feistel network with cycle walking: any position costs the same, no list of windows is held, and
a loader's whole state is the step. It runs backwards as well, so the step that reads a token is found without a search.
(nanochat and parameter-golf give each rank a stretch of a stream: there the order depends on the number of ranks.)

Numpy and the standard library only: lineage asks these questions without loading torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from train.config import SPANS, TrainConfig, TrainError
from train.data.manifest import Manifest

ROUNDS = 6  # of the Feistel network; 4 are the proven least for pseudo-randomness (Luby-Rackoff). Even: see Permutation
CHUNK = 2**12  # positions that go through the network at once: 32 KB an array, so that they stay in the nearest cache
BLOCK = 2**16  # rows whose order is worked out at once by `Sampler`: a few milliseconds, 3 MB
LOOK_AHEAD = 1000  # steps whose rows tell which shards are needed first

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]


# ---------------------------------------------------------------------------------------------------------------------
# The permutation


def permute(position: U64, n: int, seed: int, epoch: int) -> U64:
    """Positions in [0, n) -> items in [0, n), one to one for each (seed, epoch). Any shape; the input is kept."""
    return _walk(lambda x: _network(x, n, list(enumerate(_keys(seed, epoch)))), position, n)


def unpermute(item: U64, n: int, seed: int, epoch: int) -> U64:
    """The inverse of `permute`: items in [0, n) -> positions in [0, n)."""
    return _walk(lambda x: _network(x, n, list(enumerate(_keys(seed, epoch)))[::-1]), item, n)


def _network(x: U64, n: int, rounds: list[tuple[int, np.uint64]]) -> U64:
    """One pass: each round changes one half by a hash of the other, so its inverse is the same rounds backwards."""
    bits = _halves(n)
    low, high = x & np.uint64(2 ** bits[0] - 1), x >> np.uint64(bits[0])
    for number, key in rounds:
        if number % 2:
            low = low ^ _mix(high + key) & np.uint64(2 ** bits[0] - 1)
        else:
            high = high ^ _mix(low + key) & np.uint64(2 ** bits[1] - 1)
    return (high << np.uint64(bits[0])) | low


class Permutation:
    """`permute` for many positions of one epoch, four times as fast: what a round adds is looked up, not computed.

    A round's table has an entry for each value of the half it reads, about the square root of n: 6 MB in all for
    10**10 windows.
    """

    def __init__(self, n: int, seed: int, epoch: int) -> None:
        self.n, self.bits = n, _halves(n)
        self.tables = []
        for number, key in enumerate(_keys(seed, epoch)):
            reads, writes = self.bits if number % 2 == 0 else self.bits[::-1]
            table = _mix(np.arange(2**reads, dtype=np.uint64) + key) & np.uint64(2**writes - 1)
            self.tables.append(table.astype(np.int64))

    def __call__(self, position: I64) -> I64:
        """Positions (k,) -> items (k,)."""
        item = self._network(position)
        outside = np.flatnonzero(item >= self.n)
        while len(outside):
            x = self._network(item[outside])
            item[outside] = x
            outside = outside[x >= self.n]
        return item

    def _network(self, x: I64) -> I64:
        y = np.empty_like(x)
        looked_up = np.empty(min(len(x), CHUNK), np.int64)
        for i in range(0, len(x), CHUNK):
            low, high = x[i : i + CHUNK] & (2 ** self.bits[0] - 1), x[i : i + CHUNK] >> self.bits[0]
            for table in self.tables:
                high ^= table.take(low, out=looked_up[: len(low)], mode="clip")  # `raise` would copy `out`
                low, high = high, low
            np.bitwise_or(high << self.bits[0], low, out=y[i : i + CHUNK])
        return y


def _halves(n: int) -> tuple[int, int]:
    """Bits of the low and the high half: the network permutes [0, 2**bits), n at least and under 2 n (n > 2)."""
    bits = max(2, (n - 1).bit_length())
    return bits // 2, bits - bits // 2


def _keys(seed: int, epoch: int) -> U64:
    digest = hashlib.sha512(f"shardmill order {seed} {epoch}".encode()).digest()
    return np.frombuffer(digest, "<u8")[:ROUNDS].astype(np.uint64)


def _mix(x: U64) -> U64:
    """splitmix64's finaliser: every input bit reaches every output bit (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _walk(network: Callable[[U64], U64], start: U64, n: int) -> U64:
    """Apply `network` until inside [0, n): once at least, under twice on average."""
    x = network(start.astype(np.uint64))
    outside = x >= n
    while outside.any():
        x[outside] = network(x[outside])
        outside = x >= n
    return x


# ---------------------------------------------------------------------------------------------------------------------
# Windows and epochs


def windows_per_shard(manifest: Manifest, seq_len: int) -> list[int]:
    """Windows in each training shard."""
    return [max(0, (s.tokens - 1) // seq_len) for s in manifest.split("train")]


def tail_tokens(manifest: Manifest, seq_len: int) -> int:
    """Training tokens that are no target of any window: the shards' ends, and each shard's first token."""
    return sum(s.tokens for s in manifest.split("train")) - seq_len * sum(windows_per_shard(manifest, seq_len))


def tokens_per_step(cfg: TrainConfig) -> int:
    """Tokens of the stream that a step takes in sequential order: its inputs, and a last target for each span."""
    return cfg.batch_size * cfg.seq_len + SPANS


def _step_and_epoch(manifest: Manifest, cfg: TrainConfig) -> tuple[int, int]:
    """How much a step takes, and how much the mixture has: of windows, or of tokens in sequential order."""
    if cfg.order == "sequential":
        return tokens_per_step(cfg), sum(s.tokens for s in manifest.split("train"))
    return cfg.batch_size, sum(windows_per_shard(manifest, cfg.seq_len))


def epochs_needed(manifest: Manifest, cfg: TrainConfig) -> float:
    """Passes over the mixture that `cfg` makes. Raises TrainError when there is nothing to read."""
    step, epoch = _step_and_epoch(manifest, cfg)
    if epoch == 0:
        raise TrainError(
            f"no training shard of {manifest.folder} holds train.seq_len + 1 = {cfg.seq_len + 1} tokens; "
            "shorten train.seq_len, or pack more text"
        )
    return cfg.steps * step / epoch


def check_epochs(manifest: Manifest, cfg: TrainConfig) -> float:
    """`epochs_needed`. Raises TrainError with the figures when that is more than train.epochs allows."""
    needed = epochs_needed(manifest, cfg)
    if needed > cfg.epochs:
        step, epoch = _step_and_epoch(manifest, cfg)
        allowed = int(epoch * cfg.epochs)
        rows = allowed if cfg.order == "shuffled" else max(0, allowed - SPANS) // cfg.seq_len // SPANS * SPANS
        less = f"train.steps={allowed // step}" if allowed >= step else f"train.batch_size={rows} or less"
        raise TrainError(
            f"{cfg.steps} steps of {cfg.batch_size} x {cfg.seq_len} tokens are {needed:.3f} epochs of this mixture "
            f"({epoch:,} {'windows' if cfg.order == 'shuffled' else 'tokens'}), train.epochs allows {cfg.epochs:g}\n"
            f"set {less}, or train.epochs={int(needed * 1000 + 1) / 1000:g}, or pack more tokens"
        )
    return needed


# ---------------------------------------------------------------------------------------------------------------------
# Steps and tokens, both ways


def rows_at_step(counts: list[int], cfg: TrainConfig, step: int) -> tuple[I64, I64]:
    """Shard number and window number within it, (B,) each, of the rows of 0-based `step`. counts: windows a shard."""
    ends = np.cumsum(np.array(counts, np.int64))
    n = int(ends[-1])
    row = np.arange(step * cfg.batch_size, (step + 1) * cfg.batch_size)
    epoch, position = np.divmod(row, n)
    item = np.empty_like(row)
    for e in range(int(epoch[0]), int(epoch[-1]) + 1):
        inside = epoch == e
        item[inside] = permute(position[inside].astype(np.uint64), n, cfg.seed, e)
    shard = np.searchsorted(ends, item, side="right")
    return shard, item - (ends - counts)[shard]


class RowOrder(Protocol):
    """The rows of one rank."""

    def rows(self, step: int) -> tuple[I64, I64, I64]:
        """Return shard, first token in it, and the rows sorted by shard, of 0-based `step`, (B / world_size,) each.

        A row is seq_len + 1 tokens from its first on; in sequential order they may run on into the next shards, see
        `stretches`. They are rows rank, rank + world_size, ... of the step. Do not write to them.
        """


class Stream:
    """Sequential order: the shards one after another, for ever, read on from step to step.

    A step takes SPANS spans of batch_size / SPANS rows, one token longer than these: the last target. So spans share no
    token, and rows of one span share the last of one, which is the first of the next. It is the order of the
    parameter-golf scripts, there the same at 1, 2, 4 and 8 processes.
    """

    def __init__(self, tokens: Sequence[int], cfg: TrainConfig, rank: int = 0, world_size: int = 1) -> None:
        """tokens: of each shard, in the order of their names."""
        self.cfg, self.rank, self.world_size = cfg, rank, world_size
        self.ends = np.cumsum(np.array(tokens, np.int64))
        self.starts = self.ends - tokens

    def rows(self, step: int) -> tuple[I64, I64, I64]:
        """As `RowOrder`."""
        cfg = self.cfg
        row = np.arange(step * cfg.batch_size + self.rank, (step + 1) * cfg.batch_size, self.world_size)
        place = (row * cfg.seq_len + row // (cfg.batch_size // SPANS)) % self.ends[-1]
        shard = np.searchsorted(self.ends, place, side="right")
        return shard, place - self.starts[shard], shard.argsort(kind="stable")


def stretches(tokens: Sequence[int], shard: int, start: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Yield (shard, first, last): `length` tokens from `start` of `shard` on, into the next shards and round again.

    tokens: of each shard. A row of shuffled order is one stretch.
    """
    while length > 0:
        last = min(start + length, tokens[shard])
        if last > start:
            yield shard, start, last
        length -= last - start
        shard, start = (shard + 1) % len(tokens), 0


class Sampler:
    """Shuffled order, many steps worked out at once. What it keeps is a cache: any step may be asked for next."""

    def __init__(self, counts: list[int], cfg: TrainConfig, rank: int, world_size: int) -> None:
        self.cfg, self.rank, self.world_size = cfg, rank, world_size
        self.ends = np.cumsum(np.array(counts, np.int64))
        self.starts = self.ends - counts
        self.rows_per_step = cfg.batch_size // world_size
        self.steps_per_block = max(1, min(BLOCK, int(self.ends[-1])) // self.rows_per_step)  # in a block
        self.block = -1
        self._permutations: dict[int, Permutation] = {}

    def rows(self, step: int) -> tuple[I64, I64, I64]:
        """As `RowOrder`."""
        block, i = divmod(step, self.steps_per_block)
        if block != self.block:
            self._fill(block)
        return self.shards[i], self.firsts[i], self.sorted_rows[i]

    def _fill(self, block: int) -> None:
        n = int(self.ends[-1])
        first = block * self.steps_per_block * self.cfg.batch_size + self.rank
        row = first + self.world_size * np.arange(self.steps_per_block * self.rows_per_step)
        wanted = range(first // n, int(row[-1]) // n + 1)
        self._permutations = {e: self._permutations.get(e) or Permutation(n, self.cfg.seed, e) for e in wanted}
        cuts = np.searchsorted(row, [e * n for e in wanted[1:]])
        parts = zip(wanted, np.split(row, cuts), strict=True)
        item = np.concatenate([self._permutations[e](part - e * n) for e, part in parts])
        shard = np.searchsorted(self.ends, item, side="right")
        shape = (self.steps_per_block, self.rows_per_step)
        self.shards = shard.reshape(shape)
        self.firsts = ((item - self.starts[shard]) * self.cfg.seq_len).reshape(shape)
        narrow = np.uint16 if len(self.ends) <= 2**16 else np.int64  # numpy sorts 16 bits by radix, three times as fast
        self.sorted_rows = self.shards.astype(narrow).argsort(1, kind="stable")
        self.block = block


def row_order(manifest: Manifest, cfg: TrainConfig, rank: int, world_size: int) -> RowOrder:
    """The order that train.order names."""
    if cfg.order == "sequential":
        return Stream([s.tokens for s in manifest.split("train")], cfg, rank, world_size)
    return Sampler(windows_per_shard(manifest, cfg.seq_len), cfg, rank, world_size)


def shards_in_order_of_need(manifest: Manifest, cfg: TrainConfig, step: int) -> Iterator[int]:
    """Yield the number of each training shard once, as the steps from 0-based `step` on need it first.

    In shuffled order those that LOOK_AHEAD steps do not read come last.
    """
    counts = windows_per_shard(manifest, cfg.seq_len)
    if cfg.order == "sequential":
        first = int(Stream([s.tokens for s in manifest.split("train")], cfg).rows(step)[0][0])
        yield from ((first + i) % len(counts) for i in range(len(counts)))
        return
    sampler = Sampler(counts, cfg, 0, 1)
    left = {number for number, count in enumerate(counts) if count}
    for later in range(step, min(cfg.steps, step + LOOK_AHEAD)):
        for number in sampler.rows(later)[0].tolist():
            if number in left:
                left.remove(number)
                yield number
        if not left:
            return
    yield from sorted(left)


def rows_of_step(manifest: Manifest, cfg: TrainConfig, step: int) -> list[tuple[str, int]]:
    """(shard path, first token) of every row of 0-based `step`, in the order of the global batch.

    A row's inputs are seq_len tokens from there on; its targets lie one further. In sequential order the last of them
    may lie in the next shards.
    """
    shards = manifest.split("train")
    if cfg.order == "sequential":
        shard, first, _ = Stream([s.tokens for s in shards], cfg).rows(step)
    else:
        shard, window = rows_at_step(windows_per_shard(manifest, cfg.seq_len), cfg, step)
        first = window * cfg.seq_len
    return list(zip([shards[s].path for s in shard], first.tolist(), strict=True))


def stretches_of_step(manifest: Manifest, cfg: TrainConfig, step: int) -> list[tuple[int, tuple[str, int, int]]]:
    """(row, (shard path, first token, one past the last)) of what 0-based `step` reads: inputs and targets.

    A row of shuffled order is one stretch, in sequential order it may be several.
    """
    shards = manifest.split("train")
    tokens = [s.tokens for s in shards]
    number = {s.path: n for n, s in enumerate(shards)}
    return [
        (row, (shards[n].path, first, last))
        for row, (path, start) in enumerate(rows_of_step(manifest, cfg, step))
        for n, first, last in stretches(tokens, number[path], start, cfg.seq_len + 1)
    ]


def steps_that_read(manifest: Manifest, cfg: TrainConfig, shard_path: str, start: int, stop: int) -> list[int]:
    """The 0-based steps, ascending, of a run of cfg.steps that read any token of [start, stop) of that shard.

    As input or as target; `start` and `stop` count tokens from the shard's first. Empty for a validation shard, for
    the tokens at a shard's end that no window covers, and for windows that a partial epoch leaves out. Raises
    TrainError when the manifest has no such shard, or the range is not inside it.
    """
    shard = next((s for s in manifest.shards if s.path == shard_path), None)
    if shard is None:
        raise TrainError(f"{manifest.folder}: the manifest names no shard {shard_path}")
    if not 0 <= start <= stop <= shard.tokens:
        raise TrainError(f"{shard_path}: tokens [{start}, {stop}) are not inside its {shard.tokens:,}")
    if shard.split != "train" or start == stop:
        return []
    number = manifest.split("train").index(shard)
    if cfg.order == "sequential":
        return _steps_of_stream([s.tokens for s in manifest.split("train")], cfg, number, start, stop)
    counts = windows_per_shard(manifest, cfg.seq_len)
    # Window k reads [k T, k T + T]: both its ends, so a token on a border is in two.
    first = max(0, (start - 1) // cfg.seq_len)
    last = min(counts[number] - 1, (stop - 1) // cfg.seq_len)
    items = sum(counts[:number]) + np.arange(first, last + 1).astype(np.uint64)
    n = sum(counts)
    rows = cfg.steps * cfg.batch_size
    steps: set[int] = set()
    for epoch in range(-(-rows // n) if len(items) else 0):
        row = epoch * n + unpermute(items, n, cfg.seed, epoch).astype(np.int64)
        steps.update((row[row < rows] // cfg.batch_size).tolist())
    return sorted(steps)


def _steps_of_stream(tokens: list[int], cfg: TrainConfig, number: int, start: int, stop: int) -> list[int]:
    """`steps_that_read` in sequential order: every token of the stream is in one span, and so in one step."""
    total, per_step = sum(tokens), tokens_per_step(cfg)
    low, high = sum(tokens[:number]) + start, sum(tokens[:number]) + stop
    steps: set[int] = set()
    for wrapped in range(0, cfg.steps * per_step, total):
        steps.update(range((wrapped + low) // per_step, min(cfg.steps, (wrapped + high - 1) // per_step + 1)))
    return sorted(steps)
