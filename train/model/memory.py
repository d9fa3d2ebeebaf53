"""Memory tokens: learned embeddings at the first positions, which all later ones see (docs/trainer-math.md).

In training they take the place of a row's first tokens, whose ids then act only through what looks back (SmearGate,
BigramHash); these are no targets. In evaluation and generation they stand in front of the text: a caller puts
as many ids of any kind ahead of it.

Config key: memory_tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.model.config import ModelConfig
from train.model.loss import IGNORE


class Memory(nn.Module):
    """The tokens M, (K, dim), each scaled to a root mean square of 1: only their direction matters."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.eps = cfg.norm_eps
        self.tokens = nn.Parameter(torch.empty(cfg.memory_tokens, cfg.dim))

    def forward(self, x: Tensor, positions: Tensor | None) -> Tensor:
        """Replace what stands at positions below K in x (B, T, dim). positions: (B, T); None: from 0."""
        memory = F.rms_norm(self.tokens.to(x.dtype), x.shape[-1:], None, self.eps)
        if positions is None:
            own = memory[: x.shape[1]].expand(len(x), -1, -1)
            return torch.cat([own, x[:, len(memory) :]], 1)
        return torch.where((positions < len(memory))[..., None], memory[positions.clamp(max=len(memory) - 1)], x)

    def counted_targets(self, targets: Tensor, num_targets: int | None) -> tuple[Tensor, int]:
        """Return targets (B, T) with IGNORE where memory stands, and how many are left.

        num_targets: how many are not IGNORE; None: all. Otherwise those left are counted on the device, and waited for.
        """
        rows, length = targets.shape
        K = min(len(self.tokens), length)
        left = F.pad(targets[:, K:], (K, 0), value=IGNORE)
        return left, rows * (length - K) if num_targets is None else int((left != IGNORE).sum())
