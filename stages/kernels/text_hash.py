"""What exact deduplication hashes, compiled: text in lower case with runs of white space made one blank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from stages.kernels.jit import compiled, get
from stages.kernels.text_columns import utf8_buffers
from stages.kernels.unicode import PLAIN, SPACE, classes
from stages.kernels.utf8 import decode, flags_of

BLANK = 0x20


@compiled
def normalize(data: Any, offsets: Any, table: Any, out: Any, ends: Any) -> None:
    """Put each document's text into `out` from where it begins in `data`; `ends` says where each ends there, or -1.

    -1 is for text with a character that another case or form may take: Python does those.
    """
    for d in range(len(ends)):
        a, b = offsets[d], offsets[d + 1]
        o, gap, i = a, False, a
        while i < b:
            c, width = get(data, i), 1
            if c < 128:
                flags = get(table, c) | PLAIN
                if 65 <= c <= 90:
                    c += 32
            else:
                c, width = decode(data, i)
                flags = flags_of(c, table)
            if flags & SPACE:
                gap = o > a
            elif not flags & PLAIN:
                o = -1
                break
            else:
                if gap:
                    out[o] = BLANK
                    o += 1
                    gap = False
                if width == 1:
                    out[o] = c
                else:
                    for k in range(width):
                        out[o + k] = get(data, i + k)
                o += width
            i += width
        ends[d] = o


def normalized_texts(texts: pa.Array) -> Iterator[memoryview | None]:
    """Yield the UTF-8 of each text as it is hashed, or None where only Python can say."""
    data, offsets = utf8_buffers(texts)
    out, ends = np.empty(len(data), np.uint8), np.empty(len(texts), np.int64)
    normalize(data, offsets, classes(), out, ends)
    view = memoryview(out.data)
    for start, end in zip(offsets.tolist(), ends.tolist(), strict=False):
        yield view[start:end] if end >= 0 else None
