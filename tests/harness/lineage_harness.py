"""A mixture over every kind of source, small enough to build in this process, for tests of lineage."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from built import build, texts

from train.data.manifest import Manifest, load_manifest

NAME = "every"
LONG = "é" + " ".join(texts(9, 60))
RECIPE: dict[str, Any] = {
    "name": NAME,
    "seed": 3,
    "dedup": {"priority": ["notes"]},
    "tokenizer": {"vocab_size": 400, "sample": "1MB"},
    "shard_tokens": 4000,
    "mixtures": {
        "pretrain": {
            "tokens": 40_000,
            "ratios": {"web": "30%", "notes": "20%", "maths": "15%", "quiz": "25%", "docs": "10%"},
            "max_epochs": {"quiz": 3, "maths": 2},
        },
    },
    "train": {"pretrain": {"mixture": "pretrain", "steps": 6, "batch_size": 4, "seq_len": 64}},
}


def write_corpus(folder: Path) -> dict[str, Any]:
    """Files of every kind, and the `sources` of a recipe that reads them.

    `notes` and `web` share ten texts; one of `quiz`, which is taken more than once, is longer than a shard.
    """
    folder.mkdir(parents=True, exist_ok=True)
    notes = texts(2, 120)
    web = [*texts(1, 300), *notes[:10]]
    (folder / "web").mkdir()
    for i in range(2):
        mine = web[i::2]
        urls = [f"https://{'www.' if n % 2 else ''}w{n % 7}.test/{i}/{n}" for n in range(len(mine))]
        pq.write_table(pa.table({"text": mine, "url": urls}), folder / "web" / f"w{i}.parquet", row_group_size=40)
    rows = [{"text": t, "meta": {"url": f"http://notes.test/{n}"}} for n, t in enumerate(notes)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "notes.jsonl.zst").write_bytes(zstandard.compress(lines.encode()))
    pairs = [{"query": q, "response": a} for q, a in zip(texts(4, 150, 20), texts(5, 150, 20), strict=True)]
    (folder / "maths.json").write_text(json.dumps(pairs))
    choices = {"label": ["A", "B"], "text": ["wood", "quartz"]}
    questions = [{"question": t, "choices": choices, "answerKey": "B"} for t in [*texts(6, 15, 20), LONG]]
    pq.write_table(pa.Table.from_pylist(questions), folder / "quiz.parquet")
    return {
        "web": {"from": "parquet", "path": str(folder / "web")},
        "notes": {"from": "jsonl", "path": str(folder / "notes.jsonl.zst"), "url": "meta.url"},
        "maths": {"from": "json_array", "path": str(folder / "maths.json"), "template": "Q: {query}\nA: {response}"},
        "quiz": {"from": "ai2_arc", "path": str(folder / "quiz.parquet")},
        "docs": {"from": "installed_docs", "packages": ["fsspec"]},
    }


def recipe(folder: Path, **keys: Any) -> dict[str, Any]:
    """RECIPE over a corpus in `folder`, which is written unless it is there."""
    corpus = folder / "corpus"
    sources = json.loads((folder / "sources.json").read_text()) if corpus.exists() else write_corpus(corpus)
    (folder / "sources.json").write_text(json.dumps(sources))
    return {**RECIPE, "sources": sources, **keys}


def every(folder: Path, **keys: Any) -> Manifest:
    """Build it under `folder`, and read the manifest that was published."""
    build(folder, recipe(folder, **keys), "pack_pretrain")
    return load_manifest(published(folder))


def published(folder: Path) -> Path:
    """Where the mixture lies."""
    return folder / "build" / NAME / "pretrain"


def points(manifest: Manifest, n: int, seed: int = 0) -> list[tuple[str, int, int]]:
    """Random tokens of random shards, every token as likely as any other."""
    rng = random.Random(seed)
    sizes = [s.tokens for s in manifest.shards]
    return [(s.path, t, t + 1) for s in rng.choices(manifest.shards, sizes, k=n) for t in [rng.randrange(s.tokens)]]


def run_folder(manifest: Manifest, folder: Path, **keys: Any) -> str:
    """A run.json as the trainer writes it."""
    folder.mkdir(exist_ok=True)
    facts = {"build_id": manifest.build_id, "seed": 11, "batch_size": 8, "seq_len": 48, "steps": 40, "world_size": 2}
    (folder / "run.json").write_text(json.dumps({**facts, **keys}))
    return str(folder)
