"""The Shard architecture: a pre-norm transformer with rotary positions, SwiGLU and alternating attention.

    x = E[ids]
    per block:  x += o(attention(rope(q), rope(k), v) of norm(x));   x += down(silu(gate y) * up y), y = norm(x)
    ahead of one block, if asked for:  x += gate * engram(x)
    h = norm(x);  logits = cap * tanh(h Eᵀ / cap)

RMSNorm with weight, no biases, no norm on q and k, heads of their own for keys and values (MHA), the head tied to the
embedding. With `gemma4` even layers see the last `sliding_window` tokens (0 <= i - j < window) and odd ones all; HF's
Gemma 4 differs, only the alternation is its. Truth: the seed's config.py and card; details in trainers.md 1.15.

Weights are fp32 always. Activations have the dtype asked for; a weight is cast where it is used, which in fp32 is
nothing. With every lever off (all_global, no cap, no z-loss, no engram, no dropout) this is a plain causal
transformer to the bit: tests/train/test_model.py holds that transformer.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.config import ConfigError, ModelConfig
from train.loss import cap_logits, head_loss, token_losses

FLEX_BLOCK = 128  # FlexAttention's block size: lengths must be a multiple of it


def count_parameters(cfg: ModelConfig, vocab_size: int) -> int:
    """Parameters of `cfg` by formula, without building it: 54,538,752 for the defaults at 8192 ids.

    An engram of 512 slots has 525,312 more.
    """
    embeddings = vocab_size * cfg.dim * (1 if cfg.tie_embeddings else 2)
    block = 4 * cfg.dim * cfg.dim + 3 * cfg.dim * cfg.hidden + 2 * cfg.dim
    engram = 2 * cfg.engram_slots * cfg.dim + 2 * cfg.dim if cfg.engram_enabled else 0
    return embeddings + cfg.n_layers * block + cfg.dim + engram


def check_parameters(cfg: ModelConfig, vocab_size: int) -> int:
    """The parameter count. Raises ConfigError when it is not model.expect_params, or the vocabulary is another."""
    if cfg.vocab_size is not None and cfg.vocab_size != vocab_size:
        raise ConfigError(
            f"model.vocab_size = {cfg.vocab_size}, but the manifest's tokenizer has {vocab_size} ids; "
            "leave the key out, or build the tokenizer with that size"
        )
    count = count_parameters(cfg, vocab_size)
    if cfg.expect_params is not None and count != cfg.expect_params:
        raise ConfigError(
            f"this model has {count:,} parameters, model.expect_params says {cfg.expect_params:,}; "
            "mend the shape, or set model.expect_params=null"
        )
    return count


# ---------------------------------------------------------------------------------------------------------------------
# Positions and masks


def rope_tables(length: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin, (length, head_dim / 2) fp32, of position * base ** (-2k / head_dim); computed in fp64."""
    k = torch.arange(0, head_dim, 2, dtype=torch.float64)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * base ** (-k / head_dim)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, H, T, D) turned by +theta, the first half of D paired with the second (HF's layout); in fp32."""
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


@functools.lru_cache(maxsize=8)
def window_mask(length: int, window: int, device: torch.device) -> Tensor:
    """(T, T) bool, true where i may see j: 0 <= i - j < window."""
    i = torch.arange(length, device=device)
    distance = i[:, None] - i[None, :]
    return (distance >= 0) & (distance < window)


def window_rule(window: int) -> Callable[..., Tensor]:
    """The same rule for FlexAttention. FlashAttention's window_size would be (window - 1, 0)."""

    def rule(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return (i >= j) & (i - j < window)

    return rule


class Flex(NamedTuple):
    """FlexAttention for one length: the kernel that skips what the window hides, and its block mask."""

    kernel: Callable[..., Any]
    mask: Any
    length: int


def prepare_flex(cfg: ModelConfig, length: int, device: torch.device) -> Flex | None:
    """The fast kernel for sliding layers, or None: on CPU, where no window acts, or (with a warning) without it."""
    slides = cfg.attention_pattern == "gemma4" and cfg.sliding_window < length
    if device.type != "cuda" or not slides:
        return None
    reason = ""
    if length % FLEX_BLOCK:
        reason = f"train.seq_len = {length} is no multiple of {FLEX_BLOCK}"
    elif importlib.util.find_spec("triton") is None:
        reason = "triton is not installed"
    if reason:
        print(
            f"warning: SLOW attention path: {reason}. Sliding layers run SDPA with a dense {length} x {length} mask, "
            "which computes what the window hides",
            file=sys.stderr,
            flush=True,
        )
        return None
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = create_block_mask(window_rule(cfg.sliding_window), None, None, length, length, device=str(device))
    return Flex(torch.compile(flex_attention, dynamic=False), mask, length)


def attend(q: Tensor, k: Tensor, v: Tensor, window: int | None, flex: Flex | None) -> Tensor:
    """Causal attention; q, k, v and the result (B, H, T, D). window None: everything before is seen.

    A window as long as the sequence hides nothing, so it takes the plain causal kernel.
    """
    length = q.shape[-2]
    if window is None or window >= length:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if flex is not None and flex.length == length:
        return flex.kernel(q, k, v, block_mask=flex.mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=window_mask(length, window, q.device))


# Attention of new q, k, v (B, H, T, D) over what a cache holds of one layer, and over themselves (train/generate.py)
Recall = Callable[[Tensor, Tensor, Tensor], Tensor]


# ---------------------------------------------------------------------------------------------------------------------
# The model


class Linear(nn.Linear):
    """No bias; the fp32 weight is cast to the activations' dtype where it is used."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * weight over the last dimension; statistics in fp32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Multi-head causal attention, over everything before (global) or the last `window` tokens."""

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.head_size = cfg.n_heads, cfg.head_size
        self.window = None if cfg.is_global(layer) else cfg.sliding_window
        self.q, self.k, self.v, self.o = (Linear(cfg.dim, cfg.dim) for _ in range(4))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, flex: Flex | None, recall: Recall | None = None) -> Tensor:
        B, T, d = x.shape
        q, k, v = (p(x).view(B, T, self.heads, self.head_size).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = attend(q, k, v, self.window, flex) if recall is None else recall(q, k, v)  # (B, H, T, D)
        return self.o(y.transpose(1, 2).reshape(B, T, d))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.gate, self.up = Linear(cfg.dim, cfg.hidden), Linear(cfg.dim, cfg.hidden)
        self.down = Linear(cfg.hidden, cfg.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention and MLP, each on a normed copy, added to the stream."""

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attn_norm, self.attn = RMSNorm(cfg.dim, cfg.norm_eps), Attention(cfg, layer)
        self.mlp_norm, self.mlp = RMSNorm(cfg.dim, cfg.norm_eps), MLP(cfg)
        self.dropout = cfg.dropout

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, flex: Flex | None, recall: Recall | None = None) -> Tensor:
        x = x + self._drop(self.attn(self.attn_norm(x), cos, sin, flex, recall))
        return x + self._drop(self.mlp(self.mlp_norm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Engram(nn.Module):
    """A bank of learned keys and values that every position reads: x + gate * softmax(norm(x) Kᵀ / sqrt(d)) V.

    The gate starts at 0, so the model starts as the one without a bank, to the bit; the first update moves only the
    gate, the later ones all. No public model has it: the form is ours (trainers.md 1.15), the seed's are slots, place
    and zero gate.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.keys, self.values = (nn.Parameter(torch.empty(cfg.engram_slots, cfg.dim)) for _ in range(2))
        self.gate = nn.Parameter(torch.zeros(cfg.dim))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.norm(x) @ self.keys.to(x.dtype).T  # (B, T, slots)
        weights = torch.softmax(scores.float() * x.shape[-1] ** -0.5, -1).to(x.dtype)
        return x + self.gate.to(x.dtype) * (weights @ self.values.to(x.dtype))


class Model(nn.Module):
    """The language model. Build it with `build`, which draws the weights."""

    def __init__(self, cfg: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.cfg, self.vocab_size = cfg, vocab_size
        self.dtype = torch.float32  # of activations
        self.flex: Flex | None = None  # set by the trainer, for its length and device
        self.run_trunk = self.trunk  # or its compiled form
        self.embed = nn.Embedding(vocab_size, cfg.dim)
        self.blocks = nn.ModuleList(Block(cfg, i) for i in range(cfg.n_layers))
        self.norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.head = None if cfg.tie_embeddings else Linear(cfg.dim, vocab_size)
        # last, so that `build` draws all other weights as without it
        self.engram = Engram(cfg) if cfg.engram_enabled else None
        cos, sin = rope_tables(cfg.max_seq_len, cfg.head_size, cfg.rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @property
    def head_weight(self) -> Tensor:
        """(V, d)"""
        return self.embed.weight if self.head is None else self.head.weight

    def trunk(self, ids: Tensor, positions: Tensor | None = None, recalls: Sequence[Recall] | None = None) -> Tensor:
        """(B, T) ids -> (B, T, d) normed states.

        positions (B, T): where the ids stand; None: from 0. recalls: each layer's attention; None: the plain one.
        """
        at = slice(ids.shape[1]) if positions is None else positions[:, None]
        cos, sin = self.cos[at], self.sin[at]  # type: ignore[index]  # (T, D / 2), or (B, 1, T, D / 2)
        x = self.embed(ids).to(self.dtype)
        for layer, block in enumerate(self.blocks):
            if self.engram is not None and layer == self.cfg.engram_inject_layer:
                x = self.engram(x)
            x = block(x, cos, sin, self.flex, None if recalls is None else recalls[layer])
        return self.norm(x)

    def forward(self, ids: Tensor, targets: Tensor, counted: int | None = None) -> tuple[Tensor, Tensor]:
        """(total, ce), scalars in nats a token: what is trained and what is reported. ids, targets (B, T).

        counted: how many targets are not -100; None: all.
        """
        h = self.run_trunk(ids).flatten(0, 1)
        cfg = self.cfg
        return head_loss(h, self.head_weight, targets.flatten(), cfg.lm_head_logit_cap, cfg.z_loss_weight, counted)

    @torch.no_grad()
    def score(self, ids: Tensor, targets: Tensor) -> Tensor:
        """(B, T) cross-entropy of every token in nats, fp32."""
        h = self.run_trunk(ids).flatten(0, 1)
        return token_losses(h, self.head_weight, targets.flatten(), self.cfg.lm_head_logit_cap).view(ids.shape)

    def logits(self, h: Tensor) -> Tensor:
        """(..., V) fp32 capped logits of states h (..., d)."""
        return cap_logits((h @ self.head_weight.to(h.dtype).T).float(), self.cfg.lm_head_logit_cap)


def build(cfg: ModelConfig, vocab_size: int, seed: int) -> Model:
    """A model with every matrix drawn from N(0, init_std) and norms at 1; on CPU, so the same on every device."""
    count = check_parameters(cfg, vocab_size)
    model = Model(cfg, vocab_size)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():  # definition order
            if parameter.ndim == 2:
                parameter.normal_(0.0, cfg.init_std, generator=generator)
    built = sum(p.numel() for p in model.parameters())
    assert built == count, f"the formula says {count} parameters, the model has {built}"
    return model
