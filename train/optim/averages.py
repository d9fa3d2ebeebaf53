"""Averages of the weights over the steps, held beside them: EMA and SWA (docs/trainer-math.md, "Weight averaging").

    ema   every `every` steps:  e = decay * e + (1 - decay) * w, from the first weights on, without debiasing
          (a decay of .997 a step is .997 ** 10 = .97040178 every 10 steps; after 9,030 steps the first weights then
          count 1.6e-12)
    swa   every `every` steps while the lr's factor is below `start_frac`, after the warm-up:  the mean of the weights
          (.5 and 50: the last half of the warmdown, of 3,000 steps 29 or 30 snapshots)

SWA is held as a running mean, (w - m) / n added, so that what a checkpoint holds can be used as weights; the records
divide a sum at the end, which is the same up to rounding. Both are fp32 on the weights' device, 4 bytes a parameter
each, on every rank: weights are equal on all ranks, so their averages are, and nothing is exchanged. Off, nothing is
held and nothing computed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Module

from train.config import ConfigError, TrainConfig
from train.optim.schedule import has_fallen_below, lr_factor


@dataclass
class Average:
    """One average, by parameter name. `count` is of the updates made; before the first there is nothing to use."""

    tensors: dict[str, Tensor]
    count: int = 0


class Averages:
    """The averages that the configuration asks for, by name: `ema`, `swa`, both or none."""

    def __init__(self, model: Module, cfg: TrainConfig) -> None:
        """Start the averages. Raises ConfigError when one is asked for that this run would never update."""
        self.cfg, self.model = cfg, model
        check_updates(cfg)
        weights = {name: p.detach() for name, p in model.named_parameters()}
        self.by_name: dict[str, Average] = {}
        if cfg.ema.decay > 0:
            self.by_name["ema"] = Average({name: w.float().clone() for name, w in weights.items()})
        if cfg.swa.start_frac > 0:
            self.by_name["swa"] = Average(
                {name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()}
            )

    @torch.no_grad()
    def update(self, step: int, factor: float) -> None:
        """Take the weights in after `step` updates, the last with the lr's `factor`. Never waits for the device."""
        for name, average in self.by_name.items():
            if not _is_due(name, self.cfg, step, factor):
                continue
            average.count += 1
            decay = self.cfg.ema.decay
            for key, parameter in self.model.named_parameters():
                mean, w = average.tensors[key], parameter.detach().float()
                if name == "ema":
                    mean.mul_(decay).add_(w, alpha=1 - decay)
                else:
                    mean.add_(w - mean, alpha=1 / average.count)

    @contextlib.contextmanager
    def used(self, name: str) -> Iterator[None]:
        """Give the model the weights of average `name`, and afterwards its own again, to the bit."""
        parameters = dict(self.model.named_parameters())
        own = {key: p.detach().clone() for key, p in parameters.items()}
        try:
            _copy_into(parameters, self.by_name[name].tensors)
            yield
        finally:
            _copy_into(parameters, own)

    def usable(self) -> list[str]:
        """Return the names of the averages that have been updated."""
        return [name for name, average in self.by_name.items() if average.count]

    def counts(self) -> dict[str, int]:
        """Return the updates made by each, for a checkpoint's state.json."""
        return {name: average.count for name, average in self.by_name.items()}

    def state_tensors(self) -> dict[str, Tensor]:
        """Return all averages by `ema.NAME` and `swa.NAME`, but for an SWA with no update, for a checkpoint."""
        kept = {name: a for name, a in self.by_name.items() if a.count or name == "ema"}
        return {f"{name}.{key}": tensor for name, average in kept.items() for key, tensor in average.tensors.items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], counts: dict[str, int]) -> None:
        """Put back what `state_tensors` and `counts` gave. Raises KeyError when one is missing."""
        for name, average in self.by_name.items():
            average.count = counts[name]
        for key, tensor in self.state_tensors().items():
            tensor.copy_(tensors[key])


def weights(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the weights of average `name` in a checkpoint's optimizer.safetensors, by parameter name; {}: none."""
    return {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


def check_updates(cfg: TrainConfig) -> None:
    """Raise ConfigError when an average that is asked for would see no update.

    Of SWA nothing is known beforehand where schedule.seconds ends the run.
    """
    if cfg.ema.decay > 0 and cfg.ema.every > cfg.steps:
        raise ConfigError(f"train.ema.every = {cfg.ema.every}: above train.steps = {cfg.steps}, so it would never act")
    if cfg.swa.start_frac > 0 and cfg.schedule.seconds is None:
        due = range(cfg.swa.every, cfg.steps + 1, cfg.swa.every)
        if not any(_is_due("swa", cfg, s, lr_factor(s - 1, cfg.steps, cfg.schedule)) for s in reversed(due)):
            raise ConfigError(
                f"train.swa: in no step that is a multiple of {cfg.swa.every} is the learning rate's factor below "
                f"{cfg.swa.start_frac:g} after the warm-up\nlower train.swa.every, or lengthen the schedule's decay"
            )


def _is_due(name: str, cfg: TrainConfig, step: int, factor: float) -> bool:
    """Return whether average `name` is updated after `step`, whose learning rate had `factor`."""
    if name == "ema":
        return step % cfg.ema.every == 0
    return step % cfg.swa.every == 0 and has_fallen_below(step, factor, cfg.swa.start_frac, cfg.schedule)


@torch.no_grad()
def _copy_into(parameters: dict[str, torch.nn.Parameter], values: dict[str, Tensor]) -> None:
    for key, p in parameters.items():
        p.copy_(values[key])
