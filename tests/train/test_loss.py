"""The chunked loss against its readable form, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from train import loss as module
from train.loss import head_loss, reference, token_losses


@pytest.mark.parametrize("cap", [None, 2.0, 30.0, 100.0])
@pytest.mark.parametrize("z_weight", [0.0, 1e-4, 0.3])
def test_chunks_are_the_whole(monkeypatch, cap, z_weight):
    monkeypatch.setattr(module, "CHUNK_CPU", 37 * 5)  # 5 rows at a time, 23 in all: the last chunk is short
    torch.manual_seed(0)
    h, w = torch.randn(23, 8) * 3, torch.randn(37, 8)
    t = torch.randint(0, 37, (23,))
    results = []
    for f in (reference, head_loss):
        a, b = h.clone().requires_grad_(), w.clone().requires_grad_()
        total, ce = f(a, b, t, cap, z_weight)
        (total * 0.5).backward()
        results.append((total.detach(), ce.detach(), a.grad, b.grad))
    for mine, theirs in zip(*results, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert torch.allclose(token_losses(h, w, t, cap).mean(), results[0][1], rtol=1e-5)


def test_levers_off_is_plain_cross_entropy_to_the_bit():
    h, w, t = torch.randn(40, 8), torch.randn(19, 8), torch.randint(0, 19, (40,))
    total, ce = head_loss(h, w, t, None, 0.0)
    assert total.item() == ce.item() == F.cross_entropy(F.linear(h, w), t).item()


def test_z_loss_is_trained_and_not_reported():
    h, w, t = torch.randn(40, 8), torch.randn(19, 8), torch.randint(0, 19, (40,))
    with_z, ce = head_loss(h, w, t, 30.0, 0.1)
    without, same = head_loss(h, w, t, 30.0, 0.0)
    assert ce == same == without and with_z > ce and not ce.requires_grad


def test_bf16_activations_keep_fp32_weight_gradients():
    h, w = torch.randn(64, 16), torch.randn(32, 16)
    t = torch.randint(0, 32, (64,))
    grads = []
    for dtype in (torch.float32, torch.bfloat16):
        b = w.clone().requires_grad_()
        head_loss(h.to(dtype), b, t, 30.0, 1e-4)[0].backward()
        assert b.grad.dtype == torch.float32
        grads.append(b.grad)
    assert torch.allclose(grads[0], grads[1], atol=5e-3)
