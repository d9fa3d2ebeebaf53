"""Which model and how many steps go with the text that there is and the time that there is.

Compute-optimal training takes some 20 tokens a parameter (Hoffmann et al. 2022, arXiv:2203.15556, table 3), and text
that repeats is worth about as much as new text up to four passes (Muennighoff et al. 2023, arXiv:2305.16264). So the
model is the largest of a ladder that gets 20 tokens a parameter in the time, from at most PASSES passes.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch

from stages.errors import DataError
from train.distributed.hardware import PEAKS, device_name, peak_tflops
from train.model.config import ModelConfig
from train.model.flops import flops_per_token
from train.model.transformer import build, count_parameters

LADDER = (  # dim, layers, heads
    (64, 4, 2),
    (128, 4, 4),
    (192, 6, 3),
    (256, 6, 4),
    (320, 8, 5),
    (384, 8, 6),
    (512, 12, 8),
    (768, 12, 12),
    (1024, 16, 16),
    (1536, 20, 24),
)
TOKENS_PER_PARAMETER = 20.0
PASSES = 2.0  # over the text, by the estimate; the cap of a mixture, CAP, leaves as much for duplicates
CAP = 4.0
USE = 0.3  # of a GPU's peak, which models of this size reach
OVERHEAD = 0.6  # of the speed of the passes, left beside the optimizer, evaluations, checkpoints and other processes
SHARD_TOKENS = 100_000_000  # a recipe's default
STEPS = 1000  # about, of a run: enough for a schedule
BATCH_TOKENS = (1024, 524288)  # of a step, at least and at most
LEAST_STEPS = 20


@dataclass(frozen=True)
class Speed:
    """What the machine gives."""

    flops: float  # a second, over all devices
    ranks: int
    how: str  # it is known


@dataclass(frozen=True)
class Scale:
    """A model and its training."""

    model: dict[str, Any]
    parameters: int
    tokens: int  # to train on
    steps: int
    batch_size: int
    seq_len: int
    seconds: float
    passes: float  # over the text
    bound: str  # what keeps it from being larger: "time" or "text"

    @property
    def packed(self) -> int:
        """Tokens of the mixture: those trained on, and of each shard what is left behind its last whole window."""
        shards = -(-self.tokens // SHARD_TOKENS) + 1
        return self.tokens + shards * (self.seq_len + 1)


def machine_speed(gpus: int | None, gpu: str | None) -> Speed:
    """Return how fast the machine trains: this one is measured where no other is named.

    gpus: how many, 0 for none; None: as many as are here. gpu: their name, as CUDA gives it. Raises DataError.
    """
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = here if gpus is None else gpus
    if number == 0:
        flops, seconds = measured(torch.device("cpu"))
        return Speed(flops, 1, f"{flops / 1e9:,.0f} GFLOP/s, measured here in {seconds:.0f} s")
    name = gpu or (device_name(torch.device("cuda", 0)) if here else "")
    peak = peak_tflops(name) if name else None
    if peak is None:
        known = ", ".join(sorted(PEAKS))
        raise DataError(f"{f'--gpu {name}' if name else '--gpus without one here'}: say --gpu, one of {known}")
    return Speed(number * USE * peak * 1e12, number, f"{number} x {name}, {USE:.0%} of {peak:g} TFLOP/s")


def measured(device: torch.device) -> tuple[float, float]:
    """Return (operations a second of training, seconds it took to know), from passes of a small model."""
    cfg, vocab, rows, length = ModelConfig(**shape(LADDER[1], 256)), 4096, 4, 256
    began = time.perf_counter()
    model = build(cfg, vocab, seed=0).to(device)
    ids = torch.randint(0, vocab, (rows, length + 1), generator=torch.Generator().manual_seed(0)).to(device)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        model(ids[:, :-1], ids[:, 1:])[0].backward()
        times.append(time.perf_counter() - start)
    operations = flops_per_token(cfg, vocab, length).causal * rows * length
    return OVERHEAD * operations / min(times[1:]), time.perf_counter() - began


def shape(rung: tuple[int, int, int], seq_len: int) -> dict[str, Any]:
    """Return the keys of a model of the ladder."""
    dim, layers, heads = rung
    return {
        "dim": dim,
        "n_layers": layers,
        "n_heads": heads,
        "mlp_hidden": 3 * dim,
        "max_seq_len": seq_len,
        "sliding_window": max(16, seq_len // 4),
    }


def scale_of(text_tokens: int, tokens_per_document: float, vocab_size: int, speed: Speed, seconds: float) -> Scale:
    """Return the largest model that gets enough tokens in so many seconds, of so much text. Raises DataError."""
    seq_len = 1024 if speed.flops > 1e14 else 512 if speed.flops > 5e12 else 256
    while seq_len > 64 and seq_len > 2 * tokens_per_document:
        seq_len //= 2
    most = int(PASSES * text_tokens)
    chosen = None
    for rung in LADDER:
        keys = shape(rung, seq_len)
        cfg = ModelConfig(**keys)
        parameters = count_parameters(cfg, vocab_size)
        in_time = speed.flops * seconds / flops_per_token(cfg, vocab_size, seq_len).causal
        enough = min(in_time, most) >= TOKENS_PER_PARAMETER * parameters
        if chosen is None or enough:
            chosen = keys, parameters, in_time
    assert chosen is not None
    keys, parameters, in_time = chosen
    tokens = min(in_time, most)
    batch_size = batch_of(tokens, seq_len, speed.ranks)
    while batch_size > speed.ranks and tokens < LEAST_STEPS * batch_size * seq_len:
        batch_size //= 2
    steps = int(tokens // (batch_size * seq_len))
    if steps < LEAST_STEPS:
        if most < in_time:
            raise DataError(f"{text_tokens:,} tokens of text are too little for {LEAST_STEPS} steps; add text")
        raise DataError(f"{seconds / 60:g} minutes are too few for {LEAST_STEPS} steps here; give more --minutes")
    trained = steps * batch_size * seq_len
    bound = "text" if most < in_time else "time"
    passes = trained / text_tokens
    spent = seconds * trained / in_time
    return Scale(keys, parameters, trained, steps, batch_size, seq_len, spent, passes, bound)


def batch_of(tokens: float, seq_len: int, ranks: int) -> int:
    """Return the rows of a step: a power of two for each process, for a run of about STEPS steps."""
    least, most = BATCH_TOKENS
    wanted = min(max(tokens / STEPS, least), most)
    rows = 1
    while 2 * rows * seq_len * ranks <= wanted:
        rows *= 2
    return rows * ranks


def learning_rate(dim: int) -> tuple[float, str]:
    """Return the learning rate of Muon for a model of this width, and which recipe it is from."""
    if dim <= 192:
        return 6.0e-3, "quickstart's, of a model like this one"
    return (4.0e-3, "fineweb_edu_100m's") if dim <= 384 else (2.0e-3, "shard_40m's")


def vocabulary(text: float, operations: float) -> tuple[int, str]:
    """Return how many ids go with so many bytes of text and operations of training, and why.

    The embedding of a model as small as the first of the ladder must get its tokens a parameter, too.
    """
    steps = ((3e5, 512), (2e6, 1024), (1e7, 2048), (5e7, 4096), (2e10, 8192), (2e11, 16384))
    by_text = next((size for limit, size in steps if text < limit), 32768)
    most = math.sqrt(operations / (6 * TOKENS_PER_PARAMETER)) / LADDER[0][0]
    by_time = max(512, 2 ** int(math.log2(max(1.0, most))))
    if by_time < by_text:
        return by_time, "a larger embedding would get too few tokens in the time"
    return by_text, "with more, many would hardly be met in this text"
