"""Whether what is fast on this device is also right: each fast path against its readable form.

A check compares several things, values and gradients, and passes where each error is within its limit: {"errors":
{what: [error, limit]}, "passed"}. An error is `apart`. Each fast path is an argument, so that a test can give a wrong
one (tests/benchmarks/test_gpu_checks.py): a check that nothing fails says nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from train.config import ModelConfig
from train.model.attention import attend
from train.model.loss import ChunkValues, chunk_values_pure, head_loss, head_loss_reference
from train.model.masks import Mask, MaskBuilder, Masks
from train.model.transformer import Model, build
from train.optim.muon import NEWTON_SCHULZ, newton_schulz

# Of attention's outputs and gradients, and of the loss's gradients; fp32 kernels may use TF32
ROUNDING = {torch.bfloat16: 0.02, torch.float32: 2e-3}
LOSS = {torch.bfloat16: 1e-3, torch.float32: 1e-5}  # of the loss itself, a mean over many rows
ORTHOGONAL = {torch.bfloat16: 0.06, torch.float32: 2e-3}  # of singular values and directions; 1 is the most they can be
LEADING = 0.01  # of the largest singular value: below, bf16 has no direction left (docs/trainer-math.md)
EAGER = 2.0  # times the rounding of the eager form may be that of the compiled one

Errors = dict[str, tuple[float, float]]  # what is compared -> error, limit
Attend = Callable[[Tensor, Tensor, Tensor, Mask], Tensor]


def apart(mine: Tensor | None, theirs: Tensor) -> float:
    """Return how far `mine` is from `theirs`: infinite where it is missing, of another shape or not finite.

    The larger of two ratios: of the largest difference to the largest value, which a few wrong values raise, and of the
    norms of the difference and of `theirs`, which many small ones do.
    """
    if mine is None or mine.shape != theirs.shape or not mine.isfinite().all():
        return math.inf
    a, b = mine.detach().double(), theirs.detach().double()
    tiny = torch.finfo(torch.float32).tiny
    largest = (a - b).abs().max() / b.abs().max().clamp(min=tiny)
    return float(torch.maximum(largest, (a - b).norm() / b.norm().clamp(min=tiny)))


def checked(errors: Errors) -> dict[str, Any]:
    """Return what is written of a check."""
    kept = {what: [float(f"{error:.3g}"), float(f"{limit:.3g}")] for what, (error, limit) in errors.items()}
    return {"errors": kept, "passed": all(math.isfinite(e) and e <= limit for e, limit in errors.values())}


# ---------------------------------------------------------------------------------------------------------------------
# Attention, loss


def attention_results(attention: Attend, inputs: list[Tensor], mask: Mask, dtype: torch.dtype) -> list[Tensor | None]:
    """Return the output and the gradients by q, k and v; inputs: those, and the gradient of the output.

    Each call has leaves of its own: two that share a tensor would add up in one `.grad`.
    """
    q, k, v, upstream = (x.detach().to(dtype, copy=True) for x in inputs)
    y = attention(q.requires_grad_(), k.requires_grad_(), v.requires_grad_(), mask)
    y.backward(upstream)
    return [y.detach(), q.grad, k.grad, v.grad]


def documents_of(rows: int, length: int) -> Tensor:
    """Return where documents begin in some rows: of 3 tokens, of one, and such as end with no block."""
    inside = [0, 3, length // 2, length // 2 + 1]
    starts = [row * length + place for row in range(rows) for place in (inside if row % 2 == 0 else [0, length // 3])]
    return torch.tensor([*starts, rows * length], dtype=torch.int32)


def check_attention(
    make_masks: Callable[[Tensor, Tensor | None], Masks],
    cfg: ModelConfig,
    dtype: torch.dtype,
    documents: bool,
    device: torch.device,
    attention: Attend = attend,
) -> Errors:
    """`attention` by the masks of `make_masks` against dense masks in fp32, over the same numbers, both kinds of layer.

    cfg: with a window that hides something of a row of 2048 or of max_seq_len.
    """
    torch.manual_seed(0)
    T, D = min(2048, cfg.max_seq_len), cfg.head_size
    borders = documents_of(2, T) if documents else None
    ids = torch.zeros(2, T, device=device)
    heads = (cfg.n_heads, cfg.kv_heads, cfg.kv_heads, cfg.n_heads)  # of q, k, v, and the gradient of the output
    inputs = [torch.randn(2, n, T, D, device=device).to(dtype) for n in heads]
    errors: Errors = {}
    for kind, fast, dense in zip(Masks._fields, make_masks(ids, borders), MaskBuilder(cfg)(ids, borders), strict=True):
        mine = attention_results(attention, inputs, fast, dtype)
        theirs = attention_results(attend, inputs, dense, torch.float32)
        for what, a, b in zip(("output", "dq", "dk", "dv"), mine, theirs, strict=True):
            assert b is not None
            errors[f"{kind} {what}"] = (apart(a, b), ROUNDING[dtype])
    return errors


def check_loss(
    values: ChunkValues,
    cap: float | None,
    z_weight: float,
    padded: bool,
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
) -> Errors:
    """The chunked loss with `values` between its products against the readable one in fp32; shape: rows, ids, dim."""
    torch.manual_seed(0)
    rows, vocab, dim = shape
    h, w = torch.randn(rows, dim, device=device).to(dtype), torch.randn(vocab, dim, device=device) * dim**-0.5
    w = w.to(dtype).float()  # cast to dtype where it is used: the same numbers for both
    targets = torch.randint(0, vocab, (rows,), device=device)
    if padded:
        targets[: rows // 3] = -100
    found: list[list[Tensor | None]] = []
    for fast in (True, False):
        a, b = (h if fast else h.float()).clone().requires_grad_(), w.clone().requires_grad_()
        if fast:
            total, ce = head_loss(a, b, targets, cap, z_weight, rows - rows // 3 if padded else None, values)
        else:
            total, ce = head_loss_reference(a, b, targets, cap, z_weight)
        total.backward()
        found.append([total, ce, a.grad, b.grad])
    errors: Errors = {}
    for what, mine, theirs in zip(("total", "ce", "dh", "dw"), *found, strict=True):
        assert theirs is not None
        errors[what] = (apart(mine, theirs), (LOSS if what in ("total", "ce") else ROUNDING)[dtype])
    return errors


# ---------------------------------------------------------------------------------------------------------------------
# The trunk


def two_layers(cfg: ModelConfig) -> ModelConfig:
    """The model with its first and its last layer alone."""
    kinds = None if cfg.layer_kinds is None else (cfg.layer_kinds[0], cfg.layer_kinds[-1])
    return dataclasses.replace(cfg, n_layers=2, layer_kinds=kinds, expect_params=None)


def trunk_results(model: Model, ids: Tensor, borders: Tensor | None) -> dict[str, Tensor | None]:
    """Return the trunk's states, the loss and the gradient of every parameter of one pass of ids (B, T + 1)."""
    states: list[Tensor] = []
    run = model.run_trunk

    def kept(*given: Any, **more: Any) -> Tensor:
        states.append(run(*given, **more))
        return states[-1]

    model.run_trunk = kept
    model.zero_grad(set_to_none=True)
    try:
        total, _ = model(ids[:, :-1], ids[:, 1:], None, borders)
        total.backward()
    finally:
        model.run_trunk = run
    grads = {f"d {name}": p.grad for name, p in model.named_parameters()}
    return {"states": states[0].detach(), "loss": total.detach(), **grads}


