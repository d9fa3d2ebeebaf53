"""The rank-loss alarm: what it measures, whose turn it is, and what a planted matrix does to a run."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_harness import MODEL, losses, metrics, sets

from train import main
from train.checkpoint.checkpoint import find_checkpoint, list_checkpoints
from train.config import ModelConfig, RankLossConfig, TrainError
from train.model.transformer import build
from train.monitor import singular_values
from train.monitor.singular_values import LINE, SingularValueWatch, extreme_singular_values

NAME = "blocks.1.mlp.down.weight"


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_the_extremes_are_svdvals(rows, columns, seed):
    matrix = np.random.default_rng(seed).standard_normal((rows, columns), np.float32)
    values = torch.linalg.svdvals(torch.from_numpy(matrix).double())
    assert extreme_singular_values(matrix) == pytest.approx(
        (values[-1].item(), values[0].item()), rel=1e-6, abs=1e-7 * values[0].item()
    )


def test_a_small_singular_value_is_resolved_below_the_floor():
    u, v = (np.linalg.qr(np.random.default_rng(i).standard_normal((64, 64)))[0] for i in (0, 1))
    for rcond in (1e-2, 1e-4, 1e-5, 0.0):
        smin, smax = extreme_singular_values((u * np.append(np.linspace(1, 0.1, 63), rcond) @ v).astype(np.float32))
        assert smin / smax == pytest.approx(rcond, rel=0.05, abs=1e-6)


def watch(matrices, **settings):
    return SingularValueWatch(matrices, RankLossConfig(**settings))


def test_whose_turn_it_is_follows_from_the_step():
    matrices = {name: torch.eye(3) * (i + 1) for i, name in enumerate("abc")}
    whole = watch(matrices, every=7)  # one each ceil(7 / 3) = 3 steps
    seen = []
    for step in range(1, 22):
        whole.after_step(step)
        assert not whole.stops(wait=True)
        figures, events = whole.read()
        assert not events
        seen += [(step, key.split("/")[1]) for key in figures if key.endswith("rcond")]
    assert seen == [(3, "a"), (6, "b"), (9, "c"), (12, "a"), (15, "b"), (18, "c"), (21, "a")]
    again = watch(matrices, every=7)  # begun at step 12
    again.after_step(15)
    again.stops(wait=True)
    assert again.read() == ({"sentinel/b/smin": 2.0, "sentinel/b/smax": 2.0, "sentinel/b/rcond": 1.0}, [])
    for off in (watch(matrices, every=0), watch({}, every=1)):
        off.after_step(3)
        assert not off.stops(wait=True) and off.read() == ({}, [])


def test_zero_and_broken_matrices_are_passed_over_and_a_copy_is_measured():
    matrices = {"zero": torch.zeros(4, 4), "nan": torch.full((4, 4), torch.nan), "good": torch.eye(4)}
    watched = watch(matrices, every=1, policy="stop")
    for step in (1, 2, 3):
        watched.after_step(step)
    matrices["good"].zero_()  # the next step's update
    assert not watched.stops(wait=True)
    assert watched.read()[0] == {f"sentinel/good/{key}": 1.0 for key in ("smin", "smax", "rcond")}
    watched.close()


def test_a_slow_thread_delays_nothing_and_is_said(monkeypatch, capsys):
    go = threading.Event()
    monkeypatch.setattr(singular_values, "extreme_singular_values", lambda matrix: (go.wait(30), 1.0, 1.0)[1:])
    watched = watch({"a": torch.eye(2)}, every=1)
    for step in range(1, LINE + 4):
        watched.after_step(step)
    assert capsys.readouterr().err.count("warning: rank loss: at step 9") == 1
    go.set()
    watched.stops(wait=True)
    assert [look.step for look in watched.measured] == list(range(1, LINE + 1))


@pytest.fixture
def planted(monkeypatch):
    """Runs whose fresh weights have one matrix without full rank, and an lr that leaves it so."""

    def plant(*given):
        model = build(*given)
        with torch.no_grad():
            model.get_parameter(NAME)[5] = model.get_parameter(NAME)[7]
        return model

    monkeypatch.setattr(main, "build", plant)
    return {"rank_loss__every": 1, "log_every": 5, "checkpoint_every": 0, "muon__lr": 1e-9}


@pytest.mark.slow
def test_a_lost_rank_is_an_event_and_changes_no_weight(pretrain, planted, tmp_path, capsys):
    main.run(pretrain, sets(**planted, steps=20, out=str(tmp_path / "r")))
    events = [json.loads(line) for line in (tmp_path / "r/events.jsonl").read_text().splitlines()]
    (event,) = [e for e in events if "matrix" in e]
    order = [n for n, p in build(ModelConfig(**MODEL), 264, 0).named_parameters() if "blocks" in n and p.ndim == 2]
    assert (event["event"], event["matrix"], event["step"]) == ("rank loss", NAME, order.index(NAME) + 1)
    assert event["rcond"] < 1e-4 and f"step 14: rank loss: {NAME} has singular values from" in capsys.readouterr().out
    lines = {key: line for line in metrics(tmp_path / "r") for key in line if key.endswith("/rcond")}
    assert lines.keys() == {f"sentinel/{name}/rcond" for name in order}
    assert lines[f"sentinel/{NAME}/rcond"][f"sentinel/{NAME}/rcond"] == event["rcond"]
    main.run(pretrain, sets(**{**planted, "rank_loss__every": 0}, steps=20, out=str(tmp_path / "off")))
    files = [list_checkpoints(tmp_path / name / "checkpoints")[0] / "model.safetensors" for name in ("r", "off")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_stop_saves_says_what_to_do_and_warn_goes_on(pretrain, planted, tmp_path):
    options = {**planted, "steps": 60, "out": str(tmp_path / "r"), "schedule__kind": "constant", "epochs": 9}
    with pytest.raises(
        TrainError, match=rf"step 14: rank loss: {NAME} .*saved in .*\ngo on with .*policy=warn"
    ) as error:
        main.run(pretrain, sets(**options, rank_loss__policy="stop"))
    assert "rcond" in str(error.value)
    saved = find_checkpoint(tmp_path / "r", "k").step
    assert 14 <= saved < 60 and max(losses(tmp_path / "r")) == saved
    main.run(pretrain, sets(**options, resume="auto"))
    assert max(losses(tmp_path / "r")) == 60
