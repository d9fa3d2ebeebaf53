"""The trunk of the models: a pre-norm transformer with rotary positions. Shard is what it is without further parts.

    x = x0 = embed(ids)                                                           see `embed_ids`
    per block:  x += o(attention(rope(q), rope(k), v) of norm(x));   x += mlp(norm(x))
    h = norm(x);  logits = cap * tanh(h Eᵀ / cap)

Shard: RMSNorm with weight, no biases, no norm on q and k, heads of their own for keys and values (MHA), SwiGLU, the
head tied to the embedding. With `gemma4` even layers see the last `sliding_window` tokens (0 <= i - j < window) and odd
ones all; HF's Gemma 4 differs, only the alternation is its.

A part that a configuration has beside these is None where it is off, and then nothing of it runs:

    behind the embedding   embed_scale, bigram (bigram.py), embed_norm, smear (smear.py), memory (memory.py)
    ahead of a block       skip (unet_skips), x_mix and x0_mix (residual_mix), the engram (engram.py)
    in a block             input_scale (depth_scale), attn_scale and mlp_scale (branch_scales), sandwich norms
    in attention, the MLP  see attention.py, mlp.py
    beside the head        mtp (mtp.py), in training alone

docs/trainer-math.md says where each comes from. With every lever off (all_global, no cap, no z-loss, no engram, no
dropout) this is a plain causal transformer to the bit: tests/train/model/test_transformer.py holds that transformer.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.keys import ConfigError
from train.model.attention import Attention, AttentionFn, attend, raise_recompile_limit, rope_tables
from train.model.bigram import BigramHash
from train.model.config import ModelConfig
from train.model.engram import Engram
from train.model.init import initialize
from train.model.layers import Linear, RMSNorm
from train.model.loss import cap_logits, chunk_values, chunk_values_pure, head_loss, token_losses
from train.model.masks import MaskBuilder, Masks
from train.model.memory import Memory
from train.model.mlp import MLP
from train.model.mtp import FurtherTokens
from train.model.smear import Smear


class Block(nn.Module):
    """Attention and MLP, each on a normed copy, added to the stream."""

    def __init__(self, cfg: ModelConfig, layer: int) -> None:
        super().__init__()

        def norm() -> RMSNorm:
            return RMSNorm(cfg.dim, cfg.norm_eps, cfg.norm)

        def scale(first_value: float) -> nn.Parameter:
            return nn.Parameter(torch.full((cfg.dim,), float(first_value)))

        self.attn_norm = norm()
        self.attn = Attention(cfg, layer)
        self.mlp_norm = norm()
        self.mlp = MLP(cfg)
        self.dropout = cfg.dropout
        self.attn_out_norm, self.mlp_out_norm = (norm() if cfg.sandwich_norms else None for _ in range(2))
        self.attn_scale, self.mlp_scale = (scale(1) if cfg.branch_scales else None for _ in range(2))
        self.input_scale = 1 / math.sqrt(layer + 1) if cfg.depth_scale else None
        self.x_mix, self.x0_mix = (scale(first) if cfg.residual_mix else None for first in (1, 0))
        half = cfg.n_layers // 2
        self.skip = scale(1) if cfg.unet_skips and half <= layer < 2 * half else None

    def forward(self, x: Tensor, x0: Tensor, cos: Tensor, sin: Tensor, attention: AttentionFn) -> Tensor:
        """Map the stream x (B, T, dim), which was x0 ahead of the first block; the others are Attention's."""
        if self.x_mix is not None and self.x0_mix is not None:
            x = self.x_mix.to(x.dtype) * x + self.x0_mix.to(x.dtype) * x0
        y = self.attn(self._scale_input(self.attn_norm(x)), cos, sin, attention)
        x = x + self._branch(y, self.attn_out_norm, self.attn_scale)
        y = self.mlp(self._scale_input(self.mlp_norm(x)))
        return x + self._branch(y, self.mlp_out_norm, self.mlp_scale)

    def _scale_input(self, y: Tensor) -> Tensor:
        return y if self.input_scale is None else y * self.input_scale

    def _branch(self, y: Tensor, norm: RMSNorm | None, scale: Tensor | None) -> Tensor:
        """Return what is added to the stream for y, the output of attention or of the MLP."""
        y = y if norm is None else norm(y)
        y = y if scale is None else scale.to(y.dtype) * y
        return F.dropout(y, self.dropout, self.training) if self.dropout else y


