"""The units of a take-down: named documents found, their copies found by hash, and parts written without them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.schemas import CURATED, ID
from stages.selectors import match
from stages.task import Task

NAMED = pa.schema([("text_hash", ID)])
EXCLUDED = pa.schema([("document_id", ID)])
STANDING = pa.schema([("document_id", ID), ("kept_id", ID), ("kept_source", pa.string())])


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

    Inputs: the union of `excluded`, then lists of drops (`stages.dedup.clusters`).
    """
    excluded = pq.read_table(task.path(task.inputs[0]))["document_id"]
    with task.table("standing", STANDING) as writer:
        for artifact in task.inputs[1:]:
            table = pq.read_table(task.path(artifact)).slice(artifact.rows_from, artifact.rows)
            gone, kept_goes = (pc.is_in(table[name], value_set=excluded) for name in ("document_id", "kept_id"))
            found = table.filter(pc.and_not(pc.and_(table["near"], gone), kept_goes)).select(STANDING.names)
            if found.num_rows:
                writer.write(found)
