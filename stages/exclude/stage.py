"""Take-downs: documents that a recipe names by id, address or domain leave the corpus, and their copies with them.

What is named is looked for among all documents that the rules kept, before duplicates were dropped. Whatever has the
same normalised text as one of them (the hash that exact deduplication compares) is excluded too, from every source: so
a duplicate that was dropped in favour of an excluded document does not come back, and where the copy that was named
had itself been dropped, the one that was kept in its place goes.

`find` and `spread` read ids, addresses and hashes only; a part that holds no excluded document is passed on as it is,
so that nothing after it runs again. The tokenizer stays trained on the text before exclusion: were it not, one
take-down would change every token of the corpus.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.base import Artifact, Stage, Task
from stages.filter import samples
from stages.schemas import CURATED, ID
from stages.selectors import match

NAMED = pa.schema([("text_hash", ID)])
EXCLUDED = pa.schema([("document_id", ID)])
STANDING = pa.schema([("document_id", ID), ("kept_id", ID), ("kept_source", pa.string())])
TOLD = 5  # documents named in a warning


def find(task: Task) -> None:
    """The named documents of one filtered part. Params: ids, urls, domains. Output: `named` (NAMED).

    Its meta lists the selectors that named any.
    """
    params, used = task.params, set()
    with task.table("named", NAMED) as writer:
        file = pq.ParquetFile(task.path(task.inputs[0]))
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["document_id", "url", "text_hash"])
            mask, found = match(table["document_id"], table["url"], params["ids"], params["urls"], params["domains"])
            used |= found
            if mask.any():
                writer.write(table.select(["text_hash"]).filter(pa.array(mask)))
        writer.meta["used"] = sorted(used)


def union(task: Task) -> None:
    """All values of the one column of some tables, each once and sorted. Output: `union`."""
    schema = pq.read_schema(task.path(task.inputs[0]))
    values = {v for a in task.inputs for v in pq.read_table(task.path(a))[schema.names[0]].to_pylist()}
    with task.table("union", schema.remove_metadata()) as writer:
        writer.write(pa.Table.from_arrays([pa.array(sorted(values), ID)], schema=writer.schema))


def spread(task: Task) -> None:
    """The documents of one filtered part whose text hash is among those named. Output: `excluded` (EXCLUDED).

    Inputs: the part, the union of `named`.
    """
    hashes = pq.read_table(task.path(task.inputs[1]))["text_hash"]
    with task.table("excluded", EXCLUDED) as writer:
        file = pq.ParquetFile(task.path(task.inputs[0]))
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["document_id", "text_hash"])
            found = table.filter(pc.is_in(table["text_hash"], value_set=hashes)).select(["document_id"])
            if found.num_rows:
                writer.write(found)


def work(task: Task) -> None:
    """Drop excluded documents from one curated part. Inputs: the part, the union of `excluded`.

    Output: `docs` (CURATED), and none when the part holds no excluded document. Counts dropped.excluded and
    excluded_bytes (of their text, UTF-8).
    """
    excluded = pq.read_table(task.path(task.inputs[1]))["document_id"]
    file = pq.ParquetFile(task.path(task.inputs[0]))
    identities = file.read(columns=["document_id"])["document_id"]
    if not pc.any(pc.is_in(identities, value_set=excluded), min_count=0).as_py():
        return
    kept = 0
    with task.table("docs", CURATED) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=CURATED.names)
            gone = pc.is_in(table["document_id"], value_set=excluded)
            sizes = pc.binary_length(table["text"])
            lost = pc.sum(sizes.filter(gone), min_count=0).as_py()
            task.count("excluded_bytes", lost)
            task.count("dropped.excluded", pc.sum(gone, min_count=0).as_py())
            kept += pc.sum(sizes, min_count=0).as_py() - lost
            table = table.filter(pc.invert(gone))
            if table.num_rows:
                writer.write(table)
        writer.meta["text_bytes"] = kept


def standing(task: Task) -> None:
    """Excluded documents that had been dropped as nearly the same as one that stays. Output: `standing` (STANDING).

    Inputs: the union of `excluded`, then lists of drops (`stages.dedup.work`).
    """
    excluded = pq.read_table(task.path(task.inputs[0]))["document_id"]
    with task.table("standing", STANDING) as writer:
        for artifact in task.inputs[1:]:
            table = pq.read_table(task.path(artifact)).slice(artifact.rows_from, artifact.rows)
            gone, kept_goes = (pc.is_in(table[name], value_set=excluded) for name in ("document_id", "kept_id"))
            found = table.filter(pc.and_not(pc.and_(table["near"], gone), kept_goes)).select(STANDING.names)
            if found.num_rows:
                writer.write(found)


class Curated(dict[str, list[Artifact]]):
    """Curated documents by source, one table a part; and the samples of what was dropped, if anything is excluded."""

    dropped: dict[str, Artifact]


async def build(context: Any) -> Curated:
    """Curated documents by source, without those excluded. Warns of names that match nothing."""
    curated = Curated(await context.stage("decontaminate"))
    curated.dropped = {}
    wanted = context.recipe.exclude
    if not (wanted.ids or wanted.urls or wanted.domains):
        return curated
    filtered = await context.stage("filter")
    params = {name: sorted(getattr(wanted, name)) for name in ("ids", "urls", "domains")}
    parts = [(name, i, part) for name, artifacts in filtered.items() for i, part in enumerate(artifacts)]
    sampled = filtered.dropped
    shown = await context.gather(
        context.run("exclude", samples.work, params, [sample], "dropped", source=name)
        for name, sample in sampled.items()
    )
    curated.dropped = {name: r.output("dropped") for name, r in zip(sampled, shown, strict=True)}
    found = await context.gather(
        context.run("exclude", find, params, [part], f"find {i:05d}", source=name) for name, i, part in parts
    )
    used = {selector for r in found for selector in r.output("named").meta["used"]}
    if unused := sorted({s for names in params.values() for s in names} - used):
        context.warn(f"exclude: no document is meant by {', '.join(unused[:20])}{' ...' if len(unused) > 20 else ''}")
    named = [r.output("named") for r in found if r.output("named").rows]
    if not named:
        return curated
    hashes = (await context.run("exclude", union, {}, named, "named")).output("union")
    copies = await context.gather(
        context.run("exclude", spread, {}, [part, hashes], f"copies {i:05d}", source=name) for name, i, part in parts
    )
    gone = [r.output("excluded") for r in copies if r.output("excluded").rows]
    excluded = (await context.run("exclude", union, {}, gone, "excluded")).output("union")
    await warn_of_standing(context, excluded)
    pairs = [(name, i, part) for name, artifacts in curated.items() for i, part in enumerate(artifacts)]
    records = await context.gather(
        context.run("exclude", work, {}, [part, excluded], f"{i:05d}", source=name, weight=part.bytes)
        for name, i, part in pairs
    )
    left = Curated((name, []) for name in curated)
    left.dropped = curated.dropped
    for (name, _, part), record in zip(pairs, records, strict=True):
        left[name].append(next(iter(record.named("docs")), part))
    return left


async def warn_of_standing(context: Any, excluded: Artifact) -> None:
    """Warn of excluded documents that had been dropped already, as nearly the same as one that stays."""
    drops = [artifact for artifact in (await context.stage("dedup")).drops if artifact.rows]
    if not drops:
        return
    record = await context.run("exclude", standing, {}, [excluded, *drops], "near-duplicates that stay")
    found = record.output("standing")
    for row in pq.read_table(context.artifact_path(found))[:TOLD].to_pylist() if found.rows else []:
        gone, kept = row["document_id"].hex(), row["kept_id"].hex()
        context.warn(
            f"exclude: {gone} was dropped before, nearly the same as {kept} of {row['kept_source']}, which stays"
        )
    if found.rows > TOLD:
        context.warn(
            f"exclude: and {found.rows - TOLD:,} more were nearly the same as one that stays; `find` says which"
        )


def publish(curated: Curated) -> dict[str, dict[str, Artifact]]:
    """`curated/<source>-00000.parquet`, ...; `dropped/<source>.parquet`, without what is excluded."""
    files = {f"{name}-{i:05d}.parquet": part for name, parts in curated.items() for i, part in enumerate(parts)}
    return {"curated": files, **samples.folder(curated.dropped)}


STAGE = Stage(
    name="exclude",
    reads="decontaminate, filter, recipe.exclude",
    writes="curated/: documents without those that the recipe takes down, nor their copies",
    build=build,
    after=("decontaminate",),
    libraries=("pyarrow",),
    publish=publish,
)
