"""The entries of a manifest: what was packed, of which sources, with what tokenizer and evaluation sets.

The driver's part; `stages.pack.manifest` writes the file.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages import hashing
from stages.dedup.stage import DEDUP
from stages.download.stage import DOWNLOAD
from stages.filter.stage import FILTER
from stages.pack.layout import Layout
from stages.pack.mixture import shares_asked
from stages.scores.stage import example_configs, model_files
from stages.sources import hub
from stages.sources.registry import describe as describe_origin
from stages.stage import BuildContext, Record, Stage, Table
from stages.task import Artifact
from train.data.manifest import SCHEMA_VERSION, EvalSet, Shard, Source, SourceFile, Tokenizer, ValidationIds

DROPPED = "dropped."  # what the counters of documents that left the corpus begin with


@dataclass(frozen=True)
class PackedShard:
    """A shard that was written, under the name it is published as."""

    base: str  # of its files' names
    split: str  # train | val
    source: str  # of a validation shard: the one source it holds; empty for the mixture
    record: Record

    def files(self) -> dict[str, Artifact]:
        """Return its three files by name."""
        return {
            f"{self.base}.bin": self.record.output("bin"),
            f"{self.base}.idx": self.record.output("idx"),
            f"{self.base}.rows.parquet": self.record.output("rows"),
        }

    def describe(self) -> Shard:
        """Return the manifest's entry."""
        tokens, index, rows = self.record.output("bin"), self.record.output("idx"), self.record.output("rows")
        return Shard(
            path=f"{self.base}.bin",
            split=self.split,
            tokens=tokens.tokens,
            documents=tokens.rows,
            bytes=tokens.bytes,
            sha256=tokens.sha256,
            index=f"{self.base}.idx",
            index_sha256=index.sha256,
            rows=f"{self.base}.rows.parquet",
            rows_sha256=rows.sha256,
            rows_digest=rows.digest,
            source=self.source,
            padding=self.record.counts["padding"],
        )


def manifest_values(
    context: BuildContext,
    stage: Stage[Any],
    name: str,
    build_id: str,
    tokenizer: Tokenizer,
    evalsets: Mapping[str, Record],
    packed: Sequence[PackedShard],
    val_ids: Artifact,
    layout: Layout,
) -> dict[str, Any]:
    """Return all that the manifest of mixture `name` says, as JSON values.

    `stage` packed it. `evalsets`: the record of each set's encoding, by name. Warns of an evaluation set that is read
    from a file which a source trains on.
    """
    recipe = context.recipe
    shards = [shard.describe() for shard in packed]
    train = [shard for shard in shards if shard.split == "train"]
    val = [shard for shard in shards if shard.split == "val" and not shard.source]
    train_records = [shard.record for shard in packed if shard.split == "train"]
    val_records = [shard.record for shard in packed if shard.split == "val" and not shard.source]
    sources = [
        describe_source(context, stage, name, source, layout, train_records, val_records)
        for source in recipe.mixtures[name].sources
    ]
    values = {
        "schema_version": SCHEMA_VERSION,
        "build_id": build_id,
        "name": recipe.name,
        "phase": recipe.phase_of(name),
        "mixture": name,
        "seed": recipe.seed,
        "tokens": sum(shard.tokens - shard.padding for shard in train),
        "val_tokens": sum(shard.tokens - shard.padding for shard in val),
        "documents": sum(shard.documents for shard in train),
        "tokenizer": tokenizer.to_dict(),
        "shards": [asdict(shard) for shard in shards],
        "sources": [asdict(source) for source in sources],
        "val_ids": asdict(ValidationIds("val_ids.bin", val_ids.sha256, val_ids.rows, hashing.VALIDATION_RULE)),
        "recipe": recipe.to_dict(),
        "source_tree": context.code_digest(stage),
        "code": context.modules(stage),
        "files": {name: [asdict(file) for file in files] for name, files in files_read(context).items()},
        "versions": context.versions(stage),
    }
    described_sets = [describe_evalset(context, evalset, record) for evalset, record in evalsets.items()]
    warn_of_training_files(context, described_sets)
    if described_sets:
        values["evals"] = [asdict(evalset) for evalset in described_sets]
    return values


def files_read(context: BuildContext) -> dict[str, list[SourceFile]]:
    """Return the files that decided what is packed, by what read them: sources, sets kept out, and scores."""
    recipe = context.recipe
    readers = [*recipe.sources, *recipe.decontaminate.against, *example_configs(recipe.scores)]
    return {name: context.source_files(name) for name in readers} | model_files(recipe.scores, context.identify)


def describe_evalset(context: BuildContext, name: str, record: Record) -> EvalSet:
    """Return the manifest's entry for one evaluation set, from the record of its encoding."""
    config, encoded = context.recipe.evals[name], record.output("encoded")
    return EvalSet(
        name=name,
        path=f"eval_{name}.json",
        sha256=encoded.sha256,
        items=encoded.rows,
        prompt=config.prompt,
        kind=config.kind,
        origin=config.where,
        revision=hub.commits(config.addresses(), config.revision) or config.revision,
        license=config.license,
        files=context.source_files(name),
    )


