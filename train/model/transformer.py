"""The Shard architecture: a pre-norm transformer with rotary positions, SwiGLU and alternating attention.

    x = E[ids]
    per block:  x += o(attention(rope(q), rope(k), v) of norm(x));   x += down(silu(gate y) * up y), y = norm(x)
    ahead of one block, if asked for:  x += gate * engram(x)
    h = norm(x);  logits = cap * tanh(h Eᵀ / cap)

RMSNorm with weight, no biases, no norm on q and k, heads of their own for keys and values (MHA), the head tied to the
embedding. With `gemma4` even layers see the last `sliding_window` tokens (0 <= i - j < window) and odd ones all; HF's
Gemma 4 differs, only the alternation is its. The parts are in files of their own; docs/trainer-math.md ("The seed")
says where each comes from.

With every lever off (all_global, no cap, no z-loss, no engram, no dropout) this is a plain causal transformer to the
bit: tests/train/model/test_transformer.py holds that transformer.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.config import ConfigError, ModelConfig
from train.model.attention import Attention, AttentionFn, attend, rope_tables
from train.model.engram import Engram
from train.model.layers import Linear, RMSNorm
from train.model.loss import cap_logits, chunk_values, chunk_values_pure, head_loss, token_losses
from train.model.masks import MaskBuilder, Masks
from train.model.mlp import MLP


class Block(nn.Module):
    """Attention and MLP, each on a normed copy, added to the stream."""

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.attn = Attention(cfg, layer)
        self.mlp_norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.mlp = MLP(cfg)
        self.dropout = cfg.dropout

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: AttentionFn) -> Tensor:
        """Map the stream x (B, T, dim); the other arguments are Attention's."""
        x = x + self._drop(self.attn(self.attn_norm(x), cos, sin, attention))
        return x + self._drop(self.mlp(self.mlp_norm(x)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Model(nn.Module):
    """The language model. Its weights are not initialized: `build` draws them, or a checkpoint's are loaded."""

    blocks: Sequence[Block]
    cos: Tensor
    sin: Tensor

    def __init__(self, cfg: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.vocab_size = vocab_size
        self.dtype = torch.float32  # of activations
        self.mask_builder = MaskBuilder(cfg)  # the trainer sets the kernel
        self.run_trunk, self.chunk_values = self.trunk, chunk_values  # or their compiled forms
        self.embed = nn.Embedding.from_pretrained(torch.empty(vocab_size, cfg.dim), freeze=False)
        self.blocks = nn.ModuleList(Block(cfg, i) for i in range(cfg.n_layers))  # type: ignore[assignment]
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
    def head_weight(self) -> nn.Parameter:
        """The head's weight, (V, dim)."""
        return self.embed.weight if self.head is None else self.head.weight

    def trunk(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        attentions: Iterable[AttentionFn] | None = None,
        masks: Masks | None = None,
    ) -> Tensor:
        """Map (B, T) ids to (B, T, dim) normed hidden states.

        positions: (B, T) where the ids stand; None: from 0.
        attentions: each layer's attention; None: over the row, by `masks`.
        masks: None: over whole rows, on the path that takes any length.
        """
        at = slice(ids.shape[1]) if positions is None else positions
        cos, sin = self.cos[at].unsqueeze(-2), self.sin[at].unsqueeze(-2)  # ([B,] T, 1, D / 2)
        if attentions is None:
            sliding, whole = (functools.partial(attend, mask=mask) for mask in masks or MaskBuilder(self.cfg)(ids))
            attentions = [whole if block.attn.window is None else sliding for block in self.blocks]
        x = self.embed(ids).to(self.dtype)
        for layer, (block, attention) in enumerate(zip(self.blocks, attentions, strict=True)):
            if self.engram is not None and layer == self.cfg.engram_inject_layer:
                x = self.engram(x)
            x = block(x, cos, sin, attention)
        return self.norm(x)

    def hidden_states(self, ids: Tensor, cu_seqlens: Tensor | None) -> Tensor:
        """Return (B * T, dim) of the trunk, compiled or not. Masks are made ahead of it, once for all layers."""
        return self.run_trunk(ids, masks=self.mask_builder(ids, cu_seqlens)).flatten(0, 1)

    def forward(
        self, ids: Tensor, targets: Tensor, num_targets: int | None = None, cu_seqlens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return (total, ce), scalars in nats a token: what is trained and what is reported. ids, targets: (B, T).

        num_targets: how many targets are not -100; None: all.
        cu_seqlens: where the documents begin that attention is to stay in (see MaskBuilder); None: it takes rows whole.
        """
        cap, z_weight = self.cfg.lm_head_logit_cap, self.cfg.z_loss_weight
        h = self.hidden_states(ids, cu_seqlens)
        return head_loss(h, self.head_weight, targets.flatten(), cap, z_weight, num_targets, self.chunk_values)

    @torch.no_grad()
    def score(self, ids: Tensor, targets: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
        """Return (B, T) cross-entropy of every token in nats, fp32; arguments as in `forward`."""
        h = self.hidden_states(ids, cu_seqlens)
        return token_losses(h, self.head_weight, targets.flatten(), self.cfg.lm_head_logit_cap).view(ids.shape)

    def logits(self, h: Tensor) -> Tensor:
        """Return (..., V) fp32 capped logits of hidden states h (..., dim)."""
        return cap_logits((h @ self.head_weight.to(h.dtype).T).float(), self.cfg.lm_head_logit_cap)


def build(cfg: ModelConfig, vocab_size: int, seed: int) -> Model:
    """Return a model with every matrix drawn from N(0, init_std) and norms at 1; on CPU, so the same on every device.

    Raises ConfigError as `check_parameters` does.
    """
    check_parameters(cfg, vocab_size)
    model = Model(cfg, vocab_size)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():  # definition order
            if parameter.ndim == 2:
                parameter.normal_(0.0, cfg.init_std, generator=generator)
    return model


# ---------------------------------------------------------------------------------------------------------------------
# Sizes


def on_meta_device(cfg: ModelConfig, vocab_size: int) -> Model:
    """Return a model whose parameters have shapes and no values: it takes no memory and some 10 ms."""
    with torch.device("meta"):
        return Model(cfg, vocab_size)


def count_parameters(cfg: ModelConfig, vocab_size: int) -> int:
    """Return the number of parameters: 54,538,752 for the defaults at 8192 ids."""
    return sum(parameter.numel() for parameter in on_meta_device(cfg, vocab_size).parameters())


def check_parameters(cfg: ModelConfig, vocab_size: int) -> int:
    """Return the number of parameters.

    Raises ConfigError when it is not model.expect_params, or the vocabulary is another than model.vocab_size.
    """
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
