"""Documents that the rules dropped, a few for each reason, with their text: for a person to read and judge the rules.

Of each reason those with the smallest ids stay (ids are hashes: a fair sample, and the same in every run). Which they
are is known without a text; only theirs are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.kept import read_rows
from stages.schemas import DOCUMENTS, ID
from stages.selectors import select_documents
from stages.task import Artifact, Task

PER_REASON = 20
TEXT_CHARS = 20_000  # of each document, from its beginning

# `chars`: of the whole text; `value`: what the rule measured, null where its reason is about no measure.
DROPPED = pa.schema([("reason", pa.string()), *DOCUMENTS, ("chars", pa.int64()), ("value", pa.float64())])
CHOSEN = pa.schema(
    [("reason", pa.string()), ("document_id", ID), ("part", pa.int64()), ("row", pa.int64()), ("value", pa.float64())]
)


def choose_samples(task: Task) -> None:
    """Choose the sample of a source. Inputs: what was ruled out of each of its parts. Output: `chosen` (CHOSEN)."""
    chosen = CHOSEN.empty_table()
    order = [(name, "ascending") for name in ("reason", "document_id", "part", "row")]
    for part, artifact in enumerate(task.inputs):
        table = pq.read_table(task.path(artifact))
        table = table.append_column("part", pa.array(np.full(len(table), part))).select(CHOSEN.names)
        chosen = first_of_each(pa.concat_tables([chosen, table.cast(CHOSEN)]).sort_by(order))
    with task.table("chosen", CHOSEN) as writer:
        writer.write(chosen)


def first_of_each(table: pa.Table) -> pa.Table:
    """Return the first PER_REASON rows of each reason of a table that is sorted by it."""
    reasons = table["reason"].combine_chunks().dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.append(True, np.diff(reasons) != 0)) if len(reasons) else np.zeros(0, int)
    place = np.arange(len(reasons)) - np.repeat(starts, np.diff(np.append(starts, len(reasons))))
    return table.filter(pa.array(place < PER_REASON))


def write_samples(task: Task) -> None:
    """Write the sample of a source. Inputs: `chosen`, then the parts, as they were read, that it takes from.

    Params: parts, their numbers. Output: `dropped` (DROPPED); the texts are the source's.
    """
    chosen = pq.read_table(task.path(task.inputs[0])).to_pylist()
    places: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in chosen:
        places.setdefault((row["part"], row["row"]), []).append(row)
    for part, artifact in zip(task.params["parts"], task.inputs[1:], strict=True):
        wanted = sorted(row for number, row in places if number == part)
        for here, table in read_rows(task.path(artifact), np.array(wanted), DOCUMENTS.names):
            for number, document in zip(wanted[here], table.to_pylist(), strict=True):
                text = document["text"] or ""
                for row in places[part, number]:
                    row.update(document, text=text[:TEXT_CHARS], chars=len(text))
    with task.table("dropped", DROPPED) as writer:
        writer.write(pa.Table.from_pylist(chosen, schema=DROPPED))


def leave_out(task: Task) -> None:
    """Write a sample without documents that are named. Params: ids, urls, domains. Output: `dropped` (DROPPED)."""
    table = pq.read_table(task.path(task.inputs[0]), schema=DROPPED)
    selected, _ = select_documents(table["document_id"], table["url"], **task.params)
    with task.table("dropped", DROPPED) as writer:
        if not selected.all():
            writer.write(table.filter(pa.array(~selected)))


def dropped_folder(samples: Mapping[str, Artifact]) -> dict[str, dict[str, Artifact]]:
    """Return what to publish of the samples, by source."""
    return {"dropped": {f"{name}.parquet": sample for name, sample in samples.items()}} if samples else {}
