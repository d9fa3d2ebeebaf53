"""The lines of texts by their hashes, compiled.

How wide the white space in a line is, and the case of ASCII, makes no difference.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.kernels.jit import compiled, get, uint64
from stages.kernels.text_columns import utf8_buffers

NEWLINE, BLANK = 0x0A, 0x20
OFFSET, PRIME = uint64(0xCBF29CE484222325), uint64(0x100000001B3)  # FNV-1a's, of 64 bits
MIX = uint64(0xFF51AFD7ED558CCD)  # of MurmurHash3's last step, as FNV's upper bits of short lines are alike


@compiled
def fill_keys(data: Any, offsets: Any, least: int, rows: Any, lines: Any, keys: Any) -> int:
    """Put row, number in its text and key of each line with `least` bytes or more of other than white space.

    Returns how many there are.
    """
    n = 0
    for d in range(len(offsets) - 1):
        i, b = offsets[d], offsets[d + 1]
        line, size, gap, h = 0, 0, False, OFFSET
        while i <= b:
            c = get(data, i) if i < b else NEWLINE
            if c == NEWLINE:
                if size >= least:
                    h ^= h >> uint64(33)
                    h *= MIX
                    rows[n], lines[n], keys[n] = d, line, h ^ (h >> uint64(33))
                    n += 1
                line, size, gap, h = line + 1, 0, False, OFFSET
            elif c == BLANK or 9 <= c <= 13:
                gap = size > 0
            else:
                if gap:
                    h = (h ^ uint64(BLANK)) * PRIME
                    gap = False
                if 65 <= c <= 90:
                    c += 32
                h = (h ^ uint64(c)) * PRIME
                size += 1
            i += 1
    return n


def line_keys(texts: pa.Array, least: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
    """Return (row, number in its text, key) of each line of `least` bytes or more, without its white space."""
    data, offsets = utf8_buffers(texts)
    most = int(np.count_nonzero(data == NEWLINE)) + len(texts)
    rows, lines, keys = np.empty(most, np.int64), np.empty(most, np.int64), np.empty(most, np.uint64)
    found = fill_keys(data, offsets, least, rows, lines, keys)
    return rows[:found], lines[:found], keys[:found]
