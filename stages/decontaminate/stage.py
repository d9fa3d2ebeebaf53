"""Decontamination: documents that hold a piece of an evaluation set leave, or have it cut out, with evidence for each.

What is looked for is `stages.decontaminate.ngrams`'s affair. Each curated part is searched for the n-grams of all sets;
what was found goes through one small unit that leaves out n-grams which many documents of the corpus hold; each part
with evidence left is written again. A part without is passed on as it is, so that nothing after it runs again, and
without sets all are, and no unit runs. Validation documents are searched like all others. Ids stay those of the
sources' texts, so no document moves between training and validation.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.base import Artifact, Record, Stage, Task
from stages.decontaminate.ngrams import cut, merged
from stages.decontaminate.search import Opened, evidence, index, look
from stages.evals import stage as evals
from stages.schemas import CURATED, ID
from stages.selectors import match

EVIDENCE = pa.schema(
    [
        ("document_id", ID),
        ("source", pa.string()),
        ("source_file", pa.string()),
        ("source_row", pa.int64()),
        ("url", pa.string()),
        ("set", pa.string()),
        ("item_id", ID),
        ("passage", pa.string()),  # of the item
        ("ngram", pa.string()),  # the first of those found in the stretch
        ("start", pa.int64()),  # of the stretch, in bytes of the text as deduplication left it
        ("stop", pa.int64()),
        ("text", pa.string()),  # the stretch
        ("done", pa.string()),  # with the document: dropped or cut
    ]
)


def work(task: Task) -> None:
    """Drop or cut the documents of one part. Inputs: the part, its hits, `passages`, `grams`. Params: policy.

    Outputs: `docs` (CURATED), `evidence` (EVIDENCE). Counts dropped.contaminated, cut, contaminated_by.<set> (all in
    documents) and contaminated_bytes (UTF-8 that left).
    """
    part, found, *known = task.inputs
    hits = pq.read_table(task.path(found)).slice(found.rows_from, found.rows_to - found.rows_from)
    by_row: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
    for row, *hit in zip(*(column.to_pylist() for column in hits.columns), strict=True):
        by_row[row].append(tuple(hit))
    opened, file, at, left = Opened(*map(task.path, known)), pq.ParquetFile(task.path(part)), 0, 0
    with task.table("docs", CURATED) as docs, task.table("evidence", EVIDENCE) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=CURATED.names)
            touched = {i: by_row[at + i] for i in range(len(table)) if at + i in by_row}
            at += len(table)
            if touched:
                table = mended(task, table, touched, opened, writer)
            if len(table):
                docs.write(table)
                left += pc.sum(pc.binary_length(table["text"])).as_py()
        docs.meta["text_bytes"] = left


def mended(task: Task, table: pa.Table, touched: dict[int, Any], opened: Opened, writer: Any) -> pa.Table:
    """The documents of a row group without what was found in some of them, which is written down."""
    texts = table["text"].to_pylist()
    told: list[dict[str, Any]] = []
    for i, hits in touched.items():
        text = texts[i]
        whole = merged((start, stop) for _, start, stop in hits)
        texts[i] = (cut(text, whole) if task.params["policy"] == "cut" else "") or None
        done = "cut" if texts[i] else "dropped"
        task.count("cut" if texts[i] else "dropped.contaminated")
        task.count("contaminated_bytes", len(text.encode()) - len((texts[i] or "").encode()))
        row = {name: table[name][i].as_py() for name in EVIDENCE.names if name in CURATED.names and name != "text"}
        mine = list(stretches(text.encode(), hits, opened))
        for name in sorted({one["set"] for one in mine}):
            task.count(f"contaminated_by.{name}")
        told += [{**row, **one, "done": done} for one in mine]
    writer.write(pa.Table.from_pylist(told, schema=EVIDENCE))
    left = table.set_column(CURATED.names.index("text"), CURATED.field("text"), pa.array(texts, pa.string()))
    return left.filter(pc.is_valid(left["text"]))


def stretches(data: bytes, hits: list[tuple[int, int, int]], opened: Opened) -> Iterator[dict[str, Any]]:
    """What was found in one document of each item: the stretches, by item and place."""
    by_item: dict[int, list[tuple[int, int, int, int]]] = defaultdict(list)  # start, stop, row of the n-gram, passage
    for gram, start, stop in hits:
        for row, passage in opened.items(gram):
            by_item[opened.passages["item"][passage].as_py()].append((start, stop, row, passage))
    for _, found in sorted(by_item.items()):
        for start, stop in merged((a, b) for a, b, *_ in found):
            _, _, row, passage = min(one for one in found if start <= one[0] < stop)
            facts = {name: opened.passages[name][passage].as_py() for name in ("set", "item_id", "passage")}
            place = {"start": start, "stop": stop, "text": data[start:stop].decode()}
            yield {**facts, "ngram": " ".join(opened.words(row)), **place}


def gather(task: Task) -> None:
    """The evidence of all parts, a table a source. Params: sources ([name, parts]); ids, urls, domains to leave out.

    Outputs: `evidence-<source>` (EVIDENCE). The meta of the last has found: by set, [items, documents] in all.
    """
    names, paths = task.params["sources"], [task.path(a) for a in task.inputs]
    items, documents = defaultdict[str, set[bytes]](set), defaultdict[str, set[tuple[str, bytes]]](set)
    for name, parts in names:
        mine, paths = paths[:parts], paths[parts:]
        with task.table(f"evidence-{name}", EVIDENCE) as writer:
            for path in mine:
                table = pq.read_table(path, schema=EVIDENCE)
                for one, item, document in zip(
                    *(table[c].to_pylist() for c in ("set", "item_id", "document_id")), strict=True
                ):
                    items[one].add(item)
                    documents[one].add((name, document))
                if "ids" in task.params:
                    selectors = (task.params[c] for c in ("ids", "urls", "domains"))
                    table = table.filter(pa.array(~match(table["document_id"], table["url"], *selectors)[0]))
                if len(table):
                    writer.write(table)
            if name == names[-1][0]:
                writer.meta["found"] = {one: [len(items[one]), len(documents[one])] for one in sorted(items)}


class Decontaminated(dict[str, list[Artifact]]):
    """Curated documents by source, one table a part; and the evidence of what left, of sources that lost any."""

    evidence: dict[str, Artifact]


async def item_sets(context: Any) -> dict[str, Record]:
    """The items of each set that the corpus is searched for, by its name."""
    wanted = context.recipe.decontaminate
    asked: dict[str, Record] = await context.stage("evals")
    found = dict(asked) if wanted.evals else {}
    more = await context.gather(evals.read(context, name, config) for name, config in wanted.against.items())
    return {**found, **dict(zip(wanted.against, more, strict=True))}


async def build(context: Any) -> Decontaminated:
    """Curated documents by source, decontaminated. Warns of items that were found, and of those that cannot be."""
    wanted = context.recipe.decontaminate
    corpus = asyncio.ensure_future(context.stage("dedup"))
    reading = asyncio.ensure_future(item_sets(context))
    await asyncio.wait({corpus, reading}, return_when=asyncio.FIRST_EXCEPTION)
    if not context.dry and reading.done():  # a set that cannot be read is told of before the corpus is ready
        reading.result()
    curated = Decontaminated(await corpus)
    curated.evidence = {}
    sets = await reading
    if not sets:
        return curated
    params = {"ngram": wanted.ngram, "short": wanted.short, "common": wanted.common}
    items = [record.output("items") for record in sets.values()]
    listed = await context.run("decontaminate", index, {"sets": list(sets), **params}, items, "index")
    known = [listed.output("passages"), listed.output("grams")]
    pairs = [(name, i, part) for name, parts in curated.items() for i, part in enumerate(parts)]
    looked = await context.gather(
        context.run(
            "decontaminate",
            look,
            {"short": wanted.short},
            [part, *known],
            f"look {i:05d}",
            source=name,
            weight=part.bytes,
        )
        for name, i, part in pairs
    )
    hit = [(*pair, r.output("hits")) for pair, r in zip(pairs, looked, strict=True) if r.output("hits").rows]
    told: Record | None = None
    ignored = 0
    if hit:
        counted = await context.run(
            "decontaminate", evidence, {"common": wanted.common}, [h for *_, h in hit], "evidence"
        )
        ignored = counted.counts.get("common", 0)
        chosen = [(*one[:3], found) for one, found in zip(hit, counted.named("hits-"), strict=True) if found.rows]
        told = await take_out(context, curated, chosen, known) if chosen else None
    for line in lines(listed, told, list(sets), ignored):
        context.warn(line)
    return curated


async def take_out(context: Any, curated: Decontaminated, chosen: list[Any], known: list[Artifact]) -> Record:
    """Write the parts with evidence again, and put them into `curated`. Returns the record of `gather`."""
    wanted, exclude = context.recipe.decontaminate, context.recipe.exclude
    records = await context.gather(
        context.run(
            "decontaminate",
            work,
            {"policy": wanted.policy_of(name)},
            [part, found, *known],
            f"{i:05d}",
            source=name,
            weight=part.bytes,
        )
        for name, i, part, found in chosen
    )
    tables: dict[str, list[Artifact]] = defaultdict(list)
    for (name, i, _, _), done in zip(chosen, records, strict=True):
        curated[name] = [*curated[name][:i], done.output("docs"), *curated[name][i + 1 :]]
        tables[name].append(done.output("evidence"))
    params: dict[str, Any] = {"sources": [[name, len(found)] for name, found in tables.items()]}
    if exclude.ids or exclude.urls or exclude.domains:  # what is taken down is not shown either
        params |= {name: sorted(getattr(exclude, name)) for name in ("ids", "urls", "domains")}
    inputs = [table for found in tables.values() for table in found]
    record: Record = await context.run("decontaminate", gather, params, inputs, "gathered")
    curated.evidence = {name: record.output(f"evidence-{name}") for name in tables}
    return record


def lines(listed: Record, told: Record | None, sets: list[str], ignored: int) -> Iterator[str]:
    """What a person should know: items found, and those that cannot be."""
    found = told.outputs[-1].meta["found"] if told else {}
    for name in sets:
        total, unsearched = listed.counts[f"items.{name}"], listed.counts.get(f"unsearched.{name}", 0)
        if name in found:
            items, documents = found[name]
            yield f"{name}: {items:,} of {total:,} items found in {documents:,} documents; see contaminated/"
        if unsearched:
            why = "too short, or in words that many items share"
            yield f"{name}: {unsearched:,} of {total:,} items are not searched for: {why}"
    if ignored:
        yield f"decontaminate: {ignored:,} n-grams are no evidence, more documents hold them than `common` says"


def publish(curated: Decontaminated) -> dict[str, dict[str, Artifact]]:
    """`contaminated/<source>.parquet`, where anything was found."""
    files = {f"{name}.parquet": table for name, table in curated.evidence.items()}
    return {"contaminated": files} if files else {}


STAGE = Stage(
    name="decontaminate",
    reads="dedup, evals, recipe.decontaminate",
    writes="curated documents without pieces of evaluation sets; contaminated/: the evidence",
    build=build,
    after=("dedup", "evals"),
    libraries=("pyarrow", "numpy"),
    publish=publish,
)
