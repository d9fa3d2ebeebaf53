"""A run that was cut continues as if nothing had been: after kill -9, while a checkpoint is written, on other data."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import trainer_harness
from rounding import LOSS
from trainer_harness import MODEL, TRAIN, ended, losses, make_mixture, metrics, sets, start, start_ranks, wait_for

from pipeline.commands.trace import open_run, spans_of_step
from pipeline.errors import UserError
from train import loop
from train.checkpoint import checkpoint
from train.checkpoint.checkpoint import (
    find_checkpoint,
    list_checkpoints,
    newest_intact_checkpoint,
    pointer_target,
    read_score,
)
from train.checkpoint.load_model import open_trained_model
from train.config import TrainError
from train.data.manifest import load_manifest, manifest_text
from train.eval.validation import Validation
from train.main import run

PATCHED = "tests/harness/patched_trainer.py"
STEPS = 24
AVERAGES = {"ema__decay": 0.9, "ema__every": 2, "swa__start_frac": 0.9, "swa__every": 1}


def weights(folder):
    return find_checkpoint(folder, "k").tensors("model.safetensors")


def same(a, b):
    """Losses, final weights, momentum, moments and averages, to the bit."""
    for name in checkpoint.TENSOR_FILES:
        x, y = (find_checkpoint(folder, "k").tensors(name) for folder in (a, b))
        if x.keys() != y.keys() or not all(torch.equal(x[k], y[k]) for k in x):
            return False
    return losses(a) == losses(b)


def apart(a, b):
    """The largest difference of two runs' losses."""
    x, y = losses(a), losses(b)
    assert x.keys() == y.keys()
    return max(abs(x[s] - y[s]) for s in x)


def kill(processes):
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.communicate()


def command(folder, **more):
    return sets(out=str(folder), steps=STEPS, resume="auto", **AVERAGES, **more)


