"""`quarantined` shows the rows that could not be read, and whatever speaks of them names the whole command."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli import app
from pipeline.errors import UserError
from pipeline.options import given_options

RECIPE = """name: q
sources:
  a: {from: jsonl, path: a.jsonl}
quarantine: {tolerate: 10%}
mixtures: {pretrain: {tokens: 2000, ratios: {a: 100%}}}
"""
BAD = ['{"x": 1}', "\x1b[31mbad [dim]", *['{"text": 3}'] * 7]


@pytest.fixture
def recipe(tmp_path: Path) -> list[str]:
    (tmp_path / "my recipe.yaml").write_text(RECIPE)
    (tmp_path / "a.jsonl").write_text("\n".join(['{"text": "fine"}', *BAD]))
    return ["--recipe", str(tmp_path / "my recipe.yaml"), "--out", str(tmp_path / "out")]


def call(*arguments: str) -> None:
    app(list(arguments), standalone_mode=False)


def test_every_reason_is_shown_with_file_row_and_beginning(recipe: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(UserError, match="nothing is built"):
        call("quarantined", *recipe)
    call("plan", "exclude", *recipe)
    plan = capsys.readouterr()
    assert "a: rows of the sample that go to the quarantine: 7 (text is int, not a string)" in plan.out
    assert plan.out.count("not reached: waits for the stages above") == 1 and "plan: listing 1 sources" in plan.err
    call("run", "download", "--executor", "inline", *recipe)
    said = capsys.readouterr().out
    assert "9 rows are in quarantine: `python -m pipeline quarantined --recipe '" in said and "my recipe.yaml'" in said
    call("quarantined", *recipe)
    said = capsys.readouterr().out
    assert "a.jsonl row 1: {'x': 1}" in said and "no field 'text' (there: x)" in said
    assert "a.jsonl row 2: \\x1b[31mbad [dim]" in said and "\x1b" not in said
    assert said.count("a.jsonl row") == 2 + 5 and "and 2 more; --full shows them all" in said
    call("quarantined", "--full", *recipe)
    assert capsys.readouterr().out.count("a.jsonl row") == len(BAD)
    call("quarantined", "--source", "b", *recipe)
    assert "no row of b is in quarantine" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"more than quarantine.tolerate.*pipeline quarantined --recipe '.*' --out .*`"):
        call("run", "build_tokenizer", "--executor", "inline", *recipe)


def test_options_are_given_as_a_shell_reads_them():
    assert given_options("quickstart", "build") == ""
    assert given_options("a b.yaml", "/x/$m") == " --recipe 'a b.yaml' --out '/x/$m'"
