"""The training loss of each source: added up on the device in every step, read when a line is printed.

A step leaves two figures a source, in a small table on the device: its part of the loss, so that the parts of all
sources add up to the loss, and its share of the targets. Neither waits for anything, and ranks add theirs up once a
line. Which source a target is of the loader says (train/data/sources.py).
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.distributed.runtime import Runtime

REMEMBERED = 50  # steps of a source whose median is its usual loss
LAST = 0.1  # of a run, its last part, whose mean loss is the loss at its end


class SourceLosses:
    """The table of the steps that were not read yet."""

    def __init__(self, names: list[str], steps: int, device: torch.device) -> None:
        """steps: that the table holds."""
        self.names = names
        self.table = torch.zeros(steps, 2, len(names), device=device)
        self.filled = 0
        self.numbers = torch.arange(len(names), dtype=torch.int16, device=device)[:, None]
        self.usual: list[deque[float]] = [deque(maxlen=REMEMBERED) for _ in names]
        self._by_target = torch.empty(2, 0, device=device)

    def begin_step(self) -> None:
        """Forget what was added and not counted as a step."""
        self.table[self.filled] = 0

    def by_target(self, targets: int) -> Tensor:
        """Return room for what the model says of each of the targets, (2, targets); see `head_loss`."""
        if self._by_target.shape[1] != targets:
            self._by_target = self._by_target.new_empty(2, targets)
        return self._by_target

    @torch.no_grad()
    def add(self, by_target: Tensor, sources: Tensor, share: float) -> None:
        """Add a micro-batch: its `by_target`, the source of each target, and its share of the step's targets."""
        is_of_source = sources.flatten() == self.numbers  # (sources, N)
        nats, counted = (torch.where(is_of_source, values, 0.0).sum(1) for values in by_target)
        self.table[self.filled] += torch.stack([nats, counted]) * (share / by_target[1].sum().clamp(min=1))

    def end_step(self) -> None:
        """Count what was added as a step."""
        self.filled += 1

    def read(self, rt: Runtime) -> NDArray[np.float64]:
        """Return the parts of the loss and the shares of the targets, (steps, 2, sources), of steps not read yet.

        Every rank calls it, and waits for the device.
        """
        values = rt.all_reduce_(self.table[: self.filled].clone()).double().cpu().numpy()
        self.filled = 0
        return values

    def name_sources(self, events: list[dict[str, Any]], values: NDArray[np.float64], step: int) -> None:
        """Tell each spike among `events` the losses by source, and the source that made it.

        values: what `read` gave of the steps up to `step`. That is the source whose loss is no number, or else the one
        whose part of the loss lies furthest above what its usual loss would have made it.
        """
        spikes = {event["step"]: event for event in events if "batch" in event}
        for number, (parts, shares) in enumerate(values, step - len(values) + 1):
            losses = {i: parts[i] / shares[i] for i in np.flatnonzero(shares).tolist()}
            if number in spikes:
                usual = {i: statistics.median(self.usual[i]) if self.usual[i] else None for i in losses}
                above = {i: shares[i] * (losses[i] - (usual[i] or 0.0)) for i in losses}
                worst = max(above, key=lambda i: math.inf if math.isnan(above[i]) else above[i])
                spikes[number] |= {
                    "source": self.names[worst],
                    "source_loss": losses[worst],
                    "source_usual": usual[worst],
                    "source_losses": {self.names[i]: loss for i, loss in losses.items()},
                }
            else:
                for i, loss in losses.items():
                    self.usual[i].append(loss)

    def record(self, values: NDArray[np.float64]) -> dict[str, float]:
        """Return what metrics.jsonl says of the steps that `read` gave: loss/SOURCE and share/SOURCE, of those read."""
        if not len(values):
            return {}
        parts, shares = values.mean(0)
        found: dict[str, float] = {}
        for name, part, share in zip(self.names, parts.tolist(), shares.tolist(), strict=True):
            if share:
                found |= {f"loss/{name}": part / share, f"share/{name}": share}
        return found


def losses_at_end(records: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean training loss of each source over the last part of the `records` of metrics.jsonl, by name."""
    lines = [(r["step"], r) for r in records if any(key.startswith("loss/") for key in r)]
    found: dict[str, tuple[float, float]] = {}  # weighted loss, and weight
    for (before, _), (step, record) in zip([(0, {}), *lines], lines, strict=False):
        if step <= (1 - LAST) * lines[-1][0]:
            continue
        for key, loss in record.items():
            name = key.removeprefix("loss/")
            if name != key:
                weight = record[f"share/{name}"] * (step - before)
                nats, weights = found.get(name, (0.0, 0.0))
                found[name] = (nats + loss * weight, weights + weight)
    return {name: nats / weight for name, (nats, weight) in found.items()}
