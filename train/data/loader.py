"""Reading the tokens of a step: shards are mapped and checked, and rows gathered into one block.

Which rows a step has is decided in train/data/sampler.py. A row is T inputs and the target of the last, T + 1 tokens.

* Long rows are copied one by one, from the mapped shard into the int64 block.
* Short rows are too many for that. A shard is seen as an array of records, the T inputs of a window each, so one
  `take` a shard copies all rows that a step has of it, without Python. (Indexing the tokens instead copies one by one,
  a third as fast.) The last targets are gathered beside them, and all are cast to int64 at once.

Two blocks take turns, and their memory is reused: pinned, where the tokens go on to a GPU.

Where documents begin is what the shard's `.idx` says; no token is read for it. Packing that fills windows up
(`best_fit`) leaves padding that no document covers: there the target is IGNORE and the loss does not count.
"""

from __future__ import annotations

import contextlib
import resource
import shlex
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.config import TrainConfig, TrainError
from train.data.format import check_shard, map_tokens
from train.data.index import MappedIndex
from train.data.manifest import HASH_LIMIT, Manifest, ManifestError, Shard
from train.data.sampler import I64, row_order, stretches, windows_per_shard
from train.data.sources import source_numbers
from train.data.tokens import Tokens, token_dtype
from train.data.watch import FileWatch
from train.files import sha256_file
from train.model.loss import IGNORE
from train.model.masks import to_device

LONG = 1024  # tokens a row, from which on Python's microsecond a row is less than a second copy
OPEN_SHARDS = 2**15  # mapped at once, if half the descriptors of the process are as many: a map holds one

T = TypeVar("T")


# ---------------------------------------------------------------------------------------------------------------------
# Shards


