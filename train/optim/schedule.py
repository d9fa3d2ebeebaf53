"""The learning rate over the steps: one pure function (docs/trainer-math.md, "Learning-rate schedules").

Every kind rises over `warmup` steps (from `warmup_from`) and falls along p from D to the end T; they differ in D:

    wsd        D = W + (1 - decay_frac)(T - W)    `decay_frac` is of the steps after warm-up, as the seed says
    warmdown   D = T - warmdown                   the parameter-golf records: a number of steps, whatever T is
    cosine     D = W
    constant   never

By the wall clock (`schedule.seconds`) the same function is used, with T = seconds / mean seconds a step so far: for
warmdown that is the records' rule, remaining / (warmdown * mean step). T then moves with the machine's pace, so two
such runs are alike but never equal to the bit. A resume continues: `StepTimer` is in each checkpoint. The last step is
the last that ends in time, t + 1 <= T; with `overrun`, as in the records, the last that begins in time.

Before D nothing depends on T. So a run can be made longer, or ended sooner, from any checkpoint before D without
training its stable part again; one is kept at D for that (`decay_begins`), and a resume asks `settled`.
"""

from __future__ import annotations

import math
import time

from train.config import ScheduleConfig


def lr_factor(step: int, steps: float, cfg: ScheduleConfig) -> float:
    """Return what every lr is multiplied by in step `step` (0-based, below `steps`): above 0.

    It is at most 1, but where min_ratio is not.
    """
    is_warming_up = step < cfg.warmup
    rise = cfg.warmup_from + (1 - cfg.warmup_from) * ((step + 1) / cfg.warmup) if is_warming_up else 1.0
    start = decay_start(steps, cfg)
    if step < start:
        return rise
    most = rise if is_warming_up else max(1.0, cfg.min_ratio)
    return min(most, cfg.min_ratio + (1 - cfg.min_ratio) * decay((steps - step) / (steps - start), cfg.shape))


def decay_start(steps: float, cfg: ScheduleConfig) -> float:
    """Return D, in steps from the start: infinite where nothing falls, below 0 for a warmdown longer than the run."""
    if cfg.kind == "constant":
        return math.inf
    if cfg.kind == "cosine":
        return cfg.warmup
    if cfg.kind == "warmdown":
        return steps - cfg.warmdown
    return cfg.warmup + (1 - cfg.decay_frac) * (steps - cfg.warmup)


def decay(left: float, shape: str) -> float:
    """Return the decay's factor, from 1 where all is left to 0 where nothing is.

    sqrt is 1 - sqrt(p), p = 1 - left: it falls fast first (Hägele et al. 2024, arXiv:2405.18392).
    """
    if shape == "sqrt":
        return 1 - math.sqrt(1 - left)
    if shape == "linear":
        return left
    return 0.5 * (1 - math.cos(math.pi * left))


def decay_begins(step: int, steps: float, cfg: ScheduleConfig) -> bool:
    """Return whether after `step` updates a stable phase is over. A cosine has none."""
    return cfg.kind in ("wsd", "warmdown") and step >= decay_start(steps, cfg)


def settled(step: int, steps: float, cfg: ScheduleConfig) -> bool:
    """Return whether the first `step` updates of a run of `steps` took the factors that any longer run takes."""
    return step - 1 <= decay_start(steps, cfg)


def has_fallen_below(step: int, factor: float, limit: float, cfg: ScheduleConfig) -> bool:
    """Return whether after `step` updates, the last with the lr's `factor`, that has fallen below `limit`.

    In the warm-up it has not: there it rises.
    """
    return step > cfg.warmup and factor < limit


class StepTimer:
    """The mean seconds a step, over all starts, scores and checkpoints left out.

    The first step of each start is not timed, for it compiles, and counts as a mean one. Where steps were made ahead
    and undone (train.kernel_warmup), as the records do, `restart` was called, and the first is timed too.
    """

    def __init__(self, seconds: float = 0.0, steps: int = 0) -> None:
        self.seconds, self.steps = seconds, steps
        self.lap: float | None = None

    def step(self) -> None:
        """Count a step that has ended."""
        now = time.perf_counter()
        if self.lap is not None:
            self.seconds, self.steps = self.seconds + now - self.lap, self.steps + 1
        self.lap = now

    def caught_up(self) -> None:
        """Count that the host has waited for the device, which is training time as well: it runs ahead of it."""
        now = time.perf_counter()
        if self.lap is not None and self.steps:
            self.seconds += now - self.lap
        self.lap = now

    def restart(self) -> None:
        """Leave out what was done since the last step."""
        self.lap = time.perf_counter()

    def total(self, steps: int, seconds: float) -> float:
        """Return how many steps `seconds` suffice for, `steps` at most; that many while nothing was timed."""
        return min(float(steps), seconds * self.steps / self.seconds) if self.seconds > 0 else float(steps)
