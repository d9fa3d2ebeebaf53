"""What every part of the model is made of: a linear map, several of one input at once, and RMSNorm.

Weights are fp32 always. Activations have the dtype asked for; a weight is cast where it is used, which in fp32 is
nothing. Matrices are not initialized here: `train.model.transformer.build` draws all of them in one order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """A linear map without bias, from (..., inputs) to (..., outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map x."""
        return F.linear(x, self.weight.to(x.dtype))


def project(x: Tensor, *linears: Linear) -> tuple[Tensor, ...]:
    """Map x by each of `linears`; on a GPU, which thin products do not fill, by one product for all.

    On a CPU they stay apart: one product would sum the gradient by x in another order than the plain form does.
    """
    return fused_linear(x, *linears) if x.is_cuda else tuple(linear(x) for linear in linears)


def fused_linear(x: Tensor, *linears: Linear) -> tuple[Tensor, ...]:
    """Map x by each of `linears` with one product of their weights on top of each other; each result is a view.

    Weights are joined here and not stored so: Muon works on each matrix, and a checkpoint names each.
    """
    weight = torch.cat([linear.weight.to(x.dtype) for linear in linears])
    return F.linear(x, weight).split([len(linear.weight) for linear in linears], -1)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * weight over the last dimension, with statistics in fp32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., dim)."""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
