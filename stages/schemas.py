"""Tables of documents: their schemas, document ids, and a digest of a table's values.

The digest does not depend on row groups, compression or parquet's version, so two builds can be compared
by what their tables say. Each column feeds two hashes, one of validity and lengths, one of bytes; where
batches are cut makes no difference.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ID = pa.binary(16)  # 128-bit document id


def document_id(text: str) -> bytes:
    """Return the 128-bit BLAKE2b of the source's text before any edit, as UTF-8. Computed once, never again.

    Raises UnicodeEncodeError on lone surrogates: such a row has no faithful bytes and is quarantined.
    """
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


# What `download` writes. Columns `meta.<name>` follow where a rule of the source asks for them.
DOCUMENTS = pa.schema(
    [
        ("document_id", ID),
        ("text", pa.string()),
        ("source_file", pa.string()),  # relative to the source's root
        ("source_row", pa.int64()),
        ("url", pa.string()),
    ]
)
# What `dedup` writes and users read under `curated/`.
CURATED = pa.schema([*DOCUMENTS, pa.field("source", pa.string())])
QUARANTINE = pa.schema(
    [
        ("source_file", pa.string()),
        ("source_row", pa.int64()),
        ("reason", pa.string()),
        ("excerpt", pa.string()),
    ]
)


def utf8_bytes(column: pa.Array | pa.ChunkedArray) -> int:
    """Return the bytes of UTF-8 in a column of text. A null has none."""
    return pc.sum(pc.binary_length(column), min_count=0).as_py()


class TableDigest:
    """Running digest of a table's values, column by column."""

    def __init__(self, schema: pa.Schema):
        self.schema = schema
        self.shape = [hashlib.blake2b(digest_size=32) for _ in schema]
        self.data = [hashlib.blake2b(digest_size=32) for _ in schema]
        self.rows = 0

    def update(self, table: pa.Table) -> None:
        """Add the rows of `table`, whose columns are the schema's, in its order."""
        self.rows += table.num_rows
        for i, column in enumerate(table.columns):
            for chunk in column.chunks:
                if len(chunk):
                    self._column(i, chunk)

    def _column(self, i: int, chunk: pa.Array) -> None:
        valid = np.asarray(chunk.is_valid().to_numpy(zero_copy_only=False), dtype=np.uint8)
        self.shape[i].update(valid.tobytes())
        if pa.types.is_string(chunk.type) or pa.types.is_binary(chunk.type):
            kept = chunk.drop_null()
            offsets = np.frombuffer(kept.buffers()[1], np.int32)[kept.offset : kept.offset + len(kept) + 1]
            self.shape[i].update(np.diff(offsets).astype("<i4").tobytes())
            if len(offsets) and kept.buffers()[2] is not None:
                self.data[i].update(memoryview(kept.buffers()[2])[int(offsets[0]) : int(offsets[-1])])
        elif pa.types.is_fixed_size_binary(chunk.type):
            width = chunk.type.byte_width
            kept = chunk.drop_null()
            if len(kept):
                start = kept.offset * width
                self.data[i].update(memoryview(kept.buffers()[1])[start : start + len(kept) * width])
        else:
            values = chunk.drop_null().to_numpy(zero_copy_only=False)
            self.data[i].update(np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<")).tobytes())

    def hexdigest(self) -> str:
        """Return the digest of all rows seen so far."""
        total = hashlib.blake2b(digest_size=32)
        for field, shape, data in zip(self.schema, self.shape, self.data, strict=True):
            total.update(f"{field.name}:{field.type}:{self.rows};".encode())
            total.update(shape.digest() + data.digest())
        return total.hexdigest()


def table_digest(table: pa.Table) -> str:
    """Return the logical digest of a table in memory."""
    digest = TableDigest(table.schema)
    digest.update(table)
    return digest.hexdigest()
