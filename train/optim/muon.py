"""Muon for the matrices inside the blocks, AdamW for the rest; weights and gradients in one flat buffer each.

Muon (K. Jordan), in the form of "Shard Muon" (trainers.md 1.6; the card does not print constants, so they are ours):

    buf = momentum * buf + g;   u = g + momentum * buf          Nesterov, sum form
    O = NewtonSchulz(u)                                         nearest (semi-)orthogonal matrix, roughly
    w *= 1 - lr * weight_decay;   w -= lr * .18 * sqrt(max(rows, cols)) * O

An orthogonal O has root mean square 1/sqrt(max(rows, cols)), so each update has .18 * lr, about what AdamW's has:
one lr means the same for every shape, and for both optimisers. The model's matrices are parameters of their own (q, k
and v, gate and up), also where it multiplies several at once, so each is made orthogonal by itself.

Layout: [matrices of shape 1 | of shape 2 | ... | AdamW's that decay | AdamW's that do not], for weights and gradients
alike; the model's parameters and their .grad are views. A stack is so a (k, rows, cols) view: its Newton-Schulz is a
few batched products, decay and update are two kernels, nothing is gathered by copying, and AdamW is one fused kernel
for all it holds. (torch._foreach_* would spare launches too, but is not public.) The products leave no elementwise
work between them, so there is nothing to compile. `newton_schulz_reference` is the readable form for one matrix;
torch.optim.Muon, which has neither other coefficients nor fp32, is the oracle for what it can express
(tests/train/test_optim.py).

Ranks: gradients are all-reduced, so every rank has all. Of each stack a rank owns a share, the k matrices divided by
the ranks and rounded up; it holds only that momentum and makes only those updates, which are then gathered, in
Newton-Schulz's dtype, and applied by all. With one rank there is no share, no message and no copy. Bits: a matrix's
product in a batch is the same whatever else the batch holds, as far as seen on CPU, except that one matrix alone on
several threads is computed another way (1e-6 off); on CUDA the batch may decide the kernel. So the number of ranks
changes the last bits of an update, and the order of the gradient's sum does so anyway; the same number repeats them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.adamw import adamw  # the functional form: the class imports torch._dynamo, a second at every start

from train.config import TrainConfig
from train.model.transformer import Model

JORDAN = (3.4445, -4.7750, 2.0315)  # steep at 0: small singular values triple in each step, none settles at 1
POLISH = (2.0, -1.5, 0.5)  # converges to 1 quadratically, once near
POLAR_EXPRESS = (  # Amsel et al. 2025, each step the best for what the last one leaves; as modded-nanogpt has them
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
SCALE = 0.18  # root mean square of an update, in units of lr; "Shard Muon"


class Schedule(NamedTuple):
    """x starts as u / (margin * |u| + eps); then, for each (a, b, c), x = a x + b (x xᵀ) x + c (x xᵀ)² x."""

    steps: tuple[tuple[float, float, float], ...]
    margin: float = 1.0
    eps: float = 1e-7


SCHEDULES = {
    "jordan5": Schedule((JORDAN,) * 5),
    "dsv4": Schedule((JORDAN,) * 8 + (POLISH,) * 2),
    "polar_express": Schedule(POLAR_EXPRESS, 1.02, 1e-6),
}


def newton_schulz_reference(g: Tensor, schedule: str) -> Tensor:
    """(m, n) -> (m, n), towards U Vᵀ of g = U S Vᵀ. For reading and for tests."""
    steps, margin, eps = SCHEDULES[schedule]
    x = g / (margin * g.norm() + eps)
    if g.shape[0] > g.shape[1]:
        x = x.T
    for a, b, c in steps:
        A = x @ x.T
        x = a * x + (b * A + c * A @ A) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def newton_schulz(g: Tensor, schedule: str) -> Tensor:
    """(k, m, n), k matrices at once, wide or tall, in the dtype of g: through the Gram matrix of the short side."""
    steps, margin, eps = SCHEDULES[schedule]
    norm = torch.linalg.vector_norm(g, dim=(1, 2), keepdim=True, dtype=torch.promote_types(g.dtype, torch.float32))
    x = g / (margin * norm + eps).to(g.dtype)
    tall = g.shape[1] > g.shape[2]
    for a, b, c in steps:
        A = torch.bmm(x.mT, x) if tall else torch.bmm(x, x.mT)
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # bA + cAA
        x = torch.baddbmm(x, x, B, beta=a) if tall else torch.baddbmm(x, B, x, beta=a)  # ax + Bx, or ax + xB
    return x


def module_of(name: str) -> str:
    """What a parameter is counted with: its block, and outside the blocks its first name."""
    return ".".join(name.split(".")[: 2 if name.startswith("blocks.") else 1])


def decays(name: str, parameter: Tensor) -> bool:
    """Whether AdamW's weight decay acts on a parameter.

    On matrices it does, but not on the engram's: a slot that no text reads should keep its value (trainers.md 1.15).
    """
    return parameter.ndim >= 2 and not name.startswith("engram.")


class Stack(NamedTuple):
    """Muon's matrices of one shape: weights and grads (k, rows, cols); momentum (share, rows, cols) of this rank's.

    `own`: which of the k are this rank's; the last ranks may have fewer than a share, even none.
    """

    names: list[str]
    weights: Tensor
    grads: Tensor
    momentum: Tensor
    own: slice


class Moments(NamedTuple):
    """AdamW's parameters that decay, or that do not, one after another: all tensors (n,), but `step`, which is ()."""

    names: list[str]
    decays: bool
    weights: Tensor
    grads: Tensor
    first: Tensor
    second: Tensor
    step: Tensor


