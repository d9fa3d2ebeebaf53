"""The learning rate: the records' warmdown, the wall clock, and runs made longer from where the decay begins."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
import types

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from trainer_harness import ended, losses, metrics, sets, start_ranks

from pipeline.recipe import load_recipe
from train.checkpoint.checkpoint import find_checkpoint, list_checkpoints
from train.config import ConfigError, ScheduleConfig, TrainError
from train.main import run
from train.optim import schedule
from train.optim.schedule import StepTimer, decay_begins, decay_start, lr_factor, settled
from train.sealed import read_run_file, run_file_text

RECORDS = ScheduleConfig(kind="warmdown", warmdown=3000)  # and 9000 steps: docs/trainer-math.md
KINDS = st.sampled_from(["wsd", "cosine", "constant", "warmdown"])


def configurations():
    return st.builds(
        lambda kind, warmup, warmdown, frac, shape, least: ScheduleConfig(
            kind=kind,
            warmup=warmup,
            warmdown=warmdown if kind == "warmdown" else 0,
            decay_frac=frac,
            decay_shape=shape,
            min_ratio=least,
        ),
        KINDS,
        st.integers(0, 30),
        st.integers(1, 60),
        st.floats(0, 1),
        st.sampled_from([None, "sqrt", "linear", "cosine"]),
        st.sampled_from([0.0, 0.1]),
    )


@pytest.mark.parametrize(("step", "factor"), [(5999, 1), (6000, 1), (7500, 0.5), (8700, 0.1), (8999, 1 / 3000)])
def test_warmdown_by_steps(step, factor):
    assert lr_factor(step, 9000, RECORDS) == factor


def test_warmdown_falls_below_a_threshold_where_the_records_do():
    factors = [lr_factor(t, 9000, RECORDS) for t in range(9000)]
    assert next(t for t in range(9000) if factors[t] < 0.1) == 8701
    assert next(t for t in range(9000) if factors[t] < 0.5) == 7501


def test_where_the_decay_starts():
    assert decay_start(100_000, ScheduleConfig(warmup=1500, decay_frac=0.2)) == 80_300
    assert decay_start(9000, RECORDS) == 6000


def test_warmdown_shapes():
    for shape, want in (("linear", 0.5), ("sqrt", 1 - math.sqrt(0.5)), ("cosine", 0.5)):
        cfg = ScheduleConfig(kind="warmdown", warmdown=3000, decay_shape=shape)
        assert lr_factor(7500, 9000, cfg) == pytest.approx(want, abs=1e-12)
    assert lr_factor(0, 100, RECORDS) == 100 / 3000  # longer than the run: it starts lower, as in the records


def test_a_rate_that_rises_is_the_gemma_seeds():
    """Its script, which steps torch's schedulers in each of 32 micro-steps, and its two rates, 1e-4 and then 5e-4."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1e-4)
    parts = [
        torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=1000),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=149_000, eta_min=5e-4),
    ]
    theirs = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[1000])
    weight.grad = torch.zeros(1)
    optimizer.step()
    steps, factors = load_recipe("gemma3_270m_seed").train["pretrain"], []
    for micro_step in range(150_000):
        if (micro_step + 1) % 32 == 0:
            factors.append(optimizer.param_groups[0]["lr"] / 1e-4)
        theirs.step()
    assert len(factors) == steps.steps == 4687
    assert factors[0] == pytest.approx(0.354, abs=1e-3) and factors[-1] == pytest.approx(5, abs=1e-3)
    for step, factor in enumerate(factors):  # 1000 micro-steps are 31.25 steps, of which we have 31
        assert lr_factor(step, steps.steps, steps.schedule) == pytest.approx(factor, rel=0.01), step
    assert [text for text in steps.warnings() if "the learning rate rises to 5 times" in text]


@given(configurations(), st.floats(0, 1), st.integers(1, 200))
def test_a_warm_up_from_a_factor_rises_to_the_same(cfg, first, steps):
    """Each step is as far between `first` and 1 as it was between 0 and 1, where no decay is lower."""
    raised = dataclasses.replace(cfg, warmup_from=first)
    for step in range(steps):
        plain, factor = lr_factor(step, steps, cfg), lr_factor(step, steps, raised)
        assert plain <= factor <= 1
        if step >= cfg.warmup:
            assert factor == plain
        elif step < decay_start(steps, cfg):
            assert factor == pytest.approx(first + (1 - first) * plain)


def records_rule(step, elapsed, limit, warmdown):
    """The wall-clock rule as the records write it; seconds. For reading."""
    mean = elapsed / max(step, 1)
    left = max(limit - elapsed, 0.0)
    return left / (warmdown * mean) if left <= warmdown * mean else 1.0


@given(st.integers(1, 20_000), st.floats(0.001, 1.0), st.floats(1.0, 10_000.0), st.integers(1, 5000))
def test_warmdown_by_the_clock_is_the_records_rule(step, mean, limit, warmdown):
    pace = StepTimer(step * mean, step)
    total = pace.total(10**9, limit)
    assume(step < total)
    cfg = ScheduleConfig(kind="warmdown", warmdown=warmdown, seconds=limit)
    want = records_rule(step, step * mean, limit, warmdown)
    assert lr_factor(step, total, cfg) == pytest.approx(want, abs=1e-6)


