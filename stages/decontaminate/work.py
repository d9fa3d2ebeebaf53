"""What is done about contaminated documents: each part with evidence is written again, and the evidence gathered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.decontaminate.ngrams import cut, merged
from stages.decontaminate.search import Opened
from stages.schemas import CURATED, ID
from stages.selectors import select_documents
from stages.task import Task

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


def gather_evidence(task: Task) -> None:
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
                    table = table.filter(pa.array(~select_documents(table["document_id"], table["url"], *selectors)[0]))
                if len(table):
                    writer.write(table)
            if name == names[-1][0]:
                writer.meta["found"] = {one: [len(items[one]), len(documents[one])] for one in sorted(items)}
