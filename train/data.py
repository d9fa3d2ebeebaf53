"""Which tokens a step reads: a pure function of (manifest, seed, step), whatever the number of ranks.

A shard of n tokens holds (n - 1) // T windows; window k is tokens [k T, k T + T + 1): T inputs and, one further on,
T targets. Windows never cross shards; what is left at a shard's end is counted and reported. All windows of all
training shards, in the manifest's order, are numbered 0..n-1. Each epoch visits them in the order of a permutation
keyed by (seed, epoch), so step s takes rows [s B, (s+1) B) of the epochs written one after another, and rank r takes
every world-th of them, from r on.

The permutation is a Feistel network with cycle walking: any position costs the same, no list of windows is held, and
a loader's whole state is the step. (nanochat and parameter-golf give each rank a stretch of a stream: there the order
depends on the number of ranks.)
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train.config import TrainConfig, TrainError
from train.manifest import HEADER_BYTES, Header, Manifest, ManifestError, Shard

ROUNDS = 6  # of the Feistel network; 4 are the proven least for pseudo-randomness (Luby-Rackoff), 6 are cheap
HASH_LIMIT = 2**30  # bytes of shards whose sha256 is checked at the start: about a second. Beyond, `verify` does it

Tokens = NDArray[np.uint16]


# ---------------------------------------------------------------------------------------------------------------------
# Shards


def open_shard(manifest: Manifest, shard: Shard) -> Tokens:
    """The tokens of one shard, (n,) uint16, mapped and not read. Raises ManifestError when it is not what is named."""
    path = manifest.file(shard.path)
    try:
        with path.open("rb") as f:
            header = Header.unpack(f.read(HEADER_BYTES), str(path))
        size = path.stat().st_size
    except FileNotFoundError:
        raise ManifestError(f"{path}: the manifest names it, but it is not there; pack again") from None
    wanted = (shard.tokens, manifest.build_id[:16], manifest.tokenizer.vocab_size, manifest.tokenizer.bos_id)
    found = (header.tokens, header.build_id, header.vocab_size, header.bos_id)
    if found != wanted:
        names = ("tokens", "build_id", "vocabulary", "BOS id")
        wrong = "; ".join(f"{n} {f}, not {w}" for n, f, w in zip(names, found, wanted, strict=True) if f != w)
        raise ManifestError(f"{path}: the header is not this manifest's ({wrong}); pack again")
    if size != HEADER_BYTES + 2 * shard.tokens:
        raise ManifestError(
            f"{path}: {size} bytes, {HEADER_BYTES + 2 * shard.tokens} expected: cut or overwritten; pack again"
        )
    # np.memmap is a slow class to index: take its memory as a plain array once
    return np.asarray(np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(shard.tokens,)))


def check_hashes(manifest: Manifest, rank: int, world: int) -> bool:
    """Compare the sha256 of this rank's share of the shards. False, and nothing read, above HASH_LIMIT bytes.

    Raises ManifestError naming the file that differs.
    """
    if sum(s.bytes for s in manifest.shards) > HASH_LIMIT:
        return False
    for shard in manifest.shards[rank::world]:
        path = manifest.file(shard.path)
        open_shard(manifest, shard)
        if sha256_of(path) != shard.sha256:
            raise ManifestError(f"{path}: sha256 differs from the manifest's: damaged since it was packed; pack again")
    return True


def sha256_of(path: Path) -> str:
    """Of a file's bytes, as hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Order


def permute(position: NDArray[np.uint64], n: int, seed: int, epoch: int) -> NDArray[np.uint64]:
    """Positions in [0, n) -> items in [0, n), one to one for each (seed, epoch)."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = np.uint64(2**half - 1)
    shift = np.uint64(half)
    keys = np.frombuffer(hashlib.sha512(f"shardmill order {seed} {epoch}".encode()).digest(), "<u8")[:ROUNDS]
    x = position.astype(np.uint64)
    outside = np.ones(x.shape, bool)
    while outside.any():  # walk until inside [0, n): under 4 turns on average, as 4**half < 4 n
        y = x[outside]
        left, right = y >> shift, y & mask
        for key in keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        x[outside] = (left << shift) | right
        outside = x >= n
    return x


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser: every input bit reaches every output bit (Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def windows_of(manifest: Manifest, seq_len: int) -> list[int]:
    """Windows in each training shard."""
    return [max(0, (s.tokens - 1) // seq_len) for s in manifest.split("train")]


def tail_tokens(manifest: Manifest, seq_len: int) -> int:
    """Training tokens that are no target of any window: the shards' ends, and each shard's first token."""
    return manifest.tokens - seq_len * sum(windows_of(manifest, seq_len))


def epochs_needed(manifest: Manifest, cfg: TrainConfig) -> float:
    """Passes over the mixture's windows that `cfg` makes. Raises TrainError when there are none."""
    windows = sum(windows_of(manifest, cfg.seq_len))
    if windows == 0:
        raise TrainError(
            f"no training shard of {manifest.folder} holds train.seq_len + 1 = {cfg.seq_len + 1} tokens; "
            "shorten train.seq_len, or pack more text"
        )
    return cfg.steps * cfg.batch_size / windows


