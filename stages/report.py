"""What a run says when it ends: documents by reason, the tokenizer, mixtures asked and got, training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.decontaminate.stage import DECONTAMINATE
from stages.dedup.stage import DEDUP
from stages.download.stage import DOWNLOAD
from stages.exclude.stage import EXCLUDE
from stages.filter.stage import FILTER
from stages.pack.describe import drop_reasons
from stages.pack.stage import PACK
from stages.stage import BuildContext, Record, Table
from stages.tokenize.stage import TOKENIZE
from stages.tokenizer.stage import BUILD_TOKENIZER
from stages.train.stage import TRAIN

ENCODED = "encoded_by."  # then the engine: a counter of tokenized units


def report(context: BuildContext) -> Iterator[list[Table | str]]:
    """Yield, for each stage that was built and has something to say, its tables and lines."""
    if context.counts(DOWNLOAD):
        yield [documents(context)]
        if table := duplicates(context):
            yield [table]
    tokenizer = context.built(BUILD_TOKENIZER)
    if tokenizer and context.counts(TOKENIZE):
        yield [tokens(context, tokenizer), *engines(context)]
    for stage in PACK.values():
        if packed := context.built(stage):
            yield [mixture(packed.manifest, context.recipe.window_of(packed.name))]
    if trained := context.built(TRAIN):
        tables, samples = training(context, trained)
        for table in tables:
            yield [table]
        yield list(samples)
    for line in (*decontamination(context), *exclusion(context)):
        yield [line]


def dropped(context: BuildContext, source: str) -> dict[str, int]:
    """Documents dropped from `source`, by reason, most frequent first."""
    return dict(sorted(drop_reasons(context, EXCLUDE, source).items(), key=lambda item: (-item[1], item[0])))


def documents(context: BuildContext) -> Table:
    """Documents in, quarantined, dropped and kept, per source."""
    last = DEDUP if context.built(DEDUP) else FILTER
    rows = []
    for source in context.recipe.sources:
        left = dropped(context, source)
        said = ", ".join(f"{name} {n:,}" for name, n in left.items()) or "-"
        counts = context.counts(DOWNLOAD, source)
        kept = context.counts(last, source).get("kept", 0) - left.get("contaminated", 0) - left.get("excluded", 0)
        rows.append((source, counts.get("rows_in", 0), counts.get("quarantined", 0), sum(left.values()), kept, said))
    header = ("source", "in", "quarantined", "dropped", "kept", "dropped by reason")
    return Table("Documents", header, rows, left=("source", "dropped by reason"))


def duplicates(context: BuildContext) -> Table | None:
    """Documents dropped for another, by source of both; None where there are none."""
    rows = []
    for source in context.recipe.sources:
        counts = context.counts(DEDUP, source)
        same, near = (
            {k.removeprefix(prefix): n for k, n in counts.items() if k.startswith(prefix)}
            for prefix in ("duplicate_of.", "near_duplicate_of.")
        )
        for kept in sorted({*same, *near}):
            both = same.get(kept, 0), near.get(kept, 0)
            rows.append((source, kept, *both, f"{sum(both) / counts['rows_in']:.2%}"))
    if not rows:
        return None
    header = ("source", "kept in", "same text", "nearly the same", "of its documents")
    return Table("Duplicates", header, rows, left=("source", "kept in"))


def exclusion(context: BuildContext) -> list[str]:
    """One line about what the recipe's `exclude` took out, if it did."""
    counts = context.counts(EXCLUDE)
    n, size = counts.get("dropped.excluded", 0), counts.get("excluded_bytes", 0)
    if not n:
        return []
    tokens = 0.0
    for source in context.recipe.sources:  # each at its own bytes per token
        left, lost = context.counts(TOKENIZE, source), context.counts(EXCLUDE, source)
        tokens += lost.get("excluded_bytes", 0) * left.get("tokens", 0) / max(1, left.get("text_bytes", 0))
    about = f", about {tokens:,.0f} tokens" if tokens else ""
    return [f"Excluded: {n:,} documents, {size:,} bytes of text{about}; `diff` of two manifests says what moved"]


def decontamination(context: BuildContext) -> list[str]:
    """One line about what held pieces of evaluation sets, if anything did."""
    counts = context.counts(DECONTAMINATE)
    n, cut, size = (counts.get(name, 0) for name in ("dropped.contaminated", "cut", "contaminated_bytes"))
    if not n + cut:
        return []
    return [
        f"Contaminated: {n:,} documents dropped, {cut:,} cut, {size:,} bytes of text; the evidence is in contaminated/"
    ]