def check_trunk(
    make_fast: Callable[[Model], None],
    cfg: ModelConfig,
    vocab: int,
    dtype: torch.dtype,
    documents: bool,
    device: torch.device,
) -> Errors:
    """Two layers of a model, made fast by `make_fast`, against the eager dense form in fp32: states, all gradients.

    What the eager form in `dtype` is off by is the rounding that no kernel can avoid; the fast one may have EAGER times
    as much, and of the states' and the largest gradient's rounding where a gradient has next to none.
    """
    model = build(two_layers(cfg), vocab, 0, vocab - 1).to(device)
    T = min(1024, cfg.max_seq_len)
    ids = torch.randint(0, vocab, (2, T + 1), generator=torch.Generator().manual_seed(0)).to(device)
    borders = documents_of(2, T) if documents else None
    exact = trunk_results(model, ids, borders)
    model.dtype = dtype
    eager = trunk_results(model, ids, borders)
    make_fast(model)
    fast = trunk_results(model, ids, borders)
    rounding = torch.finfo(dtype).eps
    errors: Errors = {}
    for what, theirs in exact.items():
        if theirs is None:  # a part that this model does not train from here
            errors[what] = (math.inf if fast[what] is not None and fast[what].any() else 0.0, 0.0)  # type: ignore[union-attr]
            continue
        floor = LOSS[dtype] if what == "loss" else 2 * rounding
        errors[what] = (apart(fast[what], theirs), EAGER * apart(eager[what], theirs) + floor)
    return errors


def compile_trunk(kernel: str, model: Model) -> None:
    """Make a model fast as the trainer does (train/main.py), with `kernel`."""
    model.mask_builder = MaskBuilder(model.cfg, kernel)
    model.compile_parts()


# ---------------------------------------------------------------------------------------------------------------------
# Newton-Schulz


