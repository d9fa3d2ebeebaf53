"""All compiled rules: a batch of documents as UTF-8 in, a reason for each out.

`apply_compiled` runs a program, the compiled rules of a source in their order, over an arrow string column without
making Python strings. A document is scanned once, and again after C4 has edited it; the first rule that drops it ends
it. To compile another rule: write its kernel in a file of its family, give it a number and a line in REASONS_OF, and
call it in `run_program`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from stages.kernels.c4 import C4_REASONS, c4
from stages.kernels.fineweb import FINEWEB_REASONS, TOO_FEW_WORDS, fineweb
from stages.kernels.gopher import (
    LONGEST,
    QUALITY_REASONS,
    REPETITION_REASONS,
    SHORTEST,
    gopher_quality,
    gopher_repetition,
)
from stages.kernels.jit import compiled, int64
from stages.kernels.length import LENGTH_REASONS, length
from stages.kernels.scan import STOPS, scan, scan_lines
from stages.kernels.text_columns import utf8_buffers
from stages.kernels.unicode import classes

# The compiled rules by number, and what each may say in the order of its codes, which begin at 1.
REASONS_OF: dict[str, tuple[str, ...]] = {
    "length": LENGTH_REASONS,
    "gopher_quality": QUALITY_REASONS,
    "gopher_repetition": REPETITION_REASONS,
    "c4": C4_REASONS,
    "fineweb": FINEWEB_REASONS,
}
LENGTH, QUALITY, REPETITION, C4, FINEWEB = range(5)
COMPILED = tuple(REASONS_OF)
EMPTY = 1  # the code of `empty`; the rules' own codes follow
REASONS = ("", "empty", *(reason for reasons in REASONS_OF.values() for reason in reasons))
# For each rule, what is added to its code to make it a code of REASONS.
BEFORE = np.array([REASONS.index(reasons[0]) - 1 for reasons in REASONS_OF.values()], np.int64)
THRESHOLDS = 16  # at most, of one rule
SKETCH = 1 << 14  # counters with which `bound_pairs` bounds how often a pair of words occurs


@compiled
def run_program(
    data: Any,
    offsets: Any,
    forms: Any,
    form_offsets: Any,
    codes: Any,
    program: Any,
    limits: Any,
    table: Any,
    stops: int,
    cut: bool,
    scratch: Any,
    out: Any,
    ends: Any,
) -> None:
    """Run `program` (p,) with thresholds `limits` (p, THRESHOLDS) over documents [offsets[d], offsets[d + 1]).

    forms: the comparable forms, [form_offsets[d], form_offsets[d + 1]), which all rules but `length` judge; empty where
    the texts are their own. A rule that edits writes to them, and none may follow it. cut: see `scan`.

    Sets the code of each document whose code is 0. Where the program edits, the texts that stay go to `out`, and
    `ends[d + 1]` says where each ends.
    """
    words, lines, marks, spare = scratch
    o, edits, apart = 0, len(out) > 0, len(forms) > 0
    for d in range(len(codes)):
        text, a, b, scanned, code = data, int64(offsets[d]), int64(offsets[d + 1]), 0, int64(codes[d])
        form, fa, fb = text, a, b
        if apart:
            form, fa, fb = forms, int64(form_offsets[d]), int64(form_offsets[d + 1])
        for step in range(len(program)):
            if code:
                break
            if b == a:
                code = EMPTY
                break
            rule, limit = program[step], limits[step]
            if rule == C4:
                code, b = c4(text, a, b, form, fa if apart else -1, fb, table, limit, out, o)
                text, a, scanned = out, o, 0
                form, fa, fb = text, a, b
            elif rule == LENGTH and apart:
                scan_lines(text, a, b, table, marks, lines)
                code, scanned = length(marks, limit), 0
            else:
                by_words = rule in (QUALITY, REPETITION)
                while True:
                    if by_words and scanned < 2:
                        scan(form, fa, fb, table, stops, cut, marks, words, lines)
                        scanned = 2
                    elif not scanned:
                        scan_lines(form, fa, fb, table, marks, lines)
                        scanned = 1
                    if rule == LENGTH:
                        code = length(marks, limit)
                    elif rule == QUALITY:
                        code = gopher_quality(marks, limit)
                    elif rule == REPETITION:
                        code = gopher_repetition(form, words, lines, marks, limit, spare)
                    else:
                        code = fineweb(form, lines, marks, limit, spare[1])
                        if code == TOO_FEW_WORDS and cut and scanned < 2:
                            by_words = True  # cut, there are more
                            continue
                    break
            if code:
                code += BEFORE[rule]
        if not code and b == a:
            code = EMPTY
        if not code and edits:
            o = b
        ends[d + 1] = o
        codes[d] = code


def scratch_for(size: int) -> tuple[Any, ...]:
    """Return scratch for documents of up to `size` bytes: what `run_program` calls `scratch`.

    Memory is only taken as words and lines are written to it.
    """

    def table_and_hashes(most: int, columns: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.uint64]]:
        return np.empty((most, columns), np.int32), np.empty(most, np.uint64)

    words, (lines, paragraphs) = table_and_hashes(size + 2, 3), (table_and_hashes(size // 2 + 2, 4) for _ in range(2))
    slots, times = np.empty(4 * size + 64, np.int32), np.empty(size + 2, np.int32)
    sketch, bounds = np.empty(SKETCH, np.int32), np.zeros(LONGEST - SHORTEST + 1, np.int64)
    return words, lines, np.zeros(STOPS + 1, np.int64), (paragraphs, slots, times, sketch, bounds)


def apply_compiled(
    texts: pa.Array,
    codes: npt.NDArray[np.int64],
    rules: Sequence[tuple[str, dict[str, Any]]],
    forms: pa.Array | None = None,
) -> pa.Array:
    """Run `rules`, all of COMPILED, over a column of text: sets the code (of REASONS) of each document whose code is 0.

    All that count words count them alike, as those of one source do. forms: the comparable forms of the texts, where
    some differ; then only the last rule may edit. Returns the column as the rules leave it; documents that are dropped
    may be empty in it.
    """
    data, offsets = utf8_buffers(texts)
    form_data, form_offsets = np.zeros(0, np.uint8), offsets
    if forms is not None:
        form_data, form_offsets = utf8_buffers(forms)
    program = np.array([COMPILED.index(name) for name, _ in rules], np.int64)
    limits = np.zeros((len(rules), THRESHOLDS))
    stops_wanted, cut = 0, False
    for limit, (name, thresholds) in zip(limits, rules, strict=True):
        numbers = [float(value) for threshold, value in thresholds.items() if threshold != "words"]
        limit[: len(numbers)] = numbers
        cut |= thresholds.get("words") == "punctuation"
        if name == "gopher_quality":
            stops_wanted = max(stops_wanted, int(np.ceil(min(8.0, thresholds["min_stop_words"]))))
    edits = C4 in program
    out = np.empty(len(data) if edits else 0, np.uint8)  # no edit adds text
    ends = np.zeros(len(codes) + 1, np.int32)
    scratch = scratch_for(max(int(np.diff(each).max(initial=0)) for each in (offsets, form_offsets)))
    columns = data, offsets, form_data, form_offsets
    run_program(*columns, codes, program, limits, classes(), stops_wanted, cut, scratch, out, ends)
    if not edits:
        return texts
    return pa.StringArray.from_buffers(len(codes), pa.py_buffer(ends), pa.py_buffer(out[: ends[-1]]))
