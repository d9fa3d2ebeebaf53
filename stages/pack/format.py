"""The shard as bytes on disk: `.bin` (llm.c), `.idx` (Megatron) and `.rows.parquet`, and how to read them back.

The `.idx` is Megatron's MMIDIDX version 1 with one document a sequence; its byte pointers are offsets into the
very same `.bin`, header included, so both families of readers share one file. Layouts: llm.c
`dev/data/data_common.py`, Megatron-LM `megatron/core/datasets/indexed_dataset.py`.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa

from stages.schemas import ID
from train.data.manifest import HEADER_BYTES, Header, ManifestError

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
UINT16_CODE = 8  # Megatron's DType.code_from_dtype(numpy.uint16)


def write_index(path: str, counts: np.ndarray, starts: np.ndarray) -> None:
    """Write the MMIDIDX file for documents of `counts` tokens (n,), the first of each at `starts` (n,) in the `.bin`.

    Padding between documents belongs to none, so readers of the index never see it.
    """
    n = len(counts)
    with Path(path).open("wb") as file:
        file.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, UINT16_CODE, n, n + 1))
        file.write(np.asarray(counts, "<i4").tobytes())
        file.write((HEADER_BYTES + 2 * starts).astype("<i8").tobytes())
        file.write(np.arange(n + 1, dtype="<i8").tobytes())


def read_index(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """(token counts (n,), byte pointers (n,)) of an index. Raises ManifestError."""
    raw = Path(path).read_bytes()
    if raw[:9] != b"MMIDIDX\x00\x00" or len(raw) < 34:
        raise ManifestError(f"{path}: not a Megatron index")
    version, dtype, n, documents = struct.unpack("<QBQQ", raw[9:34])
    if (version, dtype, documents) != (1, UINT16_CODE, n + 1) or len(raw) != 34 + 12 * n + 8 * (n + 1):
        raise ManifestError(f"{path}: damaged Megatron index")
    return np.frombuffer(raw, "<i4", n, 34), np.frombuffer(raw, "<i8", n, 34 + 4 * n)


def open_shard(path: str | Path) -> tuple[Header, np.ndarray]:
    """(header, tokens (n,) as a read-only map). Raises ManifestError if header and length disagree."""
    try:
        with Path(path).open("rb") as file:
            header = Header.unpack(file.read(HEADER_BYTES), str(path))
    except FileNotFoundError:
        raise ManifestError(f"{path}: missing; build it again") from None
    size = os.path.getsize(path)  # noqa: PTH202
    if size != HEADER_BYTES + 2 * header.tokens:
        raise ManifestError(f"{path}: {size:,} bytes, but its header says {header.tokens:,} tokens; build it again")
    if header.tokens == 0:
        return header, np.zeros(0, np.uint16)
    return header, np.asarray(np.memmap(path, "<u2", "r", HEADER_BYTES, (header.tokens,)))
