"""The MLP of a block: SwiGLU (Shazeer 2020, arXiv:2002.05202)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from train.config import ModelConfig
from train.model.layers import Linear, project


class MLP(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.gate = Linear(cfg.dim, cfg.hidden)
        self.up = Linear(cfg.dim, cfg.hidden)
        self.down = Linear(cfg.hidden, cfg.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., dim) to what is added to it."""
        gate, up = project(x, self.gate, self.up)
        return self.down(F.silu(gate) * up)
