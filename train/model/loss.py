"""Cross-entropy over a capped head, with z-loss, without ever holding all logits.

    c = cap * tanh(z / cap)           z = h Wᵀ, in fp32 (Gemma 2's cap; the seed's is 30)
    ce = lse(c) - c[target]           what is reported
    total = mean(ce) + weight * mean(lse(c)²)     what is trained (PaLM's z-loss; lse of the *capped* logits)

At 8192 ids the fp32 logits of 64k tokens are 2 GB, several times over in autograd. So rows are taken in chunks, and
each chunk's gradient is computed beside its value: three matrix products in all, as many as plain autograd, and no
logits kept. `head_loss_reference` says the same in four lines; tests compare values and gradients.
Formulas and golden values: docs/trainer-math.md, "Logit cap and z-loss".

What lies between the products has two forms: `chunk_values` works in place, for a CPU; `chunk_values_pure` is for
torch.compile, which makes of it one pass over the logits for the sums and one for the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Logits held at once: 2**20 fp32 are 4 MB, near enough to a CPU's caches. A GPU wants larger products.
CHUNK_CPU, CHUNK_CUDA = 2**20, 2**27
IGNORE = -100  # the target that does not count, in padding; F.cross_entropy's default too
EXP_SAFE = 60.0  # capped logits this small need no maximum subtracted: e**60 * 65,536 ids is far below fp32's 3e38

# (logits (n, V), targets (n,), cap, z_weight, whether targets may be IGNORE) -> sum of ce, sum of lse², the gradient of
# the sum of ce + z_weight * lse² by the logits, (n, V), and ce, (n,), 0 where the target is IGNORE; all in fp32 but the
# gradient, which is as fine as the logits
ChunkValues = Callable[[Tensor, Tensor, float | None, float, bool], tuple[Tensor, Tensor, Tensor, Tensor]]


def cap_logits(z: Tensor, cap: float | None) -> Tensor:
    """Return z (..., V), in fp32, capped; as it is when cap is None."""
    return z if cap is None else cap * torch.tanh(z / cap)


def head_loss_reference(
    h: Tensor, weight: Tensor, targets: Tensor, cap: float | None, z_weight: float
) -> tuple[Tensor, Tensor]:
    """Return what `head_loss` does, in its readable form; at least one target must not be IGNORE."""
    h, targets = h[targets != IGNORE], targets[targets != IGNORE]
    c = cap_logits((h @ weight.to(h.dtype).T).float(), cap)
    lse = torch.logsumexp(c, -1)
    ce = (lse - c.gather(1, targets[:, None])[:, 0]).mean()
    return ce + z_weight * lse.square().mean(), ce


def chunk_values(
    z: Tensor, targets: Tensor, cap: float | None, z_weight: float, ignores: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `ChunkValues` in place wherever it can be (z is lost if fp32): on a CPU this part is bound by memory."""
    weights = (targets != IGNORE).float() if ignores else None
    targets = targets.clamp(min=0) if ignores else targets
    z = z.float()
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
    d = e.mul_(((1 + 2 * z_weight * lse) / total)[:, None])
    d.scatter_add_(1, targets[:, None], torch.full_like(lse, -1)[:, None])
    if t is not None:
        d.addcmul_(d, t.square_(), value=-1)  # times d tanh = 1 - tanh²
    ce = lse - picked
    if weights is not None:
        d.mul_(weights[:, None])
        ce.mul_(weights)
        return ce.sum(), (lse.square() * weights).sum(), d, ce
    return ce.sum(), lse.square().sum(), d, ce