def check_newton_schulz(
    newton_schulz: Callable[[Tensor, str], Tensor],
    schedule: str,
    condition: float,
    tall: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> Errors:
    """Singular values and leading directions of matrices whose singular vectors are known.

    With g = U S Vᵀ, S falling evenly by `condition` in logarithm, the exact result is U p(S) Vᵀ, p being the
    schedule's polynomials on numbers. Compared are Uᵀ O V with p(S) over the directions above LEADING, and the singular
    values of O: all of them where the matrix has no smaller direction, else the largest.
    """
    short, long = 128, 384
    make = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(2, n, short, generator=make, dtype=torch.float64))[0] for n in (short, long))
    s = torch.logspace(0, -math.log10(condition), short, dtype=torch.float64)
    g = (u * s) @ v.mT
    result = newton_schulz((g.mT if tall else g).to(device, dtype), schedule).cpu().double()
    result = result.mT if tall else result
    steps, margin, eps = NEWTON_SCHULZ[schedule]
    wanted = s / (margin * s.norm() + eps)
    for a, b, c in steps:
        wanted = a * wanted + b * wanted**3 + c * wanted**5
    limit = ORTHOGONAL[dtype]
    if not result.isfinite().all():
        return {"leading directions": (math.inf, limit), "singular values": (math.inf, limit)}
    leading = int((s > LEADING).sum())
    seen = (u.mT @ result @ v)[:, :leading, :leading]
    directions = torch.linalg.matrix_norm(seen - torch.diag(wanted[:leading]), 2).max()
    compared = short if leading == short else 1
    in_order = wanted.sort(descending=True).values[:compared]
    spread = (torch.linalg.svdvals(result)[:, :compared] - in_order).abs().max()
    return {"leading directions": (float(directions), limit), "singular values": (float(spread), limit)}


# ---------------------------------------------------------------------------------------------------------------------
# All of them


def loss_checks(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], Errors]]:
    """The checks of the loss, as it is compiled on a GPU."""
    cuda = device.type == "cuda"
    values = torch.compile(chunk_values_pure, dynamic=False, fullgraph=True) if cuda else chunk_values_pure
    shape = (40_000, 8192, 512) if cuda else (300, 500, 16)
    return {
        f"loss, cap {cap}, z {z_weight}{', padding' if padded else ''}": functools.partial(
            check_loss, values, cap, z_weight, padded, device, dtype, shape
        )
        for cap, z_weight, padded in ((30.0, 1e-4, False), (30.0, 1e-4, True), (None, 0.0, False))
    }


def attention_checks(device: torch.device, cfgs: list[ModelConfig]) -> dict[str, Callable[[], Errors]]:
    """The checks of each kernel of attention, for each shape of heads once."""
    todo: dict[str, Callable[[], Errors]] = {}
    for (heads, kv_heads, size), cfg in {(c.n_heads, c.kv_heads, c.head_size): c for c in cfgs}.items():
        cfg = dataclasses.replace(cfg, sliding_window=min(2048, cfg.max_seq_len) // 5)
        for kernel, dtype, documents in (
            ("flex", torch.bfloat16, False),
            ("flex", torch.bfloat16, True),
            ("flex", torch.float32, True),
            ("varlen", torch.bfloat16, False),
            ("varlen", torch.bfloat16, True),
        ):
            name = f"{kernel} {str(dtype).removeprefix('torch.')}{' documents' if documents else ''}"
            check = functools.partial(check_attention, MaskBuilder(cfg, kernel), cfg, dtype, documents, device)
            todo[f"{name}, heads {heads}/{kv_heads} x {size}"] = check
    return todo


def newton_schulz_checks(device: torch.device) -> dict[str, Callable[[], Errors]]:
    """The checks of each schedule, in the type that Muon takes on this device and in fp32."""
    dtypes = (torch.bfloat16, torch.float32)
    return {
        f"Newton-Schulz {schedule} {str(dtype).removeprefix('torch.')}, condition {condition:.0e}": functools.partial(
            check_newton_schulz, newton_schulz, schedule, condition, tall, dtype, device
        )
        for schedule in NEWTON_SCHULZ
        for dtype in dtypes
        for condition, tall in ((10.0, False), (1e6, True))
    }


def checks(device: torch.device, models: dict[str, tuple[ModelConfig, int]]) -> dict[str, Callable[[], Errors]]:
    """All of them, by name, the cheap ones first; models: keys and vocabulary of each system."""
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    todo = newton_schulz_checks(device) | loss_checks(device, dtype)
    todo |= attention_checks(device, [cfg for cfg, _ in models.values()])
    if cuda:  # compiling a trunk is what takes long here
        for kernel in ("flex", "varlen"):
            for name, (cfg, vocab) in models.items():
                make_fast = functools.partial(compile_trunk, kernel)
                check = functools.partial(check_trunk, make_fast, cfg, vocab, dtype, True, device)
                todo[f"{name}, compiled against eager, {kernel}"] = check
    return todo
