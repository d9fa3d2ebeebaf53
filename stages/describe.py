"""The manifest of a packed mixture: its entries, and the unit that proves the split and writes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages import ids
from stages.base import Record, Task
from stages.mixture import asked
from train.manifest import Shard, Source, SourceFile, Tokenizer, manifest_text


def manifest(task: Task) -> None:
    """Prove that no training shard holds a validation document; write `manifest.json` and `val_ids.bin`.

    params: manifest (all but val_ids), units (how many).
    inputs: docs tables of all units, then the rows tables of all training shards.
    """
    params = task.params
    units = task.inputs[: params["units"]]
    found = set()
    for artifact in units:
        table = pq.read_table(task.path(artifact), columns=["document_id"], filters=[("val", "==", True)])
        found.update(table["document_id"].to_pylist())
    held = sorted(found)
    for artifact in task.inputs[params["units"] :]:
        inside = pq.read_table(task.path(artifact), columns=["document_id"])["document_id"].to_pylist()
        leaked = found.intersection(inside)
        if leaked:
            raise AssertionError(f"training shard {artifact.path} holds validation document {min(leaked).hex()}")
    path = task.output("val_ids.bin")
    Path(path).write_bytes(b"".join(held))
    task.add("val_ids", path, rows=len(held))
    value = params["manifest"]
    value["val_ids"] = {
        "path": "val_ids.bin",
        "sha256": hashlib.sha256(b"".join(held)).hexdigest(),
        "count": len(held),
        "rule": ids.VALIDATION_RULE,
    }
    path = task.output("manifest.json")
    Path(path).write_text(manifest_text(value), encoding="utf-8")
    task.add("manifest", path)


def describe_tokenizer(context: Any, record: Record) -> Tokenizer:
    """The manifest's entry for the tokenizer."""
    artifact = record.output("tokenizer")
    report = json.loads(Path(context.artifact_path(record.output("report"))).read_text())
    specials = report["special_ids"]
    return Tokenizer(
        path="tokenizer.json",
        sha256=artifact.sha256,
        vocab_size=report["vocab_size"],
        bos_id=specials["<|bos|>"],
        pad_id=specials["<|pad|>"],
        special_ids=specials,
        token_bytes=report["token_bytes"],
    )


def describe_shard(base: str, split: str, record: Record) -> Shard:
    """The manifest's entry for one packed shard, under the names it is published as."""
    tokens, index, rows = record.output("bin"), record.output("idx"), record.output("rows")
    return Shard(
        path=f"{base}.bin",
        split=split,
        tokens=tokens.tokens,
        documents=tokens.rows,
        bytes=tokens.bytes,
        sha256=tokens.sha256,
        index=f"{base}.idx",
        index_sha256=index.sha256,
        rows=f"{base}.rows.parquet",
        rows_sha256=rows.sha256,
        rows_digest=rows.digest,
    )


def describe_source(
    context: Any,
    name: str,
    mixture: Any,
    targets: Mapping[str, int],
    available: Mapping[str, int],
    train: list[Record],
    val: list[Record],
) -> Source:
    """The manifest's entry for one source: what came in, what was dropped and why, what went into the mixture."""
    config = context.recipe.sources[name]
    downloaded, kept = context.counts("download", name), context.counts("dedup", name)
    dropped: dict[str, int] = {}
    for stage in ("filter", "dedup"):
        for what, n in context.counts(stage, name).items():
            if what.startswith("dropped."):
                reason = what.removeprefix("dropped.")
                dropped[reason] = dropped.get(reason, 0) + n

    def total(records: list[Record], what: str) -> int:
        return sum(r.counts.get(f"{what}.{name}", 0) for r in records)

    got = total(train, "tokens")
    return Source(
        name=name,
        kind=config.kind,
        **context.describe_source(name),
        rows_in=downloaded.get("rows_in", 0),
        rows_kept=kept.get("kept", 0),
        dropped=dict(sorted(dropped.items())),
        quarantined=downloaded.get("quarantined", 0),
        available_tokens=available[name],
        tokens=got,
        documents=total(train, "documents"),
        ratio_asked=asked(mixture, available)[name],
        ratio_got=got / mixture.tokens,
        epochs=targets[name] / available[name] if available[name] else 0.0,
        max_epochs=mixture.cap(name),
        val_tokens=total(val, "tokens"),
        val_documents=total(val, "documents"),
        files=[SourceFile(*file) for file in context.source_files(name)],
        files_lost=sum(1 for e in context.state("download").failed if e.label.split(" ")[0] == name),
    )
