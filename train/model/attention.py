"""Attention: rotary positions, which token sees which, and the kernels that leave out what is hidden.

Token i sees token j of its row when j <= i; in a sliding layer, i - j < window; and with document masks, both are of
one document. `rule` says this once: masks for every kernel are made from it. Positions are those in the row: a document
that begins in its middle does not start at 0. Rotary scores depend on i - j alone, so that changes nothing.

    flex     FlexAttention with a table of the 128 x 128 blocks that hold something to see; where a layer sees all
             before, the plain causal kernel of scaled_dot_product_attention
    varlen   FlashAttention over documents laid end to end, with their borders and the window
    sdpa     scaled_dot_product_attention with a dense mask, which computes what is hidden too: right everywhere, and
             the reference that the others are tested against. The CPU's and the Mac's path

Masks are made once for a batch and serve all its layers. Their shapes do not depend on the documents, so that a
compiled model stays as it is.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from train.config import ConfigError, ModelConfig

FLEX_BLOCK = 128  # FlexAttention's block size: lengths must be a multiple of it
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
# Attention of q, k, v (B, H, T, D) -> (B, H, T, D). In training it is `attend` with the layer's mask; in generation
# what a cache holds of the layer comes first (train/generate.py)
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


# ---------------------------------------------------------------------------------------------------------------------
# Positions


def rope_tables(length: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin, (length, head_dim / 2) fp32, of position * base ** (-2k / head_dim); computed in fp64."""
    k = torch.arange(0, head_dim, 2, dtype=torch.float64)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * base ** (-k / head_dim)
    return angles.cos().float(), angles.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, T, H, D) turned by +theta, the first half of D paired with the second (HF's layout); in fp32.

    cos, sin: (T, 1, D / 2), or (B, T, 1, D / 2).
    """
    a, b = x.float().chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


# ---------------------------------------------------------------------------------------------------------------------
# Who sees whom


def rule(window: int | None, documents: Tensor | None) -> Rule:
    """The function of (row, head, i, j) that says whether i sees j; FlexAttention's mask_mod.

    documents: (B, T) the number of each token's document, never falling along a row; None: one document.
    """

    def sees(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        seen = i >= j
        if window is not None:
            seen = seen & (i - j < window)
        if documents is not None:
            seen = seen & (documents[b, i] == documents[b, j])
        return seen

    return sees


def dense_mask(length: int, window: int | None, documents: Tensor | None, device: torch.device) -> Tensor:
    """The rule for every pair: (T, T) bool, or (B, 1, T, T) with documents."""
    i = torch.arange(length, device=device)
    rows = i[:1] if documents is None else torch.arange(len(documents), device=device)[:, None, None, None]
    return rule(window, documents)(rows, i[:1], i[:, None], i[None, :])


window_mask = functools.lru_cache(maxsize=8)(dense_mask)  # of what does not change from batch to batch


def block_mask(length: int, window: int | None, documents: Tensor | None, device: torch.device) -> Any:
    """FlexAttention's BlockMask of the rule, found from the ends of blocks.

    create_block_mask looks at all T * T pairs, 67 million a row at 8192; documents are ranges and a window is a band,
    so the first and last token of two blocks say whether they have a pair to see (now and then one too many is taken,
    where a document reaches into both beyond the window: the rule hides its pairs), and whether they have no other.
    """
    from torch.nn.attention.flex_attention import BlockMask

    assert length % FLEX_BLOCK == 0, length
    n = length // FLEX_BLOCK
    block = torch.arange(n, device=device)
    least = (block[:, None] - block) * FLEX_BLOCK  # i - j of the first tokens of blocks (i, j)
    some, every = least >= 0, least >= FLEX_BLOCK
    if window is not None:
        some = some & (least - FLEX_BLOCK + 1 < window)
        every = every & (least + FLEX_BLOCK - 1 < window)
    some, every = some[None], every[None]
    if documents is not None:
        first, last = documents[:, ::FLEX_BLOCK], documents[:, FLEX_BLOCK - 1 :: FLEX_BLOCK]  # (B, n)
        some = some & (last[:, None, :] >= first[:, :, None])
        every = every & (first[:, None, :] == last[:, :, None])
    every = every & some
    listed = [_listed(blocks[:, None]) for blocks in (some & ~every, every)]
    mask = BlockMask.from_kv_blocks(
        *listed[0], *listed[1], BLOCK_SIZE=FLEX_BLOCK, mask_mod=rule(window, documents), seq_lengths=(length, length)
    )
    return mask


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """(how many, which, in order and then the rest) of bool (..., n, n); int32."""
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.int()


window_blocks = functools.lru_cache(maxsize=8)(block_mask)


# ---------------------------------------------------------------------------------------------------------------------
# Kernels


class Mask(NamedTuple):
    """How the layers of one kind attend; all None: causally, over everything before."""

    dense: Tensor | None = None  # (T, T) or (B, 1, T, T) bool
    blocks: Any = None  # a BlockMask
    borders: Tensor | None = None  # (documents + 1,) int32: where documents begin in the flattened rows, and their end
    window: int | None = None  # of varlen; the other two contain it


class Masks(NamedTuple):
    """Of a batch: for layers with a window, and for those that see all before."""

    sliding: Mask
    whole: Mask


def row_mask(length: int, window: int | None, device: torch.device) -> Mask:
    """Of a row that no document cuts, for sdpa. A window as long as the row hides nothing: the causal kernel's."""
    return Mask() if window is None or window >= length else Mask(dense=window_mask(length, window, None, device))


class Masker:
    """Makes the masks of batches, for one kernel: "flex", "varlen" or "sdpa"."""

    def __init__(self, cfg: ModelConfig, kernel: str = "sdpa") -> None:
        self.window = cfg.sliding_window if cfg.attention_pattern == "gemma4" else cfg.max_seq_len
        self.kernel = kernel
        self.room = 0  # borders that varlen's tensor holds; it only grows, as each size is a compilation

    def __call__(self, ids: Tensor, borders: Tensor | None = None) -> Masks:
        """For ids (B, T). borders: (documents + 1,) int32 on the CPU, as `Batch.borders`; None: rows are not cut."""
        rows, length = ids.shape
        window = self.window if self.window < length else None
        if self.kernel == "varlen":
            ends = torch.arange(rows + 1, dtype=torch.int32) * length if borders is None else self._padded(borders)
            ends = sent(ends, ids.device)
            return Masks(Mask(borders=ends, window=window), Mask(borders=ends))
        flex = self.kernel == "flex"
        if borders is None:
            if flex and window is not None:
                return Masks(Mask(blocks=window_blocks(length, window, None, ids.device)), Mask())
            return Masks(row_mask(length, window, ids.device), Mask())
        documents = number(borders, rows, ids.device)
        whole, sliding = (
            Mask(blocks=block_mask(length, w, documents, ids.device))
            if flex
            else Mask(dense=dense_mask(length, w, documents, ids.device))
            for w in (None, window)
        )
        return Masks(sliding, whole)

    def _padded(self, borders: Tensor) -> Tensor:
        """`borders` and, up to a power of two, empty documents at the end."""
        self.room = max(self.room, 1 << (len(borders) - 1).bit_length())
        return F.pad(borders, (0, self.room - len(borders)), value=int(borders[-1]))


def number(borders: Tensor, rows: int, device: torch.device) -> Tensor:
    """(rows, T) int32 on `device`: the number of each token's document, from `borders` on the CPU."""
    starts = torch.zeros(int(borders[-1]), dtype=torch.int32)
    starts[borders[1:-1].long()] = 1
    return sent(starts.cumsum(0, dtype=torch.int32).view(rows, -1), device)


def sent(x: Tensor, device: torch.device) -> Tensor:
    """x on `device`; from pinned memory, so that the host does not wait for what the device still has to do."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """Attention of a whole row; q, k, v and the result (B, H, T, D)."""
    if mask.blocks is not None:
        from torch.nn.attention.flex_attention import flex_attention

        # inside a compiled model the kernel is compiled with it; uncompiled it holds all T * T scores
        flex: Any = _compiled_flex() if q.is_cuda and not torch.compiler.is_compiling() else flex_attention
        return flex(q, k, v, block_mask=mask.blocks)
    if mask.borders is not None:
        return _varlen(q, k, v, mask.borders, mask.window)
    if mask.dense is not None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.dense)
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _varlen(q: Tensor, k: Tensor, v: Tensor, borders: Tensor, window: int | None) -> Tensor:
    """`attend` by FlashAttention, whose window counts the tokens before its own."""
    from torch.nn.attention.varlen import varlen_attn

    B, _, T, _ = q.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))  # (B * T, H, D)
    before = -1 if window is None else window - 1
    # max_q = T whatever the documents' lengths are: it is part of the compiled code
    out = varlen_attn(q, k, v, borders, borders, T, T, window_size=(before, 0))
    assert isinstance(out, Tensor)  # a pair where more is asked for
    return out.unflatten(0, (B, T)).transpose(1, 2)


def choose_kernel(
    wanted: str, cfg: ModelConfig, length: int, documents: bool, device: torch.device, dtype: torch.dtype
) -> str:
    """The kernel for `train.attention`: auto is flex on CUDA and sdpa elsewhere.

    Warns on stderr when a GPU is left with dense masks. Raises ConfigError for what this machine cannot run.
    """
    cuda = device.type == "cuda"
    if wanted in ("flex", "varlen") and not cuda:
        raise ConfigError(f"train.attention = {wanted}: needs a CUDA device, this is {device.type}; leave it at auto")
    if wanted == "varlen":
        if dtype != torch.bfloat16 or cfg.head_size % 8:
            raise ConfigError("train.attention = varlen: needs train.dtype=bfloat16 and heads a multiple of 8 wide")
        found = importlib.util.find_spec("torch.nn.attention.varlen") is not None
        if found:
            from torch.nn.attention.varlen import varlen_attn

            found = "window_size" in inspect.signature(varlen_attn).parameters
        if not found:
            raise ConfigError(f"train.attention = varlen: torch {torch.__version__} has no varlen_attn with windows")
        return "varlen"
    slides = cfg.attention_pattern == "gemma4" and cfg.sliding_window < length
    if not cuda or not (slides or documents):
        return "sdpa"
    reason = ""
    if wanted == "sdpa":
        reason = "train.attention = sdpa"
    elif length % FLEX_BLOCK:
        reason = f"train.seq_len = {length} is no multiple of {FLEX_BLOCK}"
    elif importlib.util.find_spec("triton") is None:
        reason = "triton is not installed"
    if not reason:
        return "flex"
    print(
        f"warning: SLOW attention path: {reason}. Layers with a window or document masks run SDPA with a dense "
        f"{length} x {length} mask, which computes what the mask hides",
        file=sys.stderr,
        flush=True,
    )
    return "sdpa"
