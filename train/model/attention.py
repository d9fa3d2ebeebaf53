"""Attention: rotary positions, the part of a block, and the kernels that leave out what a mask hides.

    flex     FlexAttention with a table of the 128 x 128 blocks that hold something to see; where a layer sees all
             before, the plain causal kernel of scaled_dot_product_attention
    varlen   FlashAttention over documents laid end to end, with their ends and the window
    sdpa     scaled_dot_product_attention with a dense mask, which computes what is hidden too: right everywhere, and
             the reference that the others are tested against. The CPU's and the Mac's path

What a token may see is in train/model/masks.py.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.keys import ConfigError
from train.model.config import ModelConfig
from train.model.layers import Linear, NormKind, RMSNorm, project
from train.model.masks import FLEX_BLOCK, Mask

# Attention of q (B, H, T, D) over k, v (B, H_kv, T, D) -> (B, H, T, D). In training it is `attend` with the layer's
# mask; in generation what a cache holds of the layer comes first (train/generate.py)
AttentionFn = Callable[[Tensor, Tensor, Tensor], Tensor]
RECOMPILE_LIMIT = 64  # graphs of one function; torch's default is 8


# ---------------------------------------------------------------------------------------------------------------------
# Positions


def rope_frequencies(dims: int, base: float, kind: Literal["fp32", "bf16_freq"] = "fp32") -> Tensor:
    """Return base ** (-2k / dims), (dims / 2,) fp64; bf16_freq: rounded to bfloat16.

    They are made on the CPU, whatever the default device is: the meta device would load torch's compiler for them.
    """
    k = torch.arange(0, dims, 2, dtype=torch.float64, device="cpu")
    frequencies = base ** (-k / dims)
    return frequencies if kind == "fp32" else frequencies.bfloat16().double()


def rope_tables(
    length: int, dims: int, base: float, kind: Literal["fp32", "bf16_freq"] = "fp32"
) -> tuple[Tensor, Tensor]:
    """Return cos and sin of position * `rope_frequencies`, (length, dims / 2) fp32, computed in fp64."""
    angles = torch.arange(length, dtype=torch.float64, device="cpu")[:, None] * rope_frequencies(dims, base, kind)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first R channels of x (B, T, H, D) by +theta, in fp32; the first half of R is paired with the second.

    cos, sin: (T, 1, R / 2), or (B, T, 1, R / 2). The layout is HF's.
    """
    R = 2 * cos.shape[-1]
    if x.shape[-1] > R:
        return torch.cat([rotate(x[..., :R], cos, sin), x[..., R:]], -1)
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# The part


