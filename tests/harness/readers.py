"""How other trainers read tokens: each reader from its project's published format, none of their code.

Nothing here knows this project: what these functions find in our files is what those trainers would train on.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch


def check_header(path: Path) -> int:
    """The header that llm.c made: 256 int32, [0] the magic, [1] the version, [2] the tokens. Returns the tokens."""
    header = np.fromfile(path, "<i4", 256)
    assert len(header) == 256 and header[0] == 20240520 and header[1] == 1
    return int(header[2])


class MegatronIndexed:
    """Megatron-LM, megatron/core/datasets/indexed_dataset.py: sequences by length and byte pointer, and documents."""

    def __init__(self, prefix: Path) -> None:
        raw = prefix.with_suffix(".idx").read_bytes()
        assert raw[:9] == b"MMIDIDX\x00\x00"
        version, code, sequences, documents = struct.unpack_from("<QBQQ", raw, 9)
        assert version == 1
        self.dtype = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}[code]
        self.lengths = np.frombuffer(raw, "<i4", sequences, 34)
        self.pointers = np.frombuffer(raw, "<i8", sequences, 34 + self.lengths.nbytes)
        self.documents = np.frombuffer(raw, "<i8", documents, 34 + self.lengths.nbytes + self.pointers.nbytes)
        assert len(raw) == 34 + self.lengths.nbytes + self.pointers.nbytes + self.documents.nbytes
        assert self.documents[0] == 0 and self.documents[-1] == sequences
        self.data = np.memmap(prefix.with_suffix(".bin"), np.uint8, "r")

    def __len__(self) -> int:
        return len(self.lengths)

    def get(self, index: int, offset: int = 0, length: int | None = None) -> np.ndarray:
        """A sequence, or a stretch of it."""
        length = self.lengths[index] - offset if length is None else length
        start = self.pointers[index] + offset * np.dtype(self.dtype).itemsize
        return np.frombuffer(self.data, self.dtype, length, start)


def llmc_batches(paths: list[Path], batch: int, length: int, rank: int, world: int) -> Iterator[np.ndarray]:
    """llm.c, llmc/dataloader.h, unshuffled: B * T + 1 tokens at a time, world * B * T further each step.

    Every shard must hold world * B * T + 1 tokens, and what is left at its end is not read.
    """
    for path in paths:
        tokens = check_header(path)
        assert path.stat().st_size == 1024 + 2 * tokens
        assert tokens >= world * batch * length + 1
        step_bytes = 2 * world * batch * length
        steps = (2 * tokens - 2) // step_bytes
        with path.open("rb") as file:
            for step in range(steps):
                file.seek(1024 + step * step_bytes + 2 * rank * batch * length)
                yield np.frombuffer(file.read(2 * (batch * length + 1)), "<u2")


def modded_shard(path: Path) -> torch.Tensor:
    """modded-nanogpt, train_gpt.py: the header mapped by torch, the tokens read into a uint16 tensor."""
    header = torch.from_file(str(path), False, 256, dtype=torch.int32)
    assert header[0] == 20240520 and header[1] == 1
    tokens = torch.empty(int(header[2]), dtype=torch.uint16)
    with path.open("rb", buffering=0) as file:
        file.seek(1024)
        assert file.readinto(tokens.numpy()) == 2 * len(tokens)
    return tokens


def modded_documents(path: Path, bos: int, local: int, longest: int, world: int) -> Iterator[list[list[torch.Tensor]]]:
    """modded-nanogpt's batches that begin at BOS: `local` + 1 tokens a rank, in stretches of documents.

    A stretch starts at the next BOS and ends before the one after, at `longest` tokens, or when the rank has enough;
    ranks fill one after another. Ends when a batch cannot be filled. Gives [rank][stretch] -> tokens.
    """
    tokens = modded_shard(path)
    starts = torch.nonzero(tokens.to(torch.int32) == bos)[:, 0].tolist()
    at = 0
    while True:
        ranks: list[list[torch.Tensor]] = []
        for _ in range(world):
            stretches, have = [], 0
            while have <= local:
                if at >= len(starts):
                    return
                end = starts[at + 1] if at + 1 < len(starts) else len(tokens)
                end = min(end, starts[at] + longest, starts[at] + local - have + 1)
                stretches.append(tokens[starts[at] : end])
                have += end - starts[at]
                at += 1
            ranks.append(stretches)
        yield ranks


def golf_shard(path: Path) -> np.ndarray:
    """parameter-golf, train_gpt.py: numpy reads header and tokens, and the size must fit."""
    tokens = check_header(path)
    assert path.stat().st_size == 1024 + 2 * tokens
    found = np.fromfile(path, "<u2", tokens, offset=1024)
    assert len(found) == tokens
    return found


def golf_batches(folder: Path, pattern: str, length: int, rows: int, rank: int, world: int) -> Iterator[np.ndarray]:
    """parameter-golf's loader: one stream over the sorted files, each rank its span of rows * length + 1 tokens.

    Gives the local span, of which x is all but the last and y all but the first; one pass.
    """
    files = sorted(folder.glob(pattern))
    assert files
    stream = np.concatenate([golf_shard(file) for file in files])
    span = rows * length + 1
    for start in range(0, len(stream) - world * span + 1, world * span):
        yield stream[start + rank * span : start + (rank + 1) * span]


def raw(path: Path) -> np.ndarray:
    """nanoGPT, train.py: a map of uint16, here behind the header."""
    return np.memmap(path, np.uint16, "r", offset=1024)


def nanogpt_split(folder: Path, split: str, dtype: Any = np.uint16) -> np.ndarray:
    """nanoGPT, train.py: a map of all tokens of a split."""
    return np.memmap(folder / f"{split}.bin", dtype, "r")


def datatrove_documents(path: Path, token_size: int = 2) -> list[np.ndarray]:
    """datatrove, utils/dataset.py and tokens/tokenizer.py: tokens, and beside them the ends of documents as uint64."""
    tokens = np.frombuffer(path.read_bytes(), np.uint16 if token_size == 2 else np.uint32)
    ends = np.frombuffer(path.with_name(f"{path.name}.index").read_bytes(), np.uint64).astype(np.int64)
    size, count, _ = path.with_name(f"{path.name}.metadata").read_text().splitlines()
    assert size.endswith(f"|{token_size}") and int(count) == len(tokens) == ends[-1]
    return np.split(tokens, ends[:-1])


def olmo_documents(path: Path, dtype: Any = np.uint16) -> list[np.ndarray]:
    """OLMo-core, olmo_core/data/utils.py: raw tokens in a .npy, start and end of each document in the .csv.gz."""
    tokens = np.memmap(path, dtype, "r")
    with gzip.open(path.with_name(path.name.replace(".npy", ".csv.gz")), "rt") as file:
        spans = [tuple(map(int, line.split(",")[:2])) for line in file]
    assert spans[-1][1] == len(tokens)
    return [tokens[start:end] for start, end in spans]
