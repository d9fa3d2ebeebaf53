"""What the compiled kernels know of characters: one word of flags for each code point, made from Python's own `str`.

The kernels see UTF-8 and look a code point up here, so that a white space, a letter or a digit is to them what it is
to the readable rules, whatever the version of Unicode.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
from numpy.typing import NDArray

SPACE, BREAK, ALPHA, ALNUM, DIGIT, END, CLOSER, PLAIN, MARK, ANCHOR, IGNORED, JOINS, LEAD, TRAIL, HYPHEN = (
    1 << i for i in range(15)
)
LIMIT = 0x40000  # code points from here on are of no class: unassigned, private, or of IGNORED_RANGE
IGNORED_RANGE = range(0xE0000, 0xE1000)  # tags and variation selectors, and room for more
CHANGES = 255  # in `nfkc_order`; no combining class is as high

BREAKS = "\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"  # of str.splitlines
CLOSERS = "\"')]}”’»"  # may follow the end of a sentence
MARKED = "#.…"  # counted by Gopher's symbol rule
ANCHORS = "[{jJkK\u212avVfFpP"  # in each phrase that C4 looks for is one of these: rare ones; U+212A is a K too
# What is cut off at both ends of a word, before it and behind it, and what parts two letters: spaCy's lists for English
# (spacy/lang/punctuation.py and char_classes.py), where also every symbol is cut off that is of category So.
CUT_OFF = "…,:;!?¿؟¡()[]{}<>_#*&%。？！，、；：～·।،۔؛٪'\"”“`‘´’‚„»«「」『』（）〔〕【】《》〈〉⟦⟧–—"
LEADING = "§=+$£€¥฿₽﷼" + "".join(map(chr, range(0x20A0, 0x20C0)))
TRAILING = "."
HYPHENS = "-–—"
# Variation selectors, the grapheme joiner and two Khmer vowels that are not seen: marks, but nothing of a word.
INVISIBLE_MARKS = "\u034f\u17b4\u17b5\u180b\u180c\u180d\u180f" + "".join(map(chr, range(0xFE00, 0xFE10)))
# Unicode 17's Sentence_Terminal, and three Khmer signs that datatrove counts too
TERMINAL_RANGES = """
21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 17d4-17d6
17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b4e-1b4f 1b5a-1b5b 1b5e-1b5f 1b7d-1b7f 1c3b-1c3c 1c7e-1c7f 2024 203c-203d
2047-2049 2cf9-2cfb 2e2e 2e3c 2e53-2e54 2e60-2e61 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9
aa5d-aa5f aaf0-aaf1 abeb fe12 fe15-fe16 fe52 fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 10f55-10f59 10f86-10f89
11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd 111de-111df 11238-11239 1123b-1123c 112a9 113d4-113d5
1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c 11c41-11c42
11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 16b44 16d6e-16d6f 16e98 1bc9f 1da88
"""


def code_points(ranges: str) -> list[int]:
    """Return the code points of ranges in hexadecimal, both ends included."""
    edges = [part.split("-") for part in ranges.split()]
    return [point for edge in edges for point in range(int(edge[0], 16), int(edge[-1], 16) + 1)]


TERMINAL = frozenset(map(chr, code_points(TERMINAL_RANGES)))


@functools.cache
def classes() -> NDArray[np.uint16]:
    """Return the flags of each code point below LIMIT. Takes a tenth of a second, once a process."""
    characters = list(map(chr, range(LIMIT)))
    table = np.zeros(LIMIT, np.uint16)
    for flag, test in ((SPACE, str.isspace), (ALPHA, str.isalpha), (ALNUM, str.isalnum), (DIGIT, str.isdecimal)):
        table |= np.fromiter(map(test, characters), bool, LIMIT) * np.uint16(flag)
    marked = ((BREAK, BREAKS), (END, TERMINAL), (CLOSER, CLOSERS), (MARK, MARKED), (ANCHOR, ANCHORS), (HYPHEN, HYPHENS))
    cut_off = ((LEAD, leading_marks()), (TRAIL, trailing_marks()))
    for flag, members in (*marked, *cut_off, (PLAIN, plain(characters[:0x20000]))):
        table[[ord(c) for c in members]] |= np.uint16(flag)
    for point in np.flatnonzero(nfkc_order()).tolist():  # no other is ignored or joins
        table[point] |= IGNORED * is_ignored(chr(point)) | JOINS * joins_back(chr(point))
    return table


@functools.cache
def symbols() -> frozenset[str]:
    """Return the symbols of no other kind, such as ©, arrows and pictures."""
    return frozenset(c for c in map(chr, range(LIMIT)) if unicodedata.category(c) == "So")


@functools.cache
def leading_marks() -> frozenset[str]:
    """Return what is cut off a word before it; two or more full stops are too."""
    return symbols().union(CUT_OFF, LEADING)


@functools.cache
def trailing_marks() -> frozenset[str]:
    """Return what is cut off a word behind it."""
    return symbols().union(CUT_OFF, TRAILING)


@functools.cache
def second_halves() -> frozenset[str]:
    """Return the characters that may be composed with one before them."""
    halves = {chr(point) for ends in ((0x1161, 0x1176), (0x11A8, 0x11C3)) for point in range(*ends)}  # Hangul
    for parts in filter(None, map(unicodedata.decomposition, map(chr, range(0x20000)))):
        if " " in parts and parts[0] != "<":
            halves.add(chr(int(parts.split()[1], 16)))
    return frozenset(halves)


def plain(characters: list[str]) -> list[str]:
    """Return those that stay as they are in lower case and in NFC, whatever stands around them.

    That is: starters that NFC leaves alone and that are no second half of a composed character.
    """
    halves = second_halves()
    still = (c for c in characters if not unicodedata.combining(c) and c not in halves and c.lower() == c)
    return [c for c in still if unicodedata.is_normalized("NFC", c)]


def is_ignored(c: str) -> bool:
    """Return whether a character is nothing within a word: a format character but the zero width space, or a mark that
    only says how the one before it is drawn.
    """
    if unicodedata.category(c) == "Cf":
        return c != "\u200b"
    return c in INVISIBLE_MARKS or ord(c) in IGNORED_RANGE


def joins_back(character: str) -> bool:
    """Return whether NFKC may join a character, or move it, to what stands before it."""
    first = unicodedata.normalize("NFKD", character)[0]
    return unicodedata.combining(first) > 0 or first in second_halves()


def is_mark(c: str) -> bool:
    """Return whether a character is a combining mark, which is part of the word that it stands in."""
    return unicodedata.category(c)[0] == "M" and not is_ignored(c)


@functools.cache
def nfkc_order() -> NDArray[np.uint8]:
    """Return of each code point below LIMIT its combining class, or CHANGES where its comparable form may be another.

    A text without CHANGES whose marks are in the order of their classes is in its comparable form, entities aside:
    the quick check of Unicode's annex 15.
    """
    characters = list(map(chr, range(LIMIT)))
    order = np.fromiter(map(unicodedata.combining, characters), np.uint8, LIMIT)
    order[[ord(c) for c in second_halves()]] = CHANGES
    for point in (*range(128, 0x20000), *range(0x2F800, 0x2FA20)):  # no other has another form
        c = characters[point]
        form = unicodedata.normalize("NFKC", c)
        matters = point > 0xFFFF or any(x.isalnum() or is_mark(x) for x in form)
        if is_ignored(c) or (form != c and matters):
            order[point] = CHANGES
    return order
