"""Deduplication across sources: of all documents with the same text, or nearly the same, one is kept.

The same: equal after normalization (`stages.filter.measure.text_hash`). Nearly: found by MinHash
(`stages.dedup.minhash`), and whatever is nearly the same as one of those. `stages.dedup.keys` writes the keys of each
part's documents, `stages.dedup.exchange` puts those of many parts together, `stages.dedup.clusters` finds documents
that share one, and `stages.dedup.drops` lists the rows to drop of each part. A list has a digest of its own, so a
change in one input file writes only those parts again whose own drops changed.

Which one is kept: a validation document before any other (so that no training copy of it survives), then the source
that comes first in `dedup.priority` and behind those by name, then the smallest document id (its first 23 bits), then
the first part and row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.dedup.clusters import RANKS, first_numbers, match_keys, unite_pairs
from stages.dedup.drops import SHOWN, list_drops
from stages.dedup.exchange import merge_keys
from stages.dedup.keys import write_keys
from stages.dedup.lines import count_lines, cut_lines, find_frequent
from stages.dedup.report import EXCERPT, duplicate_rates, write_report
from stages.dedup.work import work
from stages.errors import DataError
from stages.filter.stage import FILTER, FilteredPart
from stages.hashing import power_of_two_at_least
from stages.stage import BuildContext, Record, Stage, Unit
from stages.task import Artifact

ENTRIES = 1 << 22  # keys compared in a unit
PAIRS = 1 << 22  # pairs united in a unit
MOST_RANGES = 1024  # of keys, or of documents
MOST_PARTS = 256  # whose files of keys are read one by one
GROUP = 64  # parts of a source whose keys are put together, where there are more

Parts = Mapping[str, Sequence[FilteredPart]]  # by source


@dataclass(frozen=True)
class KeyFiles:
    """The keys of consecutive documents of a source: of one part, or of a group of them."""

    source: str
    rows: int
    record: Record  # with outputs `exact`, `ids` and, if asked for, `near`


@dataclass(frozen=True)
class Deduplicated:
    """What deduplication left, by source."""

    docs: dict[str, list[Artifact]]  # one table a part
    drops: list[Artifact]  # what left each part
    report: Artifact | None = None  # where duplicates were looked for


async def build(context: BuildContext) -> Deduplicated:
    """Build the deduplicated documents of each source. Warns of a source of which nothing is left."""
    config, sources = context.recipe.dedup, context.recipe.sources
    if config.exact and len(sources) > RANKS:
        raise DataError(
            f"dedup: {len(sources)} sources, and at most {RANKS} can be ranked; merge some, or set exact: false"
        )
    filtered = (await context.stage(FILTER)).docs
    listed = await find_drops(context, filtered) if config.exact else []
    drops = [artifact for record in listed for artifact in record.named("drops-")]  # one a part, in the order of parts
    units, part_number = [], 0
    for name, parts in filtered.items():
        for i, part in enumerate(parts):
            inputs = [*part.inputs, drops[part_number]] if drops else part.inputs
            units.append(Unit(work, {"source": name}, inputs, f"{i:05d}", name, part.text_bytes))
            part_number += 1
    records = iter(await context.map(DEDUP, units))
    docs = {name: [next(records).output("docs") for _ in parts] for name, parts in filtered.items()}
    if config.lines is not None:
        docs = await without_frequent_lines(context, docs, config.lines)
    warn_of_empty(context, filtered, docs)
    return Deduplicated(docs, drops, await report_on(context, filtered, listed) if listed else None)


async def without_frequent_lines(
    context: BuildContext, docs: Mapping[str, Sequence[Artifact]], most: int
) -> dict[str, list[Artifact]]:
    """Return the documents of each source without the lines that more than `most` of all documents have."""
    parts = [(name, i, part) for name, artifacts in docs.items() for i, part in enumerate(artifacts)]
    counted = await context.map(
        DEDUP, (Unit(count_lines, {}, [part], f"lines {i:05d}", name, part.bytes) for name, i, part in parts)
    )
    lines = [record.output("lines") for record in counted]
    of = ranges_for(sum(artifact.rows for artifact in lines), ENTRIES)
    weight = sum(artifact.bytes for artifact in lines) // of
    found = await context.map(
        DEDUP,
        (
            Unit(find_frequent, {"most": most, "range": i, "of": of}, lines, f"lines {i + 1} of {of}", weight=weight)
            for i in range(of)
        ),
    )
    frequent = [record.output("frequent") for record in found]
    cut = await context.map(
        DEDUP, (Unit(cut_lines, {}, [part, *frequent], f"cut {i:05d}", name, part.bytes) for name, i, part in parts)
    )
    records = iter(cut)
    return {name: [next(records).output("docs") for _ in artifacts] for name, artifacts in docs.items()}


def warn_of_empty(context: BuildContext, filtered: Parts, docs: Mapping[str, Sequence[Artifact]]) -> None:
    """Warn of each source that has no document of its own."""
    for name, parts in docs.items():
        if not any(part.rows for part in parts):
            rows = sum(part.documents for part in filtered[name])
            context.warn(f"dedup: nothing is left of {name}: each of its {rows:,} documents is a copy of another's")


async def find_drops(context: BuildContext, filtered: Parts) -> list[Record]:
    """Return the records of `list_drops`, whose outputs `drops-` are the drops of every part, in the order of parts."""
    config = context.recipe.dedup
    parts = [part for artifacts in filtered.values() for part in artifacts]
    if sum(part.documents for part in parts) >= 1 << 32:
        raise DataError("dedup: over 4,294,967,295 documents cannot be numbered; split the recipe, or switch it off")
    # Sources outside `priority` rank by name: a manifest does not keep its recipe's order, and a rebuild has to rank
    # as the build did.
    ranked = [*config.priority, *sorted(filtered)]
    ranks = {name: i for i, name in enumerate(sorted(filtered, key=ranked.index))}
    corpus: dict[str, Any] = {
        "rows": [part.documents for part in parts],
        "sources": [[name, len(artifacts), ranks[name]] for name, artifacts in filtered.items()],
    }
    keys = await write_key_files(context, filtered)
    exact = await find_pairs(context, keys, ranks, near=False)
    near = await find_pairs(context, keys, ranks, near=True) if config.near else []
    ranges = part_ranges(corpus["rows"], sum(pairs.rows for pairs in exact + near))
    joined = await join_pairs(context, exact + near, corpus["rows"], ranges) if near else [exact] * len(ranges)
    ids = [files.record.output("ids") for files in keys]
    return await context.map(
        DEDUP,
        (
            Unit(
                list_drops,
                {"files": [len(pairs), len(exact)], **corpus, "low": low, "high": high},
                [*pairs, *exact, *ids],
                f"drops of parts {low} to {high - 1}",
                weight=32 * sum(corpus["rows"][low:high]),
            )
            for pairs, (low, high) in zip(joined, ranges, strict=True)
        ),
    )


async def write_key_files(context: BuildContext, filtered: Parts) -> list[KeyFiles]:
    """Return the keys of all documents in the order of parts: a file a part, or where there are many a file a group.

    A group, once full, never changes when the source grows; what does not fill one is read as it is.
    """
    near = context.recipe.dedup.minhash()
    parts = [(name, i, part) for name, artifacts in filtered.items() for i, part in enumerate(artifacts)]
    keyed = await context.map(
        DEDUP,
        (
            Unit(
                write_keys,
                {"near": near},
                part.inputs if near else [part.kept],
                f"sign {i:05d}",
                name,
                part.text_bytes,
            )
            for name, i, part in parts
        ),
    )
    found = [KeyFiles(name, part.documents, record) for (name, _, part), record in zip(parts, keyed, strict=True)]
    if len(found) <= MOST_PARTS:
        return found
    by_source = [list(files) for _, files in groupby(found, lambda files: files.source)]
    groups = [files[first : first + GROUP] for files in by_source for first in range(0, len(files), GROUP)]
    full = [group for group in groups if len(group) == GROUP]
    merged = iter(await context.map(DEDUP, map(merge_unit, full)))
    put_together: list[KeyFiles] = []
    for group in groups:
        if len(group) == GROUP:
            put_together.append(KeyFiles(group[0].source, sum(files.rows for files in group), next(merged)))
        else:
            put_together += group
    return put_together


def merge_unit(group: Sequence[KeyFiles]) -> Unit:
    """Return the unit that puts the keys of a group of parts together."""
    outputs = [artifact for files in group for artifact in files.record.outputs]
    first = group[0].record.label.rpartition(" ")[2]
    weight = sum(artifact.bytes for artifact in outputs)
    return Unit(
        merge_keys, {"rows": [files.rows for files in group]}, outputs, f"merge {first}", group[0].source, weight
    )


def ranges_for(number: int, most: int) -> int:
    """Return into how many ranges `number` is split so that each holds some `most`: a power of two."""
    needed = max(1, -(-number // most))
    return min(MOST_RANGES, power_of_two_at_least(needed))


async def find_pairs(
    context: BuildContext, files: Sequence[KeyFiles], ranks: Mapping[str, int], near: bool
) -> list[Artifact]:
    """Return pairs of documents with the same key, a file for each range of keys. ranks: of each source."""
    kind = "near" if near else "exact"
    keys = [each.record.output(kind) for each in files]
    of = ranges_for(sum(artifact.rows for artifact in keys), ENTRIES)
    weight = sum(artifact.bytes for artifact in keys) // of
    number = Counter(each.source for each in files)
    params = {
        "of": of,
        "near": near,
        "rows": [each.rows for each in files],
        "sources": [[name, count, ranks[name]] for name, count in number.items()],
    }
    records = await context.map(
        DEDUP,
        (
            Unit(match_keys, {**params, "range": i}, keys, f"match {kind} {i + 1} of {of}", weight=weight)
            for i in range(of)
        ),
    )
    return [record.output("pairs") for record in records]


def part_ranges(rows: Sequence[int], pairs: int) -> list[tuple[int, int]]:
    """Return ranges of parts, [low, high), of like numbers of rows: as many as `pairs` ask for, at most one a part."""
    of = min(ranges_for(pairs, PAIRS), len(rows))
    ends = np.cumsum(rows)
    wanted = ends[-1] * np.arange(1, of) / of
    borders = sorted({0, *(np.searchsorted(ends, wanted) + 1).tolist(), len(rows)})
    return [(low, high) for low, high in pairwise(borders) if high <= len(rows)]


async def join_pairs(
    context: BuildContext, pairs: list[Artifact], rows: Sequence[int], ranges: list[tuple[int, int]]
) -> list[list[Artifact]]:
    """Return for each range of parts the file with the pairs of whole clusters."""
    first_rows = first_numbers(rows).tolist()
    weight = sum(artifact.bytes for artifact in pairs) // len(ranges)
    number = 0
    while True:
        number += 1
        records = await context.map(
            DEDUP,
            [
                Unit(
                    unite_pairs,
                    {"low": first_rows[low], "high": first_rows[high], "documents": first_rows[-1]},
                    pairs,
                    f"join {i + 1} of {len(ranges)}, round {number}",
                    weight=weight,
                )
                for i, (low, high) in enumerate(ranges)
            ],
        )
        joined = [record.output("pairs") for record in records]
        if len(ranges) == 1 or [artifact.digest for artifact in joined] == [artifact.digest for artifact in pairs]:
            return [[artifact] for artifact in joined]
        pairs = joined


async def report_on(context: BuildContext, filtered: Parts, listed: Sequence[Record]) -> Artifact:
    """Return the report on duplicates, after every part has been written. `listed` are the records of `list_drops`."""
    samples = [pq.read_table(context.artifact_path(record.output("sample"))) for record in listed]
    shown = pa.concat_tables(samples).sort_by("draw")[:SHOWN].drop_columns(["draw"])
    rows = [tuple(row.values()) for row in shown.to_pylist()]
    parts = [(name, part) for name, artifacts in filtered.items() for part in artifacts]
    used = sorted({number for row in rows for number in (row[0], row[2])})
    params = {
        "near": context.recipe.dedup.minhash(),
        "rates": duplicate_rates({name: context.counts(DEDUP, name) for name in filtered}),
        "pairs": [[used.index(part), row, used.index(kept_part), kept] for part, row, kept_part, kept in rows],
        "sources": [parts[number][0] for number in used],
        "excerpt": 0 if context.recipe.exclude.asked else EXCERPT,
    }
    inputs = [artifact for number in used for artifact in parts[number][1].inputs]
    record = await context.run(DEDUP, Unit(write_report, params, inputs, "report"))
    return record.output("report")


def publish(result: Deduplicated) -> dict[str, dict[str, Artifact]]:
    """Publish `duplicates/report.json`."""
    return {"duplicates": {"report.json": result.report}} if result.report else {}


DEDUP = Stage(
    name="dedup",
    reads="filter",
    writes="curated documents: every text once, in the source that has priority; duplicates/: a report",
    build=build,
    after=(FILTER,),
    libraries=("pyarrow", "numpy"),
    publish=publish,
    drops_documents=True,
)
