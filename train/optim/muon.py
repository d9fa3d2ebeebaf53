"""Muon (K. Jordan, 2024) for the matrices inside the blocks, in the form of docs/trainer-math.md, "Muon":

    buf = momentum * buf + g;   u = g + momentum * buf          Nesterov, sum form
    O = NewtonSchulz(u)                                         nearest (semi-)orthogonal matrix, roughly
    w *= 1 - lr * weight_decay;   w -= lr * .18 * sqrt(max(rows, cols)) * O

An orthogonal O has root mean square 1/sqrt(max(rows, cols)), so each update has .18 * lr, about what AdamW's has:
one lr means the same for every shape, and for both optimizers. With `scale: aspect` the factor is Jordan's instead,
sqrt(max(1, rows / cols)), and with `decay_order: after` the decay follows the update. (Both parameter-golf records have
the first, one of them has the second, and their momentum rises in the first steps: `momentum_at`.) The model's matrices
are parameters of their own (q, k and v, gate and up), also where it multiplies several at once, so each is made
orthogonal by itself.

Matrices of one shape are one group, a (k, rows, cols) view of the flat buffers: its Newton-Schulz is a few batched
products, and decay and update are two kernels. The products leave no elementwise work between them, so there is nothing
to compile. `newton_schulz_reference` is the readable form for one matrix; torch.optim.Muon, which has neither other
coefficients nor fp32, is the oracle for what it can express (tests/train/optim/test_optimizer.py).

Ranks: gradients are all-reduced, so every rank has all. Of each group a rank owns a share, the k matrices divided by
the ranks and rounded up; it holds only that momentum and makes only those updates, which are then gathered, in
Newton-Schulz's dtype, and applied by all. With one rank there is no share, no message and no copy. Bits: a matrix's
product in a batch is the same whatever else the batch holds, as far as seen on CPU, except that one matrix alone on
several threads is computed another way (1e-6 off); on CUDA the batch may decide the kernel. So the number of ranks
changes the last bits of an update, and the order of the gradient's sum does so anyway; the same number repeats them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from train.config import MuonConfig

JORDAN = (3.4445, -4.7750, 2.0315)  # steep at 0: small singular values triple in each step, none settles at 1
POLISH = (2.0, -1.5, 0.5)  # converges to 1 quadratically, once near
POLAR_EXPRESS = (  # Amsel et al. 2025, each step the best for what the last one leaves; as modded-nanogpt has them
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
SCALE = 0.18  # root mean square of an update, in units of lr


def momentum_at(step: int, cfg: MuonConfig) -> float:
    """Return the momentum of 0-based `step`: it rises linearly over `momentum_warmup` steps, and stays."""
    if step >= cfg.momentum_warmup:
        return cfg.momentum
    f = step / cfg.momentum_warmup
    return (1 - f) * cfg.momentum_start + f * cfg.momentum


class NewtonSchulz(NamedTuple):
    """A map towards orthogonality.

    x starts as u / (margin * |u| + eps); then, for each (a, b, c), x = a x + b (x xᵀ) x + c (x xᵀ)² x.
    """

    steps: tuple[tuple[float, float, float], ...]
    margin: float = 1.0
    eps: float = 1e-7


NEWTON_SCHULZ = {
    "jordan5": NewtonSchulz((JORDAN,) * 5),
    "dsv4": NewtonSchulz((JORDAN,) * 8 + (POLISH,) * 2),
    "polar_express": NewtonSchulz(POLAR_EXPRESS, 1.02, 1e-6),
}


def newton_schulz_reference(g: Tensor, name: str) -> Tensor:
    """Return U Vᵀ, roughly, of g = U S Vᵀ, (m, n). For reading and for tests."""
    steps, margin, eps = NEWTON_SCHULZ[name]
    x = g / (margin * g.norm() + eps)
    if g.shape[0] > g.shape[1]:
        x = x.T
    for a, b, c in steps:
        A = x @ x.T
        x = a * x + (b * A + c * A @ A) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def newton_schulz(g: Tensor, name: str) -> Tensor:
    """Do as `newton_schulz_reference` for k matrices (k, m, n) at once, in the dtype of g.

    Wide or tall, it goes through the Gram matrix of the short side.
    """
    steps, margin, eps = NEWTON_SCHULZ[name]
    norm = torch.linalg.vector_norm(g, dim=(1, 2), keepdim=True, dtype=torch.promote_types(g.dtype, torch.float32))
    x = g / (margin * norm + eps).to(g.dtype)
    tall = g.shape[1] > g.shape[2]
    for a, b, c in steps:
        A = torch.bmm(x.mT, x) if tall else torch.bmm(x, x.mT)
        B = torch.baddbmm(A, A, A, beta=b, alpha=c)  # bA + cAA
        x = torch.baddbmm(x, x, B, beta=a) if tall else torch.baddbmm(x, B, x, beta=a)  # ax + Bx, or ax + xB
    return x


class MuonGroup:
    """Muon's matrices of one shape, k of them, and the state and the work of this rank's share.

    weights, grads: (k, rows, cols), views of the flat buffers. momentum: (share, rows, cols) of this rank's matrices.
    own: which of the k are this rank's; the last ranks may have fewer than a share, even none.
    """

    def __init__(
        self, names: list[str], weights: Tensor, grads: Tensor, cfg: MuonConfig, rank: int = 0, world: int = 1
    ) -> None:
        k = len(names)
        share = -(-k // world)
        self.names, self.weights, self.grads, self.cfg, self.world = names, weights, grads, cfg, world
        self.own = slice(min(k, rank * share), min(k, (rank + 1) * share))
        self.momentum = weights.new_zeros(share, *weights.shape[1:])
        bf16 = cfg.ns_dtype == "bfloat16" or (cfg.ns_dtype == "auto" and grads.is_cuda)
        self.ns_dtype = torch.bfloat16 if bf16 else torch.float32

    def update(self, beta: float) -> Tensor:
        """Take the gradients into the momentum and return the orthogonal updates of this rank's matrices.

        beta: the momentum of this step.
        """
        g = self.grads[self.own]
        momentum = self.momentum[: len(g)]
        momentum.mul_(beta).add_(g)
        return newton_schulz(torch.add(g, momentum, alpha=beta).to(self.ns_dtype), self.cfg.ns)

    def gather(self, mine: Tensor) -> tuple[Tensor, dist.Work]:
        """Begin to gather, of what each rank has for its own matrices, all (k, rows, cols).

        They are there after .wait() of the second result. All messages have one length: where a rank has fewer than a
        share, zeros fill it up.
        """
        share = self.momentum
        if len(mine) < len(share):
            mine = torch.cat([mine, torch.zeros_like(share[len(mine) :], dtype=mine.dtype)])
        whole = mine.new_empty(self.world * len(share), *share.shape[1:])
        message = dist.all_gather(list(whole.chunk(self.world)), mine, async_op=True)
        return whole[: len(self.names)], message

    def apply(self, updates: Tensor, factor: float) -> None:
        """Decay all k matrices and step along `updates`, with the lr times `factor`."""
        lr = self.cfg.lr * factor
        rows, cols = updates.shape[1:]
        is_rms = self.cfg.scale == "rms"
        alpha = -lr * SCALE * math.sqrt(max(rows, cols)) if is_rms else -lr * math.sqrt(max(1, rows / cols))
        if self.cfg.decay_order == "before":
            self.weights.mul_(1 - lr * self.cfg.weight_decay)
        self.weights.add_(updates, alpha=alpha)
        if self.cfg.decay_order == "after":
            self.weights.mul_(1 - lr * self.cfg.weight_decay)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the momentum of this rank's matrices by name, as views in the form that checkpoints have."""
        yield from self._named(self.names[self.own], self.momentum)

    def gathered_state(self) -> dict[str, Tensor]:
        """Return the momentum of all matrices by name. All ranks must call it."""
        momentum, message = self.gather(self.momentum)
        message.wait()
        return dict(self._named(self.names, momentum))

    @staticmethod
    def _named(names: list[str], momentum: Tensor) -> Iterator[tuple[str, Tensor]]:
        for name, matrix in zip(names, momentum, strict=False):
            wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT  # a tall matrix's is stored transposed
            yield f"muon.{name}", wide
