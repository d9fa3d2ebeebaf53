"""Deduplication across sources: of all documents with the same text, or nearly the same, one is kept.

The same: equal after normalisation (`stages.filter.work.text_hash`). Nearly: found by MinHash (`stages.dedup.minhash`),
and whatever is nearly the same as one of those. `stages.dedup.work` finds them from keys, ids and numbers alone, and
gives each part its list of rows to drop. A list has a digest of its own, so a change in one input file writes only
those parts again whose own drops changed.

Which one is kept: a validation document before any other (so that no training copy of it survives), then the source
that comes first in `dedup.priority` and behind those by name, then the smallest document id (its first 23 bits), then
the first part and row.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.base import Artifact, DataError, Record, Stage, Task
from stages.dedup import report as duplicates
from stages.dedup.work import ENTRIES, PAIRS, RANKS, begins, join, match, ranges_for, sign, slices
from stages.schemas import CURATED


def work(task: Task) -> None:
    """Apply to one part. Inputs: the filtered part, then its drops if there are any. Params: source.

    Output: `docs` (CURATED). Counts rows_in, kept, text_bytes, and by the kind of duplicate dropped.duplicate,
    dropped.near_duplicate and duplicate_of.<source>, near_duplicate_of.<source>.
    """
    file = pq.ParquetFile(task.path(task.inputs[0]))
    dropped = np.zeros(file.metadata.num_rows, bool)
    for artifact in task.inputs[1:]:
        table = pq.read_table(task.path(artifact), columns=["row", "kept_source", "near"])
        table = table.slice(artifact.rows_from, artifact.rows_to - artifact.rows_from)
        dropped[table["row"].to_numpy()] = True
        for kind, near in (("duplicate", False), ("near_duplicate", True)):
            mine = table.filter(pa.array(table["near"].to_numpy() == near))
            if mine.num_rows:  # a reason that dropped nothing is not listed
                task.count(f"dropped.{kind}", mine.num_rows)
            for entry in mine["kept_source"].value_counts().to_pylist():
                task.count(f"{kind}_of.{entry['values']}", entry["counts"])
    at = 0
    with task.table("docs", CURATED) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=[n for n in CURATED.names if n != "source"])
            keep = ~dropped[at : at + table.num_rows]
            at += table.num_rows
            table = table.filter(pa.array(keep))
            source = pa.array([task.params["source"]] * table.num_rows, pa.string())
            if table.num_rows:
                writer.write(table.append_column("source", source))
                task.count("text_bytes", text_bytes(table["text"]))
        writer.meta["text_bytes"] = task.counts["text_bytes"]
    task.count("rows_in", at)
    task.count("kept", int(at - dropped.sum()))


def text_bytes(column: pa.ChunkedArray) -> int:
    """UTF-8 bytes in a string column."""
    total = 0
    for chunk in column.chunks:
        if len(chunk):
            offsets = np.frombuffer(chunk.buffers()[1], np.int32)
            total += int(offsets[chunk.offset + len(chunk)] - offsets[chunk.offset])
    return total


Filtered = dict[str, list[Artifact]]


async def build(context: Any) -> Curated:
    """Curated documents by source, one table a part. Warns of a source of which nothing is left."""
    named = len(context.recipe.sources)
    if context.recipe.dedup.exact and named > RANKS:
        raise DataError(f"dedup: {named} sources, and at most {RANKS} can be ranked; merge some, or set exact: false")
    filtered: Filtered = await context.stage("filter")
    pairs = [(name, part) for name, parts in filtered.items() for part in parts]
    drops: list[list[Artifact]] = [[] for _ in pairs]
    config, found = context.recipe.dedup, []
    if config.exact:
        found = await clusters(context, filtered)
        drops = [[one] for record in found for one in record.named("drops-")]

    async def one(name: str, part: Artifact, drops: list[Artifact], number: int) -> Artifact:
        record = await context.run(
            "dedup", work, {"source": name}, [part, *drops], f"{number:05d}", name, weight=part.bytes
        )
        docs: Artifact = record.output("docs")
        return docs

    numbers = [i for artifacts in filtered.values() for i in range(len(artifacts))]
    jobs = zip(pairs, drops, numbers, strict=True)
    done = await context.gather(one(*pair, mine, number) for pair, mine, number in jobs)
    curated = Curated({name: [] for name in filtered})
    curated.drops = [one for mine in drops for one in mine]
    for (name, _), docs in zip(pairs, done, strict=True):
        curated[name].append(docs)
    for name, parts in curated.items():
        if not any(part.rows for part in parts):
            rows = sum(part.rows for part in filtered[name])
            context.warn(f"dedup: nothing is left of {name}: each of its {rows:,} documents is a copy of another's")
    curated.report = await duplicates.report(context, filtered, found) if found else None
    return curated


class Curated(dict[str, list[Artifact]]):
    """Curated documents by source, one table a part; the drops of each part, and a report, if any were looked for."""

    drops: list[Artifact]
    report: Artifact | None = None


async def clusters(context: Any, filtered: Filtered) -> list[Record]:
    """Records of `slices`: the drops of every part, in the order of parts."""
    config = context.recipe.dedup
    parts = [part for artifacts in filtered.values() for part in artifacts]
    # the others by name: a manifest does not keep its recipe's order, and a rebuild has to rank as the build did
    ranked = [*config.priority, *sorted(filtered)]
    if sum(part.rows for part in parts) >= 1 << 32:
        raise DataError("dedup: over 4,294,967,295 documents cannot be numbered; split the recipe, or switch it off")
    ranks = {name: i for i, name in enumerate(sorted(filtered, key=ranked.index))}
    corpus: dict[str, Any] = {
        "rows": [part.rows for part in parts],
        "sources": [[name, len(artifacts), ranks[name]] for name, artifacts in filtered.items()],
    }
    signed = await context.gather(
        context.run("dedup", sign, {"near": config.minhash()}, [p], f"sign {i:05d}", name, p.bytes)
        for name, artifacts in filtered.items()
        for i, p in enumerate(artifacts)
    )
    exact = await matches(context, [r.output("exact") for r in signed], "exact", corpus)
    near = await matches(context, [r.output("near") for r in signed], "near", corpus) if config.near else []
    cuts = ranges(corpus["rows"], sum(pairs.rows for pairs in exact + near))
    whole = await joined(context, exact + near, corpus["rows"], cuts) if near else [exact] * len(cuts)
    found: list[Record] = await context.gather(
        context.run(
            "dedup",
            slices,
            {"files": [len(mine), len(exact)], **corpus, "low": low, "high": high},
            [*mine, *exact, *(r.output("ids") for r in signed)],
            f"drops of parts {low} to {high - 1}",
            weight=32 * sum(corpus["rows"][low:high]),
        )
        for mine, (low, high) in zip(whole, cuts, strict=True)
    )
    return found


async def matches(context: Any, keys: list[Artifact], kind: str, corpus: dict[str, Any]) -> list[Artifact]:
    """Pairs of documents with the same key, a file for each range of keys. `keys`: a file a part."""
    entries = sum(artifact.rows for artifact in keys)
    of = ranges_for(entries, ENTRIES)
    records = await context.gather(
        context.run(
            "dedup",
            match,
            {"range": i, "of": of, **corpus},
            keys,
            f"match {kind} {i + 1} of {of}",
            weight=sum(artifact.bytes for artifact in keys) // of,
        )
        for i in range(of)
    )
    return [record.output("pairs") for record in records]


def ranges(rows: Sequence[int], pairs: int) -> list[tuple[int, int]]:
    """Ranges of parts, [low, high), as many as so many pairs ask for (at most one a part), of like numbers of rows."""
    of = min(ranges_for(pairs, PAIRS), len(rows))
    ends = np.cumsum(rows)
    wanted = ends[-1] * np.arange(1, of) / of
    cuts = sorted({0, *(np.searchsorted(ends, wanted) + 1).tolist(), len(rows)})
    return [(low, high) for low, high in pairwise(cuts) if high <= len(rows)]


async def joined(
    context: Any, pairs: list[Artifact], rows: Sequence[int], cuts: list[tuple[int, int]]
) -> list[list[Artifact]]:
    """For each range of parts, the file with the pairs of whole clusters."""
    numbers = begins(rows).tolist()
    turn = 0
    while True:
        turn += 1
        records = await context.gather(
            context.run(
                "dedup",
                join,
                {"low": numbers[low], "high": numbers[high]},
                pairs,
                f"join {i + 1} of {len(cuts)}, round {turn}",
                weight=sum(a.bytes for a in pairs) // len(cuts),
            )
            for i, (low, high) in enumerate(cuts)
        )
        found = [record.output("pairs") for record in records]
        if len(cuts) == 1 or [a.digest for a in found] == [a.digest for a in pairs]:
            return [[artifact] for artifact in found]
        pairs = found


def publish(curated: Curated) -> dict[str, dict[str, Artifact]]:
    """`duplicates/report.json`."""
    return {"duplicates": {"report.json": curated.report}} if curated.report else {}


STAGE = Stage(
    name="dedup",
    reads="filter",
    writes="curated documents: every text once, in the source that has priority; duplicates/: a report",
    build=build,
    after=("filter",),
    libraries=("pyarrow", "numpy"),
    publish=publish,
)