class Optimizer:
    """Both update rules over one model, the flat weights, and the flat gradient they read.

    Makes the model's parameters views of `weights`: build it when the model is on its device.
    """

    def __init__(self, model: Model, cfg: TrainConfig, rank: int = 0, world: int = 1) -> None:
        self.cfg, self.rank, self.world = cfg, rank, world
        self.steps = 0  # updates made
        self.parameters = named = dict(model.named_parameters())
        muon, rest = _parted(named, cfg.optimizer == "muon")
        order = [name for group in (*muon, *rest.values()) for name in group]
        sizes = [named[name].numel() for name in order]
        self.weights = torch.cat([named[name].detach().flatten() for name in order])
        # One buffer: one all-reduce, one norm, one clip, in an order that never changes. (DDP re-buckets after its
        # first step, so with 3 or more ranks a resumed run would sum in another order than an undisturbed one.)
        # Its last place is the loss's, which so comes to be known to all without a message of its own.
        self.reduced = self.weights.new_zeros(len(self.weights) + 1)
        self.grads, self.loss = self.reduced[:-1], self.reduced[-1]
        for name, w, g in zip(order, self.weights.split(sizes), self.grads.split(sizes), strict=True):
            named[name].data, named[name].grad = w.view_as(named[name]), g.view_as(named[name])
        parts = [sum(named[name].numel() for name in group) for group in (*muon, *rest.values())]
        pairs = list(zip(self.weights.split(parts), self.grads.split(parts), strict=True))
        self.stacks = [self._stack(names, w, g) for names, (w, g) in zip(muon, pairs, strict=False)]
        self.moments = [
            Moments(names, decay, w, g, torch.zeros_like(w), torch.zeros_like(w), w.new_zeros(()))
            for (decay, names), (w, g) in zip(rest.items(), pairs[len(muon) :], strict=True)
        ]
        self.muon = [name for name in named if any(name in names for names in muon)]
        self.modules = list(dict.fromkeys(module_of(name) for name in named))
        self._prepare_norms()
        bf16 = cfg.muon.ns_dtype == "bfloat16" or (cfg.muon.ns_dtype == "auto" and self.grads.is_cuda)
        self.ns_dtype = torch.bfloat16 if bf16 else torch.float32

    def _stack(self, names: list[str], weights: Tensor, grads: Tensor) -> Stack:
        k, shape = len(names), self.parameters[names[0]].shape
        share = -(-k // self.world)
        own = slice(min(k, self.rank * share), min(k, (self.rank + 1) * share))
        return Stack(names, weights.view(k, *shape), grads.view(k, *shape), weights.new_zeros(share, *shape), own)

    def _prepare_norms(self) -> None:
        """What `norms` reads: a norm for each of Muon's matrices, and for each run of one module's in AdamW's."""
        owners = [module_of(name) for stack in self.stacks for name in stack.names]
        self._runs: list[Tensor] = []
        for moments in self.moments:
            at = 0
            for module, names in itertools.groupby(moments.names, module_of):
                size = sum(self.parameters[name].numel() for name in names)
                self._runs.append(moments.grads[at : at + size])
                owners.append(module)
                at += size
        pieces = [[i for i, owner in enumerate(owners) if owner == module] for module in self.modules]
        longest, none = max(map(len, pieces)), len(owners)  # a 0 stands behind the last piece
        table = [[*mine, *[none] * (longest - len(mine))] for mine in pieces]
        self._pieces = torch.tensor(table, device=self.grads.device)

    @torch.no_grad()
    def norms(self) -> Tensor:
        """(modules,) L2 norm of each module's gradient, in the order of `modules`. Stays on the device."""
        pieces = [torch.linalg.vector_norm(stack.grads, dim=(1, 2)) for stack in self.stacks]
        pieces += [torch.stack([run.norm() for run in self._runs]), self.grads.new_zeros(1)]
        return torch.linalg.vector_norm(torch.cat(pieces)[self._pieces], dim=1)

    @torch.no_grad()
    def clip(self) -> Tensor:
        """The gradient's global L2 norm, before it is scaled down to at most grad_clip. Stays on the device."""
        norm = self.grads.norm()
        if self.cfg.grad_clip > 0:
            self.grads.mul_((self.cfg.grad_clip / (norm + 1e-6)).clamp_(max=1.0))
        return norm

    @torch.no_grad()
    def step(self, factor: float) -> None:
        """One update with every lr times `factor`; leaves the gradients as they are. With ranks, all must call it."""
        self.steps += 1
        coming: list[tuple[Stack, Tensor, Any]] = []  # gathered while the next stack is computed
        for stack in self.stacks:
            update = self._update(stack)
            if self.world == 1:
                self._apply(stack, update, factor)
            else:
                coming.append((stack, *self._gather(update, stack)))
        for moments in self.moments:
            self._adamw(moments, factor)
        for stack, updates, message in coming:
            message.wait()
            self._apply(stack, updates, factor)

    def _update(self, stack: Stack) -> Tensor:
        """The orthogonal updates of this rank's matrices."""
        beta = self.cfg.muon.momentum
        g = stack.grads[stack.own]
        momentum = stack.momentum[: len(g)]
        momentum.mul_(beta).add_(g)
        return newton_schulz(torch.add(g, momentum, alpha=beta).to(self.ns_dtype), self.cfg.muon.ns)

    def _gather(self, mine: Tensor, stack: Stack) -> tuple[Tensor, Any]:
        """Of what each rank has for its own matrices, all (k, rows, cols), which are there after .wait() of the second.

        All messages have one length: where a rank has fewer than a share, zeros fill it up.
        """
        share = stack.momentum
        if len(mine) < len(share):
            mine = torch.cat([mine, torch.zeros_like(share[len(mine) :], dtype=mine.dtype)])
        whole = mine.new_empty(self.world * len(share), *share.shape[1:])
        message = dist.all_gather(list(whole.chunk(self.world)), mine, async_op=True)
        return whole[: len(stack.names)], message

    def _apply(self, stack: Stack, updates: Tensor, factor: float) -> None:
        cfg = self.cfg.muon
        lr = cfg.lr * factor
        stack.weights.mul_(1 - lr * cfg.weight_decay)
        stack.weights.add_(updates, alpha=-lr * SCALE * math.sqrt(max(updates.shape[1:])))

    def _adamw(self, moments: Moments, factor: float) -> None:
        cfg = self.cfg.adamw
        adamw(
            [moments.weights],
            [moments.grads],
            [moments.first],
            [moments.second],
            [],
            [moments.step],
            fused=True,
            amsgrad=False,
            beta1=cfg.betas[0],
            beta2=cfg.betas[1],
            lr=cfg.lr * factor,
            weight_decay=cfg.weight_decay if moments.decays else 0.0,
            eps=cfg.eps,
            maximize=False,
        )

    @torch.no_grad()
    def state_tensors(self) -> dict[str, Tensor]:
        """All state by parameter name, for a checkpoint. With ranks all must call it; each gets everything.

        Most are views of what the next step changes. Momentum is stored wide: a tall matrix's transposed.
        """
        tensors = dict(self._held())
        for stack in self.stacks if self.world > 1 else []:
            momentum, message = self._gather(stack.momentum, stack)
            message.wait()
            tensors |= {f"muon.{name}": _wide(m) for name, m in zip(stack.names, momentum, strict=True)}
        return tensors

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Put back what `state_tensors` gave, at any number of ranks. Raises KeyError when one is missing."""
        for name, held in self._held():
            held.copy_(tensors[name])
        for moments in self.moments:
            moments.step.fill_(steps)
        self.steps = steps

    def _held(self) -> Iterator[tuple[str, Tensor]]:
        """This rank's state by name."""
        for stack in self.stacks:
            for name, momentum in zip(stack.names[stack.own], stack.momentum, strict=False):
                yield f"muon.{name}", _wide(momentum)
        for moments in self.moments:
            sizes = [self.parameters[name].numel() for name in moments.names]
            for kind, flat in (("first", moments.first), ("second", moments.second)):
                for name, part in zip(moments.names, flat.split(sizes), strict=True):
                    yield f"adamw.{kind}.{name}", part.view_as(self.parameters[name])


def _wide(x: Tensor) -> Tensor:
    return x if x.shape[0] <= x.shape[1] else x.mT


def _parted(named: dict[str, nn.Parameter], muon: bool) -> tuple[list[list[str]], dict[bool, list[str]]]:
    """Names of Muon's matrices by shape, the largest stack first, and of AdamW's parameters by whether they decay."""
    shapes: dict[torch.Size, list[str]] = {}
    rest: dict[bool, list[str]] = {True: [], False: []}
    for name, p in named.items():
        if muon and name.startswith("blocks.") and p.ndim == 2:
            shapes.setdefault(p.shape, []).append(name)
        else:
            rest[decays(name, p)].append(name)
    return sorted(shapes.values(), key=lambda names: -len(names) * named[names[0]].numel()), rest
