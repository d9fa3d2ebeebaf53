"""A training step on CPU: the trainer's against a plain loop of stock torch parts, same shape, same weights.

The plain loop is what one writes in an afternoon: nn.Linear, nn.RMSNorm, F.scaled_dot_product_attention,
F.cross_entropy on capped logits and z-loss in autograd, clip_grad_norm_, torch.optim.Muon for the blocks' matrices and
torch.optim.AdamW(fused=True) for the rest, or that for all, rows sliced out of an array. Ours is `train_step` with
all that a run has: loader, flat gradient, norms by module, the judge. Muon makes 5 Jordan steps, theirs in bf16, which
is all it has, ours in fp32, the default on CPU, and once more in bf16.

First both models must give one batch the same loss and gradient. Then all take their steps in turn, several rounds;
figures are medians, a ratio is the median of the rounds' ratios, in wall and in processor time (on a shared machine the
second says more).

    OMP_WAIT_POLICY=passive python -m benchmarks.step [--rounds 5] [--dim 256] [--layers 6] [--length 1024] [--batch 8]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import measure
from benchmarks.reader import VOCAB, write_shards
from train.config import AdamWConfig, ModelConfig, MuonConfig, TrainConfig
from train.data.loader import Loader
from train.data.manifest import load_manifest
from train.distributed.runtime import Runtime
from train.main import build_meter
from train.model.attention import rope_tables
from train.model.transformer import build
from train.monitor.anomalies import AnomalyDetector
from train.monitor.singular_values import SingularValueWatch
from train.optim.averages import Averages
from train.optim.optimizer import Optimizer
from train.run import Run
from train.step import train_step

TARGET = 1.0  # plain / ours: at least as fast
LR, DECAY = 1e-3, 0.1


class PlainBlock(nn.Module):
    """Attention and SwiGLU, pre-norm; parameters named as in train/model/transformer.py."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        d, hidden = cfg.dim, cfg.hidden
        self.heads = cfg.n_heads
        self.attn_norm, self.mlp_norm = nn.RMSNorm(d, cfg.norm_eps), nn.RMSNorm(d, cfg.norm_eps)
        self.attn = nn.ModuleDict({name: nn.Linear(d, d, bias=False) for name in "qkvo"})
        sizes = {"gate": (d, hidden), "up": (d, hidden), "down": (hidden, d)}
        self.mlp = nn.ModuleDict({name: nn.Linear(*size, bias=False) for name, size in sizes.items()})

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, d = x.shape
        y = self.attn_norm(x)
        q, k, v = (self.attn[n](y).view(B, T, self.heads, -1).transpose(1, 2) for n in "qkv")
        y = F.scaled_dot_product_attention(turned(q, cos, sin), turned(k, cos, sin), v, is_causal=True)
        x = x + self.attn["o"](y.transpose(1, 2).reshape(B, T, d))
        y = self.mlp_norm(x)
        return x + self.mlp["down"](F.silu(self.mlp["gate"](y)) * self.mlp["up"](y))


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Plain(nn.Module):
    """The same model and loss of stock parts."""

    def __init__(self, cfg: ModelConfig, vocab: int, length: int) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed = nn.Embedding(vocab, cfg.dim)
        self.blocks = nn.ModuleList(PlainBlock(cfg) for _ in range(cfg.n_layers))
        self.norm = nn.RMSNorm(cfg.dim, cfg.norm_eps)
        self.positions = rope_tables(length, cfg.head_size, cfg.rope_base)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x, *self.positions)
        cap = self.cfg.lm_head_logit_cap
        assert cap is not None
        c = cap * torch.tanh(F.linear(self.norm(x), self.embed.weight).flatten(0, 1) / cap)
        return F.cross_entropy(c, targets.flatten()) + self.cfg.z_loss_weight * torch.logsumexp(c, -1).square().mean()


