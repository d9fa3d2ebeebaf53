"""What a training says when it ends: bits per byte on held-out documents, multiple choice, and samples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stages.stage import BuildContext, Record, ReportGroup, Table

COMPARED = ("before", "unigram", "after", "vs unigram")
TITLE = "Bits per byte on held-out documents"

Score = Mapping[str, Any]  # an entry of summary.json
Summaries = Mapping[str, Mapping[str, Any]]  # summary.json by phase


def report(context: BuildContext, records: Mapping[str, Record]) -> Iterator[ReportGroup]:
    """Report each phase of a training, from its summary."""
    summaries = {
        phase: json.loads(Path(context.artifact_path(record.output("summary.json"))).read_text())
        for phase, record in records.items()
    }
    yield [phases_table(summaries)]
    alone = [phase for phase, summary in summaries.items() if summary.get("val_documents") == 1]
    if alone:
        yield [f"One document alone was held out of {', '.join(alone)}: its scores say little about any other text"]
    for table in (sources_table(summaries), choices_table(summaries)):
        if table.rows:
            yield [table]
    samples = [
        f"[{phase}] {sample['prompt']!r} -> {sample['text']!r}"
        for phase, summary in summaries.items()
        for sample in summary.get("samples", [])
    ]
    if samples:
        yield samples


def phases_table(summaries: Summaries) -> Table:
    """Return bits per byte on the mixture's held-out documents, by phase."""
    rows = []
    for phase, summary in summaries.items():
        scores = (summary["before"], summary["unigram"], summary["after"])
        rate = f"{summary['tokens_per_second']:,.0f}"
        rows.append((phase, summary["parameters"], summary["steps"], rate, *compared(*scores)))
    return Table(TITLE, ("phase", "parameters", "steps", "tokens/s", *COMPARED), rows)


def sources_table(summaries: Summaries) -> Table:
    """Return bits per byte on each source's held-out documents, by phase and source."""
    rows = []
    for phase, summary in summaries.items():
        for source, after in summary["after"].get("sources", {}).items():
            before, unigram = (
                score["sources"].get(source) if score else None for score in (summary["before"], summary["unigram"])
            )
            rows.append((phase, source, after["tokens"], after["bytes"], *compared(before, unigram, after)))
    header = ("phase", "source", "tokens", "bytes", *COMPARED)
    return Table(f"{TITLE}, by source", header, rows, left=("phase", "source"))


def choices_table(summaries: Summaries) -> Table:
    """Return the accuracy on each evaluation set, by phase and set."""
    rows = []
    for phase, summary in summaries.items():
        all_before = (summary["before"] or {}).get("choices", {})
        for name, after in summary["after"].get("choices", {}).items():
            before = all_before.get(name)
            row = [phase, name, after["items"], f"{after['chance']:.1%}"]
            for metric in ("acc", "acc_norm"):
                row.append(f"{before[metric]:.1%}" if before else "-")
                error = after[f"{metric}_stderr"]  # null of a single question
                row.append(f"{after[metric]:.1%}" + ("" if error is None else f" ± {error:.1%}"))
            rows.append(row)
    header = ("phase", "set", "items", "chance", "acc before", "acc", "acc_norm before", "acc_norm")
    return Table("Multiple choice", header, rows, left=("phase", "set"))


def compared(before: Score | None, unigram: Score | None, after: Score | None) -> list[str]:
    """Return bits per byte before training, of a unigram model, and after; and the last against the second."""
    bits = [score["bits_per_byte"] if score else None for score in (before, unigram, after)]
    _, of_unigram, of_trained = bits
    gain = "-"
    if of_trained and of_unigram:
        gain = f"{abs(1 - of_trained / of_unigram):.1%} {'below' if of_trained < of_unigram else 'above'}"
    return [*(f"{value:.4f}" if value else "-" for value in bits), gain]
