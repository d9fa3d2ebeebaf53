"""Which targets of a stream are scored, and how much of what is before each is seen.

A window is read whole, and scored from `first` on: what is ahead of that was scored in an earlier window. With a stride
of the window's own length, windows do not overlap.

    once    the first window is scored whole, each later one where the one before ended, and the last ends where the
            stream does: every target once
    pr465   the counting of parameter-golf PR 465: windows go on behind the one that reaches the end, ever shorter, and
            each is scored on its last `stride` targets: 2,048 / 64 - 1 = 31 of them score the last 64 targets again
    pr352   that of PR 352: only whole windows, the first one too on its last `stride` targets alone: the beginning of
            the stream, and what is left at its end, are never scored. With windows that do not overlap, memory tokens
            are in the place of the first ones, as in training, and not in front: the mean loss is that of the others

Both records cut a stream to a multiple of the training's sequence length first.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from train.config import Counting


class Window(NamedTuple):
    """Targets [start, stop) of a stream are read, and [first, stop) scored."""

    start: int
    stop: int
    first: int


def sliding_windows(targets: int, length: int, stride: int, counting: Counting = "once") -> Iterator[Window]:
    """Yield the windows of a stream of `targets`; `length` and `stride` in targets, 0 < stride <= length."""
    if counting == "pr352":
        for start in range(0, targets - length + 1, stride):
            yield Window(start, start + length, start + length - stride)
        return
    scored = 0
    for start in range(0, targets, stride):
        stop = min(start + length, targets)
        if counting == "once":
            if scored == targets:
                return
            yield Window(start, stop, scored)
            scored = stop
        else:
            yield Window(start, stop, start if start == 0 else max(start, stop - stride))
