"""Parts of training that are off by default: each leaves what it should, and a resume continues it to the bit."""

from __future__ import annotations

import json

import pytest
import torch
from trainer_harness import losses, metrics, sets

from train.checkpoint import checkpoint
from train.checkpoint.checkpoint import find_checkpoint
from train.config import TrainConfig
from train.main import run
from train.model.transformer import build
from train.optim.optimizer import Optimizer, group_of
from train.optim.schedule import StepTimer
from train.overrides import from_dict

GROUPS = {
    "muon__scale": "aspect",
    "muon__decay_order": "after",
    "muon__momentum_warmup": 9,
    "groups__tokens": {"lr": 0.03, "weight_decay": 0.01},
    "groups__scalars": {"lr": 0.02, "bfloat16": True},
}


def weights_and_state(folder):
    """All that the newest checkpoint holds."""
    point = find_checkpoint(folder, "k")
    return {f"{file}/{key}": t for file in checkpoint.TENSOR_FILES for key, t in point.tensors(file).items()}


def assert_same_checkpoints(one, other):
    mine, theirs = weights_and_state(one), weights_and_state(other)
    assert mine.keys() == theirs.keys()
    assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []


@pytest.mark.parametrize("part", [GROUPS, {"kernel_warmup": 2}], ids=["groups", "kernel_warmup"])
def test_a_resume_continues_to_the_bit(pretrain, tmp_path, part):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(pretrain, sets(out=str(whole), model__dropout=0.1, **part))
    steps = []

    def stop():
        steps.append(0)
        return len(steps) > 5

    run(pretrain, sets(out=str(stopped), model__dropout=0.1, **part), stop=stop)
    assert 0 < find_checkpoint(stopped, "k").step < 12
    run(pretrain, sets(out=str(stopped), model__dropout=0.1, resume="auto", **part))
    assert losses(whole) == losses(stopped)
    assert_same_checkpoints(whole, stopped)


def test_a_kernel_warmup_is_undone_to_the_bit(pretrain, tmp_path):
    averages = {"ema__decay": 0.9, "ema__every": 2, "model__dropout": 0.1, "document_mask": True}
    run(pretrain, sets(out=str(tmp_path / "cold"), **averages))
    run(pretrain, sets(out=str(tmp_path / "warm"), kernel_warmup=3, **averages))
    assert losses(tmp_path / "cold") == losses(tmp_path / "warm")
    assert_same_checkpoints(tmp_path / "cold", tmp_path / "warm")
    identities = [json.loads((tmp_path / name / "run.json").read_text())["identity"] for name in ("cold", "warm")]
    assert identities[0] == identities[1]


def test_undone_puts_back_state_and_the_count_of_steps(manifest):
    model = build(from_model(), 264, 0)
    optimizer = Optimizer(model, TrainConfig())
    optimizer.grads.normal_(generator=torch.Generator().manual_seed(0))
    optimizer.step(1.0)
    before = {key: t.clone() for key, t in {**optimizer.state_tensors(), **model.state_dict()}.items()}
    with pytest.raises(RuntimeError, match="half way"), optimizer.undone():
        optimizer.grads.fill_(1.0)
        optimizer.step(1.0)
        raise RuntimeError("half way")
    after = {**optimizer.state_tensors(), **model.state_dict()}
    assert optimizer.steps == 1 and all(group.steps == 1 for group in optimizer.adamw_groups)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert optimizer.grads_and_loss.count_nonzero() == 0


def from_model():
    from train.config import ModelConfig

    return ModelConfig(dim=16, n_layers=2, n_heads=2, max_seq_len=32, sliding_window=8)


def test_groups_have_their_rates_and_decays_and_the_others_what_they_had():
    model = build(from_model(), 264, 0)
    keys = {"adamw": {"lr": 0.5, "weight_decay": 0.25}, "groups": {"scalars": {"lr": 0.02, "weight_decay": 0.01}}}
    optimizer = Optimizer(model, from_dict(TrainConfig, keys, "train"))
    rules = {name: (g.cfg.lr, g.cfg.weight_decay) for g in optimizer.adamw_groups for name in g.names}
    assert rules.pop("embed.weight") == (0.5, 0.25)
    assert {*rules.values()} == {(0.02, 0.01)} and all(name.endswith("norm.weight") for name in rules)
    assert sum(len(g.names) for g in optimizer.muon_groups) + len(rules) + 1 == len(optimizer.parameters)


