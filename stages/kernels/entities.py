"""Where the entities of HTML lie in a text, compiled; `stages.comparable` says what they mean."""

from __future__ import annotations

from typing import Any

from stages.kernels.jit import compiled, get, load, lowest, uint64
from stages.kernels.utf8 import HASH, ONES, TOPS

AMPERSAND, SEMICOLON = 0x26, 0x3B
AMPERSANDS = uint64(0x2626262626262626)
LONGEST_NAME = 32


@compiled
def skip_plain(data: Any, i: int, b: int) -> int:
    """Return where the first ampersand or byte beyond ASCII of [i, b) is, or b."""
    while i + 8 <= b:
        eight = load(data, i)
        ampersands = eight ^ AMPERSANDS
        # The top of each byte that is one, and maybe of some behind.
        found = (eight | ((ampersands - ONES) & ~ampersands)) & TOPS
        if found:
            return i + (lowest(found) >> 3)
        i += 8
    while i < b and get(data, i) < 128 and get(data, i) != AMPERSAND:
        i += 1
    return i


@compiled
def entity_end(data: Any, i: int, b: int) -> tuple[int, int]:
    """Return (start, end) of the name or number, semicolon included, of the entity whose ampersand is at `i` in [i, b).

    (0, 0) where none is; `end` is where the entity ends. `&amp;lt;` is one, with the name lt: see `comparable.ENTITY`.
    """
    name = i + 1
    while (
        name + 4 <= b
        and get(data, name) == 0x61
        and get(data, name + 1) == 0x6D
        and get(data, name + 2) == 0x70
        and get(data, name + 3) == SEMICOLON
    ):
        name += 4
    end = name_end(data, name, b)
    if end:
        return name, end
    return (name - 4, name) if name > i + 1 else (0, 0)


@compiled
def name_end(data: Any, i: int, b: int) -> int:
    """Return where the name or number at `i` ends with its semicolon, or 0 where it is none."""
    least, most, digits, letters = 2, LONGEST_NAME, False, 26
    start = i
    if i < b and get(data, i) == HASH:
        least, most, digits, letters = 1, 10, True, 0
        start = i + 1
        if start < b and get(data, start) | 0x20 == 0x78:  # x
            most, letters = 8, 6
            start += 1
    k = start
    while k < b and k - start <= most:
        c = get(data, k)
        is_digit = 48 <= c <= 57
        is_letter = 0 <= (c | 0x20) - 0x61 < letters
        if not is_letter and not (is_digit and (digits or k > start)):
            break
        k += 1
    if k < b and get(data, k) == SEMICOLON and least <= k - start <= most:
        return k + 1
    return 0
