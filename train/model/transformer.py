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
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.config import ConfigError, ModelConfig
from train.model.attention import Attend, Masker, Masks, attend, rope_tables, rotate
from train.model.loss import cap_logits, chunk_values, chunk_values_pure, head_loss, token_losses


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


class Linear(nn.Linear):
    """No bias; the fp32 weight is cast to the activations' dtype where it is used."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def products(x: Tensor, *linears: Linear) -> tuple[Tensor, ...]:
    """Each of `linears` of x; on a GPU, which thin products do not fill, as one (trainers.md 3.4).

    Weights are joined here and not stored so: Muon works on each matrix, and a checkpoint names each. On a CPU they
    stay apart: one product would sum the gradient by x in another order than the plain form does.
    """
    return joined(x, *linears) if x.is_cuda else tuple(linear(x) for linear in linears)


def joined(x: Tensor, *linears: Linear) -> tuple[Tensor, ...]:
    """`products` by one product of the weights on top of each other; each (..., out) is a view."""
    weight = torch.cat([linear.weight.to(x.dtype) for linear in linears])
    return F.linear(x, weight).split([linear.out_features for linear in linears], -1)


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

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        q, k, v = (y.unflatten(-1, (self.heads, self.head_size)) for y in products(x, self.q, self.k, self.v))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))  # (B, H, T, D)
        return self.o(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.gate, self.up = Linear(cfg.dim, cfg.hidden), Linear(cfg.dim, cfg.hidden)
        self.down = Linear(cfg.hidden, cfg.dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = products(x, self.gate, self.up)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Attention and MLP, each on a normed copy, added to the stream."""

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attn_norm, self.attn = RMSNorm(cfg.dim, cfg.norm_eps), Attention(cfg, layer)
        self.mlp_norm, self.mlp = RMSNorm(cfg.dim, cfg.norm_eps), MLP(cfg)
        self.dropout = cfg.dropout

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        x = x + self._drop(self.attn(self.attn_norm(x), cos, sin, attend))
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
        self.masker = Masker(cfg)  # the trainer sets the kernel
        self.run_trunk, self.chunk_values = self.trunk, chunk_values  # or their compiled forms
        self.embed = nn.Embedding(vocab_size, cfg.dim)
        self.blocks = nn.ModuleList(Block(cfg, i) for i in range(cfg.n_layers))
        self.norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.head = None if cfg.tie_embeddings else Linear(cfg.dim, vocab_size)
        # last, so that `build` draws all other weights as without it
        self.engram = Engram(cfg) if cfg.engram_enabled else None
        cos, sin = rope_tables(cfg.max_seq_len, cfg.head_size, cfg.rope_base)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def compile_parts(self) -> None:
        """Compile the trunk, and on a GPU what lies between the loss's products; one shape, one graph."""
        self.run_trunk = torch.compile(self.trunk, dynamic=False, fullgraph=True)
        if self.embed.weight.is_cuda:
            self.chunk_values = torch.compile(chunk_values_pure, dynamic=False, fullgraph=True)

    @property
    def head_weight(self) -> Tensor:
        """(V, d)"""
        return self.embed.weight if self.head is None else self.head.weight

    def trunk(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        recalls: Sequence[Attend] | None = None,
        masks: Masks | None = None,
    ) -> Tensor:
        """(B, T) ids -> (B, T, d) normed states.

        positions (B, T): where the ids stand; None: from 0. recalls: each layer's attention; None: over the row, by
        `masks`; None: over whole rows, on the path that takes any length.
        """
        at = slice(ids.shape[1]) if positions is None else positions
        cos, sin = self.cos[at].unsqueeze(-2), self.sin[at].unsqueeze(-2)  # type: ignore[index]  # ([B,] T, 1, D / 2)
        if recalls is None:
            kinds = [functools.partial(attend, mask=mask) for mask in masks or Masker(self.cfg)(ids)]
            recalls = [kinds[block.attn.window is None] for block in self.blocks]  # type: ignore[union-attr]
        x = self.embed(ids).to(self.dtype)
        for layer, (block, recall) in enumerate(zip(self.blocks, recalls, strict=True)):
            if self.engram is not None and layer == self.cfg.engram_inject_layer:
                x = self.engram(x)
            x = block(x, cos, sin, recall)
        return self.norm(x)

    def states(self, ids: Tensor, borders: Tensor | None) -> Tensor:
        """(B * T, d) of the trunk, compiled or not. Masks are made ahead of it, once for all layers."""
        return self.run_trunk(ids, masks=self.masker(ids, borders)).flatten(0, 1)

    def forward(
        self, ids: Tensor, targets: Tensor, counted: int | None = None, borders: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(total, ce), scalars in nats a token: what is trained and what is reported. ids, targets (B, T).

        counted: how many targets are not -100; None: all. borders: where documents begin, that attention is to stay
        in (`Batch.borders`); None: it takes rows whole.
        """
        cap, z_weight = self.cfg.lm_head_logit_cap, self.cfg.z_loss_weight
        h = self.states(ids, borders)
        return head_loss(h, self.head_weight, targets.flatten(), cap, z_weight, counted, self.chunk_values)

    @torch.no_grad()
    def score(self, ids: Tensor, targets: Tensor, borders: Tensor | None = None) -> Tensor:
        """(B, T) cross-entropy of every token in nats, fp32."""
        h = self.states(ids, borders)
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
