"""What every part of the model is made of: a linear map, several of one input at once, and RMSNorm.

Weights are fp32 always. Activations have the dtype asked for; a weight is cast where it is used, which in fp32 is
nothing. Matrices are not initialized here: `train.model.init` draws all of them in one order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NormKind = Literal["weighted", "one_plus", "plain"]


class Linear(nn.Module):
    """A linear map without bias, from (..., inputs) to (..., outputs)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.fake_quant: Callable[[Tensor], Tensor] | None = None  # see train/model/fake_quant.py

    def forward(self, x: Tensor) -> Tensor:
        """Map x."""
        return F.linear(x, self.used_weight().to(x.dtype))

    def used_weight(self) -> Tensor:
        """Return what x is multiplied by: the weight, rounded where training is for few bits.

        Every product of a Linear takes it from here.
        """
        return self.fake_quant(self.weight) if self.fake_quant is not None and self.training else self.weight


def project(x: Tensor, *linears: Linear) -> tuple[Tensor, ...]:
    """Map x by each of `linears`; on a GPU, which thin products do not fill, by one product for all.

    On a CPU they stay apart: one product would sum the gradient by x in another order than the plain form does.
    """
    return fused_linear(x, *linears) if x.is_cuda else tuple(linear(x) for linear in linears)


def fused_linear(x: Tensor, *linears: Linear) -> tuple[Tensor, ...]:
    """Map x by each of `linears` with one product of their weights on top of each other; each result is a view.

    Weights are joined here and not stored so: Muon works on each matrix, and a checkpoint names each.
    """
    weight = torch.cat([linear.used_weight().to(x.dtype) for linear in linears])
    return F.linear(x, weight).split([len(linear.weight) for linear in linears], -1)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) over the last dimension, with statistics in fp32, times what `kind` says.

    weighted: a weight; one_plus: 1 + weight, in fp32, as Gemma has it; plain: nothing.
    """

    def __init__(self, dim: int, eps: float, kind: NormKind = "weighted") -> None:
        super().__init__()
        self.shape, self.eps, self.kind = (dim,), eps, kind
        first_value = torch.zeros(dim) if kind == "one_plus" else torch.ones(dim)
        self.weight = None if kind == "plain" else nn.Parameter(first_value)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize x (..., dim)."""
        if self.weight is None:
            return F.rms_norm(x, self.shape, None, self.eps)
        if self.kind == "one_plus":
            return F.rms_norm(x.float(), self.shape, 1 + self.weight.float(), self.eps).to(x.dtype)
        return F.rms_norm(x, self.shape, self.weight.to(x.dtype), self.eps)
