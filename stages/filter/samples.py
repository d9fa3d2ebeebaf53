"""Documents that the rules dropped, a few for each reason, with their text: for a person to read and judge the rules.

Of each reason those with the smallest ids stay (ids are hashes: a fair sample, and the same in every run), in each unit
and then in each source.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.schemas import DOCUMENTS
from stages.selectors import select_documents
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
        if not len(documents):
            return
        rows = self.rows.setdefault(reason, [])
        first = pc.select_k_unstable(documents, PER_REASON, [("document_id", "ascending")])
        for row in documents.take(first).to_pylist():
            text = row["text"]
            rows.append({"reason": reason, **row, "text": text[:TEXT_CHARS], "chars": len(text)})
        rows.sort(key=lambda row: (row["document_id"], row["source_file"], row["source_row"]))
        del rows[PER_REASON:]

    def table(self) -> pa.Table:
        """Return the sample (DROPPED), by reason and id."""
        rows = [row for reason in sorted(self.rows) for row in self.rows[reason]]
        return pa.Table.from_pylist(rows, schema=DROPPED)


def merge_samples(task: Task) -> None:
    """Make the sample of a source from those of its units. Params: ids, urls, domains to leave out, or nothing.

    Output: `dropped` (DROPPED).
    """
    table = pa.concat_tables(pq.read_table(task.path(artifact), schema=DROPPED) for artifact in task.inputs)
    if task.params:
        selected, _ = select_documents(table["document_id"], table["url"], **task.params)
        table = table.filter(pa.array(~selected))
    table = table.sort_by([(name, "ascending") for name in ("reason", "document_id", "source_file", "source_row")])
    times: Counter[str] = Counter()
    kept_rows = []
    for row, reason in enumerate(table["reason"].to_pylist()):
        times[reason] += 1
        if times[reason] <= PER_REASON:
            kept_rows.append(row)
    with task.table("dropped", DROPPED) as writer:
        if kept_rows:
            writer.write(table.take(pa.array(kept_rows)))


def dropped_folder(samples: Mapping[str, Artifact]) -> dict[str, dict[str, Artifact]]:
    """Return what to publish of the samples, by source."""
    return {"dropped": {f"{name}.parquet": sample for name, sample in samples.items()}} if samples else {}
