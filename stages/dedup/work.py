"""The last unit of deduplication: one part without its duplicates."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.kept import kept_rows, read_rows
from stages.schemas import CURATED, utf8_bytes
from stages.task import Task


def work(task: Task) -> None:
    """Write one part without its duplicates. Inputs: `kept`, its documents, and its drops if there are any.

    Params: source. Output: `docs` (CURATED). Counts rows_in, kept, text_bytes, and by the kind of duplicate
    dropped.duplicate, dropped.near_duplicate and duplicate_of.<source>, near_duplicate_of.<source>.
    """
    rows = kept_rows(task.path(task.inputs[0]))
    dropped = np.zeros(len(rows), bool)
    for artifact in task.inputs[2:]:
        drops = pq.read_table(task.path(artifact), columns=["row", "kept_source", "near"])
        drops = drops.slice(artifact.rows_from, artifact.rows_to - artifact.rows_from)
        dropped[drops["row"].to_numpy()] = True
        count_drops(task, drops)
    columns = [name for name in CURATED.names if name != "source"]
    with task.table("docs", CURATED) as writer:
        for _, table in read_rows(task.path(task.inputs[1]), rows[~dropped], columns):
            source = pa.array([task.params["source"]] * table.num_rows, pa.string())
            writer.write(table.append_column("source", source))
            task.count("text_bytes", utf8_bytes(table["text"]))
        writer.meta["text_bytes"] = task.counts["text_bytes"]
    task.count("rows_in", len(rows))
    task.count("kept", int((~dropped).sum()))


def count_drops(task: Task, drops: pa.Table) -> None:
    """Count the drops of a part by kind, and by the source whose copy was kept. A kind without any is not listed."""
    for kind, near in (("duplicate", False), ("near_duplicate", True)):
        of_kind = drops.filter(pa.array(drops["near"].to_numpy() == near))
        if of_kind.num_rows:
            task.count(f"dropped.{kind}", of_kind.num_rows)
        for entry in of_kind["kept_source"].value_counts().to_pylist():
            task.count(f"{kind}_of.{entry['values']}", entry["counts"])
