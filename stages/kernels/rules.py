"""All compiled rules: a batch of documents as UTF-8 in, what each rule measures of each document out.

`measure_compiled` runs a program, the compiled rules of a source in their order, over an arrow string column without
making Python strings. A document is scanned once, and again after C4 has edited it. Thresholds are no affair of this
module: `stages.filter.verdict` compares. To compile another rule: write its kernel in a file of its family, give it a
number and a line in MEASURES_OF, and call it in `run_program`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.kernels.c4 import C4_MEASURES, c4
from stages.kernels.fineweb import FINEWEB_MEASURES, fineweb
from stages.kernels.gopher import QUALITY_MEASURES, REPETITION_MEASURES, gopher_quality, gopher_repetition
from stages.kernels.jit import compiled, int64
from stages.kernels.scan import CHARS, NEWLINES, STOPPED, STOPS, WORDS, scan, scan_lines
from stages.kernels.text_columns import utf8_buffers
from stages.kernels.unicode import classes

# The compiled rules by number, and what each measures, in its order.
MEASURES_OF: dict[str, tuple[str, ...]] = {
    "length": ("length_chars",),
    "gopher_quality": QUALITY_MEASURES,
    "gopher_repetition": REPETITION_MEASURES,
    "c4": C4_MEASURES,
    "fineweb": FINEWEB_MEASURES,
}
LENGTH, QUALITY, REPETITION, C4, FINEWEB = range(5)
COMPILED = tuple(MEASURES_OF)
SETTINGS = 8  # at most, of one rule
SKETCH = 1 << 15  # counters with which `likely_pairs` tells most pairs of words that occur once


@compiled
def scan_for(
    rule: int,
    scanned: int,
    data: Any,
    a: int,
    b: int,
    table: Any,
    cut: bool,
    limit: Any,
    marks: Any,
    words: Any,
    lines: Any,
) -> int:
    """Scan [a, b) as far as `rule` asks, unless it is `scanned` so far; returns how far: 1, its lines, 2, its words."""
    if not scanned and rule in (LENGTH, FINEWEB):
        scan_lines(data, a, b, table, marks, lines)
        scanned = 1
    # Cut, there are more words: those that blanks separate bound the measure, and mostly that will do.
    exceeds = rule == FINEWEB and cut and marks[NEWLINES] > limit[1] * marks[WORDS]
    if scanned < 2 and (exceeds or rule in (QUALITY, REPETITION)):
        scan(data, a, b, table, len(STOPPED), cut, marks, words, lines)
        scanned = 2
    return scanned


@compiled
def run_program(
    data: Any,
    offsets: Any,
    forms: Any,
    form_offsets: Any,
    ended: Any,
    program: Any,
    settings: Any,
    columns: Any,
    table: Any,
    cut: bool,
    scratch: Any,
    out: Any,
    ends: Any,
    values: Any,
) -> None:
    """Run `program` (p,) with `settings` (p, SETTINGS) over documents [offsets[d], offsets[d + 1]).

    forms: the comparable forms, [form_offsets[d], form_offsets[d + 1]), which all rules but `length` judge; empty where
    the texts are their own. A rule that edits writes to them, and none may follow it. cut: see `scan`.

    Writes the measures of each document that has not `ended` to `values` (d, m): of a rule from its `columns` (p,) on.
    A document ends when it is empty or a rule that edits leaves nothing. Where the program edits, the texts go to
    `out`, and `ends[d + 1]` says where each ends.
    """
    words, lines, marks, spare = scratch
    o, edits, apart = 0, len(out) > 0, len(forms) > 0
    for d in range(len(ended)):
        text, a, b, scanned = data, int64(offsets[d]), int64(offsets[d + 1]), 0
        form, fa, fb = text, a, b
        row = values[d]
        if apart:
            form, fa, fb = forms, int64(form_offsets[d]), int64(form_offsets[d + 1])
        for step in range(len(program)):
            if b <= a:
                ended[d] = True
            if ended[d]:
                break
            rule, at = program[step], columns[step]
            if rule == C4:
                b = c4(text, a, b, form, fa if apart else -1, fb, table, settings[step], out, o, row, at)
                text, a, scanned = out, o, 0
                form, fa, fb = text, a, b
                continue
            if rule == LENGTH and apart:
                scan_lines(text, a, b, table, marks, lines)
                row[at], scanned = marks[CHARS], 0
                continue
            scanned = scan_for(rule, scanned, form, fa, fb, table, cut, settings[step], marks, words, lines)
            if rule == LENGTH:
                row[at] = marks[CHARS]
            elif rule == FINEWEB:
                fineweb(form, lines, marks, settings[step, 0], spare[1], row, at)
            elif rule == QUALITY:
                gopher_quality(marks, row, at)
            else:
                gopher_repetition(form, words, lines, marks, spare, row, at)
        if b <= a:
            ended[d] = True
        if not ended[d] and edits:
            o = b
        ends[d + 1] = o


def scratch_for(size: int) -> tuple[Any, ...]:
    """Return scratch for documents of up to `size` bytes: what `run_program` calls `scratch`.

    Memory is only taken as words and lines are written to it.
    """

    def table_and_hashes(most: int, columns: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint64]]:
        return np.empty((most, columns), np.int32), np.empty(most, np.uint64)

    words, (lines, paragraphs) = table_and_hashes(size + 2, 3), (table_and_hashes(size // 2 + 2, 4) for _ in range(2))
    slots, times = np.empty(4 * size + 64, np.int32), np.empty(size + 2, np.int32)
    sketch, places = np.empty(SKETCH, np.uint8), np.empty(size + 2, np.int32)
    return words, lines, np.zeros(STOPS + 1, np.int64), (paragraphs, slots, times, sketch, places)


def measure_compiled(
    texts: pa.Array,
    ended: npt.NDArray[np.bool_],
    rules: Sequence[tuple[str, dict[str, Any]]],
    columns: Sequence[int],
    values: npt.NDArray[np.float64],
    forms: pa.Array | None = None,
) -> pa.Array:
    """Run `rules`, all of COMPILED, over a column of text: fill `values` (n, m), of each rule from one of `columns` on.

    rules: each with its settings, the thresholds that change what is measured, in its own order, and maybe `words`.
    Documents that have `ended` are passed over, and those end that are empty or that a rule takes whole. All that count
    words count them alike, as those of one source do. forms: the comparable forms of the texts, where some differ; then
    only the last rule may edit. Returns the column as the rules leave it, documents that ended empty in it.
    """
    data, offsets = utf8_buffers(texts)
    form_data, form_offsets = np.zeros(0, np.uint8), offsets
    if forms is not None:
        form_data, form_offsets = utf8_buffers(forms)
    program = np.array([COMPILED.index(name) for name, _ in rules], np.int64)
    settings = np.zeros((len(rules), SETTINGS))
    for row, (_, given) in zip(settings, rules, strict=True):
        numbers = [float(value) for setting, value in given.items() if setting != "words"]
        row[: len(numbers)] = numbers
    cut = any(given.get("words") == "punctuation" for _, given in rules)
    edits = C4 in program
    out = np.empty(len(data) if edits else 0, np.uint8)  # no edit adds text
    ends = np.zeros(len(ended) + 1, np.int32)
    scratch = scratch_for(max(int(np.diff(each).max(initial=0)) for each in (offsets, form_offsets)))
    inputs = data, offsets, form_data, form_offsets, ended, program, settings, np.array(columns, np.int64)
    run_program(*inputs, classes(), cut, scratch, out, ends, values)
    if not edits:
        return texts
    return pa.StringArray.from_buffers(len(ended), pa.py_buffer(ends), pa.py_buffer(out[: ends[-1]]))
