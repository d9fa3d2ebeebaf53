"""The training loop: batch, gradient, update, now and then a line, a score, a checkpoint.

Nothing in a step waits for the device but the lines that are printed, and nothing waits for the disk. One step, on
every rank:

    for each micro-batch:  total / (micro-batches * ranks)  backward      the global mean, exactly
    one all-reduce (sum) of the flat gradient and the loss; clip by its norm; judge; Muon and AdamW
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train import page
from train.checkpoint import checkpoint
from train.checkpoint.background import Writer
from train.config import TrainConfig
from train.data.loader import Loader, Micro
from train.data.prefetch import Ahead
from train.distributed import hardware
from train.distributed.runtime import Runtime
from train.eval.validation import Score, Validation
from train.model.flops import flops_per_token
from train.model.transformer import Model
from train.monitor import anomalies, singular_values
from train.monitor.anomalies import Sentinel
from train.monitor.metrics import Metrics
from train.monitor.singular_values import RankLoss
from train.monitor.text import clock_text
from train.optim.averages import Averages
from train.optim.optimizer import Optimizer
from train.optim.schedule import StepTimer, decay_begins, lr_factor

LONG_WAIT = 1.0  # seconds that a save may wait for the one before it without saying so
OnSave = Callable[[dict[str, Any], str | None], None]


@dataclass
class Run:
    """All that a step touches. `step` counts the updates made; `before` is the score ahead of the first."""

    rt: Runtime
    cfg: TrainConfig
    model: Model
    optimizer: Optimizer
    averages: Averages
    loader: Loader
    validation: Validation
    folder: Path
    state: dict[str, Any]  # what each checkpoint's state.json repeats
    sentinel: Sentinel
    rank_loss: RankLoss
    metrics: Metrics | None = None  # on the first rank
    on_save: OnSave | None = None
    step: int = 0
    seconds: float = 0.0  # spent in steps, over all starts
    waited: float = 0.0  # seconds for data, since the last line
    epochs_a_step: float = 0.0
    before: Score | None = None
    after: Score | None = None
    averaged: dict[str, Score] = field(default_factory=dict)  # of each average, when `after` was scored
    best: dict[str, Any] | None = None  # step, val_loss and tokens of the best score so far
    pace: StepTimer | None = None  # by the wall clock only
    total: float = 0.0  # steps this run makes: cfg.steps, or what schedule.seconds suffice for
    factor: float = 1.0  # of the learning rate, in the last step
    clock: Clock = field(default_factory=lambda: Clock())
    writer: Writer = field(default_factory=Writer)

    def __post_init__(self) -> None:
        self.total = self.cfg.steps
        # on a CPU a thread would take its time from the step's own
        self.source = Ahead(self.loader) if self.rt.device.type == "cuda" else self.loader
        peak = self.cfg.peak_tflops or hardware.peak_tflops(hardware.device_name(self.rt.device))
        flops = flops_per_token(self.model.cfg, self.model.vocab_size, self.cfg.seq_len)
        self.meter = hardware.Meter(flops, peak, self.rt.world)


class Clock:
    """Seconds in steps since the last reading; scores and checkpoints are left out by `restart`."""

    def __init__(self) -> None:
        self.start, self.steps = time.perf_counter(), 0

    def read(self) -> tuple[float, int]:
        """(seconds, steps) since the last reading."""
        now = time.perf_counter()
        result = (now - self.start, self.steps)
        self.start, self.steps = now, 0
        return result

    def restart(self) -> None:
        """Leave out what was done since the last reading."""
        self.start = time.perf_counter()


def train(run: Run, stop: Callable[[], bool]) -> bool:
    """Run to the end. False when a signal asked to stop: then the step was finished and everything saved.

    Raises TrainError where a sentinel ends the run.
    """
    cfg, rt = run.cfg, run.rt
    if run.step == 0:
        run.before = _score(run)
        _write(run, {"step": 0, **_scored(run.before)})
    run.clock.restart()
    run.total = _total(run)
    decaying = decay_begins(run.step, run.total, cfg.schedule)
    while run.step < run.total:
        loss, norm = one_step(run)
        run.step += 1
        run.clock.steps += 1
        run.averages.update(run.step, run.factor)
        if run.pace is not None:
            run.pace.step()
            run.total = _total(run)
        last = run.step >= run.total
        run.rank_loss.look(run.step)
        # what could not be written is raised by _save
        stopping = rt.any(stop() or run.rank_loss.stops(wait=last) or run.writer.failed)
        begins = not (decaying or last) and decay_begins(run.step, run.total, cfg.schedule)
        decaying |= begins
        scores = last or _due(run.step, cfg.eval_every)
        saves = last or stopping or begins or _due(run.step, cfg.checkpoint_every)
        if scores or saves or run.step == 1 or _due(run.step, cfg.log_every) or run.sentinel.full:
            record = _record(run, loss, norm)
            if run.pace is not None:
                run.pace.caught_up()
            best = False
            if scores and not stopping:
                run.after, run.averaged = _score(run), score_averages(run)
                record |= _scored(run.after)
                for name, score in run.averaged.items():
                    record |= _scored(score, f"_{name}")
                best = cfg.keep_best and _best(run, run.after)
            _write(run, record)
            if scores and rt.first:
                page.refresh(run.folder)
            if saves or best:
                _save(run, record, begins, best, at_once=last or stopping)
            run.clock.restart()
            if run.pace is not None:
                run.pace.restart()
        if stopping:
            rt.agreed(lambda: run.rank_loss.check(run.folder))
            return False
    return True


def one_step(run: Run) -> tuple[Tensor, Tensor]:
    """One update. Returns the global loss in nats and the gradient's norm, both on the device."""
    rt, cfg, optimizer = run.rt, run.cfg, run.optimizer
    # dropout is a function of (seed, step, rank): nothing to store, and ranks differ
    torch.manual_seed((cfg.seed * 1_000_003 + run.step * 8_191 + rt.rank) % 2**63)
    started = time.perf_counter()
    batch = run.source.batch(run.step, cfg.document_mask)
    run.waited += time.perf_counter() - started
    optimizer.grads_and_loss.zero_()
    for micro in batch.micros(run.loader.micro):
        backward(run, micro)
    rt.sum_(optimizer.grads_and_loss)
    norms = optimizer.norms() if run.sentinel.modules else optimizer.loss.new_empty(0)
    norm = optimizer.clip()
    run.factor = lr_factor(run.step, run.total, cfg.schedule)
    if run.sentinel.judge(optimizer.loss, norm, norms):
        optimizer.step(run.factor)
    return optimizer.loss, norm


