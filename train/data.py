"""Reading the tokens of a step: shards mapped, checked, and gathered into batches. The order is train/order.py's."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from train.config import TrainConfig, TrainError
from train.manifest import HEADER_BYTES, Header, Manifest, ManifestError, Shard
from train.order import locate, windows_of

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
# Batches


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
        shard, window = locate(self.counts, self.cfg, step)
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