@pytest.fixture(scope="module")
def alone(pretrain, tmp_path_factory):
    """The run in one process."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(pretrain, command(folder))
    return folder


@pytest.fixture(scope="module")
def pair(pretrain, tmp_path_factory):
    """The run in two processes under torchrun; its folder and what was said."""
    folder = tmp_path_factory.mktemp("pair") / "run"
    process = start(pretrain, command(folder), processes=2)
    try:
        return folder, ended([process])[0]
    finally:
        process.kill()


@pytest.mark.slow
def test_torchrun_with_two_processes_gives_one_processes_losses(alone, pair):
    folder, said = pair
    assert apart(folder, alone) < LOSS
    a, b = (json.loads((f / "summary.json").read_text()) for f in (folder, alone))
    assert a["after"]["nats"] == pytest.approx(b["after"]["nats"], abs=LOSS)
    assert a["unigram"] == b["unigram"] and a["after"]["tokens"] == b["after"]["tokens"]
    for name in ("ema", "swa"):
        assert a["averages"][name]["nats"] == pytest.approx(b["averages"][name]["nats"], abs=LOSS)
    assert said.count("step 24/24") == 1  # one rank speaks
    values = losses(alone)
    assert values[STEPS] < values[1] - 1


@pytest.mark.slow
def test_kill_9_with_two_processes_then_one_two_and_four(pretrain, pair, launch, tmp_path):
    whole, cut = pair[0], tmp_path / "cut"
    ranks = start_ranks(launch, 2, pretrain, command(cut))
    wait_for(cut / "metrics.jsonl", random.randint(5, 18))
    kill(ranks)
    assert not (cut / "summary.json").exists()
    for world in (1, 2, 4):
        folder = tmp_path / str(world)
        shutil.copytree(cut, folder)
        if world == 1:
            run(pretrain, command(folder))
        else:
            ended(start_ranks(launch, world, pretrain, command(folder)))
        assert apart(folder, whole) < LOSS
        assert same(folder, whole) or world != 2
        assert max((weights(folder)[k] - w).abs().max() for k, w in weights(whole).items()) < 1e-3


@pytest.mark.soak
def test_many_kills_also_while_writing_come_to_the_same_bits(pretrain, launch, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = {"checkpoint_every": 2, "eval_every": 3}
    ended(start_ranks(launch, 2, pretrain, command(whole, **more)))
    slow = {"variables": {"TEST_DISK": "slow:0.1"}, "program": PATCHED}
    kills = half = 0
    while not (cut / "summary.json").exists():
        assert kills < 40
        begun = starts(cut)
        ranks = start_ranks(launch, 2, pretrain, command(cut, **more), **slow)
        while starts(cut) == begun and all(p.poll() is None for p in ranks):
            time.sleep(0.01)
        time.sleep(random.random())
        kill(ranks)
        kills += 1
        half += bool(list((cut / "checkpoints").glob(".part-*")))
        assert newest_intact_checkpoint(cut / "checkpoints")[1] == []
        best = pointer_target(cut / "checkpoints", "best")
        assert not best or (cut / "checkpoints" / best / "state.json").exists()
    assert kills > 3 and half
    assert same(cut, whole)
    assert len({pointer_target(f / "checkpoints", "best") for f in (cut, whole)}) == 1


def starts(folder):
    """How often the run was begun or continued; each is noted once its folder is in order."""
    path = folder / "run.json"
    return len(json.loads(path.read_text())["starts"]) if path.exists() else 0


# ---------------------------------------------------------------------------------------------------------------------
# Writing while training goes on


@pytest.mark.slow
def test_training_goes_on_while_a_checkpoint_is_written_and_a_kill_leaves_the_one_before(
    pretrain, alone, launch, tmp_path
):
    folder, fifo = tmp_path / "r", tmp_path / "fifo"
    os.mkfifo(fifo)
    process = launch(pretrain, command(folder), variables={"TEST_DISK": f"block:8:{fifo}"}, program=PATCHED)
    wait_for(folder / "metrics.jsonl", 12)
    time.sleep(0.3)
    assert max(losses(folder)) == 12  # the next save waits for it
    kill([process])
    assert [p.name for p in list_checkpoints(folder / "checkpoints")] == ["step_000004"]
    assert list((folder / "checkpoints").glob(".part-000008-*"))
    run(pretrain, command(folder))
    assert same(folder, alone)
    assert not list((folder / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_a_full_disk_ends_the_run_on_all_ranks(pretrain, launch, tmp_path):
    folder = tmp_path / "r"
    ranks = start_ranks(launch, 2, pretrain, command(folder), variables={"TEST_DISK": "full:8"}, program=PATCHED)
    said = [p.communicate(timeout=60)[0] for p in ranks]
    assert [p.returncode for p in ranks] == [1, 1], said
    for text in said:
        assert "step_000008: not written: " in text and "No space left" in text and "Traceback" not in text
    assert 8 <= max(losses(folder)) <= 12
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["latest", "step_000004"]


def test_a_slow_disk_is_said(pretrain, tmp_path, monkeypatch, capsys):
    save = loop.save_checkpoint

    def slow(*args):
        time.sleep(2)  # longer than a step takes on a busy machine
        return save(*args)

    monkeypatch.setattr(loop, "save_checkpoint", slow)
    monkeypatch.setattr(loop, "LONG_WAIT", 0.01)
    run(pretrain, sets(out=str(tmp_path / "r"), steps=3, checkpoint_every=1))
    assert re.search(r"step 2: waited [0-2]\.", capsys.readouterr().out)
    assert len(list_checkpoints(tmp_path / "r/checkpoints")) == 2


def test_an_exception_waits_for_the_write(pretrain, tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise TrainError("step 5 fails")

    step = loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda r: step(r) if r.step < 4 else broken())
    with pytest.raises(TrainError, match="step 5 fails"):
        run(pretrain, sets(out=str(tmp_path / "r"), steps=8))
    assert find_checkpoint(tmp_path / "r", "k").step == 4
    monkeypatch.setattr(loop, "save_checkpoint", broken)
    with pytest.raises(TrainError, match="step 5 fails"):
        run(pretrain, sets(out=str(tmp_path / "q"), steps=8))
    assert "warning: step 5 fails" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# The best


@pytest.mark.slow
def test_best_is_the_model_that_scored_best_and_a_resume_knows_it(pretrain, tmp_path, monkeypatch):
    planted = {0: 9.0, 2: 5.0, 4: 3.0, 6: 4.0, 8: float("nan"), 10: 3.0, 12: 3.5, 14: 2.5, 16: 2.75}
    score = Validation.score
    now = []
    begin = loop.evaluate
    monkeypatch.setattr(loop, "evaluate", lambda r, *a, **k: (now.append(r.step), begin(r, *a, **k))[1])
    monkeypatch.setattr(Validation, "score", lambda *a: replace(score(*a), nats=planted[now[-1]]))
    folder = tmp_path / "r/checkpoints"
    more = {"eval_every": 2, "checkpoint_every": 0, "keep_last": 1, "schedule__kind": "constant"}
    run(pretrain, sets(out=str(tmp_path / "r"), steps=8, **more))
    assert sorted(p.name for p in folder.glob("step_*")) == ["step_000004", "step_000008"]
    assert open_trained_model(tmp_path / "r", pretrain, name="best").point.step == 4
    assert open_trained_model(folder / "best", pretrain).point.step == find_checkpoint(folder / "best", "k").step == 4
    assert open_trained_model(tmp_path / "r", pretrain).point.step == 8
    (folder / "best").unlink()  # as a kill before it was named would leave it
    run(pretrain, sets(out=str(tmp_path / "r"), steps=12, resume="auto", **more))
    assert pointer_target(folder, "best") == "step_000004"
    run(pretrain, sets(out=str(tmp_path / "r"), steps=16, resume="auto", **more))
    assert sorted(p.name for p in folder.glob("step_*")) == ["step_000014", "step_000016"]
    state = open_trained_model(tmp_path / "r", pretrain, name="step_000016").point.state
    assert state["best"]["step"] == 14 and state["best"]["val_loss"] == 2.5
    with pytest.raises(TrainError, match=r"no checkpoint 'step_000004' there; there are latest, step_000016, step_"):
        open_trained_model(tmp_path / "r", pretrain, name="step_000004")
    now.clear()
    run(pretrain, sets(out=str(tmp_path / "off"), steps=8, keep_best=False, **more))
    assert not (tmp_path / "off/checkpoints/best").exists()
    assert [p.name for p in list_checkpoints(tmp_path / "off/checkpoints")] == ["step_000008"]


# ---------------------------------------------------------------------------------------------------------------------
# Another build of the data


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory):
    """The same mixture built again, its documents others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_harness, "BUILD_ID", "f" * 64)
        text = trainer_harness.text
        patch.setattr(trainer_harness, "text", lambda seed, words: text(seed + 1000, words + 3))
        return make_mixture(tmp_path_factory.mktemp("rebuilt") / "m", MODEL, {"pretrain": TRAIN}, "pretrain")


