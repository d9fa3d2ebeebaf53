"""Windows that slide: which targets they score, and how often."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.eval.windows import sliding_windows


def counts(targets, length, stride, counting):
    """How often each target is scored."""
    times = np.zeros(targets, int)
    for window in sliding_windows(targets, length, stride, counting):
        times[window.first : window.stop] += 1
    return times


@given(st.integers(0, 300), st.integers(1, 40), st.data())
def test_once_scores_every_target_once_and_sees_what_it_can(targets, length, data):
    stride = data.draw(st.integers(1, length))
    assert (counts(targets, length, stride, "once") == 1).all()
    for window in sliding_windows(targets, length, stride):
        assert window.stop - window.start <= length and window.start <= window.first < window.stop <= targets
        assert window.start == 0 or window.first - window.start >= length - stride


def test_windows_that_do_not_overlap_are_those_of_the_plain_evaluation():
    assert [tuple(w) for w in sliding_windows(10, 4, 4)] == [(0, 4, 0), (4, 8, 4), (8, 10, 8)]


@pytest.mark.parametrize(("targets", "windows", "scored"), [(40, 10, 52), (42, 11, 54)])
def test_pr465_scores_the_end_again_and_again(targets, windows, scored):  # golf.md 2.5
    plan = list(sliding_windows(targets, 16, 4, "pr465"))
    times = counts(targets, 16, 4, "pr465")
    assert (len(plan), times.sum()) == (windows, scored)
    assert [(w.first, w.stop - 1) for w in plan[:3]] == [(0, 15), (16, 19), (20, 23)]
    if targets == 40:
        assert [(w.first, w.stop - 1) for w in plan[6:]] == [(36, 39)] * 4
    else:
        assert [(w.first, w.stop - 1) for w in plan[6:]] == [(36, 39), (38, 41), (38, 41), (38, 41), (40, 41)]
        assert times[38:].tolist() == [4, 4, 4, 4]


def test_pr465_at_the_size_of_the_record():  # golf.md 2.5: 969,088 windows, 62,023,616 counted of 62,021,632
    total = short = scored = 0
    for window in sliding_windows(62_021_632 // 64, 32, 1, "pr465"):  # in units of 64 targets: 64 divides all of them
        total += 1
        short += window.stop - window.start < 32
        scored += window.stop - window.first
    assert (total, short, scored * 64) == (969_088, 31, 62_023_616)


@pytest.mark.parametrize("targets", [40, 42])
def test_pr352_never_scores_the_beginning_nor_the_rest(targets):  # golf.md 3.8
    plan = list(sliding_windows(targets, 16, 4, "pr352"))
    assert [(w.first, w.stop - 1) for w in plan] == [(first, first + 3) for first in range(12, 40, 4)]
    assert len(plan) == 7
    assert counts(targets, 16, 4, "pr352").tolist() == [0] * 12 + [1] * 28 + [0] * (targets - 40)


def test_pr352_at_the_size_of_the_record():  # golf.md 3.8: 484,537 windows, 62,020,736 scored
    plan = sum(1 for _ in sliding_windows(62_021_632 // 128, 8, 1, "pr352"))
    assert (plan, plan * 128) == (484_537, 62_020_736)
