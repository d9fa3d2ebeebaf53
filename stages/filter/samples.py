"""Documents that the rules dropped, a few for each reason, with their text: for a person to read and judge the rules.

Of each reason those with the smallest ids stay (ids are hashes: a fair sample, and the same in every run), in each unit
and then in each source.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.schemas import DOCUMENTS
from stages.selectors import match
from stages.task import Artifact, Task

PER_REASON = 20
TEXT_CHARS = 20_000  # of each document, from its beginning

DROPPED = pa.schema([("reason", pa.string()), *DOCUMENTS, ("chars", pa.int64())])  # `chars`: of the whole text


class Sample:
    """The sample of one unit."""

    def __init__(self) -> None:
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def add(self, reason: str, documents: pa.Table) -> None:
        """Add documents (DOCUMENTS) that were dropped for `reason`; their text is the source's."""
        known = self.rows.setdefault(reason, [])
        first = pc.select_k_unstable(documents, PER_REASON, [("document_id", "ascending")]) if len(documents) else []
        for row in documents.take(first).to_pylist() if len(documents) else ():
            text = row["text"]
            known.append({"reason": reason, **row, "text": text[:TEXT_CHARS], "chars": len(text)})
        known.sort(key=lambda row: (row["document_id"], row["source_file"], row["source_row"]))
        del known[PER_REASON:]

    def table(self) -> pa.Table:
        """The sample (DROPPED), by reason and id."""
        rows = [row for reason in sorted(self.rows) for row in self.rows[reason]]
        return pa.Table.from_pylist(rows, schema=DROPPED)


def work(task: Task) -> None:
    """The sample of a source from those of its units. Params: ids, urls, domains to leave out, or nothing.

    Output: `dropped` (DROPPED).
    """
    table = pa.concat_tables(pq.read_table(task.path(a), schema=DROPPED) for a in task.inputs)
    if named := task.params:
        mask, _ = match(table["document_id"], table["url"], named["ids"], named["urls"], named["domains"])
        table = table.filter(pa.array(~mask))
    table = table.sort_by([(name, "ascending") for name in ("reason", "document_id", "source_file", "source_row")])
    seen: dict[str, int] = {}
    kept = []
    for row, reason in enumerate(table["reason"].to_pylist()):
        seen[reason] = seen.get(reason, 0) + 1
        if seen[reason] <= PER_REASON:
            kept.append(row)
    with task.table("dropped", DROPPED) as writer:
        if kept:
            writer.write(table.take(pa.array(kept)))


def folder(samples: dict[str, Artifact]) -> dict[str, dict[str, Artifact]]:
    """What to publish of the samples by source."""
    return {"dropped": {f"{name}.parquet": sample for name, sample in samples.items()}} if samples else {}
