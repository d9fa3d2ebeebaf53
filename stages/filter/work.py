"""The work of `filter` on one part: thresholds against measures. It reads no text, so another threshold takes seconds.

Apart from `stages.filter.stage` so that a change in how units are chosen re-runs none of them.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.filter.verdict import columns_of_table, flags, judge
from stages.kept import KEPT
from stages.schemas import ID
from stages.task import Task

# A row a document that a rule dropped, in the order of the part.
RULED_OUT = pa.schema(
    [
        ("row", pa.int64()),
        ("document_id", ID),
        ("reason", pa.string()),
        ("value", pa.float64()),  # the measure that the reason is about, null where there is none
    ]
)


def work(task: Task) -> None:
    """Judge one part by its measures. Params: rules, a list of [name, thresholds].

    Outputs: `kept` (KEPT), `ruled-out` (RULED_OUT). Counts rows_in, kept, edited (of what is kept), text_bytes (of what
    is kept) and dropped.<reason>.
    """
    file = pq.ParquetFile(task.path(task.inputs[0]))
    rules = [(name, thresholds) for name, thresholds in task.params["rules"]]
    first = 0
    with task.table("kept", KEPT) as kept, task.table("ruled-out", RULED_OUT) as ruled_out:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            columns = columns_of_table(table)
            verdict = judge(columns, rules)
            places = pa.array(np.arange(first, first + len(table)))
            first += len(table)
            stays = verdict.codes == 0
            rows = table.select(["document_id", "text_hash"]).add_column(0, "row", places).filter(pa.array(stays))
            if len(rows):
                kept.write(rows)
            goes = {
                "row": places,
                "document_id": columns["document_id"],
                "reason": pa.array(verdict.of_each(), pa.string()),
                "value": pa.array(verdict.values, from_pandas=True),
            }
            if not stays.all():
                ruled_out.write(pa.table(goes).filter(pa.array(~stays)))
            for code in np.unique(verdict.codes[~stays]).tolist():
                task.count(f"dropped.{verdict.reasons[code]}", int((verdict.codes == code).sum()))
            task.count("rows_in", len(table))
            task.count("kept", int(stays.sum()))
            task.count("text_bytes", pc.sum(columns["bytes"].filter(pa.array(stays)), min_count=0).as_py())
            if edited := int((flags(columns["edited"]) & stays).sum()):
                task.count("edited", edited)
