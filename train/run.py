"""The state of one run of the trainer: what train/main.py builds and train/step.py advances."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.checkpoint.background import BackgroundWriter
from train.config import TrainConfig
from train.data.loader import Batch, Loader
from train.data.manifest import ManifestError
from train.data.prefetch import Prefetcher
from train.distributed.hardware import Meter
from train.distributed.runtime import Runtime
from train.eval.validation import Score, Validation
from train.model.fake_quant import FakeQuant
from train.model.transformer import Model
from train.monitor.anomalies import AnomalyDetector
from train.monitor.dead_parts import DeadPartWatch
from train.monitor.singular_values import SingularValueWatch
from train.monitor.source_losses import SourceLosses
from train.optim.averages import Averages
from train.optim.optimizer import Optimizer
from train.optim.schedule import StepTimer

OnSave = Callable[[dict[str, Any], str | None], None]


@dataclass
class Progress:
    """How far a run has come, over all its starts. Checkpoints hold it."""

    step: int = 0  # updates made
    seconds: float = 0.0  # spent in steps
    before: Score | None = None  # ahead of the first step
    best: dict[str, Any] | None = None  # step, val_loss and tokens of the best score so far
    unscored: dict[str, Any] | None = None  # the line of the step continued from, where a kill left it without a score

    @property
    def best_step(self) -> int | None:
        """The step of the best score so far."""
        return None if self.best is None else int(self.best["step"])


class IntervalClock:
    """Seconds and steps since the last line; scores and checkpoints are left out by `restart`."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.steps = 0

    def read(self) -> tuple[float, int]:
        """Return the seconds and the steps since the last reading, and begin anew."""
        now = time.perf_counter()
        interval = (now - self.start, self.steps)
        self.start, self.steps = now, 0
        return interval

    def restart(self) -> None:
        """Leave out the time since the last reading."""
        self.start = time.perf_counter()


@dataclass
class Run:
    """All that a step touches. `identity` and `builds` are what run.json and each checkpoint say of the run."""

    rt: Runtime
    cfg: TrainConfig
    model: Model
    optimizer: Optimizer
    averages: Averages
    loader: Loader
    batches: Loader | Prefetcher  # the loader, or what reads ahead of it
    validation: Validation
    folder: Path
    identity: dict[str, Any]
    builds: list[dict[str, Any]]
    anomalies: AnomalyDetector
    singular_values: SingularValueWatch
    meter: Meter
    epochs_per_step: float
    total_steps: float  # that this run makes: cfg.steps, or what schedule.seconds suffice for
    step_timer: StepTimer | None = None  # where schedule.seconds ends the run
    fake_quant: FakeQuant | None = None  # where train.qat is on
    dead_parts: DeadPartWatch | None = None  # on rank 0
    source_losses: SourceLosses | None = None  # where the mixture has several sources, and whose tokens are is known
    address: str = ""  # in a bucket, of which `folder` is the copy here
    on_save: OnSave | None = None
    progress: Progress = field(default_factory=Progress)
    writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    clock: IntervalClock = field(default_factory=IntervalClock)
    next_batch: Batch | None = None  # of the next step, where it was read ahead
    data_error: ManifestError | None = None  # a file of the mixture has changed since it was opened
    seconds_waited: float = 0.0  # for data, since the last line
    lr_factor: float = 1.0  # of the learning rate, in the last step
    is_decaying: bool = False  # the learning rate has begun to fall to its end
    saved_at: float = 0.0  # when the last checkpoint was saved, by time.monotonic
    after: Score | None = None  # the last score
    averaged: dict[str, Score] = field(default_factory=dict)  # of each average, when `after` was scored

    @property
    def step(self) -> int:
        """Updates made."""
        return self.progress.step

    @property
    def place(self) -> str:
        """Where people find the run."""
        return self.address or str(self.folder)
