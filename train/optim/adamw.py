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
    """Parameters of one rate and one decay, one after another: weights, grads and both moments are (n,).

    bfloat16: everything is rounded to it in each step, which is what torch does to a bf16 parameter without master.
    """

    def __init__(
        self, shapes: dict[str, torch.Size], weights: Tensor, grads: Tensor, cfg: AdamWConfig, bfloat16: bool = False
    ) -> None:
        self.shapes, self.weights, self.grads, self.cfg, self.bfloat16 = shapes, weights, grads, cfg, bfloat16
        self.first = torch.zeros_like(weights)
        self.second = torch.zeros_like(weights)
        self.steps = weights.new_zeros(())
        if bfloat16:
            weights.copy_(weights.bfloat16())

    @property
    def names(self) -> list[str]:
        """Names of the parameters, in their order in the buffers."""
        return list(self.shapes)

    def step(self, factor: float) -> None:
        """Make one update with the lr times `factor`."""
        if self.bfloat16:
            self.grads.copy_(self.grads.bfloat16())
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
        if self.bfloat16:
            for tensor in (self.weights, self.first, self.second):
                tensor.copy_(tensor.bfloat16())

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield both moments by name, as views in the parameters' shapes."""
        sizes = [shape.numel() for shape in self.shapes.values()]
        for kind, flat in (("first", self.first), ("second", self.second)):
            for (name, shape), part in zip(self.shapes.items(), flat.split(sizes), strict=True):
                yield f"adamw.{kind}.{name}", part.view(shape)
