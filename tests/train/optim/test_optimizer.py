"""Muon and AdamW against their readable forms and torch's own."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from train.config import AdamWConfig, ModelConfig, MuonConfig, TrainConfig
from train.model.transformer import build
from train.optim.muon import NEWTON_SCHULZ, newton_schulz, newton_schulz_reference
from train.optim.optimizer import NORM_PIECE, Optimizer, flat_norm

TINY = ModelConfig(dim=16, n_layers=2, n_heads=2, max_seq_len=32, sliding_window=8)
DECAYED = TrainConfig(adamw=AdamWConfig(weight_decay=0.1))
SIZES = st.tuples(st.integers(1, 48), st.integers(1, 48))


def fill(optimizer: Optimizer, step: int) -> None:
    optimizer.grads.copy_(torch.randn(optimizer.grads.shape, generator=torch.Generator().manual_seed(step)))


@pytest.mark.parametrize("schedule", NEWTON_SCHULZ)
@settings(max_examples=20)
@given(shape=SIZES, seed=st.integers(0, 9))
def test_the_batched_form_is_the_readable_one(schedule, shape, seed):
    g = torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for one, many in zip(g, newton_schulz(g, schedule), strict=True):
        assert torch.allclose(newton_schulz_reference(one, schedule), many, atol=1e-9)


def test_dsv4_is_orthogonal_and_polar_express_nearer_than_jordan():
    g = torch.randn(3, 24, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = {name: torch.linalg.svdvals(newton_schulz(g, name)) for name in NEWTON_SCHULZ}
    away = {name: (v - 1).abs().max().item() for name, v in values.items()}
    assert away["dsv4"] < 5e-3 and away["dsv4"] < away["polar_express"] < away["jordan5"] < 0.35


def test_groups_hidden_matrices_are_muons_and_nothing_else():
    model = build(TINY, 50, 0)
    optimizer = Optimizer(model, TrainConfig())
    muon = {n for s in optimizer.muon_groups for n in s.names}
    assert (
        muon == {n for n, p in model.named_parameters() if "blocks" in n and p.ndim == 2} == set(optimizer.muon_names)
    )
    assert {n for m in optimizer.adamw_groups for n in m.names} == {n for n, _ in model.named_parameters()} - muon
    decayed = {n for m in Optimizer(model, DECAYED).adamw_groups if m.cfg.weight_decay for n in m.names}
    assert decayed == {"embed.weight"}
    assert not Optimizer(model, TrainConfig(optimizer="adamw")).muon_groups


@pytest.mark.parametrize("rule", ["muon", "adamw"])
def test_parameters_keep_their_values_and_share_the_flat_buffers(rule):
    model, fresh = build(TINY, 50, 0), build(TINY, 50, 0)
    optimizer = Optimizer(model, TrainConfig(optimizer=rule))
    for (n, p), q in zip(model.named_parameters(), fresh.parameters(), strict=True):
        assert torch.equal(p, q) and p.is_leaf and p.is_contiguous(), n
    optimizer.weights.fill_(2.0)
    optimizer.grads.fill_(3.0)
    assert all((p == 2).all() and (p.grad == 3).all() for p in model.parameters())
    assert sum(p.numel() for p in model.parameters()) == len(optimizer.weights) == len(optimizer.grads)


@pytest.mark.parametrize("schedule", NEWTON_SCHULZ)
def test_muon_is_its_formula(schedule):
    model = build(TINY, 50, 0)
    cfg = TrainConfig(muon=MuonConfig(lr=0.02, ns=schedule))
    optimizer = Optimizer(model, cfg)
    names = ["blocks.0.attn.q.weight", "blocks.1.mlp.up.weight", "blocks.1.mlp.down.weight"]
    want = {n: model.get_parameter(n).detach().clone() for n in names}
    buffers = {n: torch.zeros_like(w) for n, w in want.items()}
    for step in range(3):
        fill(optimizer, step)
        for n in names:
            g = model.get_parameter(n).grad
            buffers[n] = 0.95 * buffers[n] + g
            o = newton_schulz_reference(g + 0.95 * buffers[n], schedule)
            lr = 0.02 * 0.5
            want[n] = want[n] * (1 - lr * 0.1) - lr * 0.18 * math.sqrt(max(g.shape)) * o
        optimizer.step(0.5)
    for n in names:
        assert torch.allclose(model.get_parameter(n), want[n], atol=1e-5), n


class Matrices(nn.Module):
    """So many matrices of one shape, where the optimizer looks for them, and a norm."""

    def __init__(self, count: int, shape: tuple[int, int], seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.blocks = nn.ModuleList(nn.Linear(*shape[::-1], bias=False) for _ in range(count))
        for block in self.blocks:
            nn.init.normal_(block.weight, generator=generator)
        self.norm = nn.Parameter(torch.ones(3))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@settings(max_examples=10)
@given(
    shape=SIZES,
    count=st.integers(1, 3),
    momentum=st.sampled_from([0.0, 0.5, 0.95]),
    adjust=st.sampled_from(["original", "match_rms_adamw"]),
    decay=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 99),
)
def test_muon_is_torchs_where_that_can_express_it(dtype, shape, count, momentum, adjust, decay, seed):
    """torch: Jordan's steps in bf16, momentum as a lerp, which for a constant momentum has the same direction. In fp32
    its formula, spelled out."""
    ours, theirs = Matrices(count, shape, seed), Matrices(count, shape, seed)
    lr, long = 0.02, math.sqrt(max(shape))
    rate = lr * (0.2 * long if adjust == "match_rms_adamw" else math.sqrt(max(1, shape[0] / shape[1])))
    own = rate / (0.18 * long)
    cfg = MuonConfig(lr=own, ns="jordan5", ns_dtype=dtype, weight_decay=decay * lr / own, momentum=momentum)
    optimizer = Optimizer(ours, TrainConfig(muon=cfg))
    oracle = torch.optim.Muon(
        theirs.blocks.parameters(), lr=lr, weight_decay=decay, momentum=momentum, adjust_lr_fn=adjust
    )
    mine, others = ([block.weight for block in model.blocks] for model in (ours, theirs))
    before, buffers = [p.detach().clone() for p in mine], [torch.zeros(shape) for _ in mine]
    for step in range(4):
        fill(optimizer, seed + step)
        for a, b in zip(mine, others, strict=True):
            b.grad = a.grad.clone()
        optimizer.step(1.0)
        if dtype == "bfloat16":
            oracle.step()
        else:
            for p, buffer in zip(others, buffers, strict=True):
                buffer.lerp_(p.grad, 1 - momentum)
                update = newton_schulz_reference(p.grad.lerp(buffer, momentum), "jordan5")
                p.data.mul_(1 - lr * decay).add_(update, alpha=-rate)
    for a, b, start in zip(mine, others, before, strict=True):
        assert (a - b).norm() < (0.04 if dtype == "bfloat16" else 1e-3) * (a - start).norm()


@pytest.mark.parametrize("fused", [True, False])
def test_adamw_is_torchs_to_the_bit_if_fused(fused):
    ours, theirs = build(TINY, 50, 0), build(TINY, 50, 0)
    cfg = TrainConfig(optimizer="adamw", adamw=AdamWConfig(lr=0.01, eps=1e-8, weight_decay=0.1))
    optimizer = Optimizer(ours, cfg)
    groups = [
        {"params": [p for p in theirs.parameters() if p.ndim == 2], "weight_decay": 0.1},
        {"params": [p for p in theirs.parameters() if p.ndim == 1], "weight_decay": 0.0},
    ]
    oracle = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8, fused=fused, foreach=False)
    for step in range(6):
        fill(optimizer, step)
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            b.grad = a.grad.clone()
        for group in oracle.param_groups:
            group["lr"] = 0.01 / (1 + step)
        optimizer.step(1 / (1 + step))
        oracle.step()
    for (n, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b) if fused else torch.allclose(a, b, rtol=1e-6, atol=1e-7), n


def test_the_norm_of_many_values_is_right_and_that_of_a_small_model_is_torchs_to_the_bit():
    """One fp32 sum of 12 million squares is 4e-4 too small, on one thread."""
    values = torch.randn(3 * NORM_PIECE - 5, generator=torch.Generator().manual_seed(0)) * 1e-3
    assert flat_norm(values).item() == pytest.approx(values.double().norm().item(), rel=1.5e-4)
    for count in (0, 1, 1000, 1_901_696, NORM_PIECE):
        assert torch.equal(flat_norm(values[:count]), values[:count].norm())
    assert flat_norm(values).shape == ()


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


@pytest.mark.parametrize("rule", ["muon", "adamw"])
def test_state_goes_out_and_in(rule):
    cfg = TrainConfig(optimizer=rule)
    model, other = build(TINY, 50, 0), build(TINY, 50, 0)
    a, b = Optimizer(model, cfg), Optimizer(other, cfg)
    for step in range(2):
        fill(a, step)
        a.step(1.0)
    other.load_state_dict(model.state_dict())
    state = {k: t.clone() for k, t in a.state_tensors().items()}
    assert len(state) == sum(1 if n in a.muon_names else 2 for n, _ in model.named_parameters())
    b.load(state, a.steps)
    for optimizer in (a, b):
        fill(optimizer, 9)
        optimizer.step(1.0)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
    with pytest.raises(KeyError):
        b.load(dict(list(state.items())[1:]), 1)
