"""Curated parts of made-up text, and a tokenizer trained on them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from stage_harness import run_unit

from stages.schemas import CURATED, document_id
from stages.stage import Record
from stages.task import Artifact
from stages.tokenizer import stage as build_tokenizer

WORDS = [hashlib.blake2b(bytes([i % 200]), digest_size=3).hexdigest() for i in range(4000)]
TEXTS = [f"Document {i}: " + " ".join(WORDS[i * 7 % 3900 :][: 5 + i % 40]) for i in range(400)]
TEXTS += ["<|bos|> is written <|end|> here", "größer 日本語 🙂" * 3, "\r\n \t x"]


def curated(folder: Path, name: str, texts: list[str], group: int = 50) -> Artifact:
    """A curated part, as dedup writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.parquet"
    rows = [(document_id(t), t, f"{name}.jsonl", i, None, name) for i, t in enumerate(texts)]
    pq.write_table(
        pa.Table.from_pylist([dict(zip(CURATED.names, r, strict=True)) for r in rows], CURATED),
        path,
        row_group_size=group,
    )
    size = sum(len(t.encode()) for t in texts)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Artifact(str(path), digest, name="docs", rows=len(texts), meta={"text_bytes": size})


def train(folder: Path, parts: list[Artifact], **params: Any) -> Record:
    """The unit of build_tokenizer, of one source `a` unless told otherwise."""
    defaults = {
        "vocab_size": 400,
        "split": "gpt4",
        "digits": None,
        "reserved": [],
        "sample": 10**6,
        "sources": [["a", len(parts)]],
    }
    return run_unit(folder, build_tokenizer.work, {**defaults, **params}, parts)
