"""Damaged files: a few of each kind through the commands. `python -m benchmarks.mutants` takes a thousand of each."""

from __future__ import annotations

import random

import pytest

from benchmarks import forked, mutants
from benchmarks.damage import damage


@pytest.mark.parametrize("data", [b"", b"a", b'{"a": 1}\n', bytes(range(256))])
def test_damage_changes_something(data):
    rng = random.Random(5)
    assert all(damage(data, rng)[1] != data for _ in range(300))


def test_each_way_to_fail_is_told_from_an_error_for_people():
    def ends(status: int, output: str = "") -> str:
        return forked.Outcome(status, output, 0.1).fault

    assert ends(0) == ends(1, "error: a.jsonl: no such file") == ends(2) == ""
    assert ends(1, "Traceback (most recent call last):") == "trace"
    assert ends(1, "error: KeyError: 3 (a fault of ours; --debug shows where)") == "fault of ours"
    assert (ends(-9), ends(-11), ends(1, "MemoryError"), ends(99)) == ("hang", "signal 11", "memory", "status 99")


def test_limits_end_a_command():
    def sleep():
        import time

        time.sleep(60)

    assert forked.run(sleep, seconds=0.2).fault == "hang"
    assert forked.run(lambda: bytearray(1 << 30) and None, memory=1 << 28).fault == "memory"


@pytest.mark.slow
@pytest.mark.parametrize("kind", mutants.KINDS)
def test_no_damage_ends_in_a_trace_or_in_silence(kind, tmp_path):
    forked.warm_up()
    wrong = [
        (case.file, case.damage, case.command, fault, outcome.output[-500:])
        for case, outcome, fault in mutants.faults(kind, 15, seed=1, folder=tmp_path)
        if fault
    ]
    assert wrong == []