def plain(file: Path, cfg: ModelConfig, batch: int, length: int, muon: bool) -> tuple[Callable[[], float], Any]:
    """A step of the plain loop, which returns its loss, and its update alone."""
    model = Plain(cfg, VOCAB, length)
    model.load_state_dict(build(cfg, VOCAB, 0).state_dict())
    hidden = [p for n, p in model.named_parameters() if muon and n.startswith("blocks.") and p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not h for h in hidden)]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": DECAY},
        {"params": [p for p in rest if p.ndim == 1], "weight_decay": 0.0},
    ]
    rules: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), fused=True)]
    if muon:
        rules.append(torch.optim.Muon(hidden, lr=LR, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw"))
    tokens = np.memmap(file, np.uint16, "r", 1024)
    at = 0

    def update() -> None:
        for rule in rules:
            rule.step()

    def step() -> float:
        nonlocal at
        rows = torch.from_numpy(tokens[at : at + batch * length + 1].astype(np.int64))
        at += batch * length
        for rule in rules:
            rule.zero_grad()
        loss = model(rows[:-1].view(batch, length), rows[1:].view(batch, length))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update()
        return loss.item()

    return step, update


def ours(manifest_path: Path, cfg: ModelConfig, train: TrainConfig) -> tuple[Callable[[], float], Any]:
    """A step of the trainer, which returns the cross-entropy, and its update alone."""
    manifest, device = load_manifest(manifest_path), torch.device("cpu")
    loader = Loader(manifest, train)
    loader.verified = True  # as in a run that hashed its shards
    model = build(cfg, VOCAB, 0)
    optimizer = Optimizer(model, train)
    rt = Runtime(0, 1, device, None)
    parts: dict[str, Any] = {"validation": None, "folder": Path(), "identity": {}, "builds": []}  # no step needs them
    run = Run(
        rt=rt,
        cfg=train,
        model=model,
        optimizer=optimizer,
        averages=Averages(model, train),
        loader=loader,
        batches=loader,
        anomalies=AnomalyDetector(manifest, train, optimizer.modules, device),
        singular_values=SingularValueWatch({}, train.rank_loss),
        meter=build_meter(rt, model, train),
        epochs_per_step=0.0,
        total_steps=train.steps,
        **parts,
    )

    def step() -> float:
        loss, _ = train_step(run)
        return float(loss)

    return step, lambda: optimizer.step(1.0)


def agree(cfg: ModelConfig, length: int) -> None:
    """Raises SystemExit where the two models differ in loss or gradient, on one row."""
    mine, theirs = build(cfg, VOCAB, 0), Plain(cfg, VOCAB, length)
    theirs.load_state_dict(mine.state_dict())
    ids = torch.randint(VOCAB, (1, length + 1), generator=torch.Generator().manual_seed(0))
    losses = mine(ids[:, :-1], ids[:, 1:])[0], theirs(ids[:, :-1], ids[:, 1:])
    for loss in losses:
        loss.backward()
    apart = []
    for name, parameter in mine.named_parameters():
        gradient, expected = parameter.grad, theirs.get_parameter(name).grad
        assert gradient is not None and expected is not None
        apart.append(float((gradient - expected).norm() / expected.norm()))
    away = max(apart)
    print(f"loss {losses[0].item():.6f}, plain {losses[1].item():.6f}; gradients differ by {away:.1e} at most")
    if abs((losses[0] - losses[1]).item()) > 1e-4 or away > 1e-3:
        raise SystemExit("error: the two models are not the same")


def timed(candidates: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Return wall and processor seconds of each candidate, in turn."""
    seen: dict[str, dict[str, list[float]]] = {name: {"wall": [], "processor": []} for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            wall, processor = time.perf_counter(), time.process_time()
            run()
            seen[name]["processor"].append(time.process_time() - processor)
            seen[name]["wall"].append(time.perf_counter() - wall)
    return seen


def compared(seen: dict[str, dict[str, list[float]]], peers: list[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """Median of the rounds' ratios plain / ours: above 1 we are faster."""
    return {
        f"{theirs} / {mine}": {
            kind: round(measure.ratio(seen[theirs][kind], seen[mine][kind]), 3) for kind in ("wall", "processor")
        }
        for theirs, mine in peers
    }


def main() -> None:
    """Run, print, save."""
    options = measure.parser(__doc__, rounds=5, dim=256, layers=6, length=1024, batch=8, threads=2).parse_args()
    torch.set_num_threads(options.threads)
    about = measure.machine(("numpy", "torch"))
    cfg = ModelConfig(
        dim=options.dim,
        n_layers=options.layers,
        n_heads=max(1, options.dim // 64),
        max_seq_len=options.length,
        attention_pattern="all_global",
    )
    common: dict[str, Any] = {"batch_size": options.batch, "seq_len": options.length, "log_every": 1000}
    common["adamw"] = AdamWConfig(lr=LR, eps=1e-8, weight_decay=DECAY)
    with tempfile.TemporaryDirectory() as name:
        count = options.batch * options.length * (options.rounds + 2)
        path = write_shards(Path(name) / "b", np.random.default_rng(0).integers(0, VOCAB - 1, count, np.uint16), 1)
        file = path.parent / "b_train_000000.bin"
        agree(cfg, options.length)
        candidates = {
            f"{who}_{rule}": plain(file, cfg, options.batch, options.length, rule == "muon")
            if who == "plain"
            else ours(
                path,
                cfg,
                TrainConfig(
                    optimizer="muon" if rule.startswith("muon") else "adamw",
                    muon=MuonConfig(lr=LR, ns="jordan5", ns_dtype="bfloat16" if rule == "muon_bf16" else "float32"),
                    **common,
                ),
            )
            for who, rule in (
                *(("ours", "muon"), ("plain", "muon"), ("ours", "muon_bf16")),
                *(("ours", "adamw"), ("plain", "adamw")),
            )
        }
        runs = {name: step for name, (step, _) in candidates.items()}
        timed(runs, 1)  # warms up
        runs |= {f"{name}_update": update for name, (_, update) in candidates.items()}
        seen = timed(runs, options.rounds)
    pairs = [("plain_muon", "ours_muon"), ("plain_muon", "ours_muon_bf16"), ("plain_adamw", "ours_adamw")]
    pairs += [(f"{theirs}_update", f"{mine}_update") for theirs, mine in pairs]
    ratios = compared(seen, pairs)
    seconds = {  # the median first
        name: {kind: measure.rounded([measure.median(values), *values], 4) for kind, values in kinds.items()}
        for name, kinds in seen.items()
    }
    header = ("", "wall", "processor")
    measure.show(header, [(name, kinds["wall"][0], kinds["processor"][0]) for name, kinds in seconds.items()])
    measure.show(header, [(name, kinds["wall"], kinds["processor"]) for name, kinds in ratios.items()])
    result = {"machine": about, "shape": vars(options), "target": TARGET, "ratios": ratios, "seconds": seconds}
    measure.save("step", result)


if __name__ == "__main__":
    main()
