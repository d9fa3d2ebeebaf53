"""The units of a take-down: named documents found, their copies found by hash, and parts written without them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.kept import read_rows
from stages.schemas import CURATED, ID
from stages.selectors import select_documents
from stages.task import Task

NAMED = pa.schema([("text_hash", ID)])
EXCLUDED = pa.schema([("document_id", ID)])
STANDING = pa.schema([("document_id", ID), ("kept_id", ID), ("kept_source", pa.string())])


def find_named(task: Task) -> None:
    """Find the named documents of one filtered part. Inputs: `kept`, its documents. Params: ids, urls, domains.

    Output: `named` (NAMED). Its meta lists the selectors that named any, as `used`.
    """
    used: set[str] = set()
    with task.table("named", NAMED) as writer:
        kept = pq.read_table(task.path(task.inputs[0]))
        for rows, table in read_rows(task.path(task.inputs[1]), kept["row"].to_numpy(), ["document_id", "url"]):
            selected, used_here = select_documents(table["document_id"], table["url"], **task.params)
            used |= used_here
            if selected.any():
                writer.write(kept[rows].select(["text_hash"]).filter(pa.array(selected)))
        writer.meta["used"] = sorted(used)


def merge_values(task: Task) -> None:
    """Write all values of the one column of some tables, each once and sorted. Output: `union`."""
    paths = [task.path(artifact) for artifact in task.inputs]
    schema = pq.read_schema(paths[0]).remove_metadata()
    values = {value for path in paths for value in pq.read_table(path)[schema.names[0]].to_pylist()}
    with task.table("union", schema) as writer:
        writer.write(pa.Table.from_arrays([pa.array(sorted(values), ID)], schema=schema))


def find_copies(task: Task) -> None:
    """Find the documents of one filtered part whose text hash is among those named. Output: `excluded` (EXCLUDED).

    Inputs: `kept`, the union of `named`.
    """
    hashes = pq.read_table(task.path(task.inputs[1]))["text_hash"]
    with task.table("excluded", EXCLUDED) as writer:
        file = pq.ParquetFile(task.path(task.inputs[0]))
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["document_id", "text_hash"])
            copies = table.filter(pc.is_in(table["text_hash"], value_set=hashes)).select(["document_id"])
            if copies.num_rows:
                writer.write(copies)


def work(task: Task) -> None:
    """Drop excluded documents from one curated part. Inputs: the part, the union of `excluded`.

    Output: `docs` (CURATED), and none when the part holds no excluded document. Counts dropped.excluded and
    excluded_bytes (of their text, UTF-8).
    """
    excluded = pq.read_table(task.path(task.inputs[1]))["document_id"]
    file = pq.ParquetFile(task.path(task.inputs[0]))
    ids = file.read(columns=["document_id"])["document_id"]
    if not pc.any(pc.is_in(ids, value_set=excluded), min_count=0).as_py():
        return
    kept_bytes = 0
    with task.table("docs", CURATED) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=CURATED.names)
            is_excluded = pc.is_in(table["document_id"], value_set=excluded)
            sizes = pc.binary_length(table["text"])
            lost_bytes = pc.sum(sizes.filter(is_excluded), min_count=0).as_py()
            task.count("excluded_bytes", lost_bytes)
            task.count("dropped.excluded", pc.sum(is_excluded, min_count=0).as_py())
            kept_bytes += pc.sum(sizes, min_count=0).as_py() - lost_bytes
            table = table.filter(pc.invert(is_excluded))
            if table.num_rows:
                writer.write(table)
        writer.meta["text_bytes"] = kept_bytes


def find_standing(task: Task) -> None:
    """Find excluded documents that had been dropped as nearly the same as one that stays.

    Output: `standing` (STANDING). Inputs: the union of `excluded`, then lists of drops (`stages.dedup.drops`).
    """
    excluded = pq.read_table(task.path(task.inputs[0]))["document_id"]
    with task.table("standing", STANDING) as writer:
        for artifact in task.inputs[1:]:
            drops = pq.read_table(task.path(artifact)).slice(artifact.rows_from, artifact.rows)
            is_excluded = pc.is_in(drops["document_id"], value_set=excluded)
            kept_is_excluded = pc.is_in(drops["kept_id"], value_set=excluded)
            near_and_excluded = pc.and_(drops["near"], is_excluded)
            standing = drops.filter(pc.and_not(near_and_excluded, kept_is_excluded)).select(STANDING.names)
            if standing.num_rows:
                writer.write(standing)