def describe_tokenizer(context: BuildContext, record: Record) -> Tokenizer:
    """Return the manifest's entry for the tokenizer."""
    artifact = record.output("tokenizer")
    report = json.loads(Path(context.artifact_path(record.output("report"))).read_text())
    return Tokenizer(
        path=f"tokenizer{Path(artifact.path).suffix}",
        sha256=artifact.sha256,
        vocab_size=report["vocab_size"],
        bos_id=artifact.meta["bos_id"],
        pad_id=artifact.meta["pad_id"],
        special_ids=report["special_ids"],
        token_bytes=report["token_bytes"],
        space_ids=report.get("space_ids", []),
    )


def dropped_by(context: BuildContext, stages: Iterable[Stage[Any]], source: str) -> Counter[str]:
    """Return how many documents of a source `stages` dropped, by reason."""
    by_reason: Counter[str] = Counter()
    for counts in (context.counts(stage, source) for stage in stages if stage.drops_documents):
        by_reason.update({name.removeprefix(DROPPED): n for name, n in counts.items() if name.startswith(DROPPED)})
    return by_reason


def documents_kept(context: BuildContext, stage: Stage[Any], source: str) -> int:
    """Return how many documents of a source are left after `stage`, or after the filter where the run got no further.

    Deduplication counts what it keeps; the stages behind it count what they drop.
    """
    last = DEDUP if context.built(DEDUP) is not None else FILTER
    later = [upstream for upstream in stage.upstream() if upstream is not DEDUP and DEDUP in upstream.upstream()]
    return context.counts(last, source).get("kept", 0) - dropped_by(context, later, source).total()


def drop_reasons(context: BuildContext, stage: Stage[Any], source: str) -> dict[str, int]:
    """Return how many documents of a source are not in the corpus, by reason.

    With those kept and quarantined they are all that were read. `stage` is the last that counts. `beyond_budget` are
    those that the rules kept of the parts behind the one that filled the source's budget.
    """
    by_reason = dropped_by(context, stage.upstream(), source)
    filtered, deduplicated = context.counts(FILTER, source), context.counts(DEDUP, source)
    if "rows_in" in deduplicated:
        beyond_budget = filtered.get("kept", 0) - deduplicated["rows_in"]
        if beyond_budget > 0:
            by_reason["beyond_budget"] = beyond_budget
    return dict(by_reason)


def describe_source(
    context: BuildContext,
    stage: Stage[Any],
    mixture_name: str,
    name: str,
    layout: Layout,
    train: Sequence[Record],
    val: Sequence[Record],
) -> Source:
    """Return the manifest's entry for one source: what came in, what was dropped and why, what the mixture took."""
    config, mixture = context.recipe.sources[name], context.recipe.mixtures[mixture_name]
    downloaded = context.counts(DOWNLOAD, name)
    dropped = drop_reasons(context, stage, name)
    target, available = layout.targets[name], layout.available[name]

    def total(records: Sequence[Record], counter: str) -> int:
        return sum(record.counts.get(f"{counter}.{name}", 0) for record in records)

    tokens = total(train, "tokens")
    return Source(
        name=name,
        kind=config.kind,
        **describe_origin(config),
        rows_in=downloaded.get("rows_in", 0),
        rows_kept=documents_kept(context, stage, name),
        dropped=dict(sorted(dropped.items())),
        quarantined=downloaded.get("quarantined", 0),
        available_tokens=available,
        tokens=tokens,
        documents=total(train, "documents"),
        ratio_asked=shares_asked(mixture, layout.available)[name],
        ratio_got=tokens / mixture.tokens,
        epochs=target / available if available else 0.0,
        max_epochs=mixture.cap(name),
        val_tokens=total(val, "tokens"),
        val_documents=total(val, "documents"),
        files_lost=context.lost_files(name),
    )


def warn_of_training_files(context: BuildContext, evalsets: Sequence[EvalSet]) -> None:
    """Warn of a set that is read from a file which a source trains on too; to be called when sources are read."""
    for evalset in evalsets:
        asked = {file.digest: file.name for file in evalset.files}
        for source in context.recipe.sources:
            trained = {file.digest for file in context.source_files(source)}
            for shared in sorted(name for digest, name in asked.items() if digest in trained):
                context.warn(
                    f"evals.{evalset.name} asks what {source} trains on: both read {shared}; name another file"
                )


def mixture_table(manifest: Mapping[str, Any], window: int | None = None) -> Table:
    """Return a table of the shares asked and got, from a manifest's values.

    With a `window` of tokens it says how many documents of each source meet in one.
    """
    header = ["source", "asked", "got", "tokens", "documents", "epochs", "cap"]
    if window:
        header.append("documents/window")
    rows = []
    for source in manifest["sources"]:
        row = [
            source["name"],
            f"{source['ratio_asked']:.2%}",
            f"{source['ratio_got']:.4%}",
            source["tokens"],
            source["documents"],
            f"{source['epochs']:.3f}",
            f"{source['max_epochs']:g}",
        ]
        if window:
            row.append(f"{window * source['documents'] / max(1, source['tokens']):.2f}")
        rows.append(row)
    shards = sum(shard["split"] == "train" for shard in manifest["shards"])
    tokens, val_tokens = manifest["tokens"], manifest["val_tokens"]
    title = f"Mixture {manifest['mixture']}: {tokens:,} tokens in {shards} shards, {val_tokens:,} held out"
    return Table(title, header, rows)
