"""What a run says when it ends: where its documents went, then what each stage has to say of its own.

Tables and lines of a single stage are that stage's `report`. Here stand those that count documents across stages.
"""

from __future__ import annotations

from collections.abc import Iterator

from stages.decontaminate.stage import DECONTAMINATE
from stages.dedup.stage import DEDUP
from stages.download.stage import DOWNLOAD
from stages.exclude.stage import EXCLUDE
from stages.pack.describe import documents_kept, drop_reasons
from stages.recipe import Recipe
from stages.registry import STAGES
from stages.stage import BuildContext, ReportGroup, Table
from stages.tokenize.stage import TOKENIZE


def report(context: BuildContext) -> Iterator[ReportGroup]:
    """Yield the tables and lines of a finished run; those of one group stand together."""
    if context.counts(DOWNLOAD):
        yield [documents_table(context)]
        if duplicates := duplicates_table(context):
            yield [duplicates]
    for stage in STAGES.values():
        result = context.built(stage)
        if stage.report and result is not None:
            yield from stage.report(context, result)
    for line in (*decontamination_lines(context), *exclusion_lines(context)):
        yield [line]


def documents_table(context: BuildContext) -> Table:
    """Return documents in, quarantined, dropped and kept, per source."""
    rows = []
    for source in context.recipe.sources:
        dropped = drop_reasons(context, TOKENIZE, source)
        most_first = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in most_first)
        read = context.counts(DOWNLOAD, source)
        kept = documents_kept(context, TOKENIZE, source)
        counts = (read.get("rows_in", 0), read.get("quarantined", 0), sum(dropped.values()), kept)
        rows.append((source, *counts, reasons or "-"))
    header = ("source", "in", "quarantined", "dropped", "kept", "dropped by reason")
    return Table("Documents", header, rows, left=("source", "dropped by reason"))


def duplicates_table(context: BuildContext) -> Table | None:
    """Return documents dropped for another, by source of both; None where there are none."""
    rows = []
    for source in context.recipe.sources:
        counts = context.counts(DEDUP, source)
        same = with_prefix(counts, "duplicate_of.")
        near = with_prefix(counts, "near_duplicate_of.")
        for kept_in in sorted({*same, *near}):
            n_same, n_near = same.get(kept_in, 0), near.get(kept_in, 0)
            rows.append((source, kept_in, n_same, n_near, f"{(n_same + n_near) / counts['rows_in']:.2%}"))
    if not rows:
        return None
    header = ("source", "kept in", "same text", "nearly the same", "of its documents")
    return Table("Duplicates", header, rows, left=("source", "kept in"))


def with_prefix(counts: dict[str, int], prefix: str) -> dict[str, int]:
    """Return the counters whose names start with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): n for name, n in counts.items() if name.startswith(prefix)}


def decontamination_lines(context: BuildContext) -> list[str]:
    """Return a line about what held pieces of evaluation sets, if anything did."""
    counts = context.counts(DECONTAMINATE)
    dropped, cut = counts.get("dropped.contaminated", 0), counts.get("cut", 0)
    if not dropped + cut:
        return []
    text_bytes = counts.get("contaminated_bytes", 0)
    return [
        f"Contaminated: {dropped:,} documents dropped, {cut:,} cut, {text_bytes:,} bytes of text; "
        "the evidence is in contaminated/"
    ]


def exclusion_lines(context: BuildContext) -> list[str]:
    """Return a line about what the recipe's `exclude` took out, if it did."""
    counts = context.counts(EXCLUDE)
    documents, text_bytes = counts.get("dropped.excluded", 0), counts.get("excluded_bytes", 0)
    if not documents:
        return []
    tokens = 0.0
    for source in context.recipe.sources:  # each at its own bytes per token
        kept, excluded = context.counts(TOKENIZE, source), context.counts(EXCLUDE, source)
        tokens_per_byte = kept.get("tokens", 0) / max(1, kept.get("text_bytes", 0))
        tokens += excluded.get("excluded_bytes", 0) * tokens_per_byte
    about = f", about {tokens:,.0f} tokens" if tokens else ""
    return [
        f"Excluded: {documents:,} documents, {text_bytes:,} bytes of text{about}; `diff` of two manifests says what "
        "moved",
        *tokenizer_lines(context.recipe),
    ]


def tokenizer_lines(recipe: Recipe) -> list[str]:
    """Return a line about the text that the tokenizer was trained on, where documents were excluded after it."""
    if recipe.tokenizer.source is not None or recipe.exclude.retrain_tokenizer:
        return []
    return [
        "The tokenizer was trained on text that had these documents; `exclude: {retrain_tokenizer: true}` trains it "
        "without them, which changes every token"
    ]
