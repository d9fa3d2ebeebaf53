"""Which texts of a column are in no need of another form to be compared, compiled. `stages.comparable` says what it is.

Most English texts are known to be in it at the speed of memory; Python looks at the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.kernels.jit import compiled, get, load, uint64
from stages.kernels.scan import TOPS, decode
from stages.kernels.unicode import CHANGES, IGNORED_RANGE, LIMIT, nfkc_order

AMPERSANDS = uint64(0x2626262626262626)
ONES = uint64(0x0101010101010101)
AMPERSAND, SEMICOLON, HASH = 0x26, 0x3B, 0x23
LONGEST_ENTITY = 34  # between the ampersand and its semicolon
FIRST_IGNORED, LAST_IGNORED = IGNORED_RANGE[0], IGNORED_RANGE[-1]


@compiled
def begins_entity(data: Any, i: int, b: int) -> bool:
    """Return whether what follows the ampersand at `i` may be an entity: letters, digits or `#`, and a semicolon."""
    for k in range(i + 1, min(b, i + LONGEST_ENTITY)):
        c = get(data, k)
        if c == SEMICOLON:
            return k > i + 1
        if not (48 <= c <= 57 or 65 <= (c & 0xDF) <= 90 or c == HASH):
            return False
    return False


@compiled
def needs_check(data: Any, i: int, b: int, order: Any) -> bool:
    """Return whether the text [i, b) may have another comparable form."""
    last = 0
    while i < b:
        if i + 8 <= b:
            eight = load(data, i)
            ampersands = eight ^ AMPERSANDS  # a byte of it is 0 where an ampersand is; the test may find others too
            if not (eight | ((ampersands - ONES) & ~ampersands)) & TOPS:
                i += 8
                last = 0
                continue
        c = get(data, i)
        if c < 128:
            if c == AMPERSAND and begins_entity(data, i, b):
                return True
            last = 0
            i += 1
            continue
        c, width = decode(data, i)
        now = get(order, c) if c < LIMIT else CHANGES * (FIRST_IGNORED <= c <= LAST_IGNORED)
        if now == CHANGES or (now and now < last):
            return True
        last = now
        i += width
    return False


@compiled
def fill_flags(data: Any, offsets: Any, order: Any, flags: Any) -> None:
    """Set the flag of each text that `needs_check`."""
    for d in range(len(flags)):
        flags[d] = needs_check(data, get(offsets, d), get(offsets, d + 1), order)


def rows_to_check(texts: pa.Array) -> npt.NDArray[np.int64]:
    """Return the rows of a column whose text may have another comparable form. Nothing is copied."""
    _, offset_buffer, text_buffer = texts.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(text_buffer or b"", np.uint8)
    flags = np.zeros(len(texts), np.bool_)
    fill_flags(data, offsets, nfkc_order(), flags)
    return np.flatnonzero(flags)
