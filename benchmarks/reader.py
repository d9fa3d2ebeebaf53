"""Reading batches: the trainer's loader against nanoGPT's loop and the machine's own limit, on one thread.

400 MB of random tokens in one shard, and the same in 16, all in the page cache. Timed in turn, several rounds, in
million tokens a second: `Loader.batch`, whole (order, gather, cast), as a run has it that hashed its shards at the
start, as one has it that did not and looks at every id instead, and with document borders;
nanoGPT's get_batch with its map kept and with it opened for each batch, as nanoGPT does; and the limit, a cast of
uint16 to int64 in blocks of 256 KB, one after another from the same file into the same memory; and the same cast row
by row from random places. A ratio is the median of the rounds' ratios. Then: how long it takes to open a manifest of
1,000 shards, and one of 10,000, and a batch over that many.

    python -m benchmarks.reader [--megabytes 400] [--rounds 7]
"""

from __future__ import annotations

import dataclasses
import hashlib
import resource
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import measure
from train.config import TrainConfig
from train.data.format import HEADER_BYTES, INDEX_CODE, Header, shard_bytes
from train.data.loader import Loader, check_hashes
from train.data.manifest import Manifest, Shard, Tokenizer, ValidationIds, load_manifest
from train.data.tokens import token_dtype

SHAPES = ((16, 8192), (512, 128))
TARGETS = {
    "16x8192": {"limit": 0.85, "nanogpt": 15},
    "512x128": {"limit": 0.25, "nanogpt": 15},
    "open_1000_seconds": 1.0,
}
BLOCK = 2**17  # tokens, 256 KB: what the limit casts at once, and what a batch of 16 x 8192 is
BATCHES = 1024  # of the loader a round
FEW = 64  # of a slow peer
VOCAB, BOS, DOCUMENT = 8192, 8191, 1000  # tokens a document
BUILD_ID = hashlib.sha256(b"the reader's benchmark").hexdigest()


def write_shards(
    folder: Path, tokens: np.ndarray, count: int, vocab: int = VOCAB, lengths: np.random.Generator | None = None
) -> Path:
    """`count` shards with equal shares of `tokens`, their indexes and a manifest in `folder`. Returns its path.

    tokens: of the type that `vocab` ids take; the last id is BOS. lengths: draws those of documents, log-normal with a
    median of half of DOCUMENT; None: all have DOCUMENT tokens.
    """
    folder.mkdir()
    dtype, bos = token_dtype(vocab), vocab - 1
    assert tokens.dtype == dtype, tokens.dtype
    shards = []
    for i, part in enumerate(np.array_split(tokens, count)):
        starts = np.arange(0, len(part), DOCUMENT)
        if lengths is not None:
            drawn = lengths.lognormal(np.log(DOCUMENT / 2), 1.2, 2 + 4 * len(starts)).astype(np.int64) + 1
            starts = np.append(0, np.cumsum(drawn))
            starts = starts[starts < len(part)]
        counts = np.diff(np.append(starts, len(part)))
        part[starts] = bos
        name, n = f"b_train_{i:06}", len(starts)
        with (folder / f"{name}.bin").open("wb") as file:
            file.write(Header(len(part), vocab, bos, n, BUILD_ID[:16], dtype).pack())
            file.write(part.data)
        with (folder / f"{name}.idx").open("wb") as file:
            file.write(
                b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, INDEX_CODE[dtype], n, n + 1) + counts.astype("<i4").tobytes()
            )
            file.write(
                (HEADER_BYTES + dtype.itemsize * starts).astype("<i8").tobytes()
                + np.arange(n + 1, dtype="<i8").tobytes()
            )
        size = shard_bytes(len(part), dtype)
        shards.append(Shard(f"{name}.bin", "train", len(part), n, size, "", f"{name}.idx", "", "", "", ""))
    manifest = Manifest(
        schema_version=1,
        build_id=BUILD_ID,
        name="benchmark",
        phase="pretrain",
        mixture="pretrain",
        seed=0,
        tokens=len(tokens),
        val_tokens=0,
        documents=sum(s.documents for s in shards),
        tokenizer=Tokenizer("tokenizer.json", "", vocab, bos, bos, {"<|bos|>": bos}, [4] * vocab),
        shards=shards,
        sources=[],
        val_ids=ValidationIds("val_ids.bin", "", 0, ""),
        recipe={},
        source_tree="",
    )
    path = folder / "manifest.json"
    path.write_text(manifest.to_json(), encoding="utf-8")
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Candidates: each returns how many tokens it gave


def ours(path: Path, batch: int, length: int, verified: bool = True, documents: bool = False) -> Callable[[], int]:
    """The loader, going on from where its last round ended. Up to 1 GiB a run hashes its shards first: verified."""
    loader = Loader(load_manifest(path), TrainConfig(batch_size=batch, seq_len=length))
    loader.verified = verified
    step = 0

    def run() -> int:
        nonlocal step
        for step in range(step, step + BATCHES):  # noqa: B020
            loader.batch(step, documents)
        step += 1
        return BATCHES * batch * length

    return run


