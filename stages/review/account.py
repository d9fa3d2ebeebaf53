"""What each source gave and what each stage took of it, exactly: sums over the records of a build's units."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from stages.decontaminate.stage import DECONTAMINATE
from stages.dedup.stage import DEDUP
from stages.download.stage import DOWNLOAD
from stages.evals.stage import EVALS
from stages.exclude.stage import EXCLUDE
from stages.filter.stage import FILTER, MEASURE
from stages.lineage.drop_reason import RecordReader
from stages.pack.describe import DROPPED
from stages.stage import Record, Stage
from stages.task import Artifact
from stages.tokenize.stage import TOKENIZE

STAGES = (DOWNLOAD, FILTER, DEDUP, DECONTAMINATE, EXCLUDE, TOKENIZE)
BUDGET = "beyond_budget"  # what `stages.pack.describe.drop_reasons` calls documents that a budget left out


@dataclass(frozen=True)
class Account:
    """One source. Documents and bytes of text (UTF-8) are counted, never sampled."""

    name: str
    read: int  # rows of its files
    read_bytes: int  # of the rows that could be read
    quarantined: int
    ruled_out: dict[str, int]  # documents by reason
    ruled_bytes: int  # taken by rules and edits
    repeats: dict[str, int]  # documents dropped as duplicates, by reason
    leaks: int  # documents dropped because they held a piece of an evaluation set
    excluded: int  # documents taken down
    beyond_budget: int
    later_bytes: int  # taken by whatever stands behind the rules
    kept: int
    kept_bytes: int
    tokens: int  # 0 before it is tokenized
    held_tokens: int
    duplicate_of: dict[str, int]  # documents whose kept copy lies in which source
    near_duplicate_of: dict[str, int]

    @property
    def rule_documents(self) -> int:
        """Documents that rules dropped."""
        return sum(self.ruled_out.values())

    @property
    def later_documents(self) -> int:
        """Documents that passed the rules and are not in the corpus."""
        return sum(self.repeats.values()) + self.leaks + self.excluded + self.beyond_budget

    @property
    def train_tokens(self) -> int:
        """Tokens to train on."""
        return self.tokens - self.held_tokens


class Judged(NamedTuple):
    """What was measured of a part, a row a document, and which of its rows the rules dropped."""

    measures: Artifact | None
    ruled_out: Artifact | None


NOT_JUDGED = Judged(None, None)


@dataclass(frozen=True)
class StoredBuild:
    """What the records of a build name: counters by stage and source, and the tables that hold documents."""

    counts: Mapping[str, Mapping[str, Counter[str]]]  # stage -> source -> counters
    downloaded: Mapping[str, list[Artifact]]  # source -> its parts, as they were read
    judged: Mapping[str, list[Judged]]  # of each of these parts
    drops: list[Artifact]  # of deduplication
    evidence: list[Artifact]  # of decontamination
    excluded: list[Artifact]
    items: Mapping[str, tuple[int, int]]  # evaluation set -> its items, and those that were not looked for
    item_tables: Mapping[str, list[Artifact]]  # evaluation set -> tables of its items
    tokenized: Mapping[str, list[Artifact]]  # source -> tables of tokenized documents
    deduplicated: Mapping[str, list[Artifact]]


def read_build(reader: RecordReader) -> StoredBuild:
    """Read the records of all stages up to tokens once."""
    stages = (*STAGES, MEASURE, EVALS)
    counts: dict[str, dict[str, Counter[str]]] = {stage.name: defaultdict(Counter) for stage in stages}
    found: dict[str, list[tuple[str, Record]]] = defaultdict(list)
    for stage in stages:
        for record in reader.records(stage.name):
            source = record.label.partition(" ")[0]
            counts[stage.name][source].update(record.counts)
            found[stage.name].append((source, record))

    def by_source(stage: Stage[Any], prefix: str) -> dict[str, list[Artifact]]:
        tables: dict[str, list[Artifact]] = defaultdict(list)
        for source, record in found[stage.name]:
            tables[source] += record.named(prefix)
        return dict(tables)

    def all_of(stage: Stage[Any], prefix: str) -> list[Artifact]:
        return [artifact for _, record in found[stage.name] for artifact in record.named(prefix)]

    measures = {record.label: record.output("measures") for _, record in found[MEASURE.name]}
    judged = {
        record.label: Judged(measures.get(record.label), artifact)
        for _, record in found[FILTER.name]
        for artifact in record.named("ruled-out")
    }
    part_labels: dict[str, list[str]] = defaultdict(list)
    for source, record in found[DOWNLOAD.name]:
        part_labels[source] += [f"{record.label} {part.name}" for part in record.named("part-")]
    totals = [record.counts for _, record in found[DECONTAMINATE.name]]
    names = sorted({key.removeprefix("items.") for each in totals for key in each if key.startswith("items.")})
    return StoredBuild(
        counts=counts,
        downloaded=by_source(DOWNLOAD, "part-"),
        judged={source: [judged.get(label, NOT_JUDGED) for label in labels] for source, labels in part_labels.items()},
        drops=all_of(DEDUP, "drops-"),
        evidence=all_of(DECONTAMINATE, "evidence-"),
        excluded=all_of(EXCLUDE, "excluded"),
        items={
            name: (
                max(each.get(f"items.{name}", 0) for each in totals),
                max(each.get(f"unsearched.{name}", 0) for each in totals),
            )
            for name in names
        },
        item_tables=by_source(EVALS, "items"),
        tokenized={
            source: [
                record.output("docs")
                for name, record in found[TOKENIZE.name]
                if name == source and is_of_a_part(record)
            ]
            for source in counts[TOKENIZE.name]
        },
        deduplicated=by_source(DEDUP, "docs"),
    )


def is_of_a_part(record: Record) -> bool:
    """Return whether a unit tokenized documents, and did not only put tokens of others together."""
    return "documents" in record.counts


def account(build: StoredBuild, source: str) -> Account:
    """Return the account of one source, as far as it was built."""
    read, ruled, unique, clean, down, tokens = (build.counts[stage.name].get(source, Counter()) for stage in STAGES)
    read_bytes = sum(part.meta.get("text_bytes", 0) for part in build.downloaded.get(source, ()))
    after_rules = ruled.get("text_bytes", 0)
    leaks, excluded = clean.get(f"{DROPPED}contaminated", 0), down.get(f"{DROPPED}excluded", 0)
    if unique:
        kept = unique.get("kept", 0) - leaks - excluded
        kept_bytes = unique["text_bytes"] - clean.get("contaminated_bytes", 0) - down.get("excluded_bytes", 0)
    else:
        kept, kept_bytes = ruled.get("kept", 0), after_rules
    return Account(
        name=source,
        read=read.get("rows_in", 0),
        read_bytes=read_bytes,
        quarantined=read.get("quarantined", 0),
        ruled_out=largest_first(ruled, DROPPED),
        ruled_bytes=read_bytes - after_rules,
        repeats=largest_first(unique, DROPPED),
        leaks=leaks,
        excluded=excluded,
        beyond_budget=ruled.get("kept", 0) - unique["rows_in"] if "rows_in" in unique else 0,
        later_bytes=after_rules - kept_bytes,
        kept=kept,
        kept_bytes=kept_bytes,
        tokens=tokens.get("tokens", 0),
        held_tokens=tokens.get("val_tokens", 0),
        duplicate_of=largest_first(unique, "duplicate_of."),
        near_duplicate_of=largest_first(unique, "near_duplicate_of."),
    )


def largest_first(counts: Mapping[str, int], prefix: str) -> dict[str, int]:
    """Return the counters whose names start with `prefix`, by the rest of their names, the greatest first."""
    named = {name.removeprefix(prefix): n for name, n in counts.items() if name.startswith(prefix) and n}
    return dict(sorted(named.items(), key=lambda item: (-item[1], item[0])))
