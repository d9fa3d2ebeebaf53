"""AdamW for all that Muon does not train, as one fused kernel over a flat buffer.

torch._foreach_* would spare launches too, but is not public.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.optim.adamw import adamw  # the functional form: the class imports torch._dynamo, a second at every start

from train.config import AdamWConfig


class AdamWGroup:
    """Parameters of one rate and one decay, one after another: weights, grads and both moments are (n,)."""

    def __init__(self, shapes: dict[str, torch.Size], weights: Tensor, grads: Tensor, cfg: AdamWConfig) -> None:
        self.shapes, self.weights, self.grads, self.cfg = shapes, weights, grads, cfg
        self.first = torch.zeros_like(weights)
        self.second = torch.zeros_like(weights)
        self.steps = weights.new_zeros(())

    @property
    def names(self) -> list[str]:
        """Names of the parameters, in their order in the buffers."""
        return list(self.shapes)

    def step(self, factor: float) -> None:
        """Make one update with the lr times `factor`."""
        adamw(
            [self.weights],
            [self.grads],
            [self.first],
            [self.second],
            [],
            [self.steps],
            fused=True,
            amsgrad=False,
            beta1=self.cfg.betas[0],
            beta2=self.cfg.betas[1],
            lr=self.cfg.lr * factor,
            weight_decay=self.cfg.weight_decay,
            eps=self.cfg.eps,
            maximize=False,
        )

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield both moments by name, as views in the parameters' shapes."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        for kind, flat in (("first", self.first), ("second", self.second)):
            for (name, shape), part in zip(self.shapes.items(), flat.split(sizes), strict=True):
                yield f"adamw.{kind}.{name}", part.view(shape)
