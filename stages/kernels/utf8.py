"""UTF-8 read by character or eight bytes at a time, compiled. The text must be valid."""

from __future__ import annotations

from typing import Any

from stages.kernels.jit import compiled, get, load, uint64
from stages.kernels.unicode import IGNORED, IGNORED_RANGE, LIMIT

TOPS, ONES = uint64(0x8080808080808080), uint64(0x0101010101010101)
MIX = uint64(0x9E3779B97F4A7C15)  # 2^64 / the golden ratio
ONE = uint64(1)
FIRST_IGNORED, LAST_IGNORED = IGNORED_RANGE[0], IGNORED_RANGE[-1]
HASH, DOT, NEWLINE, RETURN = 0x23, 0x2E, 0x0A, 0x0D


@compiled
def decode(data: Any, i: int) -> tuple[int, int]:
    """Return (code point, bytes) of the character at `i`. The text must be valid UTF-8."""
    c = get(data, i)
    return (c, 1) if c < 0x80 else decode_longer(data, i)


@compiled
def decode_longer(data: Any, i: int) -> tuple[int, int]:
    """Return what `decode` does, of a character that is not ASCII. Apart, so that `decode` is inlined everywhere."""
    c = get(data, i)
    if c < 0xE0:
        return (c & 0x1F) << 6 | (get(data, i + 1) & 0x3F), 2
    if c < 0xF0:
        return (c & 0x0F) << 12 | (get(data, i + 1) & 0x3F) << 6 | (get(data, i + 2) & 0x3F), 3
    high = (c & 0x07) << 18 | (get(data, i + 1) & 0x3F) << 12
    return high | (get(data, i + 2) & 0x3F) << 6 | (get(data, i + 3) & 0x3F), 4


@compiled
def flags_of(c: int, table: Any) -> int:
    """Return what a table by code point says of a character: nothing, 0, from LIMIT on."""
    return get(table, c) if c < LIMIT else 0


@compiled
def is_nothing(c: int, table: Any) -> bool:
    """Return whether a character is none of a comparable form: `is_ignored`."""
    return get(table, c) & IGNORED != 0 if c < LIMIT else FIRST_IGNORED <= c <= LAST_IGNORED


@compiled
def is_same(data: Any, a: int, b: int, out: Any, o: int, end: int) -> bool:
    """Return whether the bytes [a, b) are those of `out` in [o, end)."""
    if end - o != b - a:
        return False
    while a + 8 <= b:
        if load(data, a) != load(out, o):
            return False
        a += 8
        o += 8
    while a < b:
        if get(data, a) != get(out, o):
            return False
        a += 1
        o += 1
    return True


@compiled
def hash_bytes(data: Any, a: int, b: int) -> Any:
    """Return a hash of the bytes [a, b), eight at a time."""
    h = uint64(b - a) * MIX
    while a + 8 <= b:
        h = (h ^ load(data, a)) * MIX
        h ^= h >> uint64(32)
        a += 8
    if a < b:
        h = (h ^ (load(data, a) & ((ONE << uint64(8 * (b - a))) - ONE))) * MIX
    return h ^ (h >> uint64(29))


@compiled
def last_char(data: Any, b: int) -> int:
    """Return where the character begins that ends at `b`."""
    b -= 1
    while get(data, b) & 0xC0 == 0x80:
        b -= 1
    return b


@compiled
def end_without(data: Any, a: int, b: int, table: Any, kind: int) -> int:
    """Return where the text [a, b) ends without the characters at its end that `table` says are of `kind`."""
    while b > a:
        start = last_char(data, b)
        if not flags_of(decode(data, start)[0], table) & kind:
            break
        b = start
    return b


@compiled
def last_flags(data: Any, a: int, b: int, table: Any, passed: int) -> int:
    """Return the flags of the last character of [a, b) that is not of the kind `passed`; -1 where there is none."""
    while b > a:
        b = last_char(data, b)
        flags = flags_of(decode(data, b)[0], table)
        if not flags & passed:
            return flags
    return -1