def backward(run: Run, micro: Micro) -> None:
    """Add one micro-batch to the gradient and the loss of the step."""
    total, ce = run.model(micro.ids, micro.targets, micro.counted, micro.borders)
    (total * micro.share).backward()
    run.optimizer.loss += ce.detach() * micro.share


def _total(run: Run) -> float:
    if run.pace is None or run.cfg.schedule.seconds is None:
        return run.cfg.steps
    return run.rt.firsts(run.pace.total(run.cfg.steps, run.cfg.schedule.seconds))


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _record(run: Run, loss: Tensor, norm: Tensor) -> dict[str, Any]:
    """The line of a step, on every rank; this is where the host waits for the device."""
    cfg, rt = run.cfg, run.rt
    nats = float(loss)
    seconds, steps = run.clock.read()
    run.seconds += seconds
    waited, run.waited = run.waited, 0.0
    figures, lost = run.rank_loss.read()
    _report(run, [*lost, *run.sentinel.events(run.step), *run.sentinel.pace(run.step, seconds, steps, waited)])
    speed = steps * cfg.batch_size * cfg.seq_len / seconds
    left = max(0.0, run.total - run.step) * seconds / steps
    lr = (cfg.muon.lr if cfg.optimizer == "muon" else cfg.adamw.lr) * run.factor
    rates = run.meter.rates(speed)
    used = f"  MFU {rates['mfu_causal']:.1%}" if "mfu_causal" in rates else ""
    rt.say(
        f"step {run.step:>{len(str(cfg.steps))}}/{cfg.steps}  loss {nats:.4f}  lr {lr:.2e}  grad {float(norm):.3f}  "
        f"{speed:>9,.0f} tokens/s{used}  {clock_text(left)} left"
    )
    return {
        "step": run.step,
        "loss": nats,
        "lr": lr,
        "lr_adamw": cfg.adamw.lr * run.factor,
        "grad_norm": float(norm),
        "waiting_for_data": round(waited / seconds, 4),
        "tokens": run.step * cfg.batch_size * cfg.seq_len,
        "tokens_per_second": round(speed, 1),
        **rates,
        "memory_gb": round(hardware.peak_bytes(rt.device) / 1e9, 3),
        "epoch": run.step * run.epochs_a_step,
        "seconds": round(run.seconds, 3),
        "seconds_left": round(left, 1),
        **figures,
        **{f"grad_norm/{module}": value for module, value in run.sentinel.last.items()},
    }


