"""Reading the tokens of a step: shards mapped and checked, rows gathered into one block. The order is train/order.py's.

Long rows are cast one by one, from the map into the block. Of short rows the T inputs are a record of 2 T bytes, and
a shard is an array of them, so those a step takes of it are one `take`: a memcpy a row, without Python. (Indexing
uint16 instead copies token by token, a third as fast.) The last target of each row is one more; then all are cast.
The block is one of two in turn, each the same memory every time: pinned, where the tokens go on to a GPU.

Where documents begin is what the shard's `.idx` says; no token is read for it. Packing that fills windows up
(`best_fit`) leaves padding that no document covers: there the target is IGNORE and the loss does not count.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import resource
import struct
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.attention import sent
from train.config import TrainConfig, TrainError
from train.loss import IGNORE
from train.manifest import HEADER_BYTES, Header, Manifest, ManifestError, Shard
from train.order import I64, Order, windows_of

HASH_LIMIT = 2**30  # bytes of shards whose sha256 is checked at the start: about a second. Beyond, `verify` does it
LONG = 1024  # tokens a row, from which on Python's microsecond a row is less than a second copy
OPEN_SHARDS = 2**15  # mapped at once, if half the descriptors of the process are as many: a map holds one
INDEX_HEAD = 34  # bytes: magic 9, version uint64, dtype uint8, sequences uint64, documents uint64

Tokens = NDArray[np.uint16]
T = TypeVar("T")


# ---------------------------------------------------------------------------------------------------------------------
# Shards


def check_shard(manifest: Manifest, shard: Shard) -> None:
    """Compare a shard's header and size with the manifest. Raises ManifestError when it is not what is named."""
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


def shards_to_hold() -> int:
    """How many shards may stay mapped. Raises this process's limit of open files as far as it may.

    A short row comes from any shard, so one that is not held is opened for a few rows: 0.2 ms.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * OPEN_SHARDS if hard == resource.RLIM_INFINITY else min(hard, 2 * OPEN_SHARDS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS has a lower limit than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return OPEN_SHARDS if soft == resource.RLIM_INFINITY else min(OPEN_SHARDS, soft // 2)


def open_shard(manifest: Manifest, shard: Shard) -> Tokens:
    """The tokens of one shard, (n,) uint16, mapped and not read. Raises ManifestError as `check_shard`."""
    check_shard(manifest, shard)
    # np.memmap is a slow class to index: take its memory as a plain array once
    path = manifest.file(shard.path)
    return np.asarray(np.memmap(path, dtype="<u2", mode="r", offset=HEADER_BYTES, shape=(shard.tokens,)))


def check_hashes(manifest: Manifest, rank: int, world: int) -> bool:
    """Compare the sha256 of this rank's share of the shards. False, and headers only, above HASH_LIMIT bytes.

    Raises ManifestError naming the file that differs.
    """
    small = sum(s.bytes for s in manifest.shards) <= HASH_LIMIT
    for shard in manifest.shards[rank::world]:
        check_shard(manifest, shard)
        path = manifest.file(shard.path)
        if small and sha256_of(path) != shard.sha256:
            raise ManifestError(f"{path}: sha256 differs from the manifest's: damaged since it was packed; pack again")
    return small


def sha256_of(path: Path) -> str:
    """Of a file's bytes, as hex."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# Documents


@dataclass(frozen=True)
class Index:
    """Where the documents of a shard lie, in tokens from its first. Ranges are half open, sorted, and disjoint."""

    starts: I64  # (documents,)
    uncounted: I64  # (2, gaps): [first, last) of the inputs whose target does not count: they are padding, or it is


