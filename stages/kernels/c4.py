"""C4's rules, compiled: the one family that edits, line by line, into a buffer of its own.

`stages.filter.c4` has the readable form.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stages.kernels.jit import compiled, get
from stages.kernels.scan import NEWLINE, RETURN, decode
from stages.kernels.unicode import ANCHOR, BREAK, CLOSER, DIGIT, END, LIMIT, SPACE

LOREM, SCRIPT, POLICY, CURLY, BRACKET = 1, 2, 4, 8, 16  # what a line may hold
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
C4_REASONS = ("c4_lorem_ipsum", "c4_curly_bracket", "c4_few_sentences")  # in the order of their code
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
    while b > a:
        b -= 1
        while get(data, b) & 0xC0 == 0x80:
            b -= 1
        c = get(data, b)
        if c >= 128:
            c = decode(data, b)[0]
        flags = get(table, c) if c < LIMIT else 0
        if not flags & CLOSER:
            return flags & END != 0
    return False


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
        c, width = get(data, i), 1
        if c >= 128:
            c, width = decode(data, i)
        flags = get(table, c) if c < LIMIT else 0
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
def citation_end(data: Any, i: int, b: int, table: Any) -> int:
    """Return where the citation ends whose bracket opens at `i`; `i` if it is none."""
    k = i + 1
    while k < b:
        c, width = get(data, k), 1
        if c >= 128:
            c, width = decode(data, k)
        if c >= LIMIT or not get(table, c) & DIGIT:
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
def c4(data: Any, i: int, b: int, table: Any, limit: Any, out: Any, o: int) -> tuple[int, int]:
    """Return what `stages.filter.c4.c4` says of [i, b): the code of its reason, or 0, and where the edited text ends.

    The edited text begins at `o` of `out`.

    `out` may be `data`: nothing is written before it has been read.
    """
    begin = o
    lines = total = 0
    while i < b:
        i, start, stop, words, longest, sentences, holds = read_line(data, i, b, table)
        if words and longest > limit[2]:
            continue
        text, at = data, o + (lines > 0)
        if limit[8] and holds & BRACKET:
            text, start, stop = out, at, copy_without_citations(data, start, stop, table, out, at)
            _, _, _, _, _, sentences, holds = read_line(text, start, stop, table)
        if limit[3] and not ends_well(text, start, stop):
            continue
        if words < limit[1]:
            continue
        if limit[5] and holds & LOREM:
            return 1, begin
        if limit[6] and holds & SCRIPT:
            continue
        if limit[4] and holds & CURLY:
            return 2, begin
        if limit[7] and holds & POLICY:
            continue
        total += sentences
        for k in range(stop - start):
            out[at + k] = text[start + k]
        if lines:
            out[o] = NEWLINE
        lines += 1
        o = at + stop - start
    if total < limit[0]:
        return 3, begin
    return 0, strip_in_place(out, begin, o, table)


@compiled
def strip_in_place(out: Any, a: int, b: int, table: Any) -> int:
    """Strip the text [a, b) in its place; returns where it ends."""
    first, stop = a, b
    while first < b:
        c, width = get(out, first), 1
        if c >= 128:
            c, width = decode(out, first)
        if c >= LIMIT or not get(table, c) & SPACE:
            break
        first += width
    while stop > first:
        k = stop - 1
        while get(out, k) & 0xC0 == 0x80:
            k -= 1
        c = get(out, k)
        if c >= 128:
            c = decode(out, k)[0]
        if c >= LIMIT or not get(table, c) & SPACE:
            break
        stop = k
    if first > a:
        for k in range(stop - first):
            out[a + k] = get(out, first + k)
    return a + stop - first