def test_a_group_in_bfloat16_is_torchs_bf16_parameter_to_the_bit():
    """As the records have their embeddings (golf 0.1, 6: 10): bf16 moments, and no fp32 master."""
    model = build(from_model(), 264, 0)
    keys = {"adamw": {"eps": 1e-8}, "groups": {"tokens": {"lr": 0.03, "weight_decay": 0.01, "bfloat16": True}}}
    theirs = torch.nn.Parameter(model.embed.weight.detach().bfloat16())
    optimizer = Optimizer(model, from_dict(TrainConfig, keys, "train"))
    oracle = torch.optim.AdamW([theirs], lr=0.03, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01, fused=True)
    for step in range(20):
        optimizer.grads.normal_(generator=torch.Generator().manual_seed(step))
        theirs.grad = model.embed.weight.grad.bfloat16()
        optimizer.step(1.0)
        oracle.step()
        assert torch.equal(model.embed.weight.detach(), theirs.detach().float()), step
    state = dict(optimizer.state_tensors())
    for name, theirs_name in (("first", "exp_avg"), ("second", "exp_avg_sq")):
        assert torch.equal(state[f"adamw.{name}.embed.weight"], oracle.state[theirs][theirs_name].float())


@pytest.mark.parametrize(
    ("name", "shape", "group"),
    [
        ("embed.weight", (8, 4), "tokens"),
        ("bigram.embed.weight", (8, 4), "tokens"),
        ("bigram.proj.weight", (8, 4), "matrices"),
        ("bigram.scale", (1,), "scalars"),
        ("blocks.3.mlp.up.weight", (8, 4), "matrices"),
        ("blocks.3.attn_norm.weight", (8,), "scalars"),
        ("blocks.3.mix", (2, 8), "scalars"),
        ("memory.tokens", (8, 4), "memory"),
        ("mtp.heads.0.weight", (8, 4), "mtp"),
        ("head.weight", (8, 4), ""),
        ("engram.keys", (8, 4), ""),
        ("engram.gate", (8,), ""),
    ],
)
def test_the_group_of_a_parameter(name, shape, group):
    assert group_of(name, torch.zeros(shape)) == group


@pytest.fixture
def half_seconds(monkeypatch):
    """Every step takes .5 s, by the one clock that the schedule reads."""
    import types

    from train.optim import schedule

    fake, ended = types.SimpleNamespace(now=0.0), StepTimer.step
    monkeypatch.setattr(schedule, "time", types.SimpleNamespace(perf_counter=lambda: fake.now))

    def step(self):
        fake.now += 0.5
        ended(self)

    monkeypatch.setattr(StepTimer, "step", step)


@pytest.mark.parametrize(
    ("seconds", "overrun", "steps"),
    [(5, False, 10), (5, True, 10), (4.9, False, 9), (4.9, True, 10), (4.6, True, 10), (4.4, True, 9)],
)
def test_the_last_step_ends_in_time_or_begins_in_time(pretrain, half_seconds, tmp_path, seconds, overrun, steps):
    """Golf 1.5: after a step the records stop if its end is past the cap, so that the last one overruns."""
    keys = sets(schedule__kind="warmdown", schedule__warmdown=4, schedule__overrun=overrun, steps=100, epochs=9)
    run(pretrain, [*keys, *sets(out=str(tmp_path / "r"), schedule__seconds=seconds, kernel_warmup=1)])
    lines = [m for m in metrics(tmp_path / "r") if "loss" in m]
    assert lines[-1]["step"] == steps
    by_clock = [max(0, seconds - 0.5 * t) / (4 * 0.5) for t in range(steps)]
    assert [m["lr"] / 0.01 for m in lines] == pytest.approx([0.5, *(min(1, f) for f in by_clock[1:])])