def open_index(manifest: Manifest, shard: Shard) -> Index:
    """Read a shard's Megatron `.idx` (MMIDIDX version 1). Raises ManifestError when it does not fit the shard."""
    path = manifest.file(shard.index)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise ManifestError(f"{path}: the manifest names it, but it is not there; pack again") from None
    n = shard.documents
    if raw[:INDEX_HEAD] != b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, n, n + 1) or len(raw) != INDEX_HEAD + 20 * n + 8:
        raise ManifestError(f"{path}: not the Megatron index of {n} uint16 documents; pack again")
    counts = np.frombuffer(raw, "<i4", n, INDEX_HEAD)
    starts = (np.frombuffer(raw, "<i8", n, INDEX_HEAD + 4 * n) - HEADER_BYTES) >> 1
    first, last = np.append(0, starts + counts), np.append(starts, shard.tokens)  # of the gaps between documents
    if (last < first).any():
        raise ManifestError(f"{path}: its documents overlap, or leave the shard; pack again")
    gaps = np.stack([first, last])[:, last > first]
    padding = int((gaps[1] - gaps[0]).sum())
    if padding != shard.padding:
        raise ManifestError(f"{path}: {padding} tokens in no document, {shard.padding} by the manifest; pack again")
    return Index(starts, gaps - [[1], [0]])


def counted_targets(manifest: Manifest, shard: Shard) -> NDArray[np.bool_]:
    """(tokens - 1,): whether the target of each input of a shard counts. It does not in padding, nor right after it."""
    counts = np.ones(shard.tokens, bool)
    for first, last in open_index(manifest, shard).uncounted.T:
        counts[max(0, first) : last] = False
    return counts[:-1]


class MappedIndex:
    """A shard's index where it lies, searched a few rows at a time: thousands of them in memory would be gigabytes.

    Its columns are not aligned, so numpy would copy the whole of one to search it; a memoryview reads in place.
    """

    def __init__(self, manifest: Manifest, shard: Shard) -> None:
        """Raises ManifestError as `open_index`, which reads it once to check it."""
        open_index(manifest, shard)
        n, self.tokens = shard.documents, shard.tokens
        with manifest.file(shard.index).open("rb") as f:
            view = memoryview(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ))
        self.counts = view[INDEX_HEAD : INDEX_HEAD + 4 * n].cast("i")
        self.bytes = view[INDEX_HEAD + 4 * n : INDEX_HEAD + 12 * n].cast("q")  # where each document begins, in the file

    def starts(self, first: int, last: int) -> list[int]:
        """Where documents begin, in [first, last)."""
        low, high = self._documents(first, last)
        return [(place - HEADER_BYTES) >> 1 for place in self.bytes[low:high]]

    def _documents(self, first: int, last: int) -> tuple[int, int]:
        """The documents that begin in [first, last): no more than tokens, as each has one."""
        low = bisect_left(self.bytes, HEADER_BYTES + 2 * first)
        most = min(len(self.bytes), low + last - first)
        return low, bisect_left(self.bytes, HEADER_BYTES + 2 * last, low, most)

    def uncounted(self, first: int, last: int) -> list[tuple[int, int]]:
        """The ranges within [first, last) of inputs whose target does not count."""
        low, high = self._documents(first + 1, last)
        low, high = max(0, low - 1), high + 1  # also the document that `first` is in or behind, and the next one
        starts = [(place - HEADER_BYTES) >> 1 for place in self.bytes[low:high]]
        ends = [start + count for start, count in zip(starts, self.counts[low:high], strict=True)]
        gaps = zip([0, *ends], [*starts, self.tokens], strict=True)  # the first may be none, but ends by `first` then
        return [(max(a - 1, first), min(b, last)) for a, b in gaps if a < b > first and a <= last]


def ranges(low: I64, high: I64) -> I64:
    """The whole numbers of [low, high), range after range."""
    length = high - low
    return np.repeat(low - (np.cumsum(length) - length), length) + np.arange(length.sum())


# ---------------------------------------------------------------------------------------------------------------------
# Batches


