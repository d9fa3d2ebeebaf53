"""The engram: a bank of learned keys and values that every position reads (docs/trainer-math.md, "Engram").

Config keys: engram_enabled, engram_slots, engram_inject_layer. No public model has it. The number of slots, the place
and the zero gate are the seed's, the form is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.model.config import ModelConfig
from train.model.layers import RMSNorm


class Engram(nn.Module):
    """x + gate * softmax(norm(x) Kᵀ / sqrt(dim)) V.

    The gate starts at 0, so that the model starts as the one without a bank, to the bit. The first update moves the
    gate alone, the later ones everything.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.keys = nn.Parameter(torch.empty(cfg.engram_slots, cfg.dim))
        self.values = nn.Parameter(torch.empty(cfg.engram_slots, cfg.dim))
        self.gate = nn.Parameter(torch.zeros(cfg.dim))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (B, T, dim) with what was read added."""
        scores = self.norm(x) @ self.keys.to(x.dtype).T  # (B, T, slots)
        weights = torch.softmax(scores.float() * x.shape[-1] ** -0.5, -1).to(x.dtype)
        return x + self.gate.to(x.dtype) * (weights @ self.values.to(x.dtype))
