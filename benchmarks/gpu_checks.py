"""Whether what is fast on this device is also right: each fast path against its readable form, and the ceilings.

Every check gives {"error", "limit", "passed"}; an error is the largest difference over the largest value, of outputs
and of gradients. What cannot run here is noted with its reason instead.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from train.config import ModelConfig
from train.model.attention import attend
from train.model.loss import chunk_values_pure, head_loss, head_loss_reference
from train.model.masks import MaskBuilder
from train.model.transformer import build
from train.optim.muon import newton_schulz

ROUNDING = {torch.bfloat16: 0.02, torch.float32: 2e-3}  # of outputs and gradients; fp32 kernels may use TF32


def apart(mine: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference of two lists of tensors, relative to the largest value of each of `theirs`."""
    pairs = zip(mine, theirs, strict=True)
    return max(float((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-30)) for a, b in pairs)


def checked(error: float, limit: float) -> dict[str, Any]:
    """The result of a check."""
    return {"error": float(f"{error:.3g}"), "limit": limit, "passed": math.isfinite(error) and error <= limit}


def attention(kernel: str, dtype: torch.dtype, documents: bool, device: torch.device, cfg: ModelConfig) -> float:
    """`kernel` against dense masks in fp32, over the same numbers: both kinds of layer, values and gradients."""
    torch.manual_seed(0)
    T, D = min(2048, cfg.max_seq_len), cfg.head_size
    cfg = dataclasses.replace(cfg, sliding_window=T // 5)
    borders = torch.tensor([0, 3, T // 2, T // 2 + 1, T, T + T // 3, 2 * T], dtype=torch.int32) if documents else None
    ids = torch.zeros(2, T, device=device)
    heads = (cfg.n_heads, cfg.kv_heads, cfg.kv_heads, cfg.n_heads)  # of q, k, v, and the gradient of the output
    inputs = [torch.randn(2, n, T, D, device=device).to(dtype) for n in heads]
    worst = 0.0
    for fast, dense in zip(MaskBuilder(cfg, kernel)(ids, borders), MaskBuilder(cfg)(ids, borders), strict=True):
        found = []
        for mask, precision in ((fast, dtype), (dense, torch.float32)):
            q, k, v = (x.to(precision).requires_grad_() for x in inputs[:3])
            y = attend(q, k, v, mask)
            y.backward(inputs[3].to(precision))
            found.append([y.detach(), *(x.grad for x in (q, k, v))])
        worst = max(worst, apart(*found))  # type: ignore[arg-type]
    return worst


def loss(cap: float | None, z_weight: float, padded: bool, device: torch.device, dtype: torch.dtype) -> float:
    """The chunked loss, compiled on a GPU, against the readable one in fp32, values and gradients."""
    torch.manual_seed(0)
    rows, vocab, dim = (40_000, 8192, 512) if device.type == "cuda" else (300, 500, 16)
    h, w = torch.randn(rows, dim, device=device).to(dtype), torch.randn(vocab, dim, device=device) * dim**-0.5
    w = w.to(dtype).float()  # cast to dtype where it is used: the same numbers for both
    targets = torch.randint(0, vocab, (rows,), device=device)
    if padded:
        targets[: rows // 3] = -100
    values = chunk_values_pure
    if device.type == "cuda":
        values = torch.compile(chunk_values_pure, dynamic=False, fullgraph=True)
    found = []
    for fast in (True, False):
        a, b = (h if fast else h.float()).clone().requires_grad_(), w.clone().requires_grad_()
        if fast:
            counted = rows - rows // 3 if padded else None
            total, ce = head_loss(a, b, targets, cap, z_weight, counted, values)
        else:
            total, ce = head_loss_reference(a, b, targets, cap, z_weight)
        total.backward()
        found.append([total.detach(), ce.detach(), a.grad, b.grad])
    return apart(*found)


def two_layers(cfg: ModelConfig) -> ModelConfig:
    """The model with its first and its last layer alone."""
    kinds = None if cfg.layer_kinds is None else (cfg.layer_kinds[0], cfg.layer_kinds[-1])
    return dataclasses.replace(cfg, n_layers=2, layer_kinds=kinds, expect_params=None)


def compiled(kernel: str, device: torch.device, dtype: torch.dtype, cfg: ModelConfig, vocab: int) -> float:
    """The compiled model's loss against the eager one's with dense masks, in nats."""
    model = build(two_layers(cfg), vocab, 0, vocab - 1).to(device)
    model.dtype = dtype
    T = min(1024, cfg.max_seq_len)
    ids = torch.randint(0, vocab, (4, T + 1), generator=torch.Generator().manual_seed(0)).to(device)
    borders = torch.tensor([0, T // 3, T, 2 * T, 3 * T, 4 * T], dtype=torch.int32)
    eager = model(ids[:, :-1], ids[:, 1:], None, borders)[0]
    model.mask_builder = MaskBuilder(model.cfg, kernel)
    model.compile_parts()
    return abs(float(model(ids[:, :-1], ids[:, 1:], None, borders)[0]) - float(eager))


def orthogonal(schedule: str, device: torch.device) -> float:
    """Newton-Schulz in bf16 against fp32: the root mean square of the difference, an entry of the result being 1."""
    torch.manual_seed(0)
    g = torch.randn(4, 128, 512, device=device)
    a, b = (newton_schulz(g.to(dtype), schedule).float() for dtype in (torch.bfloat16, torch.float32))
    return float((a - b).norm() / b.norm())


def checks(device: torch.device, models: dict[str, tuple[ModelConfig, int]]) -> dict[str, Any]:
    """All of them, by name; models: keys and vocabulary of each system."""
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    todo: dict[str, tuple[float, Callable[[], float]]] = {}
    # each shape of heads once
    shapes = {(cfg.n_heads, cfg.kv_heads, cfg.head_size): cfg for cfg, _ in models.values()}
    for (heads, kv_heads, size), cfg in shapes.items():
        for kernel, precision, documents in (
            ("flex", torch.bfloat16, False),
            ("flex", torch.bfloat16, True),
            ("flex", torch.float32, True),
            ("varlen", torch.bfloat16, False),
            ("varlen", torch.bfloat16, True),
        ):
            name = f"{kernel} {str(precision).removeprefix('torch.')}{' documents' if documents else ''}"
            todo[f"{name}, heads {heads}/{kv_heads} x {size}"] = (
                ROUNDING[precision],
                functools.partial(attention, kernel, precision, documents, device, cfg),
            )
    for cap, z_weight, padded in ((30.0, 1e-4, False), (30.0, 1e-4, True), (None, 0.0, False)):
        todo[f"loss, cap {cap}, z {z_weight}{', padding' if padded else ''}"] = (
            ROUNDING[dtype],
            functools.partial(loss, cap, z_weight, padded, device, dtype),
        )
    if cuda:
        for name, (cfg, vocab) in models.items():
            for kernel in ("flex", "varlen"):
                todo[f"{name}, compiled against eager, {kernel}, nats"] = (
                    1e-3,
                    functools.partial(compiled, kernel, device, dtype, cfg, vocab),
                )
    for schedule in ("jordan5", "dsv4"):
        todo[f"Newton-Schulz {schedule}, bf16 against fp32"] = (0.1, functools.partial(orthogonal, schedule, device))
    found: dict[str, Any] = {}
    for name, (limit, check) in todo.items():
        try:
            found[name] = checked(check(), limit)
        except Exception as error:
            found[name] = {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300], "passed": False}
    return found


def ceilings(device: torch.device) -> dict[str, float]:
    """What the device does at best: TFLOP/s of a large bf16 product, GB/s of a copy (read and written)."""
    cuda = device.type == "cuda"
    n, size = (8192, 2**30) if cuda else (64, 2**20)
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    x, y = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))

    def seconds(work: Callable[[], Any], times: int = 20) -> float:
        best = math.inf
        for _ in range(3):
            work()
            synchronize(device)
            start = time.perf_counter()
            for _ in range(times):
                work()
            synchronize(device)
            best = min(best, (time.perf_counter() - start) / times)
        return best

    return {
        "matmul_tflops": 2 * n**3 / seconds(lambda: a @ a) / 1e12,
        "copy_gb_per_second": 2 * size / seconds(lambda: y.copy_(x)) / 1e9,
    }


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
