"""What is done about contaminated documents: each part with evidence is written again, and the evidence gathered."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.decontaminate.cut import cut_out, merge_ranges
from stages.decontaminate.search import NgramIndex
from stages.schemas import CURATED, ID, utf8_bytes
from stages.selectors import select_documents
from stages.task import Artifact, TableWriter, Task

LINEAGE = ("document_id", "source", "source_file", "source_row", "url")  # of a document, as both tables have it
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


class Hit(NamedTuple):
    """An n-gram found in a document."""

    gram: int
    start: int  # bytes of the document's text
    stop: int


class ItemHit(NamedTuple):
    """An n-gram found in a document, as one item holds it; hits are ordered by their fields."""

    start: int
    stop: int
    row: int  # of the index
    passage: int


def work(task: Task) -> None:
    """Drop or cut the documents of one part. Inputs: the part, its hits, `passages`, `grams`. Params: policy.

    Outputs: `docs` (CURATED), `evidence` (EVIDENCE). Counts dropped.contaminated, cut, contaminated_by.<set> (all in
    documents) and contaminated_bytes (UTF-8 that left).
    """
    part, hits, passages, grams = task.inputs
    hits_by_row = read_hits(task, hits)
    index = NgramIndex(task.path(passages), task.path(grams))
    file = pq.ParquetFile(task.path(part))
    first_row = bytes_left = 0
    with task.table("docs", CURATED) as docs, task.table("evidence", EVIDENCE) as evidence:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=CURATED.names)
            rows = range(first_row, first_row + len(table))
            hits_here = {row - first_row: hits_by_row[row] for row in rows if row in hits_by_row}
            first_row += len(table)
            if hits_here:
                table = clean_batch(task, table, hits_here, index, evidence)
            if len(table):
                docs.write(table)
                bytes_left += utf8_bytes(table["text"])
        docs.meta["text_bytes"] = bytes_left


def read_hits(task: Task, artifact: Artifact) -> dict[int, list[Hit]]:
    """Return the hits of a part by row. artifact: a slice of a table (HITS)."""
    table = pq.read_table(task.path(artifact)).slice(artifact.rows_from, artifact.rows_to - artifact.rows_from)
    by_row: dict[int, list[Hit]] = defaultdict(list)
    columns = (table[name].to_pylist() for name in ("row", "gram", "start", "stop"))
    for row, gram, start, stop in zip(*columns, strict=True):
        by_row[row].append(Hit(gram, start, stop))
    return dict(by_row)


def clean_batch(
    task: Task, table: pa.Table, hits_by_row: dict[int, list[Hit]], index: NgramIndex, evidence: TableWriter
) -> pa.Table:
    """Return the documents (CURATED) without what was found in some of them, which goes to `evidence`; count it."""
    texts = table["text"].to_pylist()
    rows: list[dict[str, Any]] = []
    for i, hits in hits_by_row.items():
        text = texts[i]
        left = ""
        if task.params["policy"] == "cut":
            left = cut_out(text, merge_ranges((hit.start, hit.stop) for hit in hits))
        texts[i] = left or None
        done = "cut" if left else "dropped"
        task.count("cut" if left else "dropped.contaminated")
        task.count("contaminated_bytes", len(text.encode()) - len(left.encode()))
        stretches = list(evidence_of(text, hits, index))
        for name in sorted({stretch["set"] for stretch in stretches}):
            task.count(f"contaminated_by.{name}")
        lineage = {name: table[name][i].as_py() for name in LINEAGE}
        rows += [{**lineage, **stretch, "done": done} for stretch in stretches]
    evidence.write(pa.Table.from_pylist(rows, schema=EVIDENCE))
    cleaned = table.set_column(CURATED.names.index("text"), CURATED.field("text"), pa.array(texts, pa.string()))
    return cleaned.filter(pc.is_valid(cleaned["text"]))


def evidence_of(text: str, hits: list[Hit], index: NgramIndex) -> Iterator[dict[str, Any]]:
    """Yield what was found of each item in one document: stretches with their facts, by item and place."""
    data = text.encode()
    hits_by_item: dict[int, list[ItemHit]] = defaultdict(list)
    for hit in hits:
        for row, passage in index.items(hit.gram):
            item = index.passages["item"][passage].as_py()
            hits_by_item[item].append(ItemHit(hit.start, hit.stop, row, passage))
    for _, item_hits in sorted(hits_by_item.items()):
        for start, stop in merge_ranges((hit.start, hit.stop) for hit in item_hits):
            first = min(hit for hit in item_hits if start <= hit.start < stop)
            yield {
                **{name: index.passages[name][first.passage].as_py() for name in ("set", "item_id", "passage")},
                "ngram": " ".join(index.words(first.row)),
                "start": start,
                "stop": stop,
                "text": data[start:stop].decode(),
            }


def gather_evidence(task: Task) -> None:
    """Gather the evidence of all parts, a table a source.

    Params: sources ([name, parts]); ids, urls, domains to leave out, or none of them. Outputs: `evidence-<source>`
    (EVIDENCE). The meta of the last has `found`: by set, [items, documents] in all.
    """
    params = dict(task.params)
    sources = params.pop("sources")
    paths = iter([task.path(artifact) for artifact in task.inputs])
    items: dict[str, set[bytes]] = defaultdict(set)
    documents: dict[str, set[tuple[str, bytes]]] = defaultdict(set)
    for source, parts in sources:
        with task.table(f"evidence-{source}", EVIDENCE) as writer:
            for path in itertools.islice(paths, parts):
                table = pq.read_table(path, schema=EVIDENCE)
                columns = (table[name].to_pylist() for name in ("set", "item_id", "document_id"))
                for set_name, item, document in zip(*columns, strict=True):
                    items[set_name].add(item)
                    documents[set_name].add((source, document))
                if params:
                    selected, _ = select_documents(table["document_id"], table["url"], **params)
                    table = table.filter(pa.array(~selected))
                if len(table):
                    writer.write(table)
            if source == sources[-1][0]:
                writer.meta["found"] = {name: [len(items[name]), len(documents[name])] for name in sorted(items)}