def tokens(context: BuildContext, tokenizer: Record) -> Table:
    """Bytes per token, per source."""
    rows = []
    for source in context.recipe.sources:
        counts = context.counts(TOKENIZE, source)
        text, n = counts.get("text_bytes", 0), counts.get("tokens", 0)
        held = counts.get("val_tokens", 0)
        rows.append((source, text, n, f"{text / n:.3f}" if n else "-", counts.get("train_tokens", 0), held))
    header = ("source", "text bytes", "tokens", "bytes/token", "to train on", "held out")
    return Table(f"Tokens ({tokenizer.output('tokenizer').meta['vocab_size']:,} ids)", header, rows)


def engines(context: BuildContext) -> Iterator[str]:
    """A line for each engine that encoded, and why faster ones did not."""
    units = {name: n for name, n in context.counts(TOKENIZE).items() if name.startswith(ENCODED)}
    for name, n in sorted(units.items(), key=lambda item: -item[1]):
        share = f" ({n:,} of {sum(units.values()):,} units)" if len(units) > 1 else ""
        yield f"Encoded by {name.removeprefix(ENCODED)}{share}, proven equal to tokenizers at the start of each process"


def mixture(value: dict[str, Any], window: int | None = None) -> Table:
    """Ratios asked and got; with a `window` of tokens, how many documents of each source meet in one."""
    rows = [
        (
            s["name"],
            f"{s['ratio_asked']:.2%}",
            f"{s['ratio_got']:.4%}",
            s["tokens"],
            s["documents"],
            f"{s['epochs']:.3f}",
            f"{s['max_epochs']:g}",
            *([f"{window * s['documents'] / max(1, s['tokens']):.2f}"] if window else []),
        )
        for s in value["sources"]
    ]
    shards = sum(1 for s in value["shards"] if s["split"] == "train")
    title = (
        f"Mixture {value['mixture']}: {value['tokens']:,} tokens in {shards} shards, {value['val_tokens']:,} held out"
    )
    header = (
        "source",
        "asked",
        "got",
        "tokens",
        "documents",
        "epochs",
        "cap",
        *(["documents/window"] if window else []),
    )
    return Table(title, header, rows)


def compared(*scores: dict[str, Any] | None) -> list[str]:
    """Bits per byte before, of a unigram model, and after; and the last against the second."""
    before, unigram, after = (s["bits_per_byte"] if s else None for s in scores)
    gain = "-"
    if after and unigram:
        gain = f"{abs(1 - after / unigram):.1%} {'below' if after < unigram else 'above'}"
    return [*(f"{x:.4f}" if x else "-" for x in (before, unigram, after)), gain]


def training(context: BuildContext, done: dict[str, Record]) -> tuple[list[Table], list[str]]:
    """Bits per byte on held-out documents, of the mixture per phase and of each source; choices; and the samples."""
    rows, by_source, asked, samples = [], [], [], []
    for phase, record in done.items():
        summary = json.loads(Path(context.artifact_path(record.output("summary.json"))).read_text())
        scores = [summary[name] for name in ("before", "unigram", "after")]
        rate = f"{summary['tokens_per_second']:,.0f}"
        rows.append((phase, summary["parameters"], summary["steps"], rate, *compared(*scores)))
        for source, score in scores[-1].get("sources", {}).items():
            each = (s and s["sources"].get(source) for s in scores)
            by_source.append((phase, source, score["tokens"], score["bytes"], *compared(*each)))
        before = (scores[0] or {}).get("choices", {})
        for name, score in scores[-1].get("choices", {}).items():
            row = [phase, name, score["items"], f"{score['chance']:.1%}"]
            for what in ("acc", "acc_norm"):
                row.append(f"{before[name][what]:.1%}" if name in before else "-")
                error = score[f"{what}_stderr"]  # null of a single question
                row.append(f"{score[what]:.1%}" + ("" if error is None else f" ± {error:.1%}"))
            asked.append(row)
        samples += [f"[{phase}] {s['prompt']!r} -> {s['text']!r}" for s in summary.get("samples", [])]
    shown = ("before", "unigram", "after", "vs unigram")
    title = "Bits per byte on held-out documents"
    tables = [Table(title, ("phase", "parameters", "steps", "tokens/s", *shown), rows)]
    if by_source:
        header = ("phase", "source", "tokens", "bytes", *shown)
        tables.append(Table(f"{title}, by source", header, by_source, left=("phase", "source")))
    if asked:
        header = ("phase", "set", "items", "chance", "acc before", "acc", "acc_norm before", "acc_norm")
        tables.append(Table("Multiple choice", header, asked, left=("phase", "set")))
    return tables, samples
