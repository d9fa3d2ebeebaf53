"""Cross-entropy over a capped head, with z-loss, without ever holding all logits.

    c = cap * tanh(z / cap)           z = h Wᵀ, in fp32 (Gemma 2's cap; the seed's is 30)
    ce = lse(c) - c[target]           what is reported
    total = mean(ce) + weight * mean(lse(c)²)     what is trained (PaLM's z-loss; lse of the *capped* logits)

At 8192 ids the fp32 logits of 64k tokens are 2 GB, several times over in autograd. So rows are taken in chunks, and
each chunk's gradient is computed beside its value: three matrix products in all, as many as plain autograd, and no
logits kept. `reference` says the same in four lines; tests compare values and gradients.
Formulae and golden values: trainers.md 1.14.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits held at once: 2**20 fp32 are 4 MB, near enough to a CPU's caches. A GPU wants larger products.
CHUNK_CPU, CHUNK_CUDA = 2**20, 2**27
IGNORE = -100  # the target that does not count, in padding; F.cross_entropy's default too
EXP_SAFE = 60.0  # capped logits this small need no maximum subtracted: e**60 * 65,536 ids is far below fp32's 3e38


def cap_logits(z: Tensor, cap: float | None) -> Tensor:
    """z (..., V) in fp32, capped; untouched when cap is None."""
    return z if cap is None else cap * torch.tanh(z / cap)


def reference(h: Tensor, weight: Tensor, targets: Tensor, cap: float | None, z_weight: float) -> tuple[Tensor, Tensor]:
    """(total, ce): h (N, d), weight (V, d), targets (N,), at least one not IGNORE. The readable form."""
    h, targets = h[targets != IGNORE], targets[targets != IGNORE]
    c = cap_logits((h @ weight.to(h.dtype).T).float(), cap)
    lse = torch.logsumexp(c, -1)
    ce = (lse - c.gather(1, targets[:, None])[:, 0]).mean()
    return ce + z_weight * lse.square().mean(), ce


def head_loss(
    h: Tensor, weight: Tensor, targets: Tensor, cap: float | None, z_weight: float, counted: int | None = None
) -> tuple[Tensor, Tensor]:
    """(total, ce), two scalars: h (N, d), weight (V, d), targets (N,). Gradients flow through `total` only.

    counted: how many targets are not IGNORE, over which the means are taken (0 of none); None says that all are. The
    caller knows, so nothing waits for the device to count.

    With cap None and z_weight 0 this is F.cross_entropy to the bit, at the price of all logits at once: the seed
    promises that its levers, when off, leave the plain baseline.
    """
    if cap is None and z_weight == 0:
        logits = F.linear(h, weight.to(h.dtype)).float()
        if counted is None:
            ce = F.cross_entropy(logits, targets)
        else:
            ce = F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="sum") / max(1, counted)
        return ce, ce.detach()
    total, ce = _ChunkedLoss.apply(h, weight, targets, cap, z_weight, counted)
    return total, ce


def token_losses(h: Tensor, weight: Tensor, targets: Tensor, cap: float | None) -> Tensor:
    """Cross-entropy of every token, (N,) fp32, without gradient: h (N, d), weight (V, d), targets (N,)."""
    weight = weight.to(h.dtype)
    parts = []
    for rows in _chunks(h, weight):
        c = cap_logits((h[rows] @ weight.T).float(), cap)
        parts.append(torch.logsumexp(c, -1) - c.gather(1, targets[rows, None])[:, 0])
    return torch.cat(parts)


def _chunks(h: Tensor, weight: Tensor) -> list[slice]:
    size = max(1, (CHUNK_CUDA if h.is_cuda else CHUNK_CPU) // weight.shape[0])
    return [slice(i, i + size) for i in range(0, h.shape[0], size)]


class _ChunkedLoss(torch.autograd.Function):
    """Gradients in the forward pass, scaled in the backward pass: `total` is a scalar, so that is all it needs."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, targets: Tensor, cap: float | None, z_weight: float, counted: int | None
    ) -> tuple[Tensor, Tensor]:
        n = h.shape[0] if counted is None else max(1, counted)
        w = weight.to(h.dtype)
        dh = torch.empty_like(h)
        dw = torch.zeros_like(weight, dtype=torch.float32)  # fp32: bf16 sums over chunks lose quality (Liger #827)
        ce = torch.zeros((), device=h.device)
        zz = torch.zeros((), device=h.device)
        for rows in _chunks(h, w):
            ce_sum, zz_sum, dz = _chunk(h[rows], w, targets[rows], cap, z_weight / n, 1 / n, counted is not None)
            ce += ce_sum
            zz += zz_sum
            dz = dz.to(h.dtype)
            torch.mm(dz, w, out=dh[rows])
            if dw.dtype == dz.dtype:
                dw.addmm_(dz.T, h[rows])
            else:
                dw += dz.T @ h[rows]
        ctx.save_for_backward(dh, dw.to(weight.dtype))
        ce = ce / n
        ctx.mark_non_differentiable(ce)
        return ce + z_weight * zz / n, ce

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dh, dw = ctx.saved_tensors
        return dh * grads[0].to(dh.dtype), dw * grads[0], None, None, None, None


def _chunk(
    h: Tensor, w: Tensor, targets: Tensor, cap: float | None, z_scale: float, ce_scale: float, ignores: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of ce, sum of lse², and the gradient of ce_scale * ce + z_scale * lse² by the raw logits, (n, V) fp32.

    ignores: targets may be IGNORE; their rows give nothing.
    In place wherever it can be: on a CPU this part is bound by memory.
    """
    weights = (targets != IGNORE).float() if ignores else None
    targets = targets.clamp(min=0) if ignores else targets
    z = (h @ w.T).float()  # (n, V)
    t = None if cap is None else z.div_(cap).tanh_()  # the capped logits, in units of the cap
    c = z if t is None or cap is None else t * cap
    picked = c.gather(1, targets[:, None])[:, 0]
    if cap is not None and cap <= EXP_SAFE:
        e = c.exp_()
        total = e.sum(-1)
        lse = total.log()
    else:
        lse = torch.logsumexp(c, -1)  # (n,)
        e, total = c.sub_(lse[:, None]).exp_(), torch.ones_like(lse)
    # d lse / dc = softmax(c) = e / total; d(lse²) = 2 lse softmax(c)
    d = e.mul_(((ce_scale + 2 * z_scale * lse) / total)[:, None])
    d.scatter_add_(1, targets[:, None], torch.full_like(lse, -ce_scale)[:, None])
    if t is not None:
        d.addcmul_(d, t.square_(), value=-1)  # times d tanh = 1 - tanh²
    if weights is not None:
        d.mul_(weights[:, None])
        return ((lse - picked) * weights).sum(), (lse.square() * weights).sum(), d
    return (lse - picked).sum(), lse.square().sum(), d