def _report(run: Run, events: list[dict[str, Any]]) -> None:
    """Say and keep events. Raises TrainError where the run must end."""
    for event in events:
        run.rt.say(f"step {event['step']}: {(singular_values if 'matrix' in event else anomalies).said(event)}")
        if run.metrics is not None:
            run.metrics.event(event)
    run.sentinel.check(events, run.folder)


def score_averages(run: Run) -> dict[str, Score]:
    """The score of each average that has been updated, by its name; the weights are left as they were."""
    found = {}
    for name in run.averages.usable():
        with run.averages.used(name):
            found[name] = _score(run, f" of {name}")
    return found


def _score(run: Run, of: str = "") -> Score:
    score = run.validation.score(run.model, run.rt.device)
    run.rt.say(
        f"step {run.step}: validation loss{of} {score.nats:.4f} nats/token, {score.bits_per_byte:.4f} bits/byte "
        f"({score.tokens:,} tokens)"
    )
    if score.sources:
        each = ", ".join(f"{name} {s.bits_per_byte:.4f}" for name, s in score.sources.items())
        run.rt.say(f"step {run.step}: bits/byte{of} by source: {each}")
    for name, asked in score.choices.items():
        run.rt.say(f"step {run.step}: {name}{of}: {asked}")
    return score


def _scored(score: Score, of: str = "") -> dict[str, Any]:
    """val_loss and val_bits_per_byte, and val_loss/<source>; of an average, val_loss_ema and val_loss_ema/<source>.

    Of an evaluation set <set>/acc, and <set>/acc_ema.
    """
    record = {f"val_loss{of}": score.nats, f"val_bits_per_byte{of}": score.bits_per_byte}
    for name, s in score.sources.items():
        record |= {f"val_loss{of}/{name}": s.nats, f"val_bits_per_byte{of}/{name}": s.bits_per_byte}
    for name, asked in score.choices.items():
        record |= {f"{name}/{what}{of}": value for what, value in asked.metrics().items()}
    return record


def _write(run: Run, record: dict[str, Any]) -> None:
    if run.metrics is not None:
        run.metrics.write(record)


def _best(run: Run, score: Score) -> bool:
    """Whether this is the lowest validation loss so far, over the same tokens; if so it is noted."""
    then = run.best
    if not math.isfinite(score.nats) or (then and then["tokens"] == score.tokens and then["val_loss"] <= score.nats):
        return False
    run.best = {"step": run.step, "val_loss": score.nats, "tokens": score.tokens}
    return True


def _save(run: Run, record: dict[str, Any], decay_starts: bool, best: bool, at_once: bool) -> None:
    """A checkpoint by rank 0, written while training goes on, or `at_once`; then on_save on all ranks, if there is one.

    Raises TrainError, on all ranks, when this one or the one before it could not be written.
    """
    rt, cfg, folder = run.rt, run.cfg, run.folder / "checkpoints"
    waited = rt.agreed(run.writer.wait)
    if waited > LONG_WAIT:
        rt.say(f"step {run.step}: waited {waited:.1f} s for the checkpoint before this one; the disk is slow")
    # Asked of every rank: what is sharded over them is gathered.
    states = {**run.optimizer.state_tensors(), **run.averages.state_tensors(), "sentinel": run.sentinel.stats}
    before = None if run.before is None else run.before.to_dict()
    state = {**run.state, "seconds": run.seconds, "before": before, "best": run.best, "world_size": rt.world}
    state |= {"micro_batch": run.loader.micro, "updates": run.optimizer.steps, "skipped": run.sentinel.skipped}
    state |= {"averages": run.averages.counts(), "schedule": _schedule_state(run)}
    step = run.step
    if rt.first:
        (model, optimizer), ready = run.writer.copied(run.model.state_dict(), states)

        def work() -> None:
            ready()
            names = (checkpoint.DECAY_START,) * decay_starts + (checkpoint.BEST,) * best
            checkpoint.save(folder, step, model, optimizer, state, names)
            checkpoint.prune(folder, cfg.keep_last)

        run.writer.start(work)
    if at_once or run.on_save is not None:
        rt.agreed(run.writer.wait)
    if run.on_save is not None:
        run.on_save(record, str(folder / checkpoint.name_of(step)) if rt.first else None)


def _schedule_state(run: Run) -> dict[str, Any]:
    """How long the run was to be, which a resume compares, and by the clock what was timed."""
    state = {"steps": run.cfg.steps, "seconds": run.cfg.schedule.seconds, "total": run.total}
    return state if run.pace is None else {**state, "pace": [run.pace.seconds, run.pace.steps]}