class Attention(nn.Module):
    """Causal attention of many heads, over everything before (global) or the last `window` tokens.

    Config keys: n_kv_heads (grouped queries, arXiv:2305.13245), head_dim, qk_norm, q_gain.
    """

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.head_size = cfg.head_size
        self.window = None if cfg.is_global(layer) else cfg.sliding_window
        heads, kv_heads = cfg.n_heads * cfg.head_size, cfg.kv_heads * cfg.head_size
        self.q = Linear(cfg.dim, heads)
        self.k = Linear(cfg.dim, kv_heads)
        self.v = Linear(cfg.dim, kv_heads)
        self.o = Linear(heads, cfg.dim)
        kind: NormKind = "plain" if cfg.qk_norm == "rms" else "weighted" if cfg.norm == "plain" else cfg.norm
        self.q_norm = None if cfg.qk_norm == "none" else RMSNorm(cfg.head_size, cfg.norm_eps, kind)
        self.k_norm = None if cfg.qk_norm == "none" else RMSNorm(cfg.head_size, cfg.norm_eps, kind)
        self.q_gain = None if cfg.q_gain is None else nn.Parameter(torch.full((cfg.n_heads,), float(cfg.q_gain)))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: AttentionFn) -> Tensor:
        """Map x (B, T, dim) to what is added to it. cos, sin: the positions' rows of `rope_tables`."""
        q, k, v = (y.unflatten(-1, (-1, self.head_size)) for y in project(x, self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if self.q_gain is not None:
            q = q * self.q_gain.to(q.dtype)[:, None]
        heads = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # (B, H, T, D)
        return self.o(heads.transpose(1, 2).flatten(2))


# ---------------------------------------------------------------------------------------------------------------------
# Kernels


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Compute the attention of whole rows: q and the result are (B, H, T, D), k and v (B, H_kv, T, D)."""
    if mask.blocks is not None:
        from torch.nn.attention.flex_attention import flex_attention

        # inside a compiled model the kernel is compiled with it; uncompiled it holds all T * T scores
        flex: Any = _compiled_flex() if q.is_cuda and not torch.compiler.is_compiling() else flex_attention
        return flex(q, k, v, block_mask=mask.blocks, enable_gqa=shares_heads(q, k))
    if mask.cu_seqlens is not None:
        return _varlen(q, k, v, mask.cu_seqlens, mask.window)
    return sdpa(q, k, v, mask.dense, causal=mask.dense is None)


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
    """Compute the attention of q (B, H, T, D) over k, v (B, H_kv, S, D), all of them where there is no mask.

    mask: bool, (T, S) or (B, 1, T, S), true where a token is seen. causal: T = S, and a token sees those before it.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=shares_heads(q, k))


def shares_heads(q: Tensor, k: Tensor) -> bool:
    """Return whether heads of keys serve several of q each: the first H / H_kv of q have the first, and so on."""
    return q.shape[1] != k.shape[1]


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    raise_recompile_limit()
    return torch.compile(flex_attention, dynamic=False)


def raise_recompile_limit() -> None:
    """Let one function have as many graphs as a run needs: kinds of layers, sizes tried, lengths of evaluations.

    Past the limit a compiled trunk ends the run, and flex falls back on a form without its kernel.
    """
    torch._dynamo.config.recompile_limit = max(RECOMPILE_LIMIT, torch._dynamo.config.recompile_limit)


def _varlen(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, window: int | None) -> Tensor:
    """`attend` by FlashAttention, whose window counts the tokens before its own."""
    from torch.nn.attention.varlen import varlen_attn

    B, _, T, _ = q.shape
    # torch 2.11 takes shared heads without being told, and later ones refuse them then
    tells = shares_heads(q, k) and "enable_gqa" in (varlen_attn.__kwdefaults__ or {})
    gqa: dict[str, Any] = {"enable_gqa": True} if tells else {}
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # (B * T, H, D)
    before = -1 if window is None else window - 1
    # max_q = T whatever the documents' lengths are: it is part of the compiled code
    out = varlen_attn(q, k, v, cu_seqlens, cu_seqlens, T, T, window_size=(before, 0), **gqa)
    assert isinstance(out, Tensor)  # a pair where more is asked for
    return out.unflatten(0, (B, T)).transpose(1, 2)


def choose_kernel(
    wanted: str, cfg: ModelConfig, length: int, documents: bool, device: torch.device, dtype: torch.dtype
) -> str:
    """Return the kernel for `train.attention`, `wanted`: auto is flex on CUDA and sdpa elsewhere.

    Warns on stderr when a GPU is left with dense masks. Raises ConfigError for what this machine cannot run.
    """
    cuda = device.type == "cuda"
    if wanted in ("flex", "varlen") and not cuda:
        raise ConfigError(f"train.attention = {wanted}: needs a CUDA device, this is {device.type}; leave it at auto")
    if wanted == "varlen":
        if dtype != torch.bfloat16 or cfg.head_size % 8:
            raise ConfigError("train.attention = varlen: needs train.dtype=bfloat16 and heads a multiple of 8 wide")
        if not _varlen_has_windows():
            raise ConfigError(f"train.attention = varlen: torch {torch.__version__} has no varlen_attn with windows")
        return "varlen"
    slides = cfg.has_sliding_layers and cfg.sliding_window < length
    if not cuda or not (slides or documents):
        return "sdpa"
    if wanted == "sdpa":
        reason = "train.attention = sdpa"
    elif length % FLEX_BLOCK:
        reason = f"train.seq_len = {length} is no multiple of {FLEX_BLOCK}"
    elif importlib.util.find_spec("triton") is None:
        reason = "triton is not installed"
    else:
        return "flex"
    print(
        f"warning: SLOW attention path: {reason}. Layers with a window or document masks run SDPA with a dense "
        f"{length} x {length} mask, which computes what the mask hides",
        file=sys.stderr,
        flush=True,
    )
    return "sdpa"


def _varlen_has_windows() -> bool:
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return False
    from torch.nn.attention.varlen import varlen_attn

    return "window_size" in inspect.signature(varlen_attn).parameters
