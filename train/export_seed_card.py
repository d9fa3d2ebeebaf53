"""What the model card of the seed imports: Config, ToyLM and load_tokenizer.

The seed is Shard-40m-v1, the published model whose settings are our defaults (docs/trainer-math.md, "The seed"). This
module is exported as code/model.py, beside copies of train/, so that the card's lines for loading a model run unchanged
on an exported folder, with torch and tokenizers only. The seed's own model.py is not public: ToyLM is called as it is,
and has this project's parameter names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from train.model.attention import rope_tables
from train.model.config import ModelConfig
from train.model.transformer import Model


@dataclass
class Config:
    """The seed's Config, key for key."""

    vocab_size: int = 8192
    dim: int = 512
    n_layers: int = 12
    n_heads: int = 8
    head_dim: int = 64
    mlp_hidden: int = 2048
    max_seq_len: int = 8192
    attention_pattern: str = "gemma4"
    sliding_window: int = 1024
    engram_enabled: bool = False
    engram_slots: int = 512
    engram_inject_layer: int = 6
    optimizer: str = "muon"
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    dropout: float = 0.0
    tie_embeddings: bool = True
    lm_head_logit_cap: float | None = 30.0
    z_loss_weight: float = 1e-4
    lr_schedule: str = "wsd"
    wsd_decay_frac: float = 0.2
    init_std: float = 0.02


class ToyLM(Model):
    """ids (B, T) to (logits (B, T, V) fp32, loss): the loss is None without targets (B, T)."""

    def __init__(self, cfg: Config) -> None:
        ours = {field.name for field in dataclasses.fields(ModelConfig)}
        super().__init__(ModelConfig(**{key: v for key, v in vars(cfg).items() if key in ours}), cfg.vocab_size)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        logits = self.logits(self.trunk(ids))
        loss = None if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        return logits, loss

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ToyLM:
        """What .to(), .cuda() and .half() do. Activations follow the weights; the rotary tables stay fp32."""
        super()._apply(fn, recurse)
        weight, cfg = self.embed.weight, self.cfg
        self.dtype = weight.dtype
        tables = rope_tables(cfg.max_seq_len, cfg.head_size, cfg.rope_base)
        self.cos, self.sin = (table.to(weight.device) for table in tables)
        return self


def load_tokenizer(path: str) -> Any:
    """The `tokenizers` object of a tokenizer.json."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(path)
