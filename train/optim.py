"""Muon for the matrices inside the blocks, AdamW for the rest; gradients in one flat buffer.

Muon (K. Jordan), in the form of "Shard Muon" (trainers.md 1.6; the card does not print constants, so they are ours):

    buf = momentum * buf + g;   u = g + momentum * buf          Nesterov, sum form
    O = NewtonSchulz(u)                                         nearest (semi-)orthogonal matrix, roughly
    w *= 1 - lr * weight_decay;   w -= lr * .18 * sqrt(max(rows, cols)) * O

An orthogonal O has root mean square 1/sqrt(max(rows, cols)), so each update has .18 * lr, about what AdamW's has:
one lr means the same for every shape, and for both optimisers.

Matrices of one shape (transposed to be wide) are stacked and go through Newton-Schulz as one batched product.
`newton_schulz_reference` is the readable form for one matrix. torch.optim.Muon, which has neither 8+2 steps nor fp32,
is the oracle for what it can express (tests/train/test_optim.py).

World size: every rank holds all gradients after the all-reduce and takes the same step. Newton-Schulz is under .4 % of
a step at 54M parameters (trainers.md 3.4), so it is not split, and a checkpoint needs nothing gathered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from train.config import TrainConfig
from train.model import Model

JORDAN = (3.4445, -4.7750, 2.0315)  # steep at 0: small singular values triple in each step, none settles at 1
POLISH = (2.0, -1.5, 0.5)  # converges to 1 quadratically, once near
SCHEDULES = {"jordan5": (JORDAN,) * 5, "dsv4": (JORDAN,) * 8 + (POLISH,) * 2}
SCALE = 0.18  # root mean square of an update, in units of lr; "Shard Muon"


def newton_schulz_reference(g: Tensor, schedule: str) -> Tensor:
    """(m, n) -> (m, n), towards U Vᵀ of g = U S Vᵀ. For reading and for tests."""
    x = g / (g.norm() + 1e-7)
    if g.shape[0] > g.shape[1]:
        x = x.T
    for a, b, c in SCHEDULES[schedule]:
        A = x @ x.T
        x = a * x + (b * A + c * A @ A) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def newton_schulz(g: Tensor, schedule: str) -> Tensor:
    """(k, m, n) with m <= n, k matrices at once, in the dtype of g."""
    x = g / (g.float().norm(dim=(1, 2), keepdim=True) + 1e-7).to(g.dtype)
    for a, b, c in SCHEDULES[schedule]:
        A = torch.bmm(x, x.mT)
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # bA + cAA
        x = torch.baddbmm(x, B, x, beta=a)  # ax + Bx
    return x


def modules(names: list[str], pieces: Sequence[Tensor]) -> dict[str, Tensor]:
    """Module -> its part of the flat gradient that `pieces` make up, in the order of `names`.

    A block is a module, and so is all else by its first name.
    """
    found: dict[str, list[Tensor]] = {}
    for name, piece in zip(names, pieces, strict=True):
        found.setdefault(".".join(name.split(".")[: 2 if name.startswith("blocks.") else 1]), []).append(piece)
    sizes = {module: sum(p.numel() for p in mine) for module, mine in found.items()}
    return {m: mine[0].as_strided((sizes[m],), (1,), mine[0].storage_offset()) for m, mine in found.items()}


class Stack(NamedTuple):
    """Matrices of one shape, wide: momentum is (k, m, n), m <= n."""

    names: list[str]
    params: list[Tensor]
    momentum: Tensor


class Moments(NamedTuple):
    """AdamW's state for one parameter."""

    name: str
    param: Tensor
    first: Tensor
    second: Tensor

    @property
    def decays(self) -> bool:
        """Matrices do, but not the engram's: a slot that no text reads should keep its value (trainers.md 1.15)."""
        return self.param.ndim >= 2 and not self.name.startswith("engram.")


