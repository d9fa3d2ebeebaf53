"""C4's rules, compiled: the one family that edits, line by line, into a buffer of its own.

`stages.filter.c4` has the readable form.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stages.kernels.jit import compiled, get, load, lowest, uint64
from stages.kernels.unicode import ANCHOR, BREAK, CLOSER, DIGIT, END, SPACE
from stages.kernels.utf8 import (
    NEWLINE,
    ONES,
    RETURN,
    TOPS,
    decode,
    end_without,
    flags_of,
    is_nothing,
    is_same,
    last_flags,
)

LOREM, SCRIPT, POLICY, CURLY, BRACKET = 1, 2, 4, 8, 16  # what a line may hold
STAYS, GOES = 0, -1  # what becomes of a line, beside LOREM and CURLY
BRACKETS, BLANKS = uint64(0x5B5B5B5B5B5B5B5B), uint64(0x2020202020202020)
KELVIN = 0x212A  # lower case of this sign is k
# Each phrase in lower case, its rare letter (it has no other k), and what it makes of a line.
PHRASES = (
    ("lorem ipsum", "p", LOREM),
    ("javascript", "j", SCRIPT),
    ("terms of use", "f", POLICY),
    ("privacy policy", "v", POLICY),
    ("cookie policy", "k", POLICY),
    ("uses cookies", "k", POLICY),
    ("use of cookies", "k", POLICY),
    ("use cookies", "k", POLICY),
)
RARE = np.array([ord(letter) for _, letter, _ in PHRASES], np.int64)
AT = np.array([phrase.index(letter) for phrase, letter, _ in PHRASES], np.int64)
SIZE = np.array([len(phrase) for phrase, _, _ in PHRASES], np.int64)
MEANS = np.array([what for _, _, what in PHRASES], np.int64)
LETTERS = np.zeros((len(PHRASES), 16), np.uint8)
for number, phrase in enumerate(PHRASES):
    LETTERS[number, : len(phrase[0])] = list(phrase[0].encode())
C4_MEASURES = ("c4_lorem_ipsum", "c4_curly_bracket", "c4_sentences")  # in the order in which they are written down
CITED = (np.frombuffer(b"edit]", np.uint8), np.frombuffer(b"citation needed]", np.uint8))


@compiled
def is_letter(byte: int, letter: int) -> bool:
    """Return whether `byte` is `letter` (or a blank) in either case."""
    return byte == letter or (65 <= byte <= 90 and byte + 32 == letter)


@compiled
def phrases_at(data: Any, a: int, b: int, i: int, c: int, width: int) -> int:
    """Return what the phrases mean that have their rare letter, the character `c`, at `i` in [a, b)."""
    if c == KELVIN:
        c = 0x6B
    elif c <= 90:
        c += 32
    found = 0
    for p in range(len(RARE)):
        start, after = i - AT[p], i + width  # of the letters before, and of those behind
        if RARE[p] != c or start < a or after + SIZE[p] - AT[p] - 1 > b:
            continue
        k = 0
        while k < AT[p] and is_letter(get(data, start + k), LETTERS[p, k]):
            k += 1
        if k < AT[p]:
            continue
        k += 1
        while k < SIZE[p] and is_letter(data[after + k - AT[p] - 1], LETTERS[p, k]):
            k += 1
        if k == SIZE[p]:
            found |= MEANS[p]
    return found


@compiled
def ends_sentence(data: Any, a: int, b: int, table: Any) -> bool:
    """Return whether the word [a, b) ends in terminal punctuation, closing quotes and brackets aside."""
    flags = last_flags(data, a, b, table, CLOSER)
    return flags > 0 and flags & END != 0


@compiled
def read_line(data: Any, i: int, b: int, table: Any) -> tuple[int, int, int, int, int, int, int]:
    """Read the line at `i`, as str.splitlines cuts it.

    Returns (where the next begins, [start, stop) of it stripped, words, characters of the longest, sentences, what it
    holds).
    """
    a = i
    first, last, start, extra = -1, i, -1, 0
    words = sentences = holds = 0
    longest = -1
    ended = True
    while i < b:
        c, width = decode(data, i)
        flags = flags_of(c, table)
        if flags & SPACE:
            if start >= 0:
                words += 1
                longest = max(longest, i - start - extra)
                ended = ends_sentence(data, start, i, table)
                sentences += ended
                start, last = -1, i
            i += width
            if flags & BREAK:
                if c == RETURN and i < b and get(data, i) == NEWLINE:
                    i += 1
                break
            continue
        if start < 0:
            start, extra = i, 0
            if first < 0:
                first = i
        if flags & ANCHOR:
            if c == 0x7B:
                holds |= CURLY
            elif c == 0x5B:
                holds |= BRACKET
            else:
                holds |= phrases_at(data, a, b, i, c, width)
        extra += width - 1
        i += width
    if start >= 0:
        words += 1
        longest = max(longest, i - start - extra)
        ended = ends_sentence(data, start, i, table)
        sentences += ended
        last = i
    if first < 0:
        first = last
    return i, first, last, words, longest, sentences + (not ended), holds


@compiled
def find_line(data: Any, i: int, b: int, table: Any) -> tuple[int, int, int, int]:
    """Return of `read_line` where the next line begins, [start, stop) of the line stripped, and whether it has BRACKET.

    The last only where that is all it may hold.
    """
    a, holds = i, 0
    while True:
        i = skip_common(data, i, b)
        if i == b:
            stop = b
            break
        c, width = decode(data, i)
        i += width
        if c == 0x5B:
            holds = BRACKET
        elif flags_of(c, table) & BREAK:
            stop = i - width
            if c == RETURN and i < b and get(data, i) == NEWLINE:
                i += 1
            break
    start, stop = strip(data, a, stop, table)
    return i, start, stop, holds


@compiled
def skip_common(data: Any, i: int, b: int) -> int:
    """Return where the first opening bracket, byte below a blank or byte beyond ASCII of [i, b) is, or b."""
    while i + 8 <= b:
        eight = load(data, i)
        brackets = eight ^ BRACKETS
        # The top of each byte that is one, and maybe of some behind.
        found = (eight | (eight - BLANKS) | ((brackets - ONES) & ~brackets)) & TOPS
        if found:
            return i + (lowest(found) >> 3)
        i += 8
    while i < b and 32 <= get(data, i) < 128 and get(data, i) != 0x5B:
        i += 1
    return i


@compiled
def citation_end(data: Any, i: int, b: int, table: Any) -> int:
    """Return where the citation ends whose bracket opens at `i`; `i` if it is none."""
    k = i + 1
    while k < b:
        c, width = decode(data, k)
        if not flags_of(c, table) & DIGIT:
            break
        k += width
    if k < b and get(data, k) == 0x5D:
        return k + 1
    for cited in CITED:
        k = 0
        while k < len(cited) and i + 1 + k < b and get(data, i + 1 + k) == cited[k]:
            k += 1
        if k == len(cited):
            return i + 1 + k
    return i


@compiled
def copy_without_citations(data: Any, a: int, b: int, table: Any, out: Any, o: int) -> int:
    """Copy [a, b) to `out` at `o` without its citations; returns where the copy ends."""
    while a < b:
        after = citation_end(data, a, b, table) if get(data, a) == 0x5B else a
        if after == a:
            out[o] = get(data, a)
            o += 1
            after += 1
        a = after
    return o


@compiled
def ends_well(data: Any, a: int, b: int) -> bool:
    """Return whether [a, b) ends in one of `.?!"'` and not in an ellipsis."""
    if b == a or (b - a >= 3 and get(data, b - 1) == 0x2E and get(data, b - 2) == 0x2E and get(data, b - 3) == 0x2E):
        return False
    c = get(data, b - 1)
    return c == 0x2E or c == 0x3F or c == 0x21 or c == 0x22 or c == 0x27


@compiled
def judge_line(data: Any, a: int, b: int, words: int, holds: int, limit: Any) -> int:
    """Return STAYS or GOES for the line [a, b) that has `words` and `holds`; LOREM or CURLY where that takes all."""
    if limit[2] and not ends_well(data, a, b):
        return GOES
    if words < limit[0]:
        return GOES
    if limit[4] and holds & LOREM:
        return LOREM
    if limit[5] and holds & SCRIPT:
        return GOES
    if limit[3] and holds & CURLY:
        return CURLY
    return GOES if limit[6] and holds & POLICY else STAYS


@compiled
def c4(
    data: Any,
    i: int,
    b: int,
    form: Any,
    j: int,
    form_end: int,
    table: Any,
    limit: Any,
    out: Any,
    o: int,
    row: Any,
    column: int,
) -> int:
    """Edit [i, b) as `stages.filter.c4.c4` does and return where the edited text ends, or -1 where a line takes it all.

    Writes C4_MEASURES to `row` from `column` on: 1 for what takes it all, and the sentences of the lines that stay.
    form: [j, form_end) is its comparable form, which has as many lines and may be written to; j < 0 where the text is
    its own. The edited text begins at `o` of `out`, which may be `data`: nothing is written before it has been read.
    """
    begin, returned = o, False
    row[column] = row[column + 1] = 0
    lines = total = 0
    while i < b:
        if j < 0:
            i, start, stop, words, longest, sentences, holds = read_line(data, i, b, table)
            judged, first, last, cited = data, start, stop, holds
        else:
            if returned and j < form_end:
                j = skip_spared(form, j, table)
            judged, at = form, j
            j, first, last, words, longest, sentences, holds = read_line(form, j, form_end, table)
            returned = j > 0 and get(form, j - 1) == RETURN
            after = i + j - at
            if after <= b and (after == b) == (j == form_end) and is_same(data, i, after, form, at, j):
                start, stop, cited = first - at + i, last - at + i, holds
                i = after
            else:
                i, start, stop, cited = find_line(data, i, b, table)
                if not words:  # format characters alone
                    stop = start
        if words and longest > limit[1]:
            continue
        text, at = data, o + (lines > 0)
        if limit[7] and cited & BRACKET:
            text, start, stop = out, at, copy_without_citations(data, start, stop, table, out, at)
            if j < 0:
                judged, first, last = text, start, stop
        if limit[7] and holds & BRACKET:
            if j >= 0:
                last = copy_without_citations(form, first, last, table, form, first)
            _, _, _, _, _, sentences, holds = read_line(judged, first, last, table)
        verdict = judge_line(judged, first, last, words, holds, limit)
        if verdict == GOES:
            continue
        if verdict != STAYS:
            row[column + (verdict == CURLY)] = 1
            return -1
        total += sentences
        for k in range(stop - start):
            out[at + k] = text[start + k]
        if lines:
            out[o] = NEWLINE
        lines += 1
        o = at + stop - start
    row[column + 2] = total
    return strip_in_place(out, begin, o, table)


@compiled
def skip_spared(form: Any, i: int, table: Any) -> int:
    """Return where the line at `i` of a comparable form, behind a return, begins: with no format character.

    The form spares one there, so that a return does not join a line feed; the form of the line alone has none.
    """
    c, width = decode(form, i)
    return i + width if is_nothing(c, table) else i


@compiled
def strip_in_place(out: Any, a: int, b: int, table: Any) -> int:
    """Strip the text [a, b) in its place; returns where it ends."""
    first, stop = strip(out, a, b, table)
    if first > a:
        for k in range(stop - first):
            out[a + k] = get(out, first + k)
    return a + stop - first


@compiled
def strip(data: Any, a: int, b: int, table: Any) -> tuple[int, int]:
    """Return [start, stop) of the text [a, b) without the white space at its ends."""
    while a < b:
        c, width = decode(data, a)
        if not flags_of(c, table) & SPACE:
            break
        a += width
    return a, end_without(data, a, b, table, SPACE)
