"""The entries of a manifest: what was packed, of which sources, with what tokenizer and evaluation sets."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.dedup.stage import DEDUP
from stages.download.stage import DOWNLOAD
from stages.filter.stage import FILTER
from stages.pack.config import Mixture
from stages.pack.mixture import asked
from stages.sources import hub
from stages.sources.registry import describe as describe_origin
from stages.stage import BuildContext, Record, Stage
from train.data.manifest import SCHEMA_VERSION, EvalSet, Shard, Source, Tokenizer

Packed = tuple[str, str, str, Record]  # base of the file names, split, source (of a validation shard), record


def contents(
    context: BuildContext,
    stage: Stage[Any],
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
    sources = [describe_source(context, stage, s, mixture, targets, available, train, val) for s in mixture.sources]
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


def describe_evals(context: BuildContext, name: str, record: Record) -> EvalSet:
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


def describe_tokenizer(context: BuildContext, record: Record) -> Tokenizer:
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


def drop_reasons(context: BuildContext, stage: Stage[Any], name: str) -> dict[str, int]:
    """Documents of a source that are not in the corpus, by reason: with those kept and quarantined all that were read.

    `beyond_budget` are those that the rules kept of the parts behind the one that filled the source's budget.
    """
    by_reason: Counter[str] = Counter()
    for upstream in stage.upstream():
        for counter, n in context.counts(upstream, name).items() if upstream.drops_documents else ():
            if counter.startswith("dropped."):
                by_reason[counter.removeprefix("dropped.")] += n
    filtered, taken = context.counts(FILTER, name), context.counts(DEDUP, name)
    if "rows_in" in taken and (beyond := filtered.get("kept", 0) - taken["rows_in"]) > 0:
        by_reason["beyond_budget"] = beyond
    return dict(by_reason)


def describe_source(
    context: BuildContext,
    stage: Stage[Any],
    name: str,
    mixture: Mixture,
    targets: Mapping[str, int],
    available: Mapping[str, int],
    train: list[Record],
    val: list[Record],
) -> Source:
    """The manifest's entry for one source: what came in, what was dropped and why, what went into the mixture."""
    config = context.recipe.sources[name]
    downloaded, kept = context.counts(DOWNLOAD, name), context.counts(DEDUP, name)
    dropped = drop_reasons(context, stage, name)

    def total(records: list[Record], what: str) -> int:
        return sum(r.counts.get(f"{what}.{name}", 0) for r in records)

    got = total(train, "tokens")
    return Source(
        name=name,
        kind=config.kind,
        **describe_origin(config),
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
        files_lost=context.lost_files(name),
    )


def warn_of_training_files(context: BuildContext, sets: list[EvalSet]) -> None:
    """Warn of a set that is read from a file which a source trains on too; to be called when sources are read."""
    for told in sets:
        files = {file.digest: file.name for file in told.files}
        for source in context.recipe.sources:
            for shared in sorted({files[f.digest] for f in context.source_files(source) if f.digest in files}):
                context.warn(f"evals.{told.name} asks what {source} trains on: both read {shared}; name another file")