class Optimizer:
    """Both update rules over one model, and the flat gradient they read."""

    def __init__(self, model: Model, cfg: TrainConfig) -> None:
        self.cfg = cfg
        self.steps = 0  # updates made: AdamW's bias correction
        named = list(model.named_parameters())
        # One buffer: one all-reduce, one norm, one clip, in an order that never changes. (DDP re-buckets after its
        # first step, so with 3 or more ranks a resumed run would sum in another order than an undisturbed one.)
        # Its last place is the loss's, which so comes to be known to all without a message of its own.
        self.reduced = torch.zeros(sum(p.numel() for _, p in named) + 1, device=named[0][1].device)
        self.grads, self.loss = self.reduced[:-1], self.reduced[-1]
        pieces = self.grads.split([p.numel() for _, p in named])
        for (_, p), piece in zip(named, pieces, strict=True):
            p.grad = piece.view_as(p)
        self.modules = modules([n for n, _ in named], pieces)
        hidden = [(n, p) for n, p in named if n.startswith("blocks.") and p.ndim == 2]
        matrices = hidden if cfg.optimizer == "muon" else []
        self.stacks = _stack(matrices)
        taken = {name for name, _ in matrices}
        self.moments = [
            Moments(n, p, torch.zeros_like(p.data), torch.zeros_like(p.data)) for n, p in named if n not in taken
        ]
        bf16 = cfg.muon.ns_dtype == "bfloat16" or (cfg.muon.ns_dtype == "auto" and self.grads.is_cuda)
        self.ns_dtype = torch.bfloat16 if bf16 else torch.float32

    @torch.no_grad()
    def clip(self) -> Tensor:
        """The gradient's global L2 norm, before it is scaled down to at most grad_clip. Stays on the device."""
        norm = self.grads.norm()
        if self.cfg.grad_clip > 0:
            self.grads.mul_((self.cfg.grad_clip / (norm + 1e-6)).clamp_(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update with every lr times `factor`; leaves the gradients as they are."""
        self.steps += 1
        for stack in self.stacks:
            self._muon(stack, factor)
        for moments in self.moments:
            self._adamw(moments, factor)

    def _muon(self, stack: Stack, factor: float) -> None:
        cfg = self.cfg.muon
        lr = cfg.lr * factor
        g = torch.stack([_wide(p.grad) for p in stack.params])  # (k, m, n)
        stack.momentum.mul_(cfg.momentum).add_(g)
        g.add_(stack.momentum, alpha=cfg.momentum)
        update = newton_schulz(g.to(self.ns_dtype), cfg.ns).float()
        scale = SCALE * math.sqrt(update.shape[-1])
        for p, o in zip(stack.params, update, strict=True):
            p.data.mul_(1 - lr * cfg.weight_decay)
            p.data.add_(o if o.shape == p.shape else o.mT, alpha=-lr * scale)

    def _adamw(self, moments: Moments, factor: float) -> None:
        """torch.optim.AdamW's arithmetic, in its order (the test compares to the bit)."""
        cfg = self.cfg.adamw
        lr = cfg.lr * factor
        _, parameter, first, second = moments
        p, g = parameter.data, parameter.grad
        assert g is not None
        if moments.decays:
            p.mul_(1 - lr * cfg.weight_decay)
        b1, b2 = cfg.betas
        first.lerp_(g, 1 - b1)
        second.mul_(b2).addcmul_(g, g, value=1 - b2)
        denominator = (second.sqrt() / math.sqrt(1 - b2**self.steps)).add_(cfg.eps)
        p.addcdiv_(first, denominator, value=-lr / (1 - b1**self.steps))

    def state_tensors(self) -> dict[str, Tensor]:
        """All state by parameter name, for a checkpoint. Momentum is stored wide, as it is held."""
        tensors: dict[str, Tensor] = {}
        for stack in self.stacks:
            tensors |= {f"muon.{n}": b for n, b in zip(stack.names, stack.momentum, strict=True)}
        for m in self.moments:
            tensors |= {f"adamw.first.{m.name}": m.first, f"adamw.second.{m.name}": m.second}
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Put back what `state_tensors` gave. Raises KeyError when one is missing."""
        for name, held in self.state_tensors().items():
            held.copy_(tensors[name])
        self.steps = steps


def _wide(x: Tensor | None) -> Tensor:
    assert x is not None
    return x if x.shape[0] <= x.shape[1] else x.mT


def _stack(named: list[tuple[str, torch.nn.Parameter]]) -> list[Stack]:
    shapes: dict[tuple[int, ...], list[tuple[str, torch.nn.Parameter]]] = {}
    for name, p in named:
        shapes.setdefault(tuple(sorted(p.shape)), []).append((name, p))
    return [
        Stack([n for n, _ in same], [p for _, p in same], torch.zeros(len(same), *shape, device=same[0][1].device))
        for shape, same in sorted(shapes.items())
    ]
