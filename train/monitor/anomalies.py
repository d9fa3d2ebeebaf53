"""Watching a run: losses that are no number, spikes of loss and gradient norm, slow steps, data that is waited for.

Each step is judged on the device, so nobody waits for the verdict: a loss or gradient norm is a spike when it lies
more than `spike_sigma` standard deviations above its running mean. What was judged is kept in a small table there and
read when a line is printed; every step found bad becomes an event, with the gradient norm of each module and the
documents that its batch was made of. `python -m pipeline trace --run RUN --step N` shows their text and source rows.

Only where a bad step must not be applied (`on_spike: skip` or `stop`) is the verdict of every step waited for.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.checkpoint.run_folder import read_run
from train.config import TrainConfig, TrainError
from train.data.index import read_shard_index
from train.data.manifest import Manifest
from train.data.sampler import rows_of_step
from train.monitor.commands import continue_command, trace_command
from train.monitor.text import event_text

WARM = 32  # steps seen before the first is judged
RATES = 0.1, 0.02  # of the running mean, which must keep up with a falling loss, and of the variance around it
CLIP = 3.0  # sigmas above the mean that a step may move them: a spike does not hide the next, a new level is learned
FLOOR = (0.02, 0.05)  # least sigma of the loss (nats) and of the norm (its logarithm): a flat stretch has none
NOT_FINITE, LOSS, NORM = 1, 2, 4  # bits of a verdict
NAMES = {NOT_FINITE: "not finite", LOSS: "loss spike", NORM: "gradient spike"}
NO_GRADIENT = "no gradient"  # a norm of 0, whose logarithm is not finite: all logits at the cap, say
SKIP = "train.on_spike=skip"
SKIPS_IN_A_ROW = 10  # then the run stops: it is not the batch
TABLE = 1000  # steps kept on the device at most
SLOW = 2.0  # times the median step of the run so far
STALL = 0.05  # share of the time spent waiting for data
INTERVALS = 50  # whose median is what a step usually takes


class AnomalyDetector:
    """The judge of one run's steps. `stats` is its whole memory, and goes into checkpoints."""

    def __init__(self, manifest: Manifest, cfg: TrainConfig, modules: list[str], device: torch.device) -> None:
        """`modules`: whose gradient norms `judge` is given; none unless spike_sigma is above 0."""
        self.manifest, self.cfg = manifest, cfg
        self.modules = modules if cfg.spike_sigma > 0 else []
        self.last_norms: dict[str, float] = {}  # of each module's gradient, in the step read last
        self.stats = torch.zeros(5, device=device)  # steps; mean of loss and of log norm; variance of each
        self.floor = torch.tensor(FLOOR, device=device)
        columns = 3 + len(self.modules)  # verdict, loss, norm, norms
        self.table = torch.zeros(min(cfg.log_every, TABLE), columns, device=device)
        self.filled = 0  # rows of the table that were not read yet
        self.skipped = 0  # steps in a row
        self.waits = cfg.on_spike != "warn"  # for the verdict of each step
        self.step_seconds: deque[float] = deque(maxlen=INTERVALS)

    @property
    def full(self) -> bool:
        """Whether the table must be read before the next step."""
        return self.filled == len(self.table)

    @torch.no_grad()
    def judge_step(self, loss: Tensor, norm: Tensor, module_norms: Tensor) -> bool:
        """Judge a step by its global loss and gradient norm (scalars on the device); note them and the modules' norms.

        Returns whether to apply the step: always true where the verdict is not waited for.
        """
        verdict = judge(self.stats, torch.stack([loss, norm.log()]), self.floor, self.cfg.spike_sigma)
        self.table[self.filled] = torch.cat([torch.stack([verdict, loss, norm]), module_norms])
        self.filled += 1
        if not self.waits:
            return True
        if bool(verdict):
            self.skipped += 1
            return False
        self.skipped = 0
        return True

    def read_events(self, step: int) -> list[dict[str, Any]]:
        """Return what happened in the steps up to `step` that were not read yet. The host waits for the device here."""
        rows = self.table[: self.filled].tolist()
        events: list[dict[str, Any]] = []
        for number, (verdict, loss, norm, *module_norms) in enumerate(rows, step - self.filled + 1):
            norms = dict(zip(self.modules, module_norms, strict=True))
            if verdict:
                events.append(
                    {
                        "step": number,
                        "event": NO_GRADIENT if norm == 0 else verdict_text(int(verdict)),
                        "loss": loss,
                        "grad_norm": norm,
                        "applied": not self.waits,
                        "grad_norms": norms,
                        "batch": documents_of_step(self.manifest, self.cfg, number - 1),
                    }
                )
            self.last_norms = norms
        self.filled = 0
        return events

    def slow_events(self, step: int, seconds: float, steps: int, waited: float) -> list[dict[str, Any]]:
        """Return events of the time that the last `steps` took: `seconds`, of them `waited` for data."""
        events: list[dict[str, Any]] = []
        usually = statistics.median(self.step_seconds) if len(self.step_seconds) >= 3 else math.inf
        each = seconds / steps
        if each > SLOW * usually:
            events.append({"step": step, "event": "slow steps", "seconds": each, "usually": usually})
        if waited > STALL * seconds and len(self.step_seconds):
            events.append({"step": step, "event": "waiting for data", "share": waited / seconds})
        self.step_seconds.append(each)
        return events

    def check(self, events: list[dict[str, Any]], folder: Path, place: str) -> None:
        """Raise TrainError when the run cannot or shall not go on after `events`."""
        for event in events:
            is_broken = event["event"] in (NAMES[NOT_FINITE], NO_GRADIENT) and self.cfg.on_spike == "warn"
            is_forbidden = "batch" in event and self.cfg.on_spike == "stop"
            if is_broken or is_forbidden:
                raise TrainError(
                    f"step {event['step']}: {event_text(event)}; its batch and gradients are in {place}/events.jsonl\n"
                    f"see its documents with `{trace_command(self.manifest.folder, place, event['step'])}`; "
                    f"go on without it with {skip_command(folder)}; "
                    "or train anew with lower rates or a longer train.schedule.warmup"
                )
        if self.skipped >= SKIPS_IN_A_ROW:
            raise TrainError(
                f"{self.skipped} steps in a row were skipped: it is not their batches; see {place}/events.jsonl\n"
                "give an earlier checkpoint's weights (train.init_from) to a run with lower rates"
            )


