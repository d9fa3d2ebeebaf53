"""How many sequences a forward pass takes, where `train.micro_batch` does not say: as many as fit into memory.

The global batch stays what it is; a smaller micro-batch adds up the same gradient in more parts, so sums round
otherwise in their last bits. For an exact resume the choice is therefore in each checkpoint, and made again only where
it does not fit any more, or for another number of processes.

On a GPU sizes are tried: one forward and one backward pass of the next step's batch, with all else (weights, optimizer,
averages) in its place, must leave a tenth of the memory. Each size may cost a compilation, so the first one tried is
the one that an estimate expects, and hopeless ones are left out. On a CPU, memory that has run out kills, and nothing
can be tried: there the estimate decides.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable
from typing import Any

import torch

from train.config import ModelConfig, TrainError
from train.distributed import hardware
from train.model.loss import CHUNK_CPU, CHUNK_CUDA
from train.model.transformer import count_parameters
from train.run import Run
from train.step import backward

USABLE = 0.9  # of the memory: fragments, evaluation and the optimizer's temporaries need the rest
FIXED = 0.25  # of what a trial took, the share that may not grow with the size


def choose(run: Run, state: dict[str, Any]) -> int:
    """Return how many sequences a forward pass takes on each rank: the largest divisor of its share that fits on all.

    state: the checkpoint's that is continued, or {}. Raises TrainError when not one sequence fits on a GPU.
    """
    cfg, rt = run.cfg, run.rt
    if cfg.micro_batch is not None:
        return cfg.micro_batch
    share = cfg.batch_size // rt.world_size
    previous = state.get("micro_batch", 0) if state.get("world_size") == rt.world_size else 0
    sizes = [n for n in range(1, (previous or share) + 1) if share % n == 0]
    on_gpu = rt.device.type == "cuda"
    available = hardware.available_bytes(rt.device)
    if not on_gpu:  # the processes of a machine share its memory; a GPU is one process's
        available /= int(os.environ.get("LOCAL_WORLD_SIZE", rt.world_size))
    limit, held = USABLE * available, hardware.held_bytes(rt.device)
    needs = {n: held + estimated_bytes(run, n, with_masks=not on_gpu) for n in sizes}
    expected = int(rt.broadcast_value(max((n for n in sizes if needs[n] <= limit), default=1)))
    if on_gpu:
        trials = Trials(run, held, limit)
        chosen, fits = largest(sizes, lambda n: not rt.any_rank(not trials.fits(n)), expected)
        needs |= trials.needs
    else:
        chosen, fits = largest(sizes, lambda n: not rt.any_rank(needs[n] > limit), expected)
    if not fits and on_gpu:
        raise TrainError(
            f"not one sequence of train.seq_len = {cfg.seq_len} tokens fits into {USABLE:.0%} of "
            f"{available / 1e9:.1f} GB\n"
            "shorten train.seq_len, make the model smaller, or name a size with train.micro_batch=1 to go to the limit"
        )
    memory = f"{needs[chosen] / 1e9:.3g} of {available / 1e9:.3g} GB, {'tried' if on_gpu else 'estimated'}"
    rt.print_rank0(f"memory     micro-batch {chosen} of {share} sequences a process: {memory}")
    if not fits:
        rt.print_rank0("warning: even that may be more than there is; shorten train.seq_len, or make the model smaller")
    if previous and chosen != previous:
        rt.print_rank0(
            f"warning: the checkpoint's micro-batch {previous} does not fit here: sums will differ in their last bits"
        )
    return chosen


def largest(sizes: list[int], fits: Callable[[int], bool], expected: int) -> tuple[int, bool]:
    """Return the largest of the ascending `sizes` that fits, and True; the smallest, and False, if none does.

    What is larger than one that does not fit does not fit either. Few are asked for when `expected` is near.
    """
    at = sizes.index(expected)
    if fits(sizes[at]):
        while at + 1 < len(sizes) and fits(sizes[at + 1]):
            at += 1
        return sizes[at], True
    while at > 0:
        at -= 1
        if fits(sizes[at]):
            return sizes[at], True
    return sizes[0], False


class Trials:
    """The sizes tried, and the bytes that each needed: infinite where memory ran out.

    `limit` bytes may be in use, of which `held` are before a trial begins.
    """

    def __init__(self, run: Run, held: float, limit: float) -> None:
        self.run, self.held, self.limit = run, held, limit
        self.needs: dict[int, float] = {}

    def fits(self, size: int) -> bool:
        """Return whether `size` sequences stay within the limit; tries only what smaller trials leave open."""
        for smaller, need in self.needs.items():
            least = self.held + (need - self.held) * (FIXED + (1 - FIXED) * size / smaller)
            if smaller < size and least > self.limit:
                return False
        self.needs[size] = trial(self.run, size)
        return self.needs[size] <= self.limit


def trial(run: Run, size: int) -> float:
    """Return the bytes in use at the peak of one forward and backward pass of `size` sequences.

    Infinite where memory ran out.

    Leaves weights, gradients (zeros) and random states as they were.
    """
    device = run.rt.device
    batch = run.loader.batch(run.step, run.cfg.document_mask)
    hardware.forget_peak(device)
    need = math.inf
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            backward(run, next(batch.micro_batches(size)))
            need = hardware.peak_bytes(device)
        except torch.OutOfMemoryError:
            pass  # what the failed pass holds is let go only after this clause
    run.optimizer.grads_and_loss.zero_()
    gc.collect()
    hardware.forget_peak(device)
    return need


def estimated_bytes(run: Run, size: int, with_masks: bool) -> float:
    """Return about how many bytes a pass of `size` sequences takes, dense masks included if `with_masks`."""
    cfg, model, itemsize = run.cfg, run.model, run.model.dtype.itemsize
    need = activation_bytes(model.cfg, model.vocab_size, size * cfg.seq_len, itemsize)
    if with_masks:
        need += mask_bytes(model.cfg, size if cfg.document_mask else 0, cfg.seq_len, itemsize)
    return need


def activation_bytes(cfg: ModelConfig, vocab_size: int, tokens: int, itemsize: int) -> float:
    """Return about how many bytes a forward and backward pass of `tokens` tokens holds beside weights and gradients.

    Kept for the backward pass, a token and block, in elements: 4 dim (the stream twice, both norms), 3 times the width
    of all heads (q, and what attention gives before and after its heads are put together), k and v, and 4 hidden (gate,
    its silu, up, their product; 3 without a gate). Parts that are on keep what they are given: `_kept_by_parts`. Two
    blocks' worth more for what the backward pass makes meanwhile, and 4 dim around the blocks. In bf16 the cast weights
    are kept too. The head holds the logits of a chunk about three times in fp32; of all tokens without cap and z-loss.
    A quarter is added for what allocators lose: the process grew so in fp32 on a CPU; a compiled model keeps less.
    """
    heads, kv_heads = cfg.n_heads * cfg.head_size, cfg.kv_heads * cfg.head_size
    block = 4 * cfg.dim + 3 * heads + 2 * kv_heads + (3 if cfg.mlp == "relu2" else 4) * cfg.hidden
    block += _kept_by_parts(cfg)
    logits = tokens * vocab_size
    if cfg.lm_head_logit_cap is not None or cfg.z_loss_weight > 0:
        logits = min(logits, CHUNK_CUDA if itemsize == 2 else CHUNK_CPU)
    cast = 2 * count_parameters(cfg, vocab_size) if itemsize == 2 else 0
    return 1.25 * (tokens * itemsize * ((cfg.n_layers + 2) * block + 4 * cfg.dim) + cast + 12 * logits)


def _kept_by_parts(cfg: ModelConfig) -> int:
    """Return how many elements a token and block the parts keep that Shard does not have."""
    heads, kv_heads = cfg.n_heads * cfg.head_size, cfg.kv_heads * cfg.head_size
    streams = 2 * sum([cfg.dropout > 0, cfg.sandwich_norms, cfg.branch_scales, cfg.depth_scale, cfg.residual_mix])
    kept = (streams + cfg.unet_skips) * cfg.dim
    return kept + (heads + kv_heads if cfg.qk_norm != "none" else 0) + (heads if cfg.q_gain is not None else 0)


def mask_bytes(cfg: ModelConfig, cut_rows: int, length: int, itemsize: int) -> float:
    """Return what dense masks of rows of `length` take, in bytes.

    One is bool, and one a layer is in the activations' type, which the kernel makes of it and keeps.
    cut_rows: rows that documents cut, each of which has masks of its own; 0: none are.
    """
    slides = cfg.sliding_window < length
    layers = cfg.n_layers if cut_rows else sum(slides and not cfg.is_global(i) for i in range(cfg.n_layers))
    return 1.25 * max(1, cut_rows) * length**2 * (layers * itemsize + 1) if layers else 0.0
