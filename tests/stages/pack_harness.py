"""Tokenised units made up in memory, and packing without an engine, for tests of layout and shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from stage_harness import run_unit

from stages import ids
from stages.base import Record, Task
from stages.layout import layout
from stages.pack_shard import shard
from stages.shards import open_shard
from stages.tokenize import TOKENISED, cut, histograms

BUILD_ID = "0123456789abcdef" * 4
VOCAB, BOS = 500, 0


def names(salt: str, n: int) -> np.ndarray:
    """`n` document ids, bytes [n, 16]."""
    found = (hashlib.blake2b(f"{salt} {i}".encode(), digest_size=16).digest() for i in range(n))
    return np.frombuffer(b"".join(found), np.uint8).reshape(n, 16)


POOL = names("pool", 8000)
TRAIN_IDS = POOL[~ids.is_validation(POOL)]
VAL_IDS = POOL[ids.is_validation(POOL)]


@dataclass
class Document:
    """One document of a made-up source: its tokens follow from its id and its length."""

    id: bytes
    length: int  # the BOS included
    file: str
    row: int

    @property
    def tokens(self) -> np.ndarray:
        """BOS and then tokens no other document has in this order."""
        rng = np.random.default_rng(np.frombuffer(self.id, np.uint64))
        return np.concatenate([[BOS], rng.integers(8, VOCAB, self.length - 1)]).astype("<u2")

    @property
    def val(self) -> bool:
        """Whether it is held out."""
        return bool(ids.is_validation([self.id])[0])


def source(identities: Iterable[Any], lengths: Iterable[int], file: str = "a.jsonl") -> list[Document]:
    """Documents with these ids and lengths, rows of one file."""
    pairs = zip(identities, lengths, strict=True)
    return [Document(bytes(i), int(n), file, row) for row, (i, n) in enumerate(pairs)]


def unit(folder: Path, documents: Sequence[Document], seed: int = 0, shard_tokens: int = 10**6) -> Record:
    """What `tokenize` would have written for a part that holds `documents`."""

    def work(task: Task) -> None:
        document, part, start, count = cut([d.length for d in documents], shard_tokens)
        identities = np.array([list(documents[d].id) for d in document], np.uint8).reshape(-1, 16)
        places, val = ids.position(seed, identities, part), ids.is_validation(identities)
        rank = np.lexsort((document, part, *identities.T[::-1], places))
        document, part, start, count = document[rank], part[rank], start[rank], count[rank]
        identities, places, val = identities[rank], places[rank], val[rank]
        streams = [d.tokens for d in documents]
        pieces = [streams[d][a : a + n] for d, a, n in zip(document, start, count, strict=True)]
        path = task.output("tokens.bin")
        np.concatenate([np.zeros(0, "<u2"), *pieces]).tofile(path)
        task.add("tokens", path)
        columns = {
            "document_id": [i.tobytes() for i in identities],
            "part": part,
            "position": places,
            "token_start": np.cumsum(count) - count,
            "token_count": count,
            "val": val,
            "source_file": [documents[d].file for d in document],
            "source_row": [documents[d].row for d in document],
            "url": [None] * len(document),
        }
        with task.table("docs", TOKENISED) as writer:
            if len(document):
                writer.write(pa.table({f.name: pa.array(columns[f.name], f.type) for f in TOKENISED}))
        path = task.output("histogram.npy")
        np.save(path, histograms(places, ids.take(seed, identities), np.where(val, 0, count)))
        task.add("histogram", path)

    return run_unit(folder, work, {})


@dataclass
class Packed:
    """A packed mixture: the layout and, per split, each shard's record, rows and tokens."""

    plan: dict[str, Any]
    train: list[tuple[Record, list[dict[str, Any]], np.ndarray]]
    val: list[tuple[Record, list[dict[str, Any]], np.ndarray]]

    @property
    def digests(self) -> list[tuple[str, str, str]]:
        """All that must not depend on how documents lay in units."""
        return [tuple(r.output(n).digest for n in ("bin", "idx", "rows")) for r, _, _ in [*self.train, *self.val]]


def pack(
    folder: Path,
    units: Sequence[tuple[str, Record]],
    targets: dict[str, int],
    seed: int = 0,
    shard_tokens: int = 10**6,
    val_tokens: int = 10**9,
) -> Packed:
    """Lay out and write all shards of `units`, (source, record) each."""
    pairs = [r.output(name) for _, r in units for name in ("docs", "tokens")]
    common: dict[str, Any] = {"seed": seed, "units": [s for s, _ in units]}
    params = {**common, "shard_tokens": shard_tokens, "val_tokens": val_tokens, "targets": targets}
    laid = run_unit(folder / "layout", layout, params, [*pairs, *(r.output("histogram") for _, r in units)])
    plan = json.loads(Path(laid.output("layout").path).read_text())
    common |= {"build_id": BUILD_ID, "vocab_size": VOCAB, "bos_id": BOS}
    made: dict[str, list[Any]] = {"train": [], "val": []}
    jobs = [("train", s) for s in plan["shards"]]
    if plan["val"]["tokens"]:
        jobs.append(("val", {"low": "0", "high": "0", "tokens": plan["val"]["tokens"]}))
    for split, s in jobs:
        params = {**common, "split": split, "low": s["low"], "high": s["high"], "tokens": s["tokens"]}
        record = run_unit(folder / "shards", shard, params, [*pairs, laid.output("layout")])
        header, tokens = open_shard(record.output("bin").path)
        rows = pq.read_table(record.output("rows").path).to_pylist()
        assert (header.tokens, header.documents, header.build_id) == (len(tokens), len(rows), BUILD_ID[:16])
        made[split].append((record, rows, np.array(tokens)))
    return Packed(plan, **made)
