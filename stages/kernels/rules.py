"""The rules of `stages.filter.rules_web`, and `length`, compiled: a batch of documents as UTF-8 in, a reason for each
out.

`judge` runs a program, the compiled rules of a source in their order, over an arrow string column without making
Python strings. A document is scanned once, and again after C4 has edited it; the first rule that drops it ends it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stages.kernels.c4 import c4
from stages.kernels.jit import compiled, int64
from stages.kernels.repetition import LONGEST, SHORTEST, repeated, repetition
from stages.kernels.scan import (
    ALPHABETIC,
    BULLETS,
    CHARS,
    ELLIPSES,
    ELLIPSIS_ROWS,
    ENDED,
    HASHES,
    LINES,
    NEWLINES,
    NOT_BLANK,
    ROWS,
    SOLID,
    SOLID_CHARS,
    STOPS,
    WORDS,
    scan,
    scan_lines,
)
from stages.kernels.unicode import classes

NAMES = ("length", "gopher_quality", "gopher_repetition", "c4", "fineweb")  # as a program numbers them
LENGTH, QUALITY, REPETITION, C4, FINEWEB = range(5)
THRESHOLDS = 16  # at most, of one rule
SKETCH = 1 << 14
SLACK = 8
# What each rule may say, in the order of its code.
SAID: tuple[tuple[str, ...], ...] = (
    ("length_short", "length_long"),
    tuple(
        "gopher_" + reason
        for reason in (
            *("short_doc", "long_doc", "mean_word_length", "symbol_ratio", "bullet_lines", "ellipsis_lines"),
            *("alphabetic", "stop_words"),
        )
    ),
    (
        *(f"gopher_repeated_{what}" for what in ("paragraphs", "paragraph_chars", "lines", "line_chars")),
        *(f"gopher_top_{n}_gram" for n in (2, 3, 4)),
        *(f"gopher_repeated_{n}_grams" for n in range(SHORTEST, LONGEST + 1)),
    ),
    ("c4_lorem_ipsum", "c4_curly_bracket", "c4_few_sentences"),
    tuple("fineweb_" + r for r in ("blank", "line_punctuation", "short_lines", "repeated_chars", "newlines")),
)
REASONS = ("", "empty", *(reason for rule in SAID for reason in rule))
EMPTY = 1
BEFORE = np.array([EMPTY + sum(map(len, SAID[:rule])) for rule in range(len(SAID))], np.int64)


@compiled
def length(marks: Any, limit: Any) -> int:
    """`stages.filter.rules.length`: its code, or 0."""
    if marks[CHARS] < limit[0]:
        return 1
    return 2 if marks[CHARS] > limit[1] else 0


@compiled
def quality(marks: Any, limit: Any) -> int:
    """`stages.filter.rules_web.gopher_quality`: its code, or 0."""
    solid, words = marks[SOLID], marks[WORDS]
    if solid < max(limit[0], 1.0):
        return 1
    if solid > limit[1]:
        return 2
    if not limit[2] <= marks[SOLID_CHARS] / solid <= limit[3]:
        return 3
    if max(marks[HASHES], marks[ELLIPSES]) / words > limit[4]:
        return 4
    if marks[BULLETS] / marks[ROWS] > limit[5]:
        return 5
    if marks[ELLIPSIS_ROWS] / marks[ROWS] > limit[6]:
        return 6
    if marks[ALPHABETIC] / words < limit[7]:
        return 7
    return 8 if marks[STOPS] < limit[8] else 0


@compiled
def fineweb(data: Any, lines: Any, marks: Any, limit: Any, slots: Any) -> int:
    """`stages.filter.rules_web.fineweb`: its code, or 0."""
    table, _ = lines
    total = ended = short = 0
    for line in range(marks[LINES]):
        if table[line, 3] & NOT_BLANK:
            total += 1
            ended += (table[line, 3] & ENDED) != 0
            short += table[line, 2] <= limit[2]
    if not total:
        return 1
    if ended / total < limit[0]:
        return 2
    if short / total > limit[1]:
        return 3
    if repeated(data, lines, marks[LINES], NOT_BLANK, slots)[2] / (marks[CHARS] - marks[NEWLINES]) > limit[3]:
        return 4
    return 5 if marks[NEWLINES] / marks[WORDS] > limit[4] else 0


@compiled
def judge_all(
    data: Any,
    offsets: Any,
    codes: Any,
    program: Any,
    limits: Any,
    table: Any,
    stops: int,
    scratch: Any,
    out: Any,
    ends: Any,
) -> None:
    """Run `program` (p,) with thresholds `limits` (p, THRESHOLDS) over documents [offsets[d], offsets[d + 1]).

    Sets the code of each document whose code is 0. Where the program edits, the texts that stay go to `out`, and
    `ends[d + 1]` says where each ends.
    """
    words, lines, marks, spare = scratch
    o, edits = 0, len(out) > 0
    for d in range(len(codes)):
        text, a, b, scanned, code = data, int64(offsets[d]), int64(offsets[d + 1]), 0, int64(codes[d])
        for step in range(len(program)):
            if code:
                break
            if b == a:
                code = EMPTY
                break
            rule, limit = program[step], limits[step]
            if rule == C4:
                code, b = c4(text, a, b, table, limit, out, o)
                text, a, scanned = out, o, 0
            else:
                words_too = rule in (QUALITY, REPETITION)
                if words_too and scanned < 2:
                    scan(text, a, b, table, stops, marks, words, lines)
                    scanned = 2
                elif not scanned:
                    scan_lines(text, a, b, table, marks, lines)
                    scanned = 1
                if rule == LENGTH:
                    code = length(marks, limit)
                elif rule == QUALITY:
                    code = quality(marks, limit)
                elif rule == REPETITION:
                    code = repetition(text, words, lines, marks, limit, spare)
                else:
                    code = fineweb(text, lines, marks, limit, spare[1])
            if code:
                code += BEFORE[rule]
        if not code and b == a:
            code = EMPTY
        if not code and edits:
            o = b
        ends[d + 1] = o
        codes[d] = code


def room(size: int) -> tuple[Any, ...]:
    """Scratch for documents of up to `size` bytes. Memory is only taken as words and lines are written to it."""

    def table(columns: int) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
        return np.empty((size // 2 + 2, columns), np.int32), np.empty(size // 2 + 2, np.uint64)

    slots, times = np.empty(2 * size + 64, np.int32), np.empty(size // 2 + 2, np.int32)
    spare = (table(4), slots, times, np.empty(SKETCH, np.int32), np.zeros(LONGEST - SHORTEST + 1, np.int64))
    return table(3), table(4), np.zeros(STOPS + 1, np.int64), spare


def judge(texts: pa.Array, codes: NDArray[np.int64], rules: list[tuple[str, dict[str, Any]]]) -> pa.Array:
    """Judge a column of text by `rules`, all of NAMES: sets the code (of REASONS) of each document whose code is 0.

    Returns the column as the rules leave it; documents that are dropped may be empty in it.
    """
    data, offsets = buffers(texts)
    program = np.array([NAMES.index(name) for name, _ in rules], np.int64)
    limits = np.zeros((len(rules), THRESHOLDS))
    stops = 0
    for limit, (name, thresholds) in zip(limits, rules, strict=True):
        limit[: len(thresholds)] = [float(value) for value in thresholds.values()]
        if name == "gopher_quality":
            stops = max(stops, int(np.ceil(min(8.0, thresholds["min_stop_words"]))))
    edits = C4 in program
    out = np.empty(len(data) if edits else 0, np.uint8)  # no edit adds text
    ends = np.zeros(len(codes) + 1, np.int32)
    scratch = room(int(np.diff(offsets).max(initial=0)))
    judge_all(data, offsets, codes, program, limits, classes(), stops, scratch, out, ends)
    if not edits:
        return texts
    return pa.StringArray.from_buffers(len(codes), pa.py_buffer(ends), pa.py_buffer(out[: ends[-1]]))


def buffers(texts: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The UTF-8 of a string column (a null is an empty text), and where each text begins and the last ends.

    A copy: the kernels are compiled once, for arrays that can be written, and may read 8 bytes beyond the last text.
    """
    _, offsets, data = texts.buffers()
    where = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    size = data.size if data is not None else 0
    copy = np.zeros(size + SLACK, np.uint8)
    copy[:size] = np.frombuffer(data or b"", np.uint8)
    return copy, where
