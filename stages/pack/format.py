"""The columns of a shard's `.rows.parquet`: which document each stretch of tokens is.

The shard's other files, `.bin` and `.idx`, are written and read in train/data/format.py.
"""

from __future__ import annotations

import pyarrow as pa

from stages.schemas import ID

ROWS = pa.schema(
    [
        ("token_start", pa.int64()),
        ("token_count", pa.int32()),
        ("document_id", ID),
        ("source", pa.string()),
        ("source_file", pa.string()),
        ("source_row", pa.int64()),
        ("url", pa.string()),
        ("copy", pa.int32()),  # which repeat of the document, from 0
        ("part", pa.int32()),  # which piece of a document longer than a shard, from 0
        ("truncated", pa.bool_()),  # cut, to make the mixture's count exact
    ]
)
