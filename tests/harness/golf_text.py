"""The two parameter-golf systems, once more, from the text of their specification alone, and from none of our code.

S2 is PR #465 of openai/parameter-golf, S4 is PR #352; numbers are of the specification's sections. It is written for
reading: one function a paragraph, weights in a dictionary by the originals' names, no batching of anything. It
reproduces the specification's own table of values (4), and then says what holds at sizes that the table does not have.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
Weights = dict[str, Tensor]


class Size(NamedTuple):
    """A system's shape. memory, rope_dims, depth_scale and heads (of further tokens) are S4's."""

    vocabulary: int = 64
    width: int = 64
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 192
    buckets: int = 32
    bigram_width: int = 16
    memory: int = 0
    rope_dims: int | None = None
    depth_scale: bool = False
    further: int = 0

    @property
    def head(self) -> int:
        return self.width // self.heads


def fill(size: Size) -> Weights:
    """4: tensor number k, flat index i: sin(.7 i + .003 i² + k), scaled and moved; heads of further tokens from 100."""
    d, q, kv = size.width, size.heads * size.head, size.kv_heads * size.head
    table: list[tuple[str, tuple[int, ...], float, float]] = [("M", (1, size.memory, d), 0, 0.2)] if size.memory else []
    table += [
        ("skip", (size.layers // 2, d), 1, 0.1),
        ("tok_emb", (size.vocabulary, d), 0, 0.2),
        ("bigram.scale", (), 0.05, 0.1),
        ("bigram.embed", (size.buckets, size.bigram_width), 0, 0.2),
        ("bigram.proj", (d, size.bigram_width), 0, 0.2),
        ("gate", (d,), 0, 0.1),
    ]
    for i in range(size.layers):
        table += [(f"{i}.attn_scale", (d,), 1, 0.1), (f"{i}.mlp_scale", (d,), 1, 0.1), (f"{i}.mix", (2, d), 0, 0.1)]
        table += [(f"{i}.q_gain", (size.heads,), 1.5, 0.1)]
        table += [(f"{i}.c_q", (q, d), 0, 0.2), (f"{i}.c_k", (kv, d), 0, 0.2), (f"{i}.c_v", (kv, d), 0, 0.2)]
        table += [(f"{i}.proj", (d, q), 0, 0.2)]
        table += [(f"{i}.fc", (size.hidden, d), 0, 0.2), (f"{i}.mlp_proj", (d, size.hidden), 0, 0.2)]
    numbered = [*enumerate(table)]
    numbered += [(100 + n, (f"mtp.{n}", (size.vocabulary, d), 0, 0.2)) for n in range(size.further)]
    weights = {}
    for k, (name, shape, middle, scale) in numbered:
        i = torch.arange(math.prod(shape), dtype=torch.float64)
        values = middle + scale * torch.sin(0.7 * i + 0.003 * i * i + k).view(shape)
        if name.endswith(".mix"):
            values[0] += 1
        weights[name] = values.float()
    return weights


def text(size: Size, length: int, rows: int, first: int = 5) -> tuple[Tensor, Tensor]:
    """4: ids and targets, (rows, length)."""
    t, b = torch.arange(length + 1), torch.arange(rows)[:, None]
    stream = (first + 11 * t + 17 * b + t * t) % size.vocabulary
    return stream[:, :-1], stream[:, 1:]


# ---------------------------------------------------------------------------------------------------------------------
# 1.1 to 1.3, 3.2, 3.3: forward


def rms(x: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 2.0**-23).rsqrt()


def capped(z: Tensor) -> Tensor:
    return 30 * torch.tanh(z / 30)


def rotate(x: Tensor, dims: int) -> Tensor:
    """1.3: pairs (k, k + D/2) of the first D channels, theta = 10000^(-2k/D), by -theta; x (..., T, channels)."""
    theta = 10000.0 ** (-2 * torch.arange(dims // 2) / dims)
    angle = torch.arange(x.shape[-2])[:, None] * theta
    a, b, rest = x[..., : dims // 2], x[..., dims // 2 : dims], x[..., dims:]
    return torch.cat([a * angle.cos() + b * angle.sin(), b * angle.cos() - a * angle.sin(), rest], -1)


def bigram_row(before: int, token: int, buckets: int) -> int:
    return ((36313 * token) ^ (27191 * before)) % (buckets - 1)


def embedded(w: Weights, size: Size, ids: Tensor) -> Tensor:
    """1.2, 1.3, 3.2: x0."""
    rows = [
        [size.buckets - 1] + [bigram_row(*pair, size.buckets) for pair in itertools.pairwise(r)] for r in ids.tolist()
    ]
    bigram = w["bigram.embed"][torch.tensor(rows)] @ w["bigram.proj"].T * w["bigram.scale"]
    x = rms(w["tok_emb"][ids] + bigram)
    gate = torch.sigmoid(w["gate"])
    x = (1 - gate) * x + gate * F.pad(x, (0, 0, 1, 0))[:, :-1]
    return torch.cat([rms(w["M"]).expand(len(x), -1, -1), x[:, size.memory :]], 1) if size.memory else x


def block(w: Weights, size: Size, i: int, x: Tensor, x0: Tensor) -> Tensor:
    """1.1."""
    rows, length, _ = x.shape
    scale = 1 / math.sqrt(i + 1) if size.depth_scale else 1.0
    x = w[f"{i}.mix"][0] * x + w[f"{i}.mix"][1] * x0
    n = rms(x) * scale
    q, k, v = ((n @ w[f"{i}.{c}"].T).view(rows, length, -1, size.head).transpose(1, 2) for c in ("c_q", "c_k", "c_v"))
    dims = size.rope_dims or size.head
    q, k = rotate(rms(q), dims) * w[f"{i}.q_gain"][:, None, None], rotate(rms(k), dims)
    mine = [h * size.kv_heads // size.heads for h in range(size.heads)]
    scores = q @ k[:, mine].mT / math.sqrt(size.head)
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    o = (scores.softmax(-1) @ v[:, mine]).transpose(1, 2).flatten(2)
    x = x + w[f"{i}.attn_scale"] * (o @ w[f"{i}.proj"].T)
    m = rms(x) * scale
    return x + w[f"{i}.mlp_scale"] * ((m @ w[f"{i}.fc"].T).relu().square() @ w[f"{i}.mlp_proj"].T)


def hidden(w: Weights, size: Size, ids: Tensor) -> Tensor:
    """1.2: (rows, length, width). Of an odd number of blocks the last has no skip: nothing is left to pop."""
    x = x0 = embedded(w, size, ids)
    half, stack = size.layers // 2, []
    for i in range(half):
        x = block(w, size, i, x, x0)
        stack.append(x)
    for j in range(size.layers - half):
        if stack:
            x = x + w["skip"][j] * stack.pop()
        x = block(w, size, half + j, x, x0)
    return rms(x)


def losses(w: Weights, size: Size, ids: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """1.2, 3.2, 3.3: the main loss, and the mean of those of the heads for further tokens (0 of none)."""
    h = hidden(w, size, ids)
    targets = torch.cat([torch.full_like(targets[:, : size.memory], IGNORE), targets[:, size.memory :]], 1)

    def mean_loss(h: Tensor, head: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(capped(h @ head.T).flatten(0, 1), targets.flatten(), ignore_index=IGNORE)

    rows = ids.shape[1] - size.further
    further = [mean_loss(h[:, :rows], w[f"mtp.{n}"], targets[:, n + 1 :][:, :rows]) for n in range(size.further)]
    return mean_loss(h, w["tok_emb"], targets), torch.stack(further).mean() if further else torch.zeros(())


# ---------------------------------------------------------------------------------------------------------------------
# 1.4, 1.5, 3.5: training

MATRICES = ("c_q", "c_k", "c_v", "proj", "fc", "mlp_proj")


def newton_schulz(u: Tensor) -> Tensor:
    x = u / (u.norm() + 1e-7)
    x = x.T if len(u) > u.shape[1] else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if len(u) > u.shape[1] else x


def muon(p: Tensor, g: Tensor, buffer: Tensor, lr: float, mu: float, decay_first: bool) -> None:
    buffer.mul_(mu).add_(g)
    update = newton_schulz(g + mu * buffer) * math.sqrt(max(1, p.shape[0] / p.shape[1]))
    if decay_first:
        p.mul_(1 - lr * 0.04)
    p.sub_(lr * update)
    if not decay_first:
        p.mul_(1 - lr * 0.04)


def adamw(p: Tensor, g: Tensor, moments: list[Tensor], n: int, lr: float, decay: float) -> None:
    m, v = moments
    p.mul_(1 - lr * decay)
    m.mul_(0.9).add_(0.1 * g)
    v.mul_(0.95).add_(0.05 * g * g)
    p.sub_(lr / (1 - 0.9**n) * m / (v.sqrt() / math.sqrt(1 - 0.95**n) + 1e-8))


def in_six_bits(w: Tensor) -> Tensor:
    """3.5, with a gradient that passes unchanged."""
    scale = w.detach().abs().amax(1, keepdim=True).clamp(min=1e-12) / 31
    return w + ((w / scale).round().clamp(-32, 31) * scale - w).detach()


def train(size: Size, batches: list[tuple[Tensor, Tensor]], warmdown: int, qat_from: float) -> tuple[list, list]:
    """Train by the rules of S4 if there is memory, else of S2. Returns (total loss, norm) and the weights of each step.

    qat_from: the scale of the rate below which matrices are in six bits from the next step on.
    """
    is_s4, steps = size.memory > 0, len(batches)
    w = {name: value.requires_grad_() for name, value in fill(size).items()}
    state = {name: [torch.zeros_like(p), torch.zeros_like(p)] for name, p in w.items()}
    matrices = {name for name in w if name.split(".")[-1] in MATRICES}  # bigram.proj is one as well
    rounded, alpha, told, kept = False, 0.2, [], []
    for t, batch in enumerate(batches):
        scale = max((steps - t) / warmdown, 0) if t >= max(steps - warmdown, 0) else 1.0
        is_linear = lambda name: name in matrices or name.startswith("mtp")  # noqa: E731
        used = {name: in_six_bits(p) if rounded and is_linear(name) else p for name, p in w.items()}
        main, further = losses(used, size, *batch)
        total = main + alpha * further
        gradients = dict(zip(w, torch.autograd.grad(total, [*w.values()]), strict=True))
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))
        start, end, over = (0.85, 0.95, 500) if is_s4 else (0.92, 0.99, 1500)
        f = min(t / over, 1)
        with torch.no_grad():
            for name, p in w.items():
                g = gradients[name] * min(1, 0.3 / (norm + 1e-6))
                if name in matrices:
                    mu = (1 - f) * start + f * end
                    muon(p, g, state[name][0], (0.04 if is_s4 else 0.02) * scale, mu, decay_first=not is_s4)
                    continue
                if name == "M" or name.startswith("mtp"):
                    lr, decay = (0.04 if name == "M" else 0.008), 0.0
                elif name in ("tok_emb", "bigram.embed"):
                    lr, decay = (0.05, 0.04) if is_s4 else (0.03, 0.01)
                else:
                    lr, decay = (0.04, 0.04) if is_s4 else (0.02, 0.01)
                adamw(p, g, state[name], t + 1, lr * scale, decay)
        alpha, rounded = 0.2 * scale, rounded or scale < qat_from
        told.append((float(total.detach()), norm))
        kept.append({name: p.detach().clone() for name, p in w.items()})
    return told, kept
