"""The work of `filter` on one part: apply the rules, count reasons, hash what is kept for deduplication.

Apart from `stages.filter` so that a change in how units are chosen re-runs none of them.
"""

from __future__ import annotations

import hashlib
import unicodedata

import pyarrow as pa
import pyarrow.parquet as pq

from stages.base import Task
from stages.rules import Document, first_reason
from stages.tables import DOCUMENTS, FILTERED, ID

META = "meta."


def text_hash(text: str) -> bytes:
    """128-bit BLAKE2b of the text in NFC, lower case, with runs of white space made one blank.

    Two documents with the same hash are duplicates: they differ in nothing that a small model would learn.
    """
    plain = text if text.isascii() else unicodedata.normalize("NFC", text)
    return hashlib.blake2b(" ".join(plain.lower().split()).encode(), digest_size=16).digest()


def work(task: Task) -> None:
    """Filter one part. Params: rules, a list of [name, thresholds]. Output: `docs`.

    Counts rows_in, kept, text_bytes (of what is kept) and dropped.<reason>.
    """
    rules = [(name, thresholds) for name, thresholds in task.params["rules"]]
    file = pq.ParquetFile(task.path(task.inputs[0]))
    columns = [c for c in file.schema_arrow.names if c.startswith(META)]
    with task.table("docs", FILTERED) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            texts = table["text"].to_pylist()
            metas: list[dict[str, float | str | None]] = [{}] * len(texts)
            if columns:
                renamed = table.select(columns).rename_columns([c.removeprefix(META) for c in columns])
                metas = renamed.to_pylist()
            kept, hashes = [], []
            for row, (text, meta) in enumerate(zip(texts, metas, strict=True)):
                reason = first_reason(Document(text, meta), rules)
                if reason is None:
                    kept.append(row)
                    hashes.append(text_hash(text))
                    task.count("text_bytes", len(text.encode()))
                else:
                    task.count(f"dropped.{reason}")
            task.count("rows_in", len(texts))
            task.count("kept", len(kept))
            if kept:
                chosen = table.select(DOCUMENTS.names).take(pa.array(kept, pa.int64()))
                writer.write(chosen.append_column(pa.field("text_hash", ID), pa.array(hashes, ID)))
