"""What `status` says of where units ran, and of what was tried again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.commands.report import TextConsole
from pipeline.commands.status import REASONS, UnitTotals
from stages.stage import Record


def test_the_totals_name_nodes_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    totals = UnitTotals()
    record = Record("k", "filter", "web a", [], [], {}, 2.0, 0, {}, 0, 0, "one", "host/1")
    totals.add(record)
    totals.print(TextConsole())
    assert capsys.readouterr().out == "", "one node and no trouble are no news"
    for number in range(3):
        totals.add(
            replace(record, node="host/2", label=f"web {number}", tries=["the node is gone", "503"][: 1 + number % 2])
        )
    totals.print(TextConsole())
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["host/1", "1", "2"] in lines and ["host/2", "3", "6"] in lines
    assert ["tried", "again:", "3", "units"] in lines
    assert ["3", "times,", "as", "filter", "web", "0:", "the", "node", "is", "gone"] in lines
    assert ["1", "times,", "as", "filter", "web", "1:", "503"] in lines
    totals.add(replace(record, tries=[f"reason {number}" for number in range(REASONS)]))
    totals.print(TextConsole())
    assert "and for 2 more reasons" in capsys.readouterr().out