@given(configurations(), st.floats(2, 200))
def test_a_factor_is_above_0_at_most_1_and_falls_after_the_start_of_the_decay(cfg, total):
    assume(total % 1 == 0 or total % 1 > 1e-3)  # else the last step is at the end, to rounding
    factors = [lr_factor(t, total, cfg) for t in range(math.ceil(total))]
    assert all(0 < f <= 1 for f in factors)
    start = max(cfg.warmup, decay_start(total, cfg))
    falling = [f for t, f in enumerate(factors) if t >= start]
    assert all(a > b for a, b in itertools.pairwise(falling))
    assert all(f == 1 for t, f in enumerate(factors) if cfg.warmup <= t < start)


@given(configurations(), st.integers(1, 100), st.integers(1, 100), st.integers(0, 100))
def test_settled_is_when_runs_of_two_lengths_had_the_same_past(cfg, one, other, step):
    assume(step <= min(one, other))
    past = [[lr_factor(t, total, cfg) for t in range(step)] for total in (one, other)]
    if settled(step, one, cfg) and settled(step, other, cfg):
        assert past[0] == past[1]
    if settled(step, one, cfg) and decay_start(other, cfg) + 2 < step and step > cfg.warmup:
        assert past[0] != past[1]


def test_refusals():
    for wrong in ({"warmdown": 5}, {"kind": "warmdown"}, {"seconds": 0}, {"kind": "warmdown", "warmdown": -1}):
        with pytest.raises(ConfigError, match=r"train\.schedule"):
            ScheduleConfig(**wrong)


