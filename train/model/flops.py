"""Floating-point operations of training, per token, by the two conventions in use (docs/trainer-math.md, "FLOPs").

    6 * weights that multiply  +  12 * width of the heads * tokens attended to, summed over the layers

A multiplication and an addition for each weight forward, twice that backward: 6. Attention multiplies twice (q k and
p v), forward and backward again thrice in all: 12 a channel and attended token. The conventions differ in the latter:

* causal: what the mask leaves, (T + 1) / 2 on average in a global layer, less in a window. Work that must be done.
* full: T in a global layer and the window in a sliding one, as nanochat, torchtitan and PaLM count.

Say which one a utilization (MFU) is in. Document masks leave less still; it is not counted, as it depends on the data.
"""

from __future__ import annotations

from typing import NamedTuple

from train.model.config import ModelConfig
from train.model.layers import Linear
from train.model.transformer import Model, on_meta_device


class Flops(NamedTuple):
    """Operations a token, forward and backward. Shard-40m at 8192: 513.6e6 and 666.9e6."""

    causal: float
    full: float


def flops_per_token(cfg: ModelConfig, vocab_size: int, seq_len: int) -> Flops:
    """Count the operations of training `cfg` on windows of `seq_len` tokens.

    Every linear map multiplies once a token, and so do the head, tied or not, and the engram's bank. Looking up an
    embedding costs nothing, and neither do norms, activations and scales.
    """
    model = on_meta_device(cfg, vocab_size)
    weights = multiplying_weights(model)
    causal = full = 0.0
    for block in model.blocks:
        window = seq_len if block.attn.window is None else min(block.attn.window, seq_len)
        pairs = window * (window + 1) / 2 + (seq_len - window) * window  # of tokens that see each other in a row
        heads = block.attn.o.weight.shape[1]  # channels of all heads
        causal += heads * pairs / seq_len
        full += heads * window
    return Flops(6 * weights + 12 * causal, 6 * weights + 12 * full)


def multiplying_weights(model: Model) -> int:
    """Count the weights that multiply once a token: those of linear maps, the head, tied or not, the engram's bank."""
    matrices = {module.weight for module in model.modules() if isinstance(module, Linear)} | {model.head_weight}
    if model.engram is not None:
        matrices |= {model.engram.keys, model.engram.values}
    return sum(matrix.numel() for matrix in matrices)