def test_another_build_is_refused_unless_told_so_and_traced_by_step(pretrain, rebuilt, tmp_path):
    folder = tmp_path / "r"
    first = sets(schedule__kind="constant", out=str(folder))
    more = [*first, *sets(resume="auto", steps=8)]
    run(pretrain, [*first, *sets(steps=4)])
    for path, out in ((folder, "auto"), (tmp_path / "q", str(folder))):
        with pytest.raises(TrainError, match=r"trained on build \w{16} .*ffffffffffffffff\n.*allow_new_manifest=true"):
            run(rebuilt, [*more, *sets(out=str(path), resume=out)])
    run(rebuilt, [*more, *sets(allow_new_manifest=True)])
    old, new = load_manifest(pretrain), load_manifest(rebuilt)
    facts = json.loads((folder / "run.json").read_text())
    assert [(b["build_id"], b["from_step"]) for b in facts["builds"]] == [(old.build_id, 0), (new.build_id, 4)]
    assert facts["build_id"] == new.build_id and list(losses(folder)) == list(range(1, 9))
    for manifest, good, bad in ((old, (1, 4), (5, 8)), (new, (5, 8), (1, 4))):
        there = open_run(manifest, str(folder))
        assert all(len(spans_of_step(manifest, there, step)) == 8 for step in good)
        for step in bad:
            with pytest.raises(UserError, match=f"--step {step}: it read build "):
                spans_of_step(manifest, there, step)
    # on the new build the run now goes on without being told; back on the old one it is refused again
    run(rebuilt, [*more, *sets(steps=10)])
    with pytest.raises(TrainError, match="allow_new_manifest"):
        run(pretrain, [*more, *sets(steps=12)])


