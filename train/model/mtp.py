"""Heads that predict further tokens: trained beside the main one, and then thrown away (docs/trainer-math.md).

Config keys: mtp_heads, mtp_weight, mtp_decay. After Gloeckle et al. 2024 (arXiv:2404.19737), as parameter-golf PR #352
has them: linear maps of the last hidden state.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from train.model.config import ModelConfig
from train.model.layers import Linear
from train.model.loss import IGNORE, ChunkValues, head_loss


class FurtherTokens(nn.Module):
    """Head k, counted from 1, predicts the target that stands k places after the position's own."""

    def __init__(self, cfg: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.cap, self.hidden_targets = cfg.lm_head_logit_cap, cfg.memory_tokens
        self.heads = nn.ModuleList(Linear(cfg.dim, vocab_size) for _ in range(cfg.mtp_heads))

    def forward(self, h: Tensor, targets: Tensor, all_count: bool, values: ChunkValues) -> Tensor:
        """Return the mean of the heads' mean losses: h (B, T, dim), targets (B, T).

        all_count: no target is IGNORE but those where memory stands; otherwise they are counted, and waited for.
        """
        rows = h.shape[1] - len(self.heads)  # positions that have a target for every head
        losses = []
        for k, head in enumerate(self.heads, 1):
            assert isinstance(head, Linear)
            # all positions, of which the last do not count: one shape with the main loss, so one compiled graph
            own = torch.full_like(targets, IGNORE)
            own[:, :rows] = targets[:, k : k + rows]
            left = rows - max(0, self.hidden_targets - k)
            count = len(h) * max(0, left) if all_count else int((own != IGNORE).sum())
            states = h.flatten(0, 1)
            losses.append(head_loss(states, head.used_weight(), own.flatten(), self.cap, 0.0, count, values)[0])
        return torch.stack(losses).mean()
