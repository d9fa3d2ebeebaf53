"""Words as FineWeb counts them, compiled: marks at the ends of what lies between blanks are words of their own.

`stages.filter.words` has the readable form, and says where the rule is from.
"""

from __future__ import annotations

from typing import Any

from stages.kernels.jit import compiled, get
from stages.kernels.unicode import ALPHA, HYPHEN, LEAD, TRAIL
from stages.kernels.utf8 import DOT, decode, end_without, flags_of, hash_bytes


@compiled
def leading_end(data: Any, a: int, b: int, table: Any) -> int:
    """Return where what is cut off before the word [a, b) ends."""
    while a < b:
        c, width = decode(data, a)
        if c == DOT and a + 1 < b and get(data, a + 1) == DOT:
            a = mark_end(data, a, b)
        elif flags_of(c, table) & LEAD:
            a += width
        else:
            break
    return a


@compiled
def mark_end(data: Any, i: int, b: int) -> int:
    """Return where the mark at `i` in [i, b) ends: a character, or all full stops in a row."""
    c, width = decode(data, i)
    i += width
    while c == DOT and i < b and get(data, i) == DOT:
        i += 1
    return i


@compiled
def hyphen_end(data: Any, i: int, b: int, table: Any) -> int:
    """Return where the hyphens at `i` in [i, b) end, all the same, if a letter is behind them; `i` if none is."""
    c, width = decode(data, i)
    k = i + width
    while k < b:
        behind, width = decode(data, k)
        if behind != c:
            return k if flags_of(behind, table) & ALPHA else i
        k += width
    return i


@compiled
def put_word(data: Any, a: int, b: int, plain: bool, words: Any, n: int) -> int:
    """Make [a, b) word `n`; returns its characters. plain: whether all of them are ASCII."""
    table, hashes = words
    size = b - a
    if not plain:
        for k in range(a, b):
            size -= (get(data, k) & 0xC0) == 0x80
    table[n, 0], table[n, 1], table[n + 1, 2] = a, b, table[n, 2] + size
    hashes[n] = hash_bytes(data, a, b)
    return size


@compiled
def piece_end(data: Any, i: int, b: int, table: Any) -> int:
    """Return where the first hyphens between letters in [i, b) are, or b."""
    flags = 0
    while i < b:
        before = flags
        c, width = decode(data, i)
        flags = flags_of(c, table)
        if flags & HYPHEN and before & ALPHA and hyphen_end(data, i, b, table) > i:
            return i
        i += width
    return b


@compiled
def cut_word(
    data: Any, a: int, b: int, table: Any, kinds: int, plain: bool, words: Any, n: int
) -> tuple[int, int, int]:
    """Make words of what lies between blanks, [a, b): marks at its ends, hyphens between letters, the rest.

    kinds: its flags; plain: whether it is all ASCII. `n` is the number of the first. Returns (that of the next, how
    many are the rest, characters in these).
    """
    start = leading_end(data, a, b, table)
    stop = end_without(data, start, b, table, TRAIL)
    pieces = size = 0
    hyphens = False
    while a < b:
        inside = start <= a < stop
        if not inside:
            end = mark_end(data, a, b)
        elif hyphens:
            end = hyphen_end(data, a, stop, table)
        elif kinds & HYPHEN:
            end = piece_end(data, a, stop, table)
        else:
            end = stop
        chars = put_word(data, a, end, plain, words, n)
        if inside and not hyphens:
            pieces, size = pieces + 1, size + chars
        hyphens = inside and not hyphens and end < stop
        a, n = end, n + 1
    return n, pieces, size
