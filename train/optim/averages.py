"""Averages of the weights over the steps, held beside them: EMA and SWA (trainers.md 1.9).

    ema   every `every` steps:  e = decay * e + (1 - decay) * w, from the first weights on, without debiasing
          (seed S4: .997 every 10 steps; its first weights still count .066 after 9,030 steps)
    swa   every `every` steps while the lr's factor is below `start_frac`, after the warm-up:  the mean of the weights
          (seed S2: .5 and 50, the last half of the warmdown: 29 or 30 snapshots)

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
from train.optim.schedule import lr_factor


@dataclass
class Average:
    """One average, by parameter name. `count` is of the updates made; before the first there is nothing to use."""

    tensors: dict[str, Tensor]
    count: int = 0


class Averages:
    """The averages that the configuration asks for, by name: `ema`, `swa`, both or none."""

    def __init__(self, model: Module, cfg: TrainConfig) -> None:
        """Raises ConfigError when one is asked for that this run would never update."""
        self.cfg, self.model = cfg, model
        check_updates(cfg)
        weights = {name: p.detach() for name, p in model.named_parameters()}
        self.held: dict[str, Average] = {}
        if cfg.ema.decay > 0:
            self.held["ema"] = Average({name: w.float().clone() for name, w in weights.items()})
        if cfg.swa.start_frac > 0:
            self.held["swa"] = Average({name: torch.zeros_like(w, dtype=torch.float32) for name, w in weights.items()})

    @torch.no_grad()
    def update(self, step: int, factor: float) -> None:
        """After `step` updates, the last of them with the lr's `factor`. Never waits for the device."""
        for name, average in self.held.items():
            if not _takes(name, self.cfg, step, factor):
                continue
            average.count += 1
            decay = self.cfg.ema.decay
            for key, parameter in self.model.named_parameters():
                held, w = average.tensors[key], parameter.detach().float()
                if name == "ema":
                    held.mul_(decay).add_(w, alpha=1 - decay)
                else:
                    held.add_(w - held, alpha=1 / average.count)

    @contextlib.contextmanager
    def used(self, name: str) -> Iterator[None]:
        """The model with the weights of average `name`; after it with its own again, to the bit."""
        parameters = dict(self.model.named_parameters())
        own = {key: p.detach().clone() for key, p in parameters.items()}
        try:
            _put(parameters, self.held[name].tensors)
            yield
        finally:
            _put(parameters, own)

    def usable(self) -> list[str]:
        """Names of the averages that have been updated."""
        return [name for name, average in self.held.items() if average.count]

    def counts(self) -> dict[str, int]:
        """Updates made by each, for a checkpoint's state.json."""
        return {name: average.count for name, average in self.held.items()}

    def state_tensors(self) -> dict[str, Tensor]:
        """For a checkpoint, as `ema.NAME` and `swa.NAME`; an average with no update is left out but for EMA's start."""
        kept = {name: a for name, a in self.held.items() if a.count or name == "ema"}
        return {f"{name}.{key}": tensor for name, average in kept.items() for key, tensor in average.tensors.items()}

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor], counts: dict[str, int]) -> None:
        """Put back what `state_tensors` and `counts` gave. Raises KeyError when one is missing."""
        for name, average in self.held.items():
            average.count = counts[name]
        for key, held in self.state_tensors().items():
            held.copy_(tensors[key])


def weights(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The weights of average `name` by parameter name, out of a checkpoint's optimizer.safetensors; {}: it has none."""
    return {key[len(name) + 1 :]: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}


def check_updates(cfg: TrainConfig) -> None:
    """Raises ConfigError when an average that is asked for would see no update. By the clock only the kind tells."""
    if cfg.ema.decay > 0 and cfg.ema.every > cfg.steps:
        raise ConfigError(f"train.ema.every = {cfg.ema.every}: above train.steps = {cfg.steps}, so it would never act")
    if cfg.swa.start_frac > 0 and cfg.schedule.seconds is None:
        due = range(cfg.swa.every, cfg.steps + 1, cfg.swa.every)
        if not any(_takes("swa", cfg, s, lr_factor(s - 1, cfg.steps, cfg.schedule)) for s in reversed(due)):
            raise ConfigError(
                f"train.swa: in no step that is a multiple of {cfg.swa.every} is the learning rate's factor below "
                f"{cfg.swa.start_frac:g} after the warm-up\nlower train.swa.every, or lengthen the schedule's decay"
            )


def _takes(name: str, cfg: TrainConfig, step: int, factor: float) -> bool:
    if name == "ema":
        return step % cfg.ema.every == 0
    return step % cfg.swa.every == 0 and step > cfg.schedule.warmup and factor < cfg.swa.start_frac


@torch.no_grad()
def _put(parameters: dict[str, torch.nn.Parameter], values: dict[str, Tensor]) -> None:
    for key, p in parameters.items():
        p.copy_(values[key])
