"""Columns of text as the kernels see them: bytes, and where each text begins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SLACK = 8  # bytes that a kernel may read beyond the last text


def utf8_buffers(texts: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the UTF-8 of a string column (a null is an empty text), and where each text begins and the last ends.

    It is a copy: kernels are compiled once, for arrays that can be written, and may read SLACK bytes beyond the end.
    """
    _, offset_buffer, data = texts.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    size = data.size if data is not None else 0
    copy = np.zeros(size + SLACK, np.uint8)
    copy[:size] = np.frombuffer(data or b"", np.uint8)
    return copy, offsets
