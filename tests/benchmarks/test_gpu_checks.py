"""Every check of benchmarks.gpu_checks passes what is right, on a CPU, and refuses each planted fault."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch._dynamo

from benchmarks import gpu_checks
from benchmarks.gpu_checks import apart, check_attention, check_loss, check_newton_schulz, check_trunk, checked
from train.config import ModelConfig
from train.model.attention import attend
from train.model.loss import chunk_values_pure
from train.model.masks import MaskBuilder
from train.optim.muon import newton_schulz

CPU = torch.device("cpu")
CFG = ModelConfig(dim=32, n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, max_seq_len=384, sliding_window=76)
DTYPES = [torch.bfloat16, torch.float32]


def refused(errors):
    """What is beyond its limit."""
    return {what for what, (error, limit) in errors.items() if not error <= limit}


def scaled_gradient(y, factor):
    """`y`, whose gradient is `factor` times what it should be."""
    return y * factor - (y * (factor - 1)).detach()


def test_no_difference_hides():
    one = torch.ones(4)
    assert apart(one, one) == 0 and apart(None, one) == math.inf
    assert apart(torch.tensor([1, math.nan, 1, 1]), one) == math.inf and apart(torch.ones(4, 1), one) == math.inf
    many, few = torch.full((10_000,), 1.03), torch.ones(10_000)
    few[7] = 2
    large = torch.ones(10_000)
    large[0] = 30  # beside which a difference of .03 is small, but there are many
    assert apart(torch.where(large > 1, large, many), large) > 0.02 and apart(few, torch.ones(10_000)) == 1
    assert checked({"a": (0.1, 0.2), "b": (math.nan, 0.2)})["passed"] is False
    assert checked({"a": (0.1, 0.2)}) == {"errors": {"a": [0.1, 0.2]}, "passed": True}


# ---------------------------------------------------------------------------------------------------------------------
# Attention

WRONG_KERNELS = {
    "values": (lambda q, k, v, mask: attend(q, k, v, mask) * 1.05, {"output", "dq", "dk", "dv"}),
    "one head": (
        lambda q, k, v, mask: torch.cat([attend(q, k, v, mask)[:, 1:], attend(q, k, v, mask)[:, :1]], 1),
        {"output", "dq", "dk", "dv"},
    ),
    "no numbers": (lambda q, k, v, mask: attend(q, k, v, mask) / 0, {"output"}),
    "gradients seven times too large": (
        lambda q, k, v, mask: scaled_gradient(attend(q, k, v, mask), 7),
        {"dq", "dk", "dv"},
    ),
    "twice the gradient of q": (lambda q, k, v, mask: attend(scaled_gradient(q, 2), k, v, mask), {"dq"}),
    "no gradient of k": (lambda q, k, v, mask: attend(q, k.detach(), v, mask), {"dk"}),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("documents", [False, True])
def test_attention_is_passed_when_right(dtype, documents):
    assert not refused(check_attention(MaskBuilder(CFG), CFG, dtype, documents, CPU))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", WRONG_KERNELS)
def test_a_wrong_kernel_of_attention_is_refused(fault, dtype):
    kernel, wrong = WRONG_KERNELS[fault]
    found = refused(check_attention(MaskBuilder(CFG), CFG, dtype, True, CPU, kernel))
    assert found >= {f"{kind} {what}" for kind in ("sliding", "whole") for what in wrong}


def wrong_window(by):
    return MaskBuilder(dataclasses.replace(CFG, sliding_window=CFG.sliding_window + by))


def moved_borders(ids, borders):
    return MaskBuilder(CFG)(ids, torch.cat([borders[:1], borders[1:-1] + 1, borders[-1:]]))


WRONG_MASKS = {
    "a window one too wide": (wrong_window(1), {"sliding"}),
    "a window one too narrow": (wrong_window(-1), {"sliding"}),
    "no documents": (lambda ids, borders: MaskBuilder(CFG)(ids), {"sliding", "whole"}),
    "borders moved by one": (moved_borders, {"sliding", "whole"}),
    "the other kind of layer": (lambda ids, borders: MaskBuilder(CFG)(ids, borders)[::-1], {"sliding", "whole"}),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", WRONG_MASKS)
def test_a_wrong_mask_is_refused(fault, dtype):
    make_masks, kinds = WRONG_MASKS[fault]
    found = refused(check_attention(make_masks, CFG, dtype, True, CPU))
    assert found >= {f"{kind} {what}" for kind in kinds for what in ("output", "dq", "dk", "dv")}


# ---------------------------------------------------------------------------------------------------------------------
# The loss


def planted_values(ce=1.0, zz=1.0, d=1.0):
    def values(z, targets, cap, z_weight, ignores):
        a, b, c, each = chunk_values_pure(z, targets, cap, z_weight, ignores)
        return a * ce, b * zz, c * d, each

    return values


def padding_counts(z, targets, cap, z_weight, ignores):
    return chunk_values_pure(z, targets.clamp(min=0), cap, z_weight, ignores)


def uncapped(z, targets, cap, z_weight, ignores):
    return chunk_values_pure(z, targets, None, z_weight, ignores)


WRONG_LOSSES = {
    "a hundredth too large": (planted_values(ce=1.01), {"total", "ce"}),
    "no z-loss": (planted_values(zz=0), {"total"}),
    "gradients seven times too large": (planted_values(d=7), {"dh", "dw"}),
    "no gradient": (planted_values(d=0), {"dh", "dw"}),
    "padding counts": (padding_counts, {"total", "ce", "dh", "dw"}),
    "no cap": (uncapped, {"total", "ce", "dh", "dw"}),
}


def loss_errors(values, dtype):
    return check_loss(values, 2.0, 0.01, True, CPU, dtype, (300, 500, 16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_is_passed_when_right(dtype):
    assert not refused(loss_errors(chunk_values_pure, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", WRONG_LOSSES)
def test_a_wrong_loss_is_refused(fault, dtype):
    values, wrong = WRONG_LOSSES[fault]
    assert refused(loss_errors(values, dtype)) >= wrong


# ---------------------------------------------------------------------------------------------------------------------
# The trunk


def right(model):
    model.run_trunk = torch.compile(model.trunk, dynamic=False, fullgraph=True, backend="aot_eager")


def planted_states(change):
    def make_fast(model):
        trunk = model.trunk
        model.run_trunk = lambda *given, **more: change(trunk(*given, **more))

    return make_fast


def other_documents(model):
    model.mask_builder = lambda ids, borders: MaskBuilder(model.cfg)(ids)


def other_loss(model):
    model.chunk_values = planted_values(d=1.1)


def half_frozen(model):
    model.blocks[1].mlp.down.weight.requires_grad_(False)


WRONG_TRUNKS = {
    "states": (planted_states(lambda h: h * 1.05), {"states"}),
    "the next position's states": (planted_states(lambda h: h.roll(1, 1)), {"states", "d embed.weight"}),
    "gradients": (planted_states(lambda h: scaled_gradient(h, 7)), {"d blocks.0.attn.q.weight", "d norm.weight"}),
    "documents": (other_documents, {"states", "d blocks.0.attn.v.weight"}),
    "the loss's gradient": (other_loss, {"d embed.weight", "d blocks.1.mlp.up.weight"}),
    "a missing gradient": (half_frozen, {"d blocks.1.mlp.down.weight"}),
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_compiled_trunk_is_passed_when_right(dtype):
    torch._dynamo.reset()
    errors = check_trunk(right, dataclasses.replace(CFG, max_seq_len=128), 50, dtype, True, CPU)
    assert not refused(errors) and {"states", "loss", "d embed.weight", "d blocks.1.attn.o.weight"} <= errors.keys()
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", WRONG_TRUNKS)
def test_a_wrong_trunk_is_refused(fault, dtype):
    make_fast, wrong = WRONG_TRUNKS[fault]
    found = refused(check_trunk(make_fast, dataclasses.replace(CFG, max_seq_len=128), 50, dtype, True, CPU))
    assert found >= wrong


# ---------------------------------------------------------------------------------------------------------------------
# Newton-Schulz


def own_polar_factor(g, schedule):
    """The polar factor of another matrix: all of its singular values are right, for `dsv4`, and no direction is."""
    return newton_schulz(torch.randn(g.shape, generator=torch.Generator().manual_seed(1)).to(g.dtype), schedule)


WRONG_UPDATES = {
    "directions": own_polar_factor,
    "sign": lambda g, schedule: -newton_schulz(g, schedule),
    "another schedule": lambda g, schedule: newton_schulz(g, "jordan5" if schedule != "jordan5" else "dsv4"),
    "a tenth too large": lambda g, schedule: newton_schulz(g, schedule) * 1.1,
    "no step at all": lambda g, schedule: g / g.norm(dim=(1, 2), keepdim=True),
    "rows in another order": lambda g, schedule: newton_schulz(g, schedule).flip(1),
    "no numbers": lambda g, schedule: newton_schulz(g, schedule) / 0,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("schedule", gpu_checks.NEWTON_SCHULZ)
@pytest.mark.parametrize("condition, tall", [(10.0, False), (1e6, True), (1e3, False)])
def test_newton_schulz_is_passed_when_right(condition, tall, schedule, dtype):
    assert not refused(check_newton_schulz(newton_schulz, schedule, condition, tall, dtype, CPU))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("condition, tall", [(10.0, False), (1e6, True)])
@pytest.mark.parametrize("fault", WRONG_UPDATES)
def test_a_wrong_update_is_refused(fault, condition, tall, dtype):
    for schedule in gpu_checks.NEWTON_SCHULZ:
        found = refused(check_newton_schulz(WRONG_UPDATES[fault], schedule, condition, tall, dtype, CPU))
        assert "leading directions" in found, schedule