class Batch(NamedTuple):
    """One rank's rows of a step, on the loader's device. Valid until the next but one: the memory is reused."""

    tokens: Tensor  # (B / world, T + 1) int64
    world: int
    counted_in_step: int  # targets that count in the whole step, over all ranks
    masked: Tensor | None = None  # (B / world, T) int64: the targets where some do not count, and are IGNORE
    counted: I64 | None = None  # (B / world,): targets that count in each row; None: all
    borders: Tensor | None = None  # (documents + 1,) int32 on the CPU: where they begin in the flattened inputs, and
    # the end: what varlen calls name cu_seqlens

    @property
    def inputs(self) -> Tensor:
        """(B / world, T) int64, a view."""
        return self.tokens[:, :-1]

    @property
    def targets(self) -> Tensor:
        """(B / world, T) int64, a view; IGNORE where it does not count."""
        return self.tokens[:, 1:] if self.masked is None else self.masked

    def micros(self, rows: int) -> Iterator[Micro]:
        """`rows` at a time."""
        parts = zip(self.inputs.split(rows), self.targets.split(rows), strict=True)
        for i, (inputs, targets) in enumerate(parts):
            borders = None if self.borders is None else self._borders(i * inputs.numel(), (i + 1) * inputs.numel())
            if self.counted is None:
                yield Micro(inputs, targets, None, 1 / (len(self.tokens) // rows * self.world), borders)
            else:
                counted = int(self.counted[i * rows : (i + 1) * rows].sum())
                yield Micro(inputs, targets, counted, counted / max(1, self.counted_in_step), borders)

    def _borders(self, first: int, last: int) -> Tensor:
        """Those of tokens [first, last), between which rows begin and end, counted from `first`."""
        assert self.borders is not None
        low, high = torch.searchsorted(self.borders, torch.tensor([first, last], dtype=torch.int32)).tolist()
        return self.borders[low : high + 1] - first


class Micro(NamedTuple):
    """Some rows of a batch."""

    ids: Tensor  # (rows, T)
    targets: Tensor  # (rows, T)
    counted: int | None  # targets that count; None: all
    share: float  # of them in the whole step's
    borders: Tensor | None  # of documents, as the batch's


class Recent(Generic[T]):
    """`make(key)`, remembered for the keys used last."""

    def __init__(self, make: Callable[[int], T], limit: int) -> None:
        self.make, self.limit = make, limit
        self.held: OrderedDict[int, T] = OrderedDict()

    def __getitem__(self, key: int) -> T:
        if key in self.held:
            self.held.move_to_end(key)
        else:
            self.held[key] = self.make(key)
            if len(self.held) > self.limit:
                self.held.popitem(last=False)
        return self.held[key]


class Loader:
    """Rows of any step for one rank. Shards are opened when first read; the state is the step: the caller has it."""

    def __init__(
        self, manifest: Manifest, cfg: TrainConfig, rank: int = 0, world: int = 1, device: torch.device | None = None
    ) -> None:
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
        self.device = device or torch.device("cpu")
        self.padded = any(s.padding for s in self.shards)
        self._order = Order(self.counts, cfg, rank, world)
        self._whole = Order(self.counts, cfg, 0, 1) if self.padded else None
        held = shards_to_hold()
        half = held // 2  # an index is mapped too
        indexed = self.padded or cfg.document_mask
        self._open = Recent(lambda s: open_shard(manifest, self.shards[s]), half if indexed else held)
        self._indices = Recent(lambda s: MappedIndex(manifest, self.shards[s]), half)
        self.verified = False  # set it where `check_hashes` found every shard whole: then ids are not checked again
        self._rows, self._last = np.empty((share, cfg.seq_len), "<u2"), np.empty(share, "<u2")
        self._records = self._rows.view(f"V{2 * cfg.seq_len}")[:, 0]
        cuda, shape = self.device.type == "cuda", (share, cfg.seq_len + 1)
        # two in turn: on a CPU the batch is the block, and the next one may be read while it is used (train/ahead.py)
        self._blocks = [torch.empty(shape, dtype=torch.int64, pin_memory=cuda) for _ in range(2)]
        self._arrays = [block.numpy() for block in self._blocks]
        self._copied: list[torch.cuda.Event | None] = [None] * len(self._blocks)
        self._turn = 0

    def batch(self, step: int, documents: bool = False) -> Batch:
        """This rank's rows of 0-based `step`; with `documents`, where these begin.

        Raises ManifestError when a shard read is not the one that the manifest names, or holds an id it cannot hold.
        """
        shard, window, order = self._order.rows(step)
        block = self._block()
        if self.cfg.seq_len < LONG:
            self._read_short(block, shard, window, order)
        else:
            self._read_long(block, shard, window)
        if not self.verified:
            self._check(block, step, shard)
        tokens = self._on_device()
        batch = Batch(tokens, self.world, self.cfg.batch_size * self.cfg.seq_len)
        if self._whole is not None:
            counts, _ = self._uncounted(*self._whole.rows(step)[:2])
            in_step = batch.counted_in_step - int(counts.sum())
            counts, flat = self._uncounted(shard, window)
            targets = tokens[:, 1:].clone(memory_format=torch.contiguous_format)
            targets.view(-1).index_fill_(0, sent(torch.from_numpy(flat), self.device), IGNORE)
            batch = Batch(tokens, self.world, in_step, targets, self.cfg.seq_len - counts)
        if documents:
            batch = batch._replace(borders=self._borders(shard, window))
        return batch

    def _block(self) -> I64:
        """The block to write next, (B / world, T + 1). A pinned one is free when its copy to the device has ended."""
        copied = self._copied[self._turn]
        if copied is not None:
            copied.synchronize()
        return self._arrays[self._turn]

    def _read_short(self, block: I64, shard: I64, window: I64, order: I64) -> None:
        T = self.cfg.seq_len
        for number, rows in groups(shard, order):
            tokens, n = self._open[number], self.counts[number]
            inputs, last = tokens[: n * T].view(self._records.dtype), tokens[T::T]
            if len(rows) == len(shard):
                inputs.take(window, out=self._records, mode="clip")  # mode `raise` would go through a copy of `out`
                self._last[:] = last[window]
            else:
                self._records[rows] = inputs.take(window[rows])
                self._last[rows] = last[window[rows]]
        block[:, :-1] = self._rows
        block[:, -1] = self._last

    def _read_long(self, block: I64, shard: I64, window: I64) -> None:
        numbers, T = shard.tolist(), self.cfg.seq_len
        tokens = {number: self._open[number] for number in set(numbers)}
        for row, number, start in zip(block, numbers, (window * T).tolist(), strict=True):
            row[:] = tokens[number][start : start + T + 1]

    def _check(self, block: I64, step: int, shard: I64) -> None:
        vocab, top = self.manifest.tokenizer.vocab_size, int(block.max())
        if top >= vocab:
            names = sorted({self.shards[s].path for s in shard[(block >= vocab).any(1)]})
            raise ManifestError(
                f"step {step} read token {top}, the vocabulary has {vocab}: damaged: {', '.join(names)}; "
                "run `python -m pipeline verify`"
            )

    def _on_device(self) -> Tensor:
        """The block just written, on the device; the other is next."""
        turn, self._turn = self._turn, 1 - self._turn
        tokens = self._blocks[turn].to(self.device, non_blocking=True)  # on a CPU the block itself
        if self.device.type == "cuda":
            copied = self._copied[turn] = self._copied[turn] or torch.cuda.Event()
            copied.record(torch.cuda.current_stream(self.device))
        return tokens

    def _uncounted(self, shard: I64, window: I64) -> tuple[I64, I64]:
        """(targets a row that do not count (rows,), their places in the flattened targets)."""
        T = self.cfg.seq_len
        counts = np.zeros(len(shard), np.int64)
        found = []
        for row, (number, start) in enumerate(zip(shard.tolist(), (window * T).tolist(), strict=True)):
            for first, last in self._indices[number].uncounted(start, start + T):
                counts[row] += last - first
                found.append((first + row * T - start, last + row * T - start))
        return counts, ranges(*np.array(found, np.int64).reshape(-1, 2).T)

    def _borders(self, shard: I64, window: I64) -> Tensor:
        """(documents + 1,) int32: a document begins with each row, and where the index says."""
        T = self.cfg.seq_len
        borders = []
        for row, (number, start) in enumerate(zip(shard.tolist(), (window * T).tolist(), strict=True)):
            borders.append(row * T)
            inside = self._indices[number].starts(start + 1, start + T)
            if inside:
                borders += [place + row * T - start for place in inside]
        return torch.tensor([*borders, len(shard) * T], dtype=torch.int32)


def groups(shard: I64, order: I64) -> Iterator[tuple[int, I64]]:
    """(shard number, its rows) for each shard of a step, from what `Order.rows` gives."""
    if shard[order[0]] == shard[order[-1]]:
        yield int(shard[0]), order
        return
    sorted_shard = shard[order]
    cuts = np.flatnonzero(sorted_shard[1:] != sorted_shard[:-1]) + 1
    for rows in np.split(order, cuts):
        yield int(shard[rows[0]]), rows
