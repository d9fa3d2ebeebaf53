"""The learning rate over the steps: one pure function (formulae and golden values: trainers.md 1.8)."""

from __future__ import annotations

import math

from train.config import ScheduleConfig


def lr_factor(step: int, steps: int, cfg: ScheduleConfig) -> float:
    """What every group's lr is multiplied by in step `step` (0-based, of `steps`): above 0, at most 1.

    wsd: linear warm-up over W steps, (t+1)/W; 1 until D = W + (1 - decay_frac)(T - W); then from 1 to 0 along p =
    (t - D)/(T - D). `decay_frac` is of the steps after warm-up, as the seed says.
    """
    if step < cfg.warmup:
        return (step + 1) / cfg.warmup
    if cfg.kind == "constant":
        return 1.0
    if cfg.kind == "cosine":
        p = (step - cfg.warmup) / (steps - cfg.warmup)
        return cfg.min_ratio + (1 - cfg.min_ratio) * 0.5 * (1 + math.cos(math.pi * p))
    start = cfg.warmup + (1 - cfg.decay_frac) * (steps - cfg.warmup)
    if step < start:
        return 1.0
    return decay((step - start) / (steps - start), cfg.decay_shape)


def decay(p: float, shape: str) -> float:
    """From 1 at p = 0 to 0 at p = 1. sqrt falls fast first: 1 - sqrt(p) (Hägele et al. 2024, arXiv 2405.18392)."""
    if shape == "sqrt":
        return 1 - math.sqrt(p)
    if shape == "linear":
        return 1 - p
    return 0.5 * (1 + math.cos(math.pi * p))
