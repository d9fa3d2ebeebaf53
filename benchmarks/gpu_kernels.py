"""How long attention, loss and Newton-Schulz take by themselves, forward, and forward and backward, in ms."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu_ceilings import seconds
from train.config import ModelConfig
from train.model.attention import attend
from train.model.loss import chunk_values, chunk_values_pure, head_loss
from train.model.masks import Mask, MaskBuilder
from train.model.transformer import on_meta_device
from train.optim.muon import newton_schulz

TIMES = 5  # calls in a round
ATTENTIONS = (  # what is timed, the most important first
    "window, flex",
    "whole rows, cuDNN",
    "whole rows, FlashAttention-2",
    "window, varlen",
    "window and documents, flex",
    "window and documents, varlen",
    "documents, flex",
    "documents, varlen",
)


def milliseconds(work: Callable[[], Any], device: torch.device) -> float:
    """Return the milliseconds of a call."""
    return round(1000 * seconds(work, device, TIMES if device.type == "cuda" else 1), 3)


def forward_and_backward(run: Callable[..., Tensor], inputs: list[Tensor], device: torch.device) -> dict[str, float]:
    """Return the times of `run` over `inputs`, of which all have a gradient."""
    leaves = [x.detach().requires_grad_() for x in inputs]

    def both() -> None:
        run(*leaves).sum().backward()
        for leaf in leaves:
            leaf.grad = None

    def forward() -> None:
        with torch.no_grad():
            run(*leaves)

    return {"forward_ms": milliseconds(forward, device), "both_ms": milliseconds(both, device)}


def attention_masks(cfg: ModelConfig, rows: int, length: int, device: torch.device) -> dict[str, tuple[Any, Mask]]:
    """Return each kernel's mask and what is to surround it: of whole rows, of a window, of documents."""
    ids = torch.zeros(rows, length, device=device)
    ends = torch.arange(0, rows * length + 1, max(1, length // 12), dtype=torch.int32)
    borders = torch.cat([ends, torch.arange(1, rows + 1, dtype=torch.int32) * length]).unique(sorted=True).int()
    plain: Any = contextlib.nullcontext
    found: dict[str, tuple[Any, Mask]] = {}
    for name, backend in (("cuDNN", SDPBackend.CUDNN_ATTENTION), ("FlashAttention-2", SDPBackend.FLASH_ATTENTION)):
        found[f"whole rows, {name}"] = (functools.partial(sdpa_kernel, backend), Mask())
    for kernel in ("flex", "varlen"):
        found[f"window, {kernel}"] = (plain, MaskBuilder(cfg, kernel)(ids).sliding)
        of_documents = MaskBuilder(cfg, kernel)(ids, borders)
        found[f"window and documents, {kernel}"] = (plain, of_documents.sliding)
        found[f"documents, {kernel}"] = (plain, of_documents.whole)
    return found


def time_attention(kind: str, cfg: ModelConfig, rows: int, length: int, device: torch.device) -> dict[str, float]:
    """Time one of `attention_masks`."""
    dtype = torch.bfloat16
    heads = (cfg.n_heads, cfg.kv_heads, cfg.kv_heads)
    inputs = [torch.randn(rows, n, length, cfg.head_size, device=device, dtype=dtype) for n in heads]
    around, mask = attention_masks(cfg, rows, length, device)[kind]
    with around():
        return forward_and_backward(lambda q, k, v: attend(q, k, v, mask), inputs, device)


def time_loss(cfg: ModelConfig, vocab: int, tokens: int, device: torch.device) -> dict[str, float]:
    """Time the head and its loss over `tokens`, compiled on a GPU."""
    values = chunk_values
    if device.type == "cuda":
        values = torch.compile(chunk_values_pure, dynamic=False, fullgraph=True)
    h = torch.randn(tokens, cfg.dim, device=device, dtype=torch.bfloat16)
    w = torch.randn(vocab, cfg.dim, device=device) * cfg.dim**-0.5
    targets = torch.randint(0, vocab, (tokens,), device=device)

    def run(a: Tensor, b: Tensor) -> Tensor:
        return head_loss(a, b, targets, cfg.lm_head_logit_cap, cfg.z_loss_weight, None, values)[0]

    return forward_and_backward(run, [h, w], device)


def muon_shapes(cfg: ModelConfig, vocab: int) -> dict[tuple[int, ...], int]:
    """Return how many matrices of each shape Muon has."""
    found: dict[tuple[int, ...], int] = {}
    for name, parameter in on_meta_device(dataclasses.replace(cfg, expect_params=None), vocab).named_parameters():
        if name.startswith("blocks.") and parameter.ndim == 2:
            found[tuple(parameter.shape)] = found.get(tuple(parameter.shape), 0) + 1
    return found


def time_newton_schulz(cfg: ModelConfig, vocab: int, schedule: str, device: torch.device) -> dict[str, float]:
    """Time all of a model's matrices, in bf16 and in fp32."""
    shapes = muon_shapes(cfg, vocab)
    found: dict[str, float] = {}
    for dtype in (torch.bfloat16, torch.float32):
        groups = [torch.randn(count, *shape, device=device, dtype=dtype) for shape, count in shapes.items()]

        def all_groups(groups: list[Tensor] = groups) -> None:
            for group in groups:
                newton_schulz(group, schedule)

        found[f"{str(dtype).removeprefix('torch.')}_ms"] = milliseconds(all_groups, device)
    return found
