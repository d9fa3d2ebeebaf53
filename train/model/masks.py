"""Which token sees which, in the form that each attention kernel takes it.

Token i sees token j of its row when j <= i; in a sliding layer, i - j < window; and with document masks, both are of
one document. `mask_mod` says this once, and the masks for every kernel are made from it. Positions are those in the
row: a document that begins in its middle does not start at 0. Rotary scores depend on i - j alone, so that changes
nothing.

Masks are made once for a batch and serve all its layers. Their shapes do not depend on the documents, but for varlen's
list of where they begin, whose length is marked as one that changes: so a compiled model stays as it is.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from train.model.config import ModelConfig

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

FLEX_BLOCK = 128  # FlexAttention's block size: lengths must be a multiple of it
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


# ---------------------------------------------------------------------------------------------------------------------
# The rule, dense and by blocks


def mask_mod(window: int | None, documents: Tensor | None) -> MaskMod:
    """Return the function of (row, head, i, j) that says whether i sees j, as FlexAttention takes it.

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
    """Return `mask_mod` of every pair: (T, T) bool, or (B, 1, T, T) with documents."""
    i = torch.arange(length, device=device)
    rows = i[:1] if documents is None else torch.arange(len(documents), device=device)[:, None, None, None]
    return mask_mod(window, documents)(rows, i[:1], i[:, None], i[None, :])


def block_mask(length: int, window: int | None, documents: Tensor | None, device: torch.device) -> BlockMask:
    """Return FlexAttention's BlockMask of `mask_mod`, found from the ends of blocks.

    create_block_mask looks at all T * T pairs, 67 million a row at 8192; documents are ranges and a window is a band,
    so the first and last token of two blocks say whether they have a pair to see (now and then one too many is taken,
    where a document reaches into both beyond the window: `mask_mod` hides its pairs), and whether they have no other.
    """
    from torch.nn.attention.flex_attention import BlockMask

    assert length % FLEX_BLOCK == 0, length
    n = length // FLEX_BLOCK
    block = torch.arange(n, device=device)
    distance = (block[:, None] - block) * FLEX_BLOCK  # i - j of the first tokens of blocks (i, j)
    some, every = distance >= 0, distance >= FLEX_BLOCK
    if window is not None:
        some = some & (distance - FLEX_BLOCK + 1 < window)
        every = every & (distance + FLEX_BLOCK - 1 < window)
    some, every = some[None], every[None]
    if documents is not None:
        first, last = documents[:, ::FLEX_BLOCK], documents[:, FLEX_BLOCK - 1 :: FLEX_BLOCK]  # (B, n)
        some = some & (last[:, None, :] >= first[:, :, None])
        every = every & (first[:, None, :] == last[:, :, None])
    every = every & some
    partial_blocks, full_blocks = _block_lists(some & ~every), _block_lists(every)
    return BlockMask.from_kv_blocks(
        *partial_blocks,
        *full_blocks,
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=mask_mod(window, documents),
        seq_lengths=(length, length),
    )


def _block_lists(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return (how many, which ones in order and then the rest) of bool (B, n, n), both int32 and (B, 1, n[, n])."""
    blocks = blocks[:, None]
    order = blocks.int().argsort(dim=-1, descending=True, stable=True)
    return blocks.sum(-1, dtype=torch.int32), order.int()


# Of what does not change from batch to batch
cached_dense_mask = functools.lru_cache(maxsize=8)(dense_mask)
cached_block_mask = functools.lru_cache(maxsize=8)(block_mask)


# ---------------------------------------------------------------------------------------------------------------------
# The masks of a batch


class Mask(NamedTuple):
    """How the layers of one kind attend; all None: causally, over everything before."""

    dense: Tensor | None = None  # (T, T) or (B, 1, T, T) bool
    blocks: BlockMask | None = None
    cu_seqlens: Tensor | None = None  # (documents + 1,) int32: where they begin in the flattened rows, and their end
    window: int | None = None  # of cu_seqlens; the other two contain it


class Masks(NamedTuple):
    """The masks of a batch: for layers with a window, and for those that see all before."""

    sliding: Mask
    whole: Mask


def row_mask(length: int, window: int | None, device: torch.device) -> Mask:
    """Return the mask of a row that no document cuts, for sdpa; none where the window hides nothing."""
    if window is None or window >= length:
        return Mask()
    return Mask(dense=cached_dense_mask(length, window, None, device))


class MaskBuilder:
    """Makes the masks of batches, for one kernel: "flex", "varlen" or "sdpa"."""

    def __init__(self, cfg: ModelConfig, kernel: str = "sdpa") -> None:
        self.window = cfg.sliding_window if cfg.has_sliding_layers else sys.maxsize
        self.kernel = kernel

    def __call__(self, ids: Tensor, cu_seqlens: Tensor | None = None) -> Masks:
        """Make the masks for ids (B, T).

        cu_seqlens: (documents + 1,) int32 on the CPU, where documents begin in the flattened rows, and their end;
        None: rows are not cut.
        """
        rows, length = ids.shape
        window = self.window if self.window < length else None
        # lengths that training does not have, as of a row behind memory, are nothing for flex
        flex = self.kernel == "flex" and length % FLEX_BLOCK == 0
        if self.kernel == "varlen":
            return self._varlen_masks(rows, length, window, cu_seqlens, ids.device)
        if cu_seqlens is None:
            if flex and window is not None:
                return Masks(Mask(blocks=cached_block_mask(length, window, None, ids.device)), Mask())
            return Masks(row_mask(length, window, ids.device), Mask())
        documents = document_ids(cu_seqlens, rows, ids.device)
        if flex:
            sliding_blocks, whole_blocks = (block_mask(length, w, documents, ids.device) for w in (window, None))
            return Masks(Mask(blocks=sliding_blocks), Mask(blocks=whole_blocks))
        sliding, whole = (dense_mask(length, w, documents, ids.device) for w in (window, None))
        return Masks(Mask(dense=sliding), Mask(dense=whole))

    def _varlen_masks(
        self, rows: int, length: int, window: int | None, cu_seqlens: Tensor | None, device: torch.device
    ) -> Masks:
        row_ends = torch.arange(rows + 1, dtype=torch.int32) * length
        ends = to_device(row_ends if cu_seqlens is None else cu_seqlens, device)
        if cu_seqlens is not None:
            torch._dynamo.mark_dynamic(ends, 0)  # any number of documents is one graph, and none is computed in vain
        return Masks(Mask(cu_seqlens=ends, window=window), Mask(cu_seqlens=ends))


def document_ids(cu_seqlens: Tensor, rows: int, device: torch.device) -> Tensor:
    """Return the number of each token's document, (rows, T) int32 on `device`; `cu_seqlens` is on the CPU."""
    starts = torch.zeros(int(cu_seqlens[-1]), dtype=torch.int32)
    starts[cu_seqlens[1:-1].long()] = 1
    return to_device(starts.cumsum(0, dtype=torch.int32).view(rows, -1), device)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Return x on `device`; from pinned memory, so that the host does not wait for what the device still has to do."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)