def skip_command(folder: Path) -> str:
    """Return the command that goes on with the run in `folder` and leaves such steps out, or the settings of it."""
    try:
        return f"`{continue_command(read_run(folder), SKIP)}`"
    except (TrainError, LookupError):  # a rank on another machine may not see the folder
        return f"train.resume=auto {SKIP}"


def judge(stats: Tensor, x: Tensor, floor: Tensor, sigmas: float) -> Tensor:
    """Return the verdict on x = (loss, log of the norm), a scalar of bits; `stats` (5,) learns from it in place.

    d = x - m, at most CLIP sigma; m += r d; v += s (d^2 - v). The rates r and s are 1 / steps while few were seen.
    """
    n, mean, variance = stats[0], stats[1:3], stats[3:5]
    finite = x.isfinite().all()
    sigma = torch.maximum(variance.sqrt(), floor)
    d = torch.where(finite, x - mean, 0.0)
    warm = n >= WARM
    high = (d > sigmas * sigma) & warm if sigmas > 0 else torch.zeros_like(d, dtype=torch.bool)
    d = torch.where(warm, torch.minimum(d, CLIP * sigma), d)
    rates = [torch.clamp(1 / (n + 1), min=rate) * finite for rate in RATES]
    stats[3:5] = variance + rates[1] * (d.square() - variance)
    stats[1:3] = mean + rates[0] * d
    stats[0] = n + finite
    return NOT_FINITE * (~finite).float() + LOSS * high[0].float() + NORM * high[1].float()


def verdict_text(verdict: int) -> str:
    """Write a verdict in words."""
    return ", ".join(name for bit, name in NAMES.items() if verdict & bit)


def documents_of_step(manifest: Manifest, cfg: TrainConfig, step: int) -> list[dict[str, Any]]:
    """Return the rows of 0-based `step`: shard, first token, and first and last document by ordinal in the `.idx`.

    Of adopted shards, whose documents are not known, without these.
    """
    rows = rows_of_step(manifest, cfg, step)
    if manifest.adopted:
        return [{"shard": path, "token": token} for path, token in rows]
    read = {path for path, _ in rows}
    starts = {s.path: read_shard_index(manifest, s).starts for s in manifest.shards if s.path in read}
    documents: list[dict[str, Any]] = []
    for path, token in rows:
        places = np.array([token, token + cfg.seq_len])
        first, last = np.maximum(np.searchsorted(starts[path], places, "right") - 1, 0).tolist()
        documents.append({"shard": path, "token": token, "documents": [first, last]})
    return documents
