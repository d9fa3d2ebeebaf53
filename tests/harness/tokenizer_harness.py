"""Curated parts of made-up text, and a tokenizer trained on them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from stage_harness import run_unit
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from stages.kernels.pretokens import LONGEST_WORD
from stages.schemas import CURATED, document_id
from stages.stage import Record, Unit
from stages.task import Artifact
from stages.tokenizer import stage as build_tokenizer
from stages.tokenizer.config import TokenizerConfig
from stages.tokenizer.spec import SPECIALS
from stages.tokenizer.split import splitter

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


class OnlyParts:
    """A context in which the parts of the curated text are there already, and units run in `folder` one by one."""

    dry = False

    def __init__(self, folder: Path, docs: dict[str, list[Artifact]], config: TokenizerConfig):
        self.folder, self.docs, self.warnings, self.records = folder, docs, [], []
        self.recipe = SimpleNamespace(exclude=SimpleNamespace(asked=False), tokenizer=config)

    async def stage(self, _: Any) -> Any:
        return self

    def check_quarantine(self) -> None:
        pass

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    async def run(self, _: Any, unit: Unit) -> Record:
        self.records.append(run_unit(self.folder, unit.work, unit.params, unit.inputs))
        return self.records[-1]

    async def map(self, stage: Any, units: Iterable[Unit]) -> list[Record]:
        return [await self.run(stage, unit) for unit in units]


def train(folder: Path, parts: list[Artifact], sources: list[list[Any]] | None = None, **keys: Any) -> Record:
    """What build_tokenizer makes of parts, of one source `a` unless told otherwise."""
    remaining = iter(parts)
    docs = {name: [next(remaining) for _ in range(n)] for name, n in sources or [["a", len(parts)]]}
    config = TokenizerConfig.model_construct(**{"vocab_size": 400, "sample": 10**6, **keys})
    return asyncio.run(build_tokenizer.build(OnlyParts(folder, docs, config)))  # type: ignore[arg-type]


def reference_tokenizer(texts: list[str], vocab_size: int, split: str, digits: int | None) -> Tokenizer:
    """What the trainer of `tokenizers` makes of texts, with words longer than LONGEST_WORD cut as here."""
    tokenizer = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(f".{{1,{LONGEST_WORD}}}"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([splitter(split, digits), cut])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.pre_tokenizer = splitter(split, digits)
    return tokenizer
