"""Bounds for two ways of computing the same: from the size of the values and the unit in the last place.

Processors, libraries and numbers of threads add in other orders. What promises equality to the bit promises it on one
machine; all else is compared within these bounds.
"""

from __future__ import annotations

import torch

EPS = torch.finfo(torch.float32).eps
# Logits of a small model, computed in two orders, are some 30 units apart on the worst of the processors tried;
# a wrong mask, position or weight moves them by thousands.
UNITS = 256
# Losses of two runs that round differently drift apart while they train: up to 2e-6 nats in 30 steps of a small model.
LOSS = 1e-4


def assert_near(got: torch.Tensor, want: torch.Tensor, units: float = UNITS, eps: float = EPS) -> None:
    """Assert that no value is further off than `units` units in the last place of the largest one."""
    assert got.shape == want.shape
    apart, size = (got.double() - want.double()).abs().max().item(), want.abs().max().item()
    assert apart <= units * eps * size, f"{apart:.3g} apart, {apart / (eps * size):.1f} units of {size:.3g}"
