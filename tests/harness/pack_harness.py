"""Tokenized units made up in memory, and packing without an engine, for tests of layout and shards."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from stage_harness import run_unit

from stages import hashing
from stages.pack.config import Mixture
from stages.pack.layout import Layout, lay_out
from stages.pack.stage import PACK, training_shards, validation_shards
from stages.stage import Record, Unit
from stages.task import Artifact, Task
from stages.tokenize.stage import TOKENIZE, TokenizedUnit
from stages.tokenize.token_file import TOKENIZED, write_docs, write_histogram
from stages.tokenize.work import histogram, split_long_documents
from train.data.format import read_shard

BUILD_ID = "0123456789abcdef" * 4
VOCAB, BOS, PAD = 500, 0, 1


def names(salt: str, n: int) -> np.ndarray:
    """`n` document ids, bytes [n, 16]."""
    found = (hashlib.blake2b(f"{salt} {i}".encode(), digest_size=16).digest() for i in range(n))
    return np.frombuffer(b"".join(found), np.uint8).reshape(n, 16)


POOL = names("pool", 8000)
TRAIN_IDS = POOL[~hashing.is_validation(POOL)]
VAL_IDS = POOL[hashing.is_validation(POOL)]


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
        return bool(hashing.is_validation([self.id])[0])


def source(identities: Iterable[Any], lengths: Iterable[int], file: str = "a.jsonl") -> list[Document]:
    """Documents with these ids and lengths, rows of one file."""
    pairs = zip(identities, lengths, strict=True)
    return [Document(bytes(i), int(n), file, row) for row, (i, n) in enumerate(pairs)]


def unit(folder: Path, documents: Sequence[Document], seed: int = 0, shard_tokens: int = 10**6) -> Record:
    """What `tokenize` would have written for a part that holds `documents`."""

    def work(task: Task) -> None:
        parts = split_long_documents(np.array([d.length for d in documents], np.int64), shard_tokens)
        document, part, start, count = parts.document, parts.part, parts.start, parts.count
        identities = np.array([list(documents[d].id) for d in document], np.uint8).reshape(-1, 16)
        places, val = hashing.position(seed, identities, part), hashing.is_validation(identities)
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
        table = pa.table({f.name: pa.array(columns[f.name], f.type) for f in TOKENIZED})
        write_docs(task, table)
        write_histogram(task, histogram(seed, table, val))

    return run_unit(folder, work, {})


@dataclass
class Packed:
    """A packed mixture: the layout and, per split, each shard's record, rows and tokens."""

    layout: Layout
    train: list[tuple[Record, list[dict[str, Any]], np.ndarray]]
    val: list[tuple[Record, list[dict[str, Any]], np.ndarray]]  # of the mixture
    val_of: dict[str, tuple[Record, list[dict[str, Any]], np.ndarray]]  # of each source

    @property
    def digests(self) -> list[tuple[str, ...]]:
        """All that must not depend on how documents lay in units."""
        made = [*self.train, *self.val, *self.val_of.values()]
        return [tuple(r.output(n).digest for n in ("bin", "idx", "rows")) for r, _, _ in made]


class PackContext:
    """What packing needs of a context whose stage `tokenize` is done; units run one after another, each once.

    Thousands of packs are made in these tests, so there is no store, and nothing is synced.
    """

    def __init__(self, folder: Path, recipe: Any, units: Sequence[tuple[str, Record]]):
        self.folder, self.recipe = folder, recipe
        self.records: dict[str, Record] = {}
        self.units: dict[str, list[TokenizedUnit]] = {}
        for name, record in units:
            self.units.setdefault(name, []).append(TokenizedUnit(record))

    def artifact_path(self, artifact: Artifact) -> str:
        """Return where a result lies."""
        return artifact.path

    async def stage(self, stage: Any) -> Any:
        """Return the tokenized units."""
        assert stage is TOKENIZE
        return self.units

    async def run(self, stage: Any, unit: Unit) -> Record:
        """Run a unit, or find what it left."""
        key = repr((unit.work, unit.params, [artifact.digest for artifact in unit.inputs]))
        if key not in self.records:
            self.records[key] = run_unit(self.folder / stage.name, unit.work, unit.params, unit.inputs)
        return self.records[key]

    async def map(self, stage: Any, units: Iterable[Unit]) -> list[Record]:
        """Run units in turn."""
        return [await self.run(stage, unit) for unit in units]

    def check_quarantine(self) -> None:
        """Do nothing: no row is bad."""


def mixture(targets: dict[str, int], val_tokens: int = 10**9, **keys: Any) -> Mixture:
    """A mixture of exactly `targets`, whatever repeats that takes."""
    counts = {name: n for name, n in targets.items() if n}
    return Mixture(counts=counts, max_epochs=1e6, val_tokens=val_tokens, **keys)


def pack(
    folder: Path,
    units: Sequence[tuple[str, Record]],
    targets: dict[str, int],
    seed: int = 0,
    shard_tokens: int = 10**6,
    val_tokens: int = 10**9,
    name: str = "pretrain",
    mixtures: dict[str, Mixture] | None = None,
    **keys: Any,
) -> Packed:
    """Lay out and write all shards of `units`, (source, record) each."""
    mixtures = mixtures or {name: mixture(targets, val_tokens, **keys)}
    recipe = SimpleNamespace(name="test", seed=seed, shard_tokens=shard_tokens, mixtures=mixtures)
    context = PackContext(folder, recipe, units)
    common = {"seed": seed, "build_id": BUILD_ID, "vocab_size": VOCAB, "bos_id": BOS, "pad_id": PAD}
    common["window"] = mixtures[name].window

    async def made() -> tuple[Layout, list[Record], list[tuple[str, Record]]]:
        layout = await lay_out(context, PACK, name)
        train = await training_shards(context, PACK["pretrain"], common, layout)
        return layout, train, await validation_shards(context, PACK["pretrain"], common, layout, mixtures[name])

    def read(record: Record) -> tuple[Record, list[dict[str, Any]], np.ndarray]:
        header, tokens = read_shard(record.output("bin").path)
        rows = pq.read_table(record.output("rows").path).to_pylist()
        assert (header.tokens, header.documents, header.build_id) == (len(tokens), len(rows), BUILD_ID[:16])
        return record, rows, np.array(tokens)

    layout, train, val = asyncio.run(made())
    return Packed(
        layout,
        [read(r) for r in train],
        [read(r) for source, r in val if not source],
        {source: read(r) for source, r in val if source},
    )
