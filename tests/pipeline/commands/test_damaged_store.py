"""Files of the store and of results that are damaged or gone are named by every command that reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.cli import app
from pipeline.errors import UserError

RECIPE = """name: q
sources:
  a: {from: jsonl, path: a.jsonl, rules: [{length: {min_chars: 10}}]}
quarantine: {tolerate: 60%}
tokenizer: {vocab_size: 264}
"""
OTHER = {"units": {"a a.jsonl": "00" * 44}, "sets": {}, "failed": {}}  # of another form in one place, below
STATES = [
    *("", "x", "[]", "3", '"x"', "[" * 10**5, '{"units": ' + "9" * 5000 + "}"),
    *(
        json.dumps({**OTHER, **change})
        for change in (
            *({"units": units} for units in ([], 3, None, {"a": 3}, {"a": "zz"}, {"a": "ab"})),
            *({"sets": sets} for sets in ([], {"a": 3})),
            *({"failed": failed} for failed in ([], None, {"a": 3})),
        )
    ),
]


@pytest.fixture
def built(tmp_path: Path) -> list[str]:
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "a.jsonl").write_text('{"text": "long enough"}\n{"text": "short"}\n{"text": 3}\n')
    options = ["--recipe", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out")]
    call("run", "filter", "--executor", "inline", *options)
    return options


def call(*arguments: str) -> None:
    app(list(arguments), standalone_mode=False)


@pytest.mark.parametrize("damage", STATES, ids=lambda text: text[:40])
def test_what_the_last_build_noted_is_named_and_written_anew(built, tmp_path, capsys, damage):
    file = tmp_path / "out/q/units/download.json"
    before = file.read_text()
    file.write_text(damage)
    (tmp_path / "out/q/recipe.json").write_text(damage)
    for command in ("status", "quarantined"):
        with pytest.raises(UserError, match=re.escape(f"{file} is damaged (")):
            call(command, *built)
    if '"failed": {}' in damage or "failed" not in damage:  # `clean` asks for no messages
        with pytest.raises(UserError, match=r"nothing deleted: .*download\.json cannot be read"):
            call("clean", *built[2:])
    call("plan", "filter", *built)
    call("run", "filter", "--executor", "inline", *built)
    assert file.read_text() == before, "though nothing had to run"
    capsys.readouterr()
    call("status", *built)
    assert "quarantined rows: 1" in capsys.readouterr().out


def test_one_document_can_be_planned(built, capsys):
    call("plan", "build_tokenizer", *built)
    assert "build_tokenizer" in capsys.readouterr().out


def test_rows_of_a_unit_that_is_gone_are_not_said_to_be_none(built, tmp_path, capsys):
    (record,) = (tmp_path / "out/store/download").rglob("record.json")
    record.write_text(record.read_text().replace('"quarantined": 1', '"quarantined": 2'))
    capsys.readouterr()
    call("quarantined", *built)
    shown = capsys.readouterr().out
    assert "1 units are missing or damaged" in shown and f"run download --recipe {built[1]}" in shown
    assert "no row" not in shown
    call("run", "download", "--executor", "inline", *built)
    capsys.readouterr()
    call("quarantined", *built)
    assert "a.jsonl row 2" in capsys.readouterr().out


def test_a_damaged_sample_of_dropped_documents_is_named(built, tmp_path, capsys):
    (file,) = (tmp_path / "out/q/dropped").glob("*.parquet")
    table, whole = pq.read_table(file), file.read_bytes()
    for column in (None, *table.column_names):
        file.unlink()  # of two links
        if column:
            pq.write_table(table.drop([column]), file)
        else:
            file.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match=re.escape(f"{file} is damaged (") + r".*run filter --recipe .* writes it"):
            call("dropped", *built)
    call("run", "filter", "--executor", "inline", *built)
    call("dropped", *built)
    assert "length_short" in capsys.readouterr().out
