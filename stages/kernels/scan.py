"""One pass over a document's UTF-8: its words, its lines, and what the rules count. Compiled.

Offsets are bytes into the batch; lengths in `chars` are code points. Everything is equal to what
`stages.filter.words.split_words`, `str.splitlines` and `str.split("\\n")` give, which the tests prove.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stages.kernels.cut import cut_word
from stages.kernels.jit import compiled, get, int64, load, lowest, uint64
from stages.kernels.unicode import ALNUM, ALPHA, BREAK, END, HYPHEN, LEAD, MARK, SPACE, TRAIL
from stages.kernels.utf8 import DOT, HASH, NEWLINE, RETURN, TOPS, decode, flags_of, hash_bytes, last_flags

# Counters of a document, by their place in `marks`. SOLID are the WORDS with a letter or digit, SOLID_CHARS their
# characters, ALPHABETIC the words with a letter. LINES lie between NEWLINES, none is empty.
# ROWS are lines as str.splitlines cuts them, of which BULLETS begin with a bullet and ELLIPSIS_ROWS end in an ellipsis.
# HASHES are `#`, ELLIPSES `...` or `…`, and STOPS different stop words.
CHARS, WORDS, LINES, NEWLINES, SOLID, SOLID_CHARS, ALPHABETIC, HASHES, ELLIPSES, ROWS, BULLETS, ELLIPSIS_ROWS, STOPS = (
    range(13)
)
ANY, NOT_BLANK, ENDED = 0, 1, 2  # flags of a line: ENDED when its last word ends as a sentence does

ZEROS = uint64(0x3030303030303030)
DASH, BULLET, ELLIPSIS = 0x2D, 0x2022, 0x2026
# Stop words as little-endian numbers of four bytes, their length above.
STOPPED = (b"the", b"be", b"to", b"of", b"and", b"that", b"have", b"with")
STOP_CODES = np.array([int.from_bytes(word, "little") | len(word) << 32 for word in STOPPED], np.int64)
STRIPPED = np.zeros(128, np.bool_)
STRIPPED[list(b".,;:!?()[]\"'`*")] = True


@compiled
def stop_word(data: Any, a: int, b: int) -> int:
    """Return the bit of the stop word that [a, b) is, in any case and with punctuation around, or 0."""
    while a < b and get(data, a) < 128 and STRIPPED[get(data, a)]:
        a += 1
    while a < b and get(data, b - 1) < 128 and STRIPPED[get(data, b - 1)]:
        b -= 1
    if b - a < 2 or b - a > 4:
        return 0
    code = (b - a) << 32
    for i in range(a, b):
        c = get(data, i)
        if 65 <= c <= 90:
            c += 32
        code |= c << (8 * (i - a))
    for k in range(len(STOP_CODES)):
        if STOP_CODES[k] == code:
            return 1 << k
    return 0


@compiled
def ends_in_ellipsis(data: Any, a: int, b: int) -> bool:
    """Return whether [a, b) ends in `...` or `…`."""
    if b - a < 3:
        return False
    x, y, z = get(data, b - 3), get(data, b - 2), get(data, b - 1)
    return (x == DOT and y == DOT and z == DOT) or (x == 0xE2 and y == 0x80 and z == 0xA6)


@compiled
def plain_end(data: Any, i: int, b: int) -> int:
    """Return where the bytes of [i, b) end that are ASCII from "0" on, neither space nor marked. Eight at a time."""
    while i < b:
        eight = load(data, i)
        others = ((eight - ZEROS) | eight) & TOPS  # lower bytes borrow only if they are others themselves
        if others:
            return min(b, i + (lowest(others) >> 3))
        i += 8
    return b


@compiled
def word_end(data: Any, i: int, b: int, table: Any, marks: Any) -> tuple[int, int, int, int]:
    """Read the word that begins at `i`: (end, bytes that begin no character, flags of all, flags of the last).

    Counts its `#` and ellipses.
    """
    start, extra, kinds, flags = i, 0, 0, 0
    while True:
        first, i = i, plain_end(data, i, b)
        if i > first:  # most of a word
            flags = get(table, get(data, i - 1))
            kinds |= get(table, get(data, first)) | flags
            while not kinds & ALPHA and first < i:
                kinds |= get(table, get(data, first))
                first += 1
        if i == b:
            break
        c, width = get(data, i), 1
        now = get(table, c)
        if now & SPACE:
            break
        if c >= 128:
            c, width = decode(data, i)
            now = flags_of(c, table)
            if now & SPACE:
                break
        flags = now
        kinds |= now
        if now & MARK:
            if c == HASH:
                marks[HASHES] += 1
            elif c == ELLIPSIS:
                marks[ELLIPSES] += 1
            elif i == start or get(data, i - 1) != DOT:
                run = i + 1
                while run < b and get(data, run) == DOT:
                    run += 1
                marks[ELLIPSES] += (run - i) // 3
        extra += width - 1
        i += width
    return i, extra, kinds, flags


@compiled
def scan(
    data: Any, a: int, b: int, table: Any, stops_wanted: int, cut: bool, marks: Any, words: Any, lines: Any
) -> None:
    """Scan [a, b): counters into `marks`; words and the lines that are not empty, and the hash of each.

    cut: whether words are what `cut_word` makes of what lies between blanks. `words` is (table (n, 3) of start, end,
    characters before; hashes), `lines` (table (n, 4) of start, end, characters, kind; hashes). Stop words are looked
    for until `stops_wanted` different ones are found.
    """
    word_table, word_hashes = words
    marks[:] = 0
    n = extra = line_extra = kind = stops = chars = 0
    line_at, row_at, row_end = a, a, -1  # a row is a line as str.splitlines cuts it
    word_table[0, 2] = 0
    i = a
    while i < b:
        c, width = decode(data, i)
        flags = flags_of(c, table)
        if not flags & SPACE:
            if row_end < 0:
                marks[BULLETS] += c in (DASH, BULLET)
            start = i
            i, more, kinds, last = word_end(data, i, b, table, marks)
            extra += more
            chars += i - start - more
            first, pieces, size = n, 1, i - start - more
            if cut and ((flags | last) & (LEAD | TRAIL) or kinds & HYPHEN):
                n, pieces, size = cut_word(data, start, i, table, kinds, more == 0, words, n)
            else:
                word_table[n, 0], word_table[n, 1], word_table[n + 1, 2] = start, i, chars
                word_hashes[n] = hash_bytes(data, start, i)
                n += 1
            row_end, kind = i, NOT_BLANK | (ENDED if last & END else 0)
            if kinds & ALNUM:
                marks[SOLID] += pieces
                marks[SOLID_CHARS] += size
                marks[ALPHABETIC] += pieces if kinds & ALPHA else 0
                while marks[STOPS] < stops_wanted and first < n:
                    bit = stop_word(data, int64(word_table[first, 0]), int64(word_table[first, 1]))
                    marks[STOPS] += bit & ~stops != 0
                    stops |= bit
                    first += 1
            continue
        if c == NEWLINE:
            end_line(data, lines, marks, line_at, i, extra - line_extra, kind)
            marks[NEWLINES] += 1
            line_at, line_extra, kind = i + 1, extra, 0
        extra += width - 1
        i += width
        if flags & BREAK and not (c == RETURN and i < b and get(data, i) == NEWLINE):
            marks[ROWS] += 1
            marks[ELLIPSIS_ROWS] += ends_in_ellipsis(data, row_at, row_end)
            row_at, row_end = i, -1
    marks[ROWS] += b > row_at
    marks[ELLIPSIS_ROWS] += ends_in_ellipsis(data, row_at, row_end)
    end_line(data, lines, marks, line_at, b, extra - line_extra, kind)
    marks[CHARS], marks[WORDS] = b - a - extra, n


@compiled
def end_line(data: Any, lines: Any, marks: Any, a: int, b: int, extra: int, kind: int) -> None:
    """Note the line [a, b), `extra` of whose bytes begin no character, unless it is empty."""
    if b > a:
        line_table, hashes = lines
        n = marks[LINES]
        line_table[n, 0], line_table[n, 1], line_table[n, 2], line_table[n, 3] = a, b, b - a - extra, kind
        hashes[n] = hash_bytes(data, a, b)
        marks[LINES] = n + 1


@compiled
def kind_of_line(data: Any, a: int, b: int, table: Any) -> int:
    """Return what the line [a, b) is, by its last character that is no white space."""
    flags = last_flags(data, a, b, table, SPACE)
    return ANY if flags < 0 else NOT_BLANK | (ENDED if flags & END else 0)


@compiled
def scan_lines(data: Any, a: int, b: int, table: Any, marks: Any, lines: Any) -> None:
    """Do the part of `scan` that rules about lines need: `lines`, and the counters CHARS, WORDS, LINES and NEWLINES.

    Words are not cut.
    """
    marks[:] = 0
    words = newlines = extra = 0
    gap, at, i = 1, a, a
    line_extra = 0
    while i < b:
        c, width = decode(data, i)
        space = (flags_of(c, table) & SPACE) // SPACE
        words += gap & ~space
        gap = space
        if c == NEWLINE:
            end_line(data, lines, marks, at, i, extra - line_extra, kind_of_line(data, at, i, table))
            newlines += 1
            at, line_extra = i + 1, extra
        extra += width - 1
        i += width
    end_line(data, lines, marks, at, b, extra - line_extra, kind_of_line(data, at, b, table))
    marks[CHARS], marks[WORDS], marks[NEWLINES] = b - a - extra, words, newlines