def nanogpt(file: Path, batch: int, length: int, reopen: bool) -> Callable[[], int]:
    """nanoGPT's get_batch (train.py), written anew: rows from random places, x and y apart."""

    def opened() -> np.memmap:
        return np.memmap(file, dtype=np.uint16, mode="r", offset=HEADER_BYTES)

    kept = opened()

    def run() -> int:
        for _ in range(FEW):
            data = opened() if reopen else kept
            places = torch.randint(len(data) - length, (batch,)).tolist()
            torch.stack([torch.from_numpy(data[i : i + length].astype(np.int64)) for i in places])
            torch.stack([torch.from_numpy(data[i + 1 : i + 1 + length].astype(np.int64)) for i in places])
        return FEW * batch * length

    return run


def limit(file: Path) -> Callable[[], int]:
    """The file cast block after block into the same memory."""
    data = np.asarray(np.memmap(file, dtype=np.uint16, mode="r", offset=HEADER_BYTES))
    block = np.empty(BLOCK, np.int64)
    place = 0

    def run() -> int:
        nonlocal place
        for _ in range(BATCHES):
            np.copyto(block, data[place : place + BLOCK])
            place = place + BLOCK if place + 2 * BLOCK <= len(data) else 0
        return BATCHES * BLOCK

    return run


def rows(file: Path, batch: int, length: int) -> Callable[[], int]:
    """Rows from random places, known beforehand, cast one after another: what an order at random costs on its own."""
    data = np.asarray(np.memmap(file, dtype=np.uint16, mode="r", offset=HEADER_BYTES))
    block = np.empty((batch, length + 1), np.int64)
    places = (np.random.default_rng(1).integers(0, len(data) // length - 1, (BATCHES, batch)) * length).tolist()

    def run() -> int:
        for starts in places:
            for row, start in zip(block, starts, strict=True):
                row[:] = data[start : start + length + 1]
        return BATCHES * batch * length

    return run


def reading(folder: Path, megabytes: float, repeats: int) -> dict[str, Any]:
    """Every shape: rates, and our ratios to the others."""
    tokens = np.random.default_rng(0).integers(0, BOS, int(megabytes * 5e5), np.uint16)
    one, many = write_shards(folder / "one", tokens, 1), write_shards(folder / "many", tokens, 16)
    del tokens
    file = folder / "one" / "b_train_000000.bin"
    result: dict[str, Any] = {}
    for batch, length in SHAPES:
        candidates = {
            "limit": limit(file),
            "random_rows": rows(file, batch, length),
            "loader": ours(one, batch, length),
            "loader_checking_ids": ours(one, batch, length, verified=False),
            "loader_documents": ours(one, batch, length, documents=True),
            "loader_16_shards": ours(many, batch, length),
            "nanogpt": nanogpt(file, batch, length, False),
            "nanogpt_reopened": nanogpt(file, batch, length, True),
        }
        # The first calls fill the page cache, and say how many tokens each gives.
        million_tokens = {name: (call() / 1e6, call) for name, call in candidates.items()}
        seen = measure.rates(million_tokens, repeats, time.perf_counter)
        against = {
            name: measure.ratio(seen["loader"], seen[name])
            for name in ("limit", "random_rows", "nanogpt", "nanogpt_reopened")
        }
        result[f"{batch}x{length}"] = {
            "million_tokens_per_second": measure.medians(seen, 1),
            "loader_against": measure.rounded(against, 3),
            "rounds": measure.rounded(seen, 1),
        }
    return result


def opening(folder: Path, count: int) -> dict[str, Any]:
    """Seconds to a loader, to its first batch, and to all headers checked, over `count` shards; descriptors held."""
    path = write_shards(folder / f"open_{count}", np.zeros(count * 2000, np.uint16), count)
    start = time.perf_counter()
    manifest = load_manifest(path)
    loader = Loader(manifest, TrainConfig(batch_size=512, seq_len=128))
    ready = time.perf_counter()
    loader.batch(0)
    first = time.perf_counter()
    large = dataclasses.replace(manifest, shards=[dataclasses.replace(s, bytes=2**30) for s in manifest.shards])
    assert not check_hashes(large, 0, 1)  # as for a mixture too large to hash: headers and sizes
    checked = time.perf_counter()
    for step in range(1, 41):  # by now most shards have been opened
        loader.batch(step)
    warm = time.perf_counter()
    for step in range(41, 49):
        loader.batch(step)
    return {
        "manifest_mb": round(path.stat().st_size / 1e6, 2),
        "loader_seconds": round(ready - start, 4),
        "first_batch_512x128_seconds": round(first - ready, 4),
        "all_headers_seconds": round(checked - first, 4),
        "later_batch_512x128_seconds": round((time.perf_counter() - warm) / 8, 4),
        "maps_held": len(loader._tokens.values),
        "descriptor_limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def main() -> None:
    """Run, print, save."""
    options = measure.parser(__doc__, megabytes=400.0, rounds=7).parse_args()
    torch.set_num_threads(1)
    about = measure.machine(("numpy", "torch"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        opened = {str(count): opening(folder, count) for count in (1000, 10_000)}
        result = {"machine": about, "megabytes": options.megabytes, "targets": TARGETS, "opening": opened}
        result |= {"reading": reading(folder, options.megabytes, options.rounds)}
    for shape, seen in result["reading"].items():
        print(shape, seen["million_tokens_per_second"], "loader against", seen["loader_against"])
    for count, seen in opened.items():
        print(f"{count} shards", seen)
    measure.save("reader", result)


if __name__ == "__main__":
    main()