@pytest.mark.slow
def test_steps_after_a_change_of_build_read_the_new_one_and_all_else_goes_on(pretrain, rebuilt, tmp_path):
    def losses_after(first, second, name):
        folder = tmp_path / name
        run(first, sets(schedule__kind="constant", out=str(folder), steps=4, eval_every=2))
        allow = sets(schedule__kind="constant", out=str(folder), steps=8, resume="auto", allow_new_manifest=True)
        run(second, [*allow, *sets(eval_every=2)])
        return folder

    kept, changed = losses_after(pretrain, pretrain, "a"), losses_after(pretrain, rebuilt, "b")
    a, b = losses(kept), losses(changed)
    assert [a[s] == b[s] for s in a] == [True] * 4 + [False] * 4
    assert abs(a[5] - b[5]) < 0.5  # weights and moments went on: a fresh start is 2 nats above
    state = find_checkpoint(changed, "k").state
    assert state["best"]["step"] > 4  # what was scored on other documents does not count
    assert "note: on build" not in (kept / "run.json").read_text() and len(metrics(kept)) == len(metrics(changed))


def test_only_the_build_may_differ(pretrain, rebuilt, tmp_path):
    folder = tmp_path / "r"
    run(pretrain, sets(out=str(folder), steps=4))
    good = json.loads(rebuilt.read_text())
    changed = tmp_path / "m"
    shutil.copytree(rebuilt.parent, changed)
    for change, word in (({"val_ids": good["val_ids"] | {"rule": "another"}}, "val_rule"), ({}, "train.seed")):
        (changed / "manifest.json").write_text(manifest_text(good | change))
        more = {} if change else {"seed": 3}
        with pytest.raises(TrainError, match=rf"another run \(differs in build_id .*{word}"):
            run(changed, sets(out=str(folder), steps=4, resume="auto", allow_new_manifest=True, **more))


def test_builds_of_a_run_that_went_back(tmp_path):
    from train.checkpoint.resume import builds_after

    def point(step, builds):
        return checkpoint.Checkpoint(Path("c"), {"step": step, "identity": {"build_id": "a"}, **builds})

    assert builds_after(None, "a") == [{"build_id": "a", "from_step": 0}]
    assert builds_after(point(4, {}), "a") == [{"build_id": "a", "from_step": 0}]  # written before there was a history
    history = [{"build_id": "a", "from_step": 0}, {"build_id": "b", "from_step": 4}]
    assert builds_after(point(8, {"builds": history}), "b") == history
    assert builds_after(point(4, {"builds": history[:1]}), "b") == history
    assert builds_after(point(4, {"builds": history}), "a") == history[:1]
    assert builds_after(point(6, {"builds": history}), "a") == [*history, {"build_id": "a", "from_step": 6}]


@pytest.mark.slow
def test_a_kill_while_a_step_is_scored_loses_no_step_and_no_score(pretrain, tmp_path, monkeypatch):
    more = {"eval_every": 4, "checkpoint_every": 4, "steps": 12}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(pretrain, sets(out=str(whole), **more))
    evaluate = loop.evaluate

    def killed(given, *args, **keys):
        if given.step == 8:
            raise KeyboardInterrupt
        return evaluate(given, *args, **keys)

    monkeypatch.setattr(loop, "evaluate", killed)
    with pytest.raises(KeyboardInterrupt):
        run(pretrain, sets(out=str(cut), **more))
    monkeypatch.setattr(loop, "evaluate", evaluate)
    assert find_checkpoint(cut, "k").step == 8 and read_score(cut / "checkpoints/step_000008") is None
    run(pretrain, sets(out=str(cut), resume="auto", **more))
    assert same(cut, whole)
    for folder in (cut, whole):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "val_loss" in line] == [0, 4, 8, 12]
    scores = [read_score(f / "checkpoints/step_000008") for f in (cut, whole)]
    assert scores[0] == scores[1] is not None
    assert len({pointer_target(f / "checkpoints", "best") for f in (cut, whole)}) == 1
