"""Muon and AdamW against their readable forms and torch's own."""

from __future__ import annotations

import math

import pytest
import torch

from train.config import AdamWConfig, ModelConfig, MuonConfig, TrainConfig
from train.model import build
from train.optim import Optimizer, newton_schulz, newton_schulz_reference

TINY = ModelConfig(dim=16, n_layers=2, n_heads=2, max_seq_len=32, sliding_window=8)


def fill(optimizer: Optimizer, step: int) -> None:
    optimizer.grads.copy_(torch.randn(optimizer.grads.shape, generator=torch.Generator().manual_seed(step)))


@pytest.mark.parametrize("schedule", ["jordan5", "dsv4"])
def test_the_batched_form_is_the_readable_one(schedule):
    g = torch.randn(5, 12, 30)
    batched = newton_schulz(g, schedule)
    for one, many in zip(g, batched, strict=True):
        assert torch.allclose(newton_schulz_reference(one, schedule), many, atol=1e-4)


def test_dsv4_is_orthogonal():
    o = newton_schulz(torch.randn(3, 24, 64, dtype=torch.float64), "dsv4")
    assert torch.allclose(o @ o.mT, torch.eye(24, dtype=torch.float64).expand(3, 24, 24), atol=5e-3)


def test_groups_hidden_matrices_are_muons_and_nothing_else():
    model = build(TINY, 50, 0)
    optimizer = Optimizer(model, TrainConfig())
    muon = {n for s in optimizer.stacks for n in s.names}
    assert muon == {n for n, p in model.named_parameters() if "blocks" in n and p.ndim == 2}
    assert {m.name for m in optimizer.moments} == {n for n, _ in model.named_parameters()} - muon
    assert not Optimizer(model, TrainConfig(optimizer="adamw")).stacks


def test_muon_is_its_formula():
    model = build(TINY, 50, 0)
    cfg = TrainConfig(muon=MuonConfig(lr=0.02))
    optimizer = Optimizer(model, cfg)
    names = ["blocks.0.attn.q.weight", "blocks.1.mlp.up.weight", "blocks.1.mlp.down.weight"]
    want = {n: model.get_parameter(n).detach().clone() for n in names}
    buffers = {n: torch.zeros_like(w) for n, w in want.items()}
    for step in range(3):
        fill(optimizer, step)
        for n in names:
            g = model.get_parameter(n).grad
            buffers[n] = 0.95 * buffers[n] + g
            o = newton_schulz_reference(g + 0.95 * buffers[n], "dsv4")
            lr = 0.02 * 0.5
            want[n] = want[n] * (1 - lr * 0.1) - lr * 0.18 * math.sqrt(max(g.shape)) * o
        optimizer.step(0.5)
    for n in names:
        assert torch.allclose(model.get_parameter(n), want[n], atol=1e-5), n


def test_muon_is_torchs_where_that_can_express_it():
    # torch: 5 Jordan steps in bf16, .2 sqrt(max) ("match_rms_adamw"), momentum as a lerp: the same direction
    ours, theirs = build(TINY, 50, 0), build(TINY, 50, 0)
    cfg = MuonConfig(lr=0.02, ns="jordan5", ns_dtype="bfloat16", weight_decay=0.1)
    optimizer = Optimizer(ours, TrainConfig(muon=cfg))
    hidden = [p for n, p in theirs.named_parameters() if "blocks" in n and p.ndim == 2]
    ratio = 0.18 / 0.2
    oracle = torch.optim.Muon(
        hidden, lr=0.02 * ratio, weight_decay=0.1 / ratio, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    before = {n: p.detach().clone() for n, p in ours.named_parameters()}
    for step in range(3):
        fill(optimizer, step)
        for (_, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            b.grad = a.grad.clone()
        optimizer.step(1.0)
        oracle.step()
    for (n, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        if "blocks" in n and a.ndim == 2:
            moved = (a - before[n]).norm()
            assert (a - b).norm() < 0.03 * moved, n  # bf16


def test_adamw_is_torchs_to_the_bit():
    ours, theirs = build(TINY, 50, 0), build(TINY, 50, 0)
    cfg = TrainConfig(optimizer="adamw", adamw=AdamWConfig(lr=0.01, eps=1e-8, weight_decay=0.1))
    optimizer = Optimizer(ours, cfg)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    oracle = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8, foreach=False)
    for step in range(4):
        fill(optimizer, step)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            b.grad = a.grad.clone()
        optimizer.step(1.0)
        oracle.step()
    for (n, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b), n


def test_clip_scales_to_the_norm_and_leaves_small_gradients():
    model = build(TINY, 50, 0)
    optimizer = Optimizer(model, TrainConfig(grad_clip=1.0))
    fill(optimizer, 0)
    norm = optimizer.grads.norm().item()
    assert optimizer.clip().item() == norm and optimizer.grads.norm().item() == pytest.approx(1.0, rel=1e-4)
    optimizer.grads.mul_(0.5)
    kept = optimizer.grads.clone()
    optimizer.clip()
    assert torch.equal(kept, optimizer.grads)


def test_state_goes_out_and_in():
    model, other = build(TINY, 50, 0), build(TINY, 50, 0)
    a, b = Optimizer(model, TrainConfig()), Optimizer(other, TrainConfig())
    for step in range(2):
        fill(a, step)
        a.step(1.0)
    other.load_state_dict(model.state_dict())
    b.load({k: t.clone() for k, t in a.state_tensors().items()}, a.steps)
    for optimizer in (a, b):
        fill(optimizer, 9)
        optimizer.step(1.0)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