# ---------------------------------------------------------------------------------------------------------------------
# The wall clock


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still for the schedule but for `clock.now`."""
    fake = types.SimpleNamespace(now=0.0)
    monkeypatch.setattr(schedule, "time", types.SimpleNamespace(perf_counter=lambda: fake.now))
    return fake


def test_pace_leaves_out_the_first_step_and_all_that_is_no_step(clock):
    pace = StepTimer()
    assert pace.total(100, 8.0) == 100
    clock.now = 50.0  # compiling
    pace.step()
    clock.now += 1.0
    pace.caught_up()
    assert pace.total(100, 8.0) == 100
    clock.now += 0.1
    pace.step()
    clock.now += 0.4  # the device was behind
    pace.caught_up()
    clock.now += 30.0  # a score
    pace.restart()
    clock.now += 0.3
    pace.step()
    assert (pace.seconds, pace.steps) == (pytest.approx(0.8), 2)
    assert pace.total(100, 8.0) == pytest.approx(20) and pace.total(10, 8.0) == 10


@pytest.fixture
def half_seconds(monkeypatch, clock):
    """Every step takes .5 s."""
    ended = StepTimer.step

    def step(self):
        clock.now += 0.5
        ended(self)

    monkeypatch.setattr(StepTimer, "step", step)


@pytest.mark.slow
def test_a_run_by_the_clock_ends_in_time_and_a_resume_continues(pretrain, half_seconds, tmp_path):
    common = sets(schedule__kind="warmdown", schedule__warmdown=8, schedule__seconds=10, steps=300, epochs=20)
    run(pretrain, [*common, *sets(out=str(tmp_path / "whole"))])
    lines = [m for m in metrics(tmp_path / "whole") if "loss" in m]
    assert [m["step"] for m in lines] == list(range(1, 21))  # 10 s at .5 s
    assert [m["lr"] / 0.01 for m in lines[2:]] == pytest.approx([1] * 10 + [left / 8 for left in range(8, 0, -1)])
    kept = (tmp_path / "whole/checkpoints/decay_start").read_text().strip()
    assert kept == "step_000012" and (tmp_path / "whole/checkpoints" / kept).is_dir()
    # the steps before a stop are not forgotten, nor is their time
    shutil.copytree(tmp_path / "whole", tmp_path / "r")
    for path in list_checkpoints(tmp_path / "r/checkpoints")[:-1]:
        shutil.rmtree(path)
    run(pretrain, [*common, *sets(out=str(tmp_path / "r"), resume="auto")])
    assert losses(tmp_path / "r") == losses(tmp_path / "whole")  # the pace happens to be the same here
    state = find_checkpoint(tmp_path / "r", "k").state["schedule"]
    assert state["total"] == 20 and state["pace"][0] == pytest.approx(0.5 * state["pace"][1])
    # more seconds from where the decay began
    path = tmp_path / "whole/checkpoints/step_000012"
    more = [*common, "train.schedule.seconds=15", *sets(out=str(tmp_path / "more"), resume=str(path))]
    assert run(pretrain, more)["steps"] == 30


@pytest.mark.slow
def test_two_processes_by_the_clock_end_at_the_same_step(pretrain, launch, tmp_path):
    # a busy machine makes few steps in a second, so the decay begins with the first
    keys = {"schedule__seconds": 1, "schedule__warmup": 0, "schedule__decay_frac": 1.0}
    settings = sets(**keys, steps=100_000, epochs=100_000, checkpoint_every=0, log_every=50)
    said = ended(start_ranks(launch, 2, pretrain, [*settings, *sets(out=str(tmp_path / "r"))]))
    assert "or 1 s in steps, whichever comes first" in said[0]
    lines = [m for m in metrics(tmp_path / "r") if "loss" in m]
    assert 1 < lines[-1]["step"] < 100_000 and lines[-1]["lr"] < 0.9 * 0.01  # decay had begun


# ---------------------------------------------------------------------------------------------------------------------
# Stopping and extending


@pytest.fixture(scope="module")
def short(pretrain, tmp_path_factory):
    """24 steps of WSD: warm-up to 2, decay from 19.6 on."""
    folder = tmp_path_factory.mktemp("short") / "run"
    run(pretrain, sets(out=str(folder), steps=24, keep_last=1, checkpoint_every=5))
    return folder


@pytest.mark.slow
def test_the_checkpoint_where_the_decay_begins_is_kept(short):
    assert (short / "checkpoints/decay_start").read_text() == "step_000020\n"
    assert [p.name for p in list_checkpoints(short / "checkpoints")] == ["step_000024", "step_000020"]
    assert not list((short / "checkpoints").glob(".*"))
    factors = [m["lr"] / 0.01 for m in metrics(short) if "loss" in m]
    assert factors[19] == 1 > factors[20]


@pytest.mark.slow
def test_a_longer_run_is_to_the_bit_the_one_never_stopped(pretrain, short, tmp_path, capsys):
    longer = sets(steps=30, epochs=2, keep_last=1)
    run(pretrain, [*longer, *sets(out=str(tmp_path / "whole"))])
    capsys.readouterr()
    path = short / "checkpoints/step_000020"
    run(pretrain, [*longer, *sets(out=str(tmp_path / "r"), resume=str(path))])
    said = capsys.readouterr().out
    assert "note: 30 steps instead of 24: all up to step 20 is the same in both" in said
    assert "falls after step 25" in said
    theirs = losses(tmp_path / "whole")
    assert losses(tmp_path / "r") == {s: theirs[s] for s in range(21, 31)}
    assert (tmp_path / "r/checkpoints/decay_start").read_text() == "step_000025\n"
    ends = [find_checkpoint(tmp_path / f, "k").tensors("model.safetensors") for f in ("r", "whole")]
    assert all(bool((ends[0][k] == ends[1][k]).all()) for k in ends[1])


def test_extending_from_within_the_decay_is_refused_and_says_how(pretrain, short, tmp_path):
    with pytest.raises(TrainError, match=r"had begun to fall") as error:
        run(pretrain, sets(out=str(short), steps=30, epochs=2, resume="auto"))
    hint = f"--set train.resume={short / 'checkpoints/step_000020'} train.out=NEW train.steps=30"
    assert hint in str(error.value) and str(error.value).count("\n") == 1
    early = str(short / "checkpoints/step_000020")
    with pytest.raises(TrainError, match=r"falls after step 17, before .*\nname more steps"):
        run(pretrain, sets(out=str(tmp_path / "r"), steps=20, resume=early))
    with pytest.raises(TrainError, match=r"is of another run: train\.schedule\.decay_frac"):
        run(pretrain, sets(out=str(tmp_path / "r"), steps=30, epochs=2, resume=early, schedule__decay_frac=0.5))
    assert not (tmp_path / "r").exists()


def test_the_hint_knows_how_long_each_checkpoint_took_the_run_to_be(pretrain, short, tmp_path):
    """By the clock that moves: at step 20 it was to have 24, at its end 22, whose decay would have begun at 18."""
    copy = tmp_path / "r"
    shutil.copytree(short, copy)
    path = copy / "checkpoints/step_000024/state.json"
    state = read_run_file(path)
    state["schedule"]["total"] = 22
    path.write_text(run_file_text(state))
    with pytest.raises(TrainError, match=r"continue from before the fall: --set train.resume=.*step_000020 "):
        run(pretrain, sets(out=str(copy), steps=30, epochs=2, resume="auto"))


def test_a_cosine_cannot_be_made_longer_and_a_constant_rate_can(pretrain, tmp_path):
    for kind in ("cosine", "constant"):
        common = sets(out=str(tmp_path / kind), schedule__kind=kind)
        run(pretrain, [*common, *sets(steps=4)])
        assert not (tmp_path / kind / "checkpoints/decay_start").exists()
        longer = [*common, *sets(steps=6, resume="auto")]
        if kind == "constant":
            assert run(pretrain, longer)["steps"] == 6
        else:
            with pytest.raises(TrainError, match="no checkpoint from there was kept"):
                run(pretrain, longer)


def test_decay_begins_only_after_a_stable_phase():
    assert [decay_begins(s, 24, ScheduleConfig(warmup=2)) for s in (19, 20)] == [False, True]
    for kind in ("cosine", "constant"):
        assert not any(decay_begins(s, 24, ScheduleConfig(kind=kind)) for s in range(25))
