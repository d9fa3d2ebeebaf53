"""BigramHash: an embedding of the pair of the last two ids, from a table that pairs share (docs/trainer-math.md).

Config keys: bigram_buckets, bigram_dim, bigram_init.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.model.config import ModelConfig
from train.model.layers import Linear


def bigram_rows(ids: Tensor, starts: Tensor, buckets: int) -> Tensor:
    """Return the table's row of each pair (ids_{t-1}, ids_t), (B, T): the last one for the first token of a text.

    starts: (B or 1, T) bool, those tokens. The hash is parameter-golf's and modded-nanogpt's.
    """
    before = torch.cat([torch.zeros_like(ids[:, :1]), ids[:, :-1]], 1)
    rows = ((36313 * ids) ^ (27191 * before)) % (buckets - 1)
    return torch.where(starts, buckets - 1, rows)


class BigramHash(nn.Module):
    """scale * proj(table[row of the pair]).

    The table starts at 0, so that the model starts as the one without. `proj` must not start at 0 too: a product of two
    zeros has no gradient for either.
    """

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.buckets = cfg.bigram_buckets
        self.embed = nn.Embedding.from_pretrained(torch.empty(cfg.bigram_buckets, cfg.bigram_dim), freeze=False)
        self.proj = Linear(cfg.bigram_dim, cfg.dim)
        self.scale = nn.Parameter(torch.full((1,), 0.05))

    def forward(self, ids: Tensor, starts: Tensor, dtype: torch.dtype) -> Tensor:
        """Map ids (B, T) to what is added to their embeddings, (B, T, dim) in `dtype`; starts as in `bigram_rows`."""
        pairs = self.embed(bigram_rows(ids, starts, self.buckets)).to(dtype)
        return self.proj(pairs) * self.scale.to(dtype)
