"""The manifest of a packed mixture: its entries, and the unit that proves the split and writes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stages import hashing
from stages.base import Record, Task
from stages.pack.mixture import asked
from stages.sources import hub
from train.data.manifest import SCHEMA_VERSION, EvalSet, Shard, Source, Tokenizer, manifest_text


def manifest(task: Task) -> None:
    """Write `val_ids.bin` and `manifest.json`.

    params: manifest (all but val_ids). inputs: the sorted ids of held-out documents, in any number of files. That no
    training document is among them, each shard has proved of its own documents, by the rule.
    """
    words = [np.fromfile(task.path(a), ">u8").reshape(-1, 2) for a in task.inputs]
    held = np.concatenate([np.zeros((0, 2), ">u8"), *words])
    order = np.lexsort((held[:, 1], held[:, 0]))
    held = held[order]
    fresh = np.ones(len(held), bool)
    fresh[1:] = (held[1:] != held[:-1]).any(axis=1)  # a text that several sources hold
    raw = held[fresh].astype(">u8").tobytes()
    path = task.output("val_ids.bin")
    Path(path).write_bytes(raw)
    task.add("val_ids", path, rows=len(raw) // 16)
    value = task.params["manifest"]
    value["val_ids"] = {
        "path": "val_ids.bin",
        "sha256": hashlib.sha256(raw).hexdigest(),
        "count": len(raw) // 16,
        "rule": hashing.VALIDATION_RULE,
    }
    path = task.output("manifest.json")
    Path(path).write_text(manifest_text(value), encoding="utf-8")
    task.add("manifest", path)


Packed = tuple[str, str, str, Record]  # base of the file names, split, source (of a validation shard), record


def contents(
    context: Any,
    name: str,
    packed: list[Packed],
    targets: Mapping[str, int],
    available: Mapping[str, int],
) -> dict[str, Any]:
    """The manifest's account of what was packed: totals, shards, sources, and the recipe they came from."""
    recipe = context.recipe
    shards = [describe_shard(*entry) for entry in packed]
    train = [record for _, split, _, record in packed if split == "train"]
    val = [record for _, split, source, record in packed if split == "val" and not source]
    mixture = recipe.mixtures[name]
    sources = [describe_source(context, s, mixture, targets, available, train, val) for s in mixture.sources]
    return {
        "schema_version": SCHEMA_VERSION,
        "name": recipe.name,
        "phase": recipe.phase_of(name),
        "mixture": name,
        "seed": recipe.seed,
        "tokens": sum(s.tokens - s.padding for s in shards if s.split == "train"),
        "val_tokens": sum(s.tokens - s.padding for s in shards if s.split == "val" and not s.source),
        "documents": sum(s.documents for s in shards if s.split == "train"),
        "shards": [asdict(s) for s in shards],
        "sources": [asdict(s) for s in sources],
        "recipe": recipe.to_dict(),
    }


def describe_evals(context: Any, name: str, record: Record) -> EvalSet:
    """The manifest's entry for one evaluation set, from the record of its encoding."""
    config, encoded = context.recipe.evals[name], record.output("encoded")
    return EvalSet(
        name=name,
        path=f"eval_{name}.json",
        sha256=encoded.sha256,
        items=encoded.rows,
        prompt=config.prompt,
        kind=config.kind,
        origin=config.where,
        revision=hub.commits(config.path, config.revision) or config.revision,
        license=config.license,
        files=context.source_files(name),
    )


def describe_tokenizer(context: Any, record: Record) -> Tokenizer:
    """The manifest's entry for the tokenizer."""
    artifact = record.output("tokenizer")
    report = json.loads(Path(context.artifact_path(record.output("report"))).read_text())
    return Tokenizer(
        path="tokenizer.json",
        sha256=artifact.sha256,
        vocab_size=report["vocab_size"],
        bos_id=artifact.meta["bos_id"],
        pad_id=artifact.meta["pad_id"],
        special_ids=report["special_ids"],
        token_bytes=report["token_bytes"],
    )


def describe_shard(base: str, split: str, source: str, record: Record) -> Shard:
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
        source=source,
        padding=record.counts["padding"],
    )


def reasons(context: Any, name: str) -> dict[str, int]:
    """Documents of a source that are not in the corpus, by reason: with those kept and quarantined all that were read.

    `beyond_budget` are those that the rules kept of the parts behind the one that filled the source's budget.
    """
    found: dict[str, int] = {}
    for stage in ("filter", "dedup", "decontaminate", "exclude"):
        for what, n in context.counts(stage, name).items():
            if what.startswith("dropped."):
                reason = what.removeprefix("dropped.")
                found[reason] = found.get(reason, 0) + n
    filtered, taken = context.counts("filter", name), context.counts("dedup", name)
    if "rows_in" in taken and (beyond := filtered.get("kept", 0) - taken["rows_in"]) > 0:
        found["beyond_budget"] = beyond
    return found


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
    downloaded, kept, dropped = context.counts("download", name), context.counts("dedup", name), reasons(context, name)

    def total(records: list[Record], what: str) -> int:
        return sum(r.counts.get(f"{what}.{name}", 0) for r in records)

    got = total(train, "tokens")
    return Source(
        name=name,
        kind=config.kind,
        **context.describe_source(name),
        rows_in=downloaded.get("rows_in", 0),
        rows_kept=kept.get("kept", 0) - dropped.get("contaminated", 0) - dropped.get("excluded", 0),
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
        files_lost=sum(1 for e in context.state("download").failed if e.label.split(" ")[0] == name),
    )


def warn_of_training_files(context: Any, sets: list[EvalSet]) -> None:
    """Warn of a set that is read from a file which a source trains on too; to be called when sources are read."""
    for told in sets:
        files = {file.digest: file.name for file in told.files}
        for source in context.recipe.sources:
            for shared in sorted({files[f.digest] for f in context.source_files(source) if f.digest in files}):
                context.warn(f"evals.{told.name} asks what {source} trains on: both read {shared}; name another file")
