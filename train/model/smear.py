"""SmearGate: each embedding mixed with the one before it (docs/trainer-math.md, "SmearGate").

Config keys: smear, smear_bos_mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Smear(nn.Module):
    """(1 - g) x_t + g x_{t-1}, g = sigmoid(gate) a channel; the first token of a text has nothing before it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, starts: Tensor, unmixed: Tensor | None = None) -> Tensor:
        """Mix x (B, T, dim).

        starts: (B or 1, T) bool, tokens whose x_{t-1} is 0. unmixed: (B, T) bool, tokens that stay as they are.
        """
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1).masked_fill(starts[..., None], 0)
        gate = torch.sigmoid(self.gate).to(x.dtype)
        if unmixed is not None:
            gate = gate * ~unmixed[..., None]
        return (1 - gate) * x + gate * before