class Model(nn.Module):
    """The language model. Its weights are not initialized: `build` draws them, or a checkpoint's are loaded."""

    blocks: Sequence[Block]
    cos: Tensor
    sin: Tensor
    cos_global: Tensor
    sin_global: Tensor

    def __init__(self, cfg: ModelConfig, vocab_size: int, bos_id: int | None = None) -> None:
        """bos_id: BOS, for model.smear_bos_mask."""
        super().__init__()
        self.cfg = cfg
        self.vocab_size = vocab_size
        self.bos_id = bos_id
        self.dtype = torch.float32  # of activations
        self.mask_builder = MaskBuilder(cfg)  # the trainer sets the kernel
        self.mtp_weight = cfg.mtp_weight  # where it decays, the trainer sets it
        self.run_trunk, self.chunk_values = self.trunk, chunk_values  # or their compiled forms
        self.embed = nn.Embedding.from_pretrained(torch.empty(vocab_size, cfg.dim), freeze=False)
        self.blocks = nn.ModuleList(Block(cfg, i) for i in range(cfg.n_layers))  # type: ignore[assignment]
        self.norm = RMSNorm(cfg.dim, cfg.norm_eps, cfg.norm)
        self.head = None if cfg.tie_embeddings else Linear(cfg.dim, vocab_size)
        # last, so that `build` draws all other weights as without them
        self.engram = Engram(cfg) if cfg.engram_enabled else None
        self.bigram = BigramHash(cfg) if cfg.bigram_buckets else None
        self.embed_norm = RMSNorm(cfg.dim, cfg.norm_eps, cfg.norm) if cfg.embed_norm else None
        self.smear = Smear(cfg.dim) if cfg.smear else None
        self.memory = Memory(cfg) if cfg.memory_tokens else None
        self.mtp = FurtherTokens(cfg, vocab_size) if cfg.mtp_heads else None
        self.make_rope_tables()

    def make_rope_tables(self) -> None:
        """Make the tables of rotary positions: of max_seq_len tokens, and of memory in front of them.

        A model without values has none: they are computed, and may be large.
        """
        cfg = self.cfg
        length = 0 if self.embed.weight.is_meta else cfg.max_seq_len + cfg.memory_tokens
        bases = {"": cfg.rope_base} | ({"_global": cfg.rope_base_global} if cfg.rope_base_global is not None else {})
        for kind, base in bases.items():
            cos, sin = rope_tables(length, cfg.rotary_size, base, cfg.rope_table)
            self.register_buffer(f"cos{kind}", cos, persistent=False)
            self.register_buffer(f"sin{kind}", sin, persistent=False)

    def compile_parts(self) -> None:
        """Compile the trunk, and on a GPU what lies between the loss's products; one shape, one graph."""
        raise_recompile_limit()
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
        start: int = 0,
        before: Tensor | None = None,
    ) -> Tensor:
        """Map (B, T) ids to (B, T, dim) normed hidden states.

        positions: (B, T) where the ids stand; None: from 0.
        attentions: each layer's attention; None: over the row, by `masks`.
        masks: None: over whole rows, on the path that takes any length.
        start: the position of a text's first token. model.memory_tokens: memory is in front, at the positions before,
            where ids mean nothing; 0: it takes the place of the text's first tokens.
        before: (B, n) the ids ahead of these, which a cache holds; None: these are all.
        """
        at = slice(ids.shape[1]) if positions is None else positions
        rotary = whole_rotary = self.cos[at].unsqueeze(-2), self.sin[at].unsqueeze(-2)  # ([B,] T, 1, D / 2)
        if self.cfg.rope_base_global is not None:
            whole_rotary = self.cos_global[at].unsqueeze(-2), self.sin_global[at].unsqueeze(-2)
        if attentions is None:
            sliding, whole = (functools.partial(attend, mask=mask) for mask in masks or MaskBuilder(self.cfg)(ids))
            attentions = [whole if block.attn.window is None else sliding for block in self.blocks]
        x = x0 = self.embed_ids(ids, positions, start, before)
        outputs: list[Tensor] = []  # of the blocks of the first half, for unet_skips
        for layer, (block, attention) in enumerate(zip(self.blocks, attentions, strict=True)):
            if self.engram is not None and layer == self.cfg.engram_inject_layer:
                x = self.engram(x)
            if block.skip is not None:
                x = x + block.skip.to(x.dtype) * outputs.pop()
            x = block(x, x0, *(whole_rotary if block.attn.window is None else rotary), attention)
            if self.cfg.unet_skips and layer < self.cfg.n_layers // 2:
                outputs.append(x)
        return self.norm(x)

    def embed_ids(self, ids: Tensor, positions: Tensor | None, start: int, before: Tensor | None) -> Tensor:
        """Return the stream ahead of the first block, (B, T, dim); arguments as in `trunk`."""
        all_ids = ids if before is None else torch.cat([before, ids], 1)
        x = self.embed(all_ids).to(self.dtype)
        if self.cfg.embed_scale != "none":
            factor = math.sqrt(self.cfg.dim)
            rounds = self.cfg.embed_scale == "sqrt_dim_rounded"
            x = x * (torch.tensor(factor, dtype=x.dtype, device=x.device) if rounds else factor)
        if self.bigram is not None:
            x = x + self.bigram(all_ids, self._starts(all_ids, positions, start), x.dtype)
        if self.embed_norm is not None:
            x = self.embed_norm(x)
        if self.smear is not None:
            assert self.bos_id is not None or not self.cfg.smear_bos_mask, "smear_bos_mask needs Model(bos_id=...)"
            unmixed = all_ids == self.bos_id if self.cfg.smear_bos_mask else None
            x = self.smear(x, self._starts(all_ids, positions, start), unmixed)
        x = x if before is None else x[:, before.shape[1] :]
        return x if self.memory is None else self.memory(x, positions)

    @property
    def looks_back(self) -> int:
        """How many ids ahead of a token its embedding depends on."""
        return (self.bigram is not None) + (self.smear is not None)

    def _starts(self, ids: Tensor, positions: Tensor | None, start: int) -> Tensor:
        """Return which of the ids (B, n + T) a text begins with, bool, (B or 1, n + T); positions are of the last T."""
        if positions is None:
            return (torch.arange(ids.shape[1], device=ids.device) == start)[None]
        ahead = torch.arange(positions.shape[1] - ids.shape[1], 0, device=ids.device)
        return torch.cat([positions[:, :1] + ahead, positions], 1) == start

    def hidden_states(self, ids: Tensor, cu_seqlens: Tensor | None, memory_in_front: bool = False) -> Tensor:
        """Return (B * T, dim) of the trunk, compiled or not. Masks are made ahead of it, once for all layers.

        memory_in_front: memory stands ahead of the ids, and not in the place of the first.
        """
        ahead = self.cfg.memory_tokens if memory_in_front else 0
        if not ahead:
            return self.run_trunk(ids, masks=self.mask_builder(ids, cu_seqlens)).flatten(0, 1)
        ids = F.pad(ids, (ahead, 0))
        return self.run_trunk(ids, masks=self.mask_builder(ids), start=ahead)[:, ahead:].flatten(0, 1)

    def text_states(self, ids: Tensor) -> Tensor:
        """Return (B, T, dim) hidden states of texts of any length, memory in front; never compiled."""
        ahead = self.cfg.memory_tokens
        return self.trunk(F.pad(ids, (ahead, 0)), start=ahead)[:, ahead:] if ahead else self.trunk(ids)

    def forward(
        self,
        ids: Tensor,
        targets: Tensor,
        num_targets: int | None = None,
        cu_seqlens: Tensor | None = None,
        by_target: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return (total, ce), scalars in nats a token: what is trained and what is reported. ids, targets: (B, T).

        num_targets: how many targets are not -100; None: all.
        cu_seqlens: where the documents begin that attention is to stay in (see MaskBuilder); None: it takes rows whole.
        by_target: (2, B * T), filled as by `head_loss`.
        """
        cap, z_weight = self.cfg.lm_head_logit_cap, self.cfg.z_loss_weight
        h = self.hidden_states(ids, cu_seqlens)
        all_count = num_targets is None
        if self.memory is not None:
            targets, num_targets = self.memory.counted_targets(targets, num_targets)
        total, ce = head_loss(
            h, self.head_weight, targets.flatten(), cap, z_weight, num_targets, self.chunk_values, by_target
        )
        if self.mtp is not None and self.training:
            further = self.mtp(h.view(*ids.shape, -1), targets, all_count, self.chunk_values)
            total = total + self.mtp_weight * further
        return total, ce

    @torch.no_grad()
    def score(
        self,
        ids: Tensor,
        targets: Tensor,
        cu_seqlens: Tensor | None = None,
        memory_in_front: bool = False,
        first: int = 0,
        as_in_training: bool = False,
    ) -> Tensor:
        """Return (B, T - first) cross-entropy of every token from `first` on in nats, fp32.

        as_in_training: with gradients on, as a compiled trunk has them in training: else it is compiled once more.
        Where it is longer than in training, by memory in front, it is another graph anyway.
        Other arguments as in `hidden_states` and `forward`.
        """
        with torch.set_grad_enabled(as_in_training and not (memory_in_front and self.cfg.memory_tokens)):
            h = self.hidden_states(ids, cu_seqlens, memory_in_front).detach()
        if first:
            h = h.view(*ids.shape, -1)[:, first:].flatten(0, 1)
        losses = token_losses(h, self.head_weight, targets[:, first:].flatten(), self.cfg.lm_head_logit_cap)
        return losses.view(len(ids), -1)

    def logits(self, h: Tensor) -> Tensor:
        """Return (..., V) fp32 capped logits of hidden states h (..., dim)."""
        return cap_logits((h @ self.head_weight.to(h.dtype).T).float(), self.cfg.lm_head_logit_cap)


def build(cfg: ModelConfig, vocab_size: int, seed: int, bos_id: int | None = None) -> Model:
    """Return a model with first values, as model.init says; they are drawn on the CPU, so the same on every device.

    Raises ConfigError as `check_parameters` does.
    """
    check_parameters(cfg, vocab_size)
    model = Model(cfg, vocab_size, bos_id)
    initialize(model, cfg, torch.Generator().manual_seed(seed))
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