def check_epochs(manifest: Manifest, cfg: TrainConfig) -> float:
    """`epochs_needed`. Raises TrainError with the figures when that is more than train.epochs allows."""
    needed = epochs_needed(manifest, cfg)
    if needed > cfg.epochs:
        windows = sum(windows_of(manifest, cfg.seq_len))
        allowed = int(windows * cfg.epochs) // cfg.batch_size
        raise TrainError(
            f"{cfg.steps} steps of {cfg.batch_size} x {cfg.seq_len} tokens are {needed:.3f} epochs of this mixture "
            f"({windows:,} windows), train.epochs allows {cfg.epochs:g}\n"
            f"set train.steps={allowed}, or train.epochs={int(needed * 1000 + 1) / 1000:g}, or pack more tokens"
        )
    return needed


def rows_of_step(manifest: Manifest, cfg: TrainConfig, step: int) -> list[tuple[str, int]]:
    """(shard path, first token) of every row of 0-based `step`, in the order of the global batch.

    A row's inputs are seq_len tokens from there on; its targets lie one further.
    """
    counts = windows_of(manifest, cfg.seq_len)
    shards = manifest.split("train")
    shard, window = _locate(counts, cfg, step)
    return [(shards[s].path, int(w) * cfg.seq_len) for s, w in zip(shard, window, strict=True)]


def _locate(counts: list[int], cfg: TrainConfig, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Shard number and window number within it, (B,) each, of a step's rows."""
    ends = np.cumsum(np.array(counts, np.int64))
    n = int(ends[-1])
    rows = [step * cfg.batch_size + i for i in range(cfg.batch_size)]  # Python integers: no overflow
    item = np.empty(len(rows), np.int64)
    epochs = np.array([r // n for r in rows])
    for epoch in np.unique(epochs):
        inside = epochs == epoch
        position = np.array([r % n for r in rows], np.uint64)[inside]
        item[inside] = permute(position, n, cfg.seed, int(epoch)).astype(np.int64)
    shard = np.searchsorted(ends, item, side="right")
    return shard, item - (ends - np.array(counts))[shard]


class Loader:
    """Rows of any step for one rank. Shards are opened when first read; the state is the step: the caller has it."""

    def __init__(self, manifest: Manifest, cfg: TrainConfig, rank: int = 0, world: int = 1) -> None:
        if cfg.batch_size % world:
            near = max(world, cfg.batch_size // world * world)
            raise TrainError(
                f"train.batch_size = {cfg.batch_size} sequences cannot be shared by {world} processes: set "
                f"train.batch_size={near}, or start a number of processes that divides {cfg.batch_size}"
            )
        share = cfg.batch_size // world
        self.micro = cfg.micro_batch or share
        if share % self.micro:
            raise TrainError(
                f"train.micro_batch = {self.micro} does not divide the {share} sequences that each of {world} "
                f"processes takes of train.batch_size = {cfg.batch_size}; take a divisor of {share}"
            )
        self.manifest, self.cfg, self.rank, self.world = manifest, cfg, rank, world
        self.shards = manifest.split("train")
        self.counts = windows_of(manifest, cfg.seq_len)
        self._open: dict[int, Tokens] = {}

    def batch(self, step: int) -> Tokens:
        """This rank's rows of 0-based `step`: (B / world, T + 1) uint16; inputs [:, :-1], targets [:, 1:]."""
        shard, window = _locate(self.counts, self.cfg, step)
        T = self.cfg.seq_len
        picked = list(zip(shard, window, strict=True))[self.rank :: self.world]
        batch = np.stack([self._tokens(int(s))[int(w) * T : int(w) * T + T + 1] for s, w in picked])
        if int(batch.max()) >= self.manifest.tokenizer.vocab_size:
            names = sorted({self.shards[int(s)].path for s in shard})
            raise ManifestError(
                f"step {step} read token {int(batch.max())}, the vocabulary has {self.manifest.tokenizer.vocab_size}: "
                f"a damaged shard among {', '.join(names)}; run `python -m pipeline verify`"
            )
        return batch

    def _tokens(self, shard: int) -> Tokens:
        if shard not in self._open:
            self._open[shard] = open_shard(self.manifest, self.shards[shard])
        return self._open[shard]
