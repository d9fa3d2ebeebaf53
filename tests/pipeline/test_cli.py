"""The everyday commands: list, status, clean."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from commands import cli
from engine_harness import Work, copy_project, edit, new_work

from pipeline.engine.locks import run_lock, store_lock
from pipeline.engine.store import open_store
from pipeline.options import split_settings

pytestmark = pytest.mark.slow


def test_list_names_every_stage(work: Work) -> None:
    done = work.cli("list")
    assert done.returncode == 0
    first = [line.split()[0] for line in done.stdout.splitlines()[2:] if line and not line.startswith(" ")]
    stages = ["download", "measure", "filter", "dedup", "exclude", "build_tokenizer", "tokenize"]
    stages += ["pack_pretrain", "pack_anneal_mix", "train"]
    assert [word for word in first if word in stages] == stages


def test_status_before_and_after(reference: Work, work: Work) -> None:
    assert "nothing is built" in work.cli("status").stdout
    lines = reference.cli("status").stdout.splitlines()
    rows = {line.split()[0]: line.split()[1:4] for line in lines if line and line.split()[0] in ("filter", "dedup")}
    assert rows == {"filter": ["7", "0", "0"], "dedup": ["11", "0", "0"]}
    assert "quarantined rows: 1" in lines


def test_clean_keeps_what_results_refer_to(packed: Work) -> None:
    work = packed
    work.run("pack_pretrain", "--set", "seed=8")
    training = work.out / "store/train/ab" / ("ab" * 20) / "run/checkpoints"
    training.mkdir(parents=True)
    (training / "weights").write_text("precious")
    units = set(work.records())
    before = work.snapshot()
    listed = work.cli("clean", "--dry-run")
    assert listed.returncode == 0, listed.stderr
    assert "would delete" in listed.stdout
    assert work.snapshot() == before, "a dry run deletes nothing"
    done = work.cli("clean")
    assert done.returncode == 0, done.stderr
    assert "holds a training run; --force deletes it" in done.stdout
    assert (training / "weights").exists()
    left = set(work.records())
    assert left < units
    assert {stage for stage, _ in units - left} == {"tokenize", "pack_pretrain"}
    assert len(list((work.out / "small/builds").glob("pretrain-*"))) == 1
    again = work.run("pack_pretrain", "--set", "seed=8")
    assert "56 units, 56 cached" in again.stderr
    assert work.cli("verify", str(work.out / "small/pretrain")).returncode == 0
    assert "deleted" in work.cli("clean", "--force").stdout
    assert not training.exists()


def test_clean_takes_leftovers_of_killed_attempts(packed: Work) -> None:
    work = packed
    record = next(r for r in work.records().values() if r["stage"] == "filter")
    leftover = work.out / "store/filter" / record["key"][:2] / record["key"] / "feedfacefeed.docs.parquet"
    leftover.write_text("x")
    assert str(leftover) in work.cli("clean").stdout
    assert not leftover.exists()
    assert "cached" in work.run("filter").stderr


def test_a_run_cut_short_forgets_nothing(packed: Work) -> None:
    work = packed
    kept = set(work.records())
    work.fails("run", "pack_pretrain", "--executor", "local", "--set", "sources.web.path=/nowhere", "--set", "seed=5")
    work.fails("run", "pack_pretrain", "--executor", "local", "--set", "tokenizer.vocab_size=60000")
    assert work.cli("clean").returncode == 0
    assert kept <= set(work.records()) | {u for u in kept if u[0] == "build_tokenizer"}
    assert "deleted" not in work.cli("clean").stdout


def test_clean_waits_for_a_run(tmp_path: Path) -> None:
    work = new_work(tmp_path)
    store = open_store(str(work.out))
    with store_lock(store), run_lock(store, "run something"):
        text = work.fails("clean")
        assert f"process {os.getpid()} is running `run something`" in text
        assert "running: run something" in work.cli("status").stdout
    with store_lock(store):  # a run that has found everything so far
        assert "another run is using this store" in work.fails("clean")
    assert work.cli("clean").returncode == 0


def test_a_lock_left_by_a_killed_run_holds_up_nobody(tmp_path: Path) -> None:
    work = new_work(tmp_path)
    stale = work.out / "store/running/dead.json"
    stale.parent.mkdir(parents=True)
    stale.write_text(json.dumps({"pid": 1, "command": "run"}))
    assert "killed: run (process 1)" in work.cli("status").stdout
    assert work.cli("clean").returncode == 0
    assert not stale.exists()


def test_force_runs_only_that_stage_again(packed: Work) -> None:
    work = packed
    before = {u: r["attempt"] for u, r in work.records().items()}
    work.run("dedup", "--force")
    after = {u: r["attempt"] for u, r in work.records().items()}
    assert {u[0] for u in before if after[u] != before[u]} == {"dedup"}
    assert set(after) == set(before)


def test_a_fault_of_ours_is_a_line_and_debug_shows_where(tmp_path: Path) -> None:
    work = new_work(tmp_path, copy_project(tmp_path))
    edit(work.root / "stages/filter/work.py", "    rules = [(name", "    1 / 0\n    rules = [(name")
    text = work.fails("run", "filter", "--executor", "local")
    assert "ZeroDivisionError: division by zero" in text
    done = work.cli("run", "filter", "--executor", "local", "--debug")
    assert done.returncode == 1
    assert "filter/work.py" in done.stderr
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("option", ["--help", "run --help"])
def test_help(work: Work, option: str) -> None:
    done = work.cli(*option.split()) if option != "--help" else work.cli("list", "--help")
    assert done.returncode == 0
    assert "Usage" in done.stdout


def test_set_takes_several_values_as_the_trainer_does():
    given = ["run", "train", "--set", "a=1", "b.c=2", "--out", "x=y", "--set", "d=3"]
    assert split_settings(given) == ["run", "train", "--set", "a=1", "--set", "b.c=2", "--out", "x=y", "--set", "d=3"]
    assert split_settings(["run", "--set", "a=1", "train"]) == ["run", "--set", "a=1", "train"]


@pytest.mark.slow
def test_two_recipe_files_of_one_name_are_told_of(packed: Work) -> None:
    packed.run("download")
    mine, other = packed.recipe, packed.folder / "other.yaml"
    assert "both write their results" not in packed.run("download").stderr
    other.write_bytes(mine.read_bytes())
    arguments = ("--recipe", str(other), "--out", str(packed.out))
    for command in ("plan", "run"):
        done = cli(command, "download", *arguments, cwd=packed.folder)
        assert done.returncode == 0, done.stderr
        said = done.stdout + done.stderr
        assert f"warning: {other} has the name of {mine}, small, and both write their results to" in said
    other.rename(mine)  # moved, not another
    assert "both write their results" not in packed.run("download").stderr
