"""Floating-point operations of training, per token, by the two conventions in use (trainers.md 3.1).

    6 * weights that multiply  +  12 * dim * sum over layers of the tokens attended to

A multiplication and an addition for each weight forward, twice that backward: 6. Attention multiplies twice (q k and
p v), forward and backward again thrice in all: 12 a channel and attended token. The conventions differ in the latter:

* causal: what the mask leaves, (T + 1) / 2 on average in a global layer, less in a window. Work that must be done.
* full: T in a global layer and the window in a sliding one, as nanochat, torchtitan and PaLM count.

Say which one a utilisation (MFU) is in. Document masks leave less still; it is not counted, as it depends on the data.
"""

from __future__ import annotations

from typing import NamedTuple

from train.config import ModelConfig


class Flops(NamedTuple):
    """Operations a token, forward and backward. Shard-40m at 8192: 513.6e6 and 666.9e6."""

    causal: float
    full: float


def flops_per_token(cfg: ModelConfig, vocab_size: int, seq_len: int) -> Flops:
    """Of training `cfg` on windows of `seq_len` tokens. Looking an embedding up, norms and activations cost nothing."""
    weights = cfg.n_layers * (4 * cfg.dim * cfg.dim + 3 * cfg.dim * cfg.hidden) + vocab_size * cfg.dim
    if cfg.engram_enabled:
        weights += 2 * cfg.engram_slots * cfg.dim
    windows = [seq_len if cfg.is_global(layer) else min(cfg.sliding_window, seq_len) for layer in range(cfg.n_layers)]
    attended = sum((w * (w + 1) / 2 + (seq_len - w) * w) / seq_len for w in windows)
    return Flops(6 * weights + 12 * cfg.dim * attended, 6 * weights + 12 * cfg.dim * sum(windows))
