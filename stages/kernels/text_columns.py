"""Columns of text as the kernels see them: bytes, and where each text begins."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SLACK = 8  # bytes that a kernel may read beyond the last text


def utf8_views(texts: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Return the UTF-8 of a string column, and where each text begins and the last ends. Nothing is copied."""
    _, offset_buffer, data = texts.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    return np.frombuffer(data or b"", np.uint8), offsets


def utf8_buffers(texts: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the UTF-8 of a string column (a null is an empty text), and where each text begins and the last ends.

    It is a copy: kernels are compiled once, for arrays that can be written, and may read SLACK bytes beyond the end.
    """
    data, offsets = utf8_views(texts)
    copy = np.zeros(len(data) + SLACK, np.uint8)
    copy[: len(data)] = data
    return copy, offsets.astype(np.int64)
