"""The MLP of a block: gated, with SiLU or GELU (Shazeer 2020, arXiv:2002.05202), or ReLU squared (arXiv:2109.08668).

Config keys: mlp, mlp_hidden.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from train.model.config import ModelConfig
from train.model.layers import Linear, project


class MLP(nn.Module):
    """down(f(gate x) * up x), f being silu for swiglu and the tanh form of gelu for geglu; relu2: down(relu(up x)²)."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.kind = cfg.mlp
        self.gate = None if cfg.mlp == "relu2" else Linear(cfg.dim, cfg.hidden)
        self.up = Linear(cfg.dim, cfg.hidden)
        self.down = Linear(cfg.hidden, cfg.dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., dim) to what is added to it."""
        if self.gate is None:
            return self.down(F.relu(self.up(x)).square())
        gate, up = project(x, self.gate, self.up)
        return self.down((F.silu(gate) if self.kind == "swiglu" else F.gelu(gate, approximate="tanh")) * up)
