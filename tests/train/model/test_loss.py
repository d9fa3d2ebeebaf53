"""The chunked loss against its readable form, values and gradients."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F

from train.model import loss as module
from train.model.loss import IGNORE, chunk_values, chunk_values_pure, head_loss, head_loss_reference, token_losses


def gradients(f, h, w, *rest):
    a, b = h.clone().requires_grad_(), w.clone().requires_grad_()
    total, ce = f(a, b, *rest)
    (total * 0.5).backward()
    return total.detach(), ce.detach(), a.grad, b.grad


@pytest.mark.parametrize(
    ("rows", "vocab", "size"),
    [
        (32_768, 262_144, 512),
        (32_768, 50_257, 2048),
        (4096, 70_000, 1024),
        (98_304, 1024, 98_304),
        (4093, 70_000, 1365),
    ],
)
def test_chunks_on_a_gpu_are_of_one_size(rows, vocab, size):
    """Each size is a compilation; 4,093 rows have no equal parts. No size is above what is held, or tiny."""
    most = module.CHUNK_CUDA // vocab
    assert module.even_size(rows, most) == size <= most
    for n in range(1, 200):
        assert min(n, 30) / 4 < module.even_size(n, 30) <= 30


@pytest.mark.parametrize("cap", [None, 2.0, 30.0, 100.0])
@pytest.mark.parametrize("z_weight", [0.0, 1e-4, 0.3])
@pytest.mark.parametrize("values", [chunk_values, chunk_values_pure])
def test_chunks_are_the_whole(monkeypatch, cap, z_weight, values):
    monkeypatch.setattr(module, "CHUNK_CPU", 37 * 5)  # 5 rows at a time, 23 in all: the last chunk is short
    torch.manual_seed(0)
    h, w = torch.randn(23, 8) * 3, torch.randn(37, 8)
    t = torch.randint(0, 37, (23,))
    want = gradients(head_loss_reference, h, w, t, cap, z_weight)
    for mine, theirs in zip(gradients(head_loss, h, w, t, cap, z_weight, None, values), want, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert torch.allclose(token_losses(h, w, t, cap).mean(), want[1], rtol=1e-5)


@pytest.mark.parametrize("cap", [None, 30.0, 100.0])
@pytest.mark.parametrize("scale", [1.0, 1e3])  # logits in the thousands: e to one of them is no number
@pytest.mark.parametrize("padded", [False, True])
def test_both_forms_of_a_chunk_agree(cap, scale, padded):
    torch.manual_seed(1)
    z, t = torch.randn(11, 37) * 3 * scale, torch.randint(0, 37, (11,))
    if padded:
        t[[0, 4, 10]] = IGNORE
    a = chunk_values_pure(z, t, cap, 1e-4, padded)
    b = chunk_values(z.clone(), t, cap, 1e-4, padded)
    for mine, theirs in zip(a, b, strict=True):
        assert mine.isfinite().all() and torch.allclose(mine, theirs, rtol=1e-5, atol=2e-6)
    assert not padded or not a[2][4].any()
    assert chunk_values_pure(z.bfloat16(), t, cap, 1e-4, padded)[2].dtype == torch.bfloat16


@pytest.mark.slow
def test_a_chunk_compiles_once_for_a_shape():
    """As a graph without breaks, whatever is counted and learned."""
    torch._dynamo.reset()
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    values = torch.compile(chunk_values_pure, dynamic=False, fullgraph=True, backend=count)
    h, w = torch.randn(12, 8), torch.randn(37, 8)
    for counted in (12, 7, 3):
        t = torch.randint(0, 37, (12,))
        t[counted:] = IGNORE
        want = gradients(head_loss, h, w, t, 30.0, 1e-4, counted)
        for mine, theirs in zip(gradients(head_loss, h, w, t, 30.0, 1e-4, counted, values), want, strict=True):
            assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert len(graphs) == 1
    torch._dynamo.reset()


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