def chunk_values_pure(
    z: Tensor, targets: Tensor, cap: float | None, z_weight: float, ignores: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `ChunkValues` without scatter and in-place steps, so that it fuses; the gradient in the dtype of z.

    Nothing it is given changes from batch to batch but tensors: it is compiled once for each shape.
    """
    counts = (targets != IGNORE).float()
    t = None if cap is None else torch.tanh(z.float() / cap)
    c = z.float() if t is None or cap is None else t * cap
    hit = targets[:, None] == torch.arange(z.shape[1], device=z.device)  # no target is hit where it is IGNORE
    picked = torch.where(hit, c, 0.0).sum(-1)
    lse = c.exp().sum(-1).log() if cap is not None and cap <= EXP_SAFE else torch.logsumexp(c, -1)
    d = torch.exp(c - lse[:, None]) * (1 + 2 * z_weight * lse)[:, None] - hit.float()
    if t is not None:
        d = d * (1 - t * t)
    ce = (lse - picked) * counts
    return ce.sum(), (lse.square() * counts).sum(), (d * counts[:, None]).to(z.dtype), ce


def head_loss(
    h: Tensor,
    weight: Tensor,
    targets: Tensor,
    cap: float | None,
    z_weight: float,
    num_targets: int | None = None,
    values: ChunkValues = chunk_values,
    by_target: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return (total, ce), two scalars: h (N, d), weight (V, d), targets (N,). Gradients flow through `total` only.

    num_targets: how many targets are not IGNORE, over which the means are taken (0 of none); None says that all are.
    The caller knows, so nothing waits for the device to count.
    by_target: (2, N) fp32, filled with the cross-entropy of each target and with 1, with 0 and 0 where it is IGNORE.

    On a CPU, with cap None and z_weight 0, this is F.cross_entropy to the bit, at the price of all logits at once: the
    seed promises that its levers, when off, leave the plain baseline. On a GPU, where sums have no fixed order to
    compare with and 64k tokens of 50k ids would take 13 GB several times over, rows are taken in chunks all the same.
    """
    if by_target is not None:
        by_target[1] = targets != IGNORE
    if cap is None and z_weight == 0 and not h.is_cuda:
        log_p = F.log_softmax(F.linear(h, weight.to(h.dtype)).float(), -1)
        if num_targets is None:
            ce = F.nll_loss(log_p, targets)
        else:
            ce = F.nll_loss(log_p, targets, ignore_index=IGNORE, reduction="sum") / max(1, num_targets)
        if by_target is not None:
            by_target[0] = F.nll_loss(log_p.detach(), targets, ignore_index=IGNORE, reduction="none")
        return ce, ce.detach()
    total, ce = _ChunkedLoss.apply(h, weight, targets, cap, z_weight, num_targets, values, by_target)
    return total, ce


def token_losses(h: Tensor, weight: Tensor, targets: Tensor, cap: float | None) -> Tensor:
    """Return every token's cross-entropy, (N,) fp32, without gradient: h (N, d), weight (V, d), targets (N,)."""
    weight = weight.to(h.dtype)
    parts = []
    for rows in _chunks(h, weight):
        c = cap_logits((h[rows] @ weight.T).float(), cap)
        parts.append(torch.logsumexp(c, -1) - c.gather(1, targets[rows, None])[:, 0])
    return torch.cat(parts)


def _chunks(h: Tensor, weight: Tensor) -> list[slice]:
    """Cut the rows into chunks; on a GPU of one size wherever that can be, because each size is compiled."""
    rows, most = h.shape[0], max(1, (CHUNK_CUDA if h.is_cuda else CHUNK_CPU) // weight.shape[0])
    size = even_size(rows, most) if h.is_cuda else most
    return [slice(i, i + size) for i in range(0, rows, size)]


def even_size(rows: int, most: int) -> int:
    """Return the size, at most `most`, of the fewest equal parts of `rows`; if they are twice as many as needed: of
    parts that are equal but for the last.
    """
    fewest = max(1, -(-rows // most))
    count = next((n for n in range(fewest, 2 * fewest) if rows % n == 0), fewest)
    return max(1, -(-rows // count))


class _ChunkedLoss(torch.autograd.Function):
    """Gradients in the forward pass, scaled in the backward pass: `total` is a scalar, so that is all it needs."""

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        weight: Tensor,
        targets: Tensor,
        cap: float | None,
        z_weight: float,
        num_targets: int | None,
        values: ChunkValues,
        by_target: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Return total and cross-entropy of hidden states h (N, dim), and keep the gradients of `total`."""
        n = h.shape[0] if num_targets is None else max(1, num_targets)
        w = weight.to(h.dtype)
        dh = torch.empty_like(h)
        dw = torch.zeros_like(weight, dtype=torch.float32)  # fp32: bf16 sums over chunks lose quality (Liger #827)
        ce = torch.zeros((), device=h.device)
        zz = torch.zeros((), device=h.device)
        for rows in _chunks(h, w):
            ce_sum, zz_sum, dz, each = values(h[rows] @ w.T, targets[rows], cap, z_weight, num_targets is not None)
            ce += ce_sum
            zz += zz_sum
            if by_target is not None:
                by_target[0, rows] = each
            dz = dz.to(h.dtype)
            dh[rows].addmm_(dz, w, beta=0, alpha=1 / n)
            _add_product(dw, dz.T, h[rows], 1 / n)
        ctx.save_for_backward(dh, dw.to(weight.dtype))
        ce = ce / n
        ctx.mark_non_differentiable(ce)
        return ce + z_weight * zz / n, ce

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of h and weight."""
        dh, dw = ctx.saved_tensors
        # in fp32: rounded to bf16 the factor would be up to 0.4 % off, for all of the trunk and not for the head
        return (dh.float() * grads[0]).to(dh.dtype), dw * grads[0], None, None, None, None, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor, factor: float) -> None:
    """Add factor * a @ b to `total`, which is fp32."""
    if total.dtype == a.dtype:
        total.addmm_(a, b, alpha=factor)
    elif a.is_cuda:
        total.add_(torch.mm(a, b, out_dtype=torch.float32), alpha=factor)  # the product is not rounded to bf16
    else:
        total.add_(a @ b, alpha=factor)
