"""What a device does at best: a large product, a copy, and the products of a model's own matrices."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from train.config import ModelConfig
from train.model.transformer import on_meta_device

TOKENS = 65_536  # of a product with a model's matrix: a micro-batch of some size


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device, times: int = 20) -> float:
    """Return the seconds that one call takes, the best of three rounds of `times`."""
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


def ceilings(device: torch.device) -> dict[str, float]:
    """Return TFLOP/s of a large bf16 product, and GB/s of a copy (read and written)."""
    cuda = device.type == "cuda"
    n, size = (8192, 2**30) if cuda else (64, 2**20)
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16)
    x, y = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    return {
        "matmul_tflops": 2 * n**3 / seconds(lambda: a @ a, device) / 1e12,
        "copy_gb_per_second": 2 * size / seconds(lambda: y.copy_(x), device) / 1e9,
    }


def matrix_shapes(cfg: ModelConfig, vocab: int) -> dict[str, tuple[int, int]]:
    """Return (outputs, inputs) of a model's products as a GPU makes them: q, k and v, and gate and up, are one each."""
    block = on_meta_device(cfg, vocab).blocks[0]
    dim, heads = cfg.dim, cfg.n_heads * cfg.head_size
    up = 1 if block.mlp.gate is None else 2
    return {
        "q, k, v": (heads + 2 * cfg.kv_heads * cfg.head_size, dim),
        "o": (dim, heads),
        "into the MLP": (up * cfg.hidden, dim),
        "out of the MLP": (dim, cfg.hidden),
        "head": (vocab, dim),
    }


def matrix_tflops(device: torch.device, cfg: ModelConfig, vocab: int) -> dict[str, float]:
    """Return the TFLOP/s of each of `matrix_shapes` with TOKENS in bf16, forward; a 64th of them on a CPU."""
    tokens = TOKENS if device.type == "cuda" else TOKENS // 64
    found: dict[str, float] = {}
    for name, (outputs, inputs) in matrix_shapes(cfg, vocab).items():
        x = torch.randn(tokens, inputs, device=device, dtype=torch.bfloat16)
        w = torch.randn(outputs, inputs, device=device, dtype=torch.bfloat16)
        times = 10 if device.type == "cuda" else 1
        took = seconds(lambda x=x, w=w: x @ w.T, device, times)  # type: ignore[misc]
        found[name] = round(2 * tokens * inputs * outputs / took / 1e12, 2)
    return found