def max_mapped_shards() -> int:
    """Return how many shards may stay mapped, after lifting this process's limit of open files as far as it may.

    A short row comes from any shard, so one that is not held is opened for a few rows: 0.2 ms.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * OPEN_SHARDS if hard == resource.RLIM_INFINITY else min(hard, 2 * OPEN_SHARDS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return OPEN_SHARDS if soft == resource.RLIM_INFINITY else min(OPEN_SHARDS, soft // 2)


def open_shard(manifest: Manifest, shard: Shard, watch: FileWatch | None = None) -> Tokens:
    """Map the tokens of one shard, (n,), without reading them, and `watch` its file.

    Raises ManifestError as `check_shard` does.
    """
    if watch is not None:
        watch.add(manifest.file(shard.path), shard.sha256)
    check_shard(manifest, shard)
    return map_tokens(manifest.file(shard.path), shard.tokens, token_dtype(manifest.tokenizer.vocab_size))


def check_hashes(manifest: Manifest, rank: int, world_size: int, watch: FileWatch | None = None) -> bool:
    """Compare the sha256 of this rank's share of the shards. False, and headers only, above HASH_LIMIT bytes.

    watch: is told of all training shards ahead of that, so that none changes unseen between here and its first batch.
    Raises ManifestError naming the file that differs.
    """
    small = sum(s.bytes for s in manifest.shards) <= HASH_LIMIT
    if watch is not None:
        for shard in manifest.split("train"):
            watch.add(manifest.file(shard.path), shard.sha256)
    for shard in manifest.shards[rank::world_size]:
        check_shard(manifest, shard)
        path = manifest.file(shard.path)
        if small and sha256_file(path) != shard.sha256:
            raise ManifestError(f"{path}: sha256 differs from the manifest's: damaged since it was packed; pack again")
    return small


def numbers_in_ranges(low: I64, high: I64) -> I64:
    """Return the whole numbers of each range [low, high), (n,) each, range after range."""
    length = high - low
    return np.repeat(low - (np.cumsum(length) - length), length) + np.arange(length.sum())


# ---------------------------------------------------------------------------------------------------------------------
# Batches


class Batch(NamedTuple):
    """One rank's rows of a step, on the loader's device. Valid until the batch after the next is read."""

    tokens: Tensor  # (B / world_size, T + 1) int64
    world_size: int
    num_targets_in_step: int  # targets that count in the whole step, over all ranks
    masked_targets: Tensor | None = None  # (B / world_size, T) int64: IGNORE where some do not count; None: all do
    num_targets: I64 | None = None  # (B / world_size,): targets that count in each row; None: all
    # (documents + 1,) int32 on the CPU: where documents begin in the flattened inputs, and the end
    cu_seqlens: Tensor | None = None
    sources: Tensor | None = (
        None  # (B / world_size, T) int16: the source of each target, as a place in `Loader.sources`
    )

    @property
    def inputs(self) -> Tensor:
        """(B / world_size, T) int64, a view."""
        return self.tokens[:, :-1]

    @property
    def targets(self) -> Tensor:
        """(B / world_size, T) int64, a view; IGNORE where it does not count."""
        return self.tokens[:, 1:] if self.masked_targets is None else self.masked_targets

    def micro_batches(self, rows: int) -> Iterator[MicroBatch]:
        """Yield the batch `rows` rows at a time."""
        parts = zip(self.inputs.split(rows), self.targets.split(rows), strict=True)
        for i, (inputs, targets) in enumerate(parts):
            cu_seqlens = self._cu_seqlens(i * inputs.numel(), (i + 1) * inputs.numel())
            sources = None if self.sources is None else self.sources[i * rows : (i + 1) * rows]
            if self.num_targets is None:
                share = 1 / (len(self.tokens) // rows * self.world_size)
                yield MicroBatch(inputs, targets, None, share, cu_seqlens, sources)
            else:
                num_targets = int(self.num_targets[i * rows : (i + 1) * rows].sum())
                share = num_targets / max(1, self.num_targets_in_step)
                yield MicroBatch(inputs, targets, num_targets, share, cu_seqlens, sources)

    def _cu_seqlens(self, first: int, last: int) -> Tensor | None:
        """Return those of tokens [first, last), between which rows begin and end, counted from `first`."""
        if self.cu_seqlens is None:
            return None
        low, high = torch.searchsorted(self.cu_seqlens, torch.tensor([first, last], dtype=torch.int32)).tolist()
        return self.cu_seqlens[low : high + 1] - first


class MicroBatch(NamedTuple):
    """Some rows of a batch."""

    ids: Tensor  # (rows, T)
    targets: Tensor  # (rows, T)
    num_targets: int | None  # targets that count; None: all
    share: float  # of the whole step's targets, so the weight of its mean loss in the step's
    cu_seqlens: Tensor | None  # of documents, as the batch's
    sources: Tensor | None = None  # (rows, T), as the batch's


class LRUCache(Generic[T]):
    """The values of `make(key)`, remembered for the `limit` keys used last."""

    def __init__(self, make: Callable[[int], T], limit: int) -> None:
        self.make, self.limit = make, limit
        self.values: OrderedDict[int, T] = OrderedDict()

    def __getitem__(self, key: int) -> T:
        if key in self.values:
            self.values.move_to_end(key)
        else:
            self.values[key] = self.make(key)
            if len(self.values) > self.limit:
                self.values.popitem(last=False)
        return self.values[key]


def rows_of_rank(cfg: TrainConfig, world_size: int) -> tuple[int, int]:
    """Return the sequences that each of `world_size` processes takes of a step, and of a forward pass.

    Raises TrainError where they cannot be shared.
    """
    if cfg.batch_size % world_size:
        near = max(world_size, cfg.batch_size // world_size * world_size)
        raise TrainError(
            f"train.batch_size = {cfg.batch_size} sequences cannot be shared by {world_size} processes: set "
            f"train.batch_size={near}, or start a number of processes that divides {cfg.batch_size}"
        )
    share = cfg.batch_size // world_size
    micro_batch = cfg.micro_batch or share
    if share % micro_batch:
        raise TrainError(
            f"train.micro_batch = {micro_batch} does not divide the {share} sequences that each of "
            f"{world_size} processes takes of train.batch_size = {cfg.batch_size}; take a divisor of {share}"
        )
    return share, micro_batch


class Loader:
    """Rows of any step for one rank. Shards are opened when first read; the state is the step: the caller has it."""

    def __init__(
        self,
        manifest: Manifest,
        cfg: TrainConfig,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
        sources: Sequence[str] = (),
    ) -> None:
        """sources: names of those whose numbers batches tell (train/data/sources.py); none: they tell none."""
        share, self.micro_batch_size = rows_of_rank(cfg, world_size)
        if cfg.document_mask and manifest.adopted:
            raise TrainError(
                f"train.document_mask: {manifest.folder} was adopted, and where its documents begin is not known; "
                "set it to false"
            )
        self.manifest, self.cfg, self.rank, self.world_size = manifest, cfg, rank, world_size
        self.shards = manifest.split("train")
        self.counts = windows_per_shard(manifest, cfg.seq_len)
        self.device = device or torch.device("cpu")
        self.padded = any(s.padding for s in self.shards)
        self.lengths = [s.tokens for s in self.shards]
        self._order = row_order(manifest, cfg, rank, world_size)
        self._global_order = row_order(manifest, cfg, 0, 1) if self.padded else None
        held = max_mapped_shards()
        half = held // 2  # an index is mapped too
        indexed = bool(self.padded or cfg.document_mask or sources)
        self.watch = FileWatch(manifest.restore)
        self._paths = [[str(manifest.path(s.path)), *([str(manifest.path(s.index))] * indexed)] for s in self.shards]
        self.begin_step: Callable[[int], None] = lambda step: None  # is told which step is read
        self._tokens = LRUCache(lambda s: open_shard(manifest, self.shards[s], self.watch), half if indexed else held)
        self._indices = LRUCache(lambda s: MappedIndex(manifest, self.shards[s], self.watch), half)
        self.sources = list(sources)
        self._numbers = LRUCache(lambda s: source_numbers(manifest, self.shards[s], self.sources).tolist(), half)
        self.verified = False  # set it where `check_hashes` found every shard whole: then ids are not checked again
        dtype = token_dtype(manifest.tokenizer.vocab_size)
        self._inputs, self._last_targets = np.empty((share, cfg.seq_len), dtype), np.empty(share, dtype)
        self._records = self._inputs.view(f"V{dtype.itemsize * cfg.seq_len}")[:, 0]
        cuda, shape = self.device.type == "cuda", (share, cfg.seq_len + 1)
        # two in turn: on a CPU the batch is the block, and the next one may be read while it is used
        # (train/data/prefetch.py)
        self._blocks = [torch.empty(shape, dtype=torch.int64, pin_memory=cuda) for _ in range(2)]
        self._arrays = [block.numpy() for block in self._blocks]
        self._copy_events: list[torch.cuda.Event | None] = [None] * len(self._blocks)
        self._next_block = 0

    def batch(self, step: int, document_mask: bool = False) -> Batch:
        """Return this rank's rows of 0-based `step`; with `document_mask`, where documents begin too.

        Raises ManifestError when a shard read is not the one that the manifest names, or no longer, or holds an id
        it cannot hold.
        """
        self.begin_step(step)
        shard, first, by_shard = self._order.rows(step)
        read = set(shard.tolist())
        if self.cfg.order == "sequential":
            read = {number for _, number, *_ in self._stretches(shard, first, self.cfg.seq_len + 1)}
        paths = [path for number in read for path in self._paths[number]]
        self.watch.check(paths)  # before: one that was cut must not be read
        block = self._block()
        if self.cfg.order == "shuffled" and self.cfg.seq_len < LONG:
            self._read_short(block, shard, first, by_shard)
        else:
            self._read_long(block, shard, first)
        if not self.verified:
            self._check(block, step, shard)
        tokens = self._on_device()
        batch = Batch(tokens, self.world_size, self.cfg.batch_size * self.cfg.seq_len)
        if self._global_order is not None:
            uncounted, _ = self._uncounted(*self._global_order.rows(step)[:2])
            num_targets_in_step = batch.num_targets_in_step - int(uncounted.sum())
            uncounted, places = self._uncounted(shard, first)
            targets = tokens[:, 1:].clone(memory_format=torch.contiguous_format)
            targets.view(-1).index_fill_(0, to_device(torch.from_numpy(places), self.device), IGNORE)
            num_targets = self.cfg.seq_len - uncounted
            batch = Batch(tokens, self.world_size, num_targets_in_step, targets, num_targets)
        if document_mask:
            batch = batch._replace(cu_seqlens=self._cu_seqlens(shard, first))
        if self.sources:
            batch = batch._replace(sources=to_device(torch.from_numpy(self._sources(shard, first)), self.device))
        self.watch.check(paths)  # after: nothing was written over what was read
        return batch

    def _block(self) -> I64:
        """Return the block to write next, (B / world_size, T + 1). A pinned one is free when its copy has ended."""
        event = self._copy_events[self._next_block]
        if event is not None:
            event.synchronize()
        return self._arrays[self._next_block]

    def _stretches(self, shard: I64, first: I64, length: int) -> Iterator[tuple[int, int, int, int]]:
        """Yield (place, shard, first, last): tokens [first, last) of a shard lie from `place` on in flattened rows.

        The rows, (n,) each, have `length` tokens from token `first` of `shard` on.
        """
        for row, (number, start) in enumerate(zip(shard.tolist(), first.tolist(), strict=True)):
            place = row * length
            for stretch in stretches(self.lengths, number, start, length):
                yield place, *stretch
                place += stretch[2] - stretch[1]

    def _read_short(self, block: I64, shard: I64, first: I64, by_shard: I64) -> None:
        T = self.cfg.seq_len
        window = first // T
        for number, rows in rows_by_shard(shard, by_shard):
            tokens, n = self._tokens[number], self.counts[number]
            inputs, last = tokens[: n * T].view(self._records.dtype), tokens[T::T]
            if len(rows) == len(shard):
                inputs.take(window, out=self._records, mode="clip")  # mode `raise` would go through a copy of `out`
                self._last_targets[:] = last[window]
            else:
                self._records[rows] = inputs.take(window[rows])
                self._last_targets[rows] = last[window[rows]]
        block[:, :-1] = self._inputs
        block[:, -1] = self._last_targets

    def _read_long(self, block: I64, shard: I64, first: I64) -> None:
        flat = block.reshape(-1)
        for place, number, start, stop in self._stretches(shard, first, block.shape[1]):
            flat[place : place + stop - start] = self._tokens[number][start:stop]

    def _check(self, block: I64, step: int, shard: I64) -> None:
        vocab, top = self.manifest.tokenizer.vocab_size, int(block.max())
        if top >= vocab:
            names = sorted({self.shards[s].path for s in shard[(block >= vocab).any(1)]})
            raise ManifestError(
                f"step {step} read token {top}, the vocabulary has {vocab}: damaged: {', '.join(names)}; "
                f"see which with `python -m pipeline verify {shlex.quote(self.manifest.folder)}`"
            )

    def _on_device(self) -> Tensor:
        """Return the block just written, on the device, and turn to the other one."""
        turn, self._next_block = self._next_block, 1 - self._next_block
        tokens = self._blocks[turn].to(self.device, non_blocking=True)  # on a CPU the block itself
        if self.device.type == "cuda":
            event = self._copy_events[turn] = self._copy_events[turn] or torch.cuda.Event()
            event.record(torch.cuda.current_stream(self.device))
        return tokens

    def _uncounted(self, shard: I64, first: I64) -> tuple[I64, I64]:
        """Return how many targets of each row do not count, (rows,), and their places in the flattened targets."""
        ranges: list[tuple[int, int]] = []
        for place, number, start, stop in self._stretches(shard, first, self.cfg.seq_len):
            shift = place - start
            ranges += [(low + shift, high + shift) for low, high in self._indices[number].uncounted(start, stop)]
        low, high = np.array(ranges, np.int64).reshape(-1, 2).T
        places = numbers_in_ranges(low, high)
        return np.bincount(places // self.cfg.seq_len, minlength=len(shard)), places

    def _cu_seqlens(self, shard: I64, first: I64) -> Tensor:
        """Return (documents + 1,) int32: a document begins with each row, and where the index says."""
        T = self.cfg.seq_len
        starts: list[int] = []
        for place, number, start, stop in self._stretches(shard, first, T):
            if place % T == 0:
                starts.append(place)
                inside = self._indices[number].starts(start + 1, stop)
            else:
                inside = self._indices[number].starts(start, stop)
            starts += [token - start + place for token in inside]
        return torch.tensor([*starts, len(shard) * T], dtype=torch.int32)

    def _sources(self, shard: I64, first: I64) -> NDArray[np.int16]:
        """Return the source of each target, (rows, T), as a place in `sources`; of padding any."""
        T = self.cfg.seq_len + 1
        edges: list[int] = []
        numbers: list[int] = []
        for place, number, start, stop in self._stretches(shard, first, T):
            document, starts = self._indices[number].documents(start, stop)
            edges.append(place)
            edges += [token - start + place for token in starts]
            numbers += self._numbers[number][document : document + len(starts) + 1]
        lengths = np.diff(edges, append=len(shard) * T)
        return np.repeat(np.array(numbers, np.int16), lengths).reshape(-1, T)[:, 1:]


def rows_by_shard(shard: I64, order: I64) -> Iterator[tuple[int, I64]]:
    """Yield the number of each shard of a step and its rows, from what `Sampler.rows` gives."""
    if shard[order[0]] == shard[order[-1]]:
        yield int(shard[0]), order
        return
    sorted_shard = shard[order]
    cuts = np.flatnonzero(sorted_shard[1:] != sorted_shard[:-1]) + 1
    for rows in np.split(order, cuts):
        yield int(shard[rows[0]]), rows
