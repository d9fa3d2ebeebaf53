"""The training loop: batch, forward and backward, update; now and then a line, a score, a checkpoint.

Nothing in a step waits for the device but the lines that are printed, and nothing waits for the disk. One step, on
every rank:

    for each micro-batch:  total / (micro-batches * ranks)  backward      the global mean, exactly
    one all-reduce (sum) of the flat gradient and the loss; clip by its norm; judge; Muon and AdamW
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from train import page
from train.checkpoint.checkpoint import (
    BEST,
    DECAY_START,
    checkpoint_name,
    is_better,
    name_score,
    prune_checkpoints,
    save_checkpoint,
)
from train.data.loader import Batch, MicroBatch
from train.data.manifest import ManifestError
from train.eval.passes import EvaluationStoppedError
from train.eval.validation import Score
from train.monitor import report
from train.monitor.metrics import Metrics
from train.optim.muon import momentum_at
from train.optim.schedule import decay_begins, has_fallen_below, lr_factor
from train.run import Run

EVALUATIONS = 15  # in a run, by default
LONG_WAIT = 1.0  # seconds that a save may wait for the one before it without saying so


def train(run: Run, metrics: Metrics | None, should_stop: Callable[[], bool]) -> bool:
    """Train to the end; `metrics` is there on rank 0.

    Returns False when `should_stop` asked for it: then the step was finished and everything saved.
    Raises TrainError where an anomaly ends the run, and where a checkpoint cannot be written. Raises ManifestError,
    with everything saved, where files of the mixture have changed since they were opened.
    """
    cfg, rt = run.cfg, run.rt

    def should_give_up() -> bool:
        note_changed_data(run, run.validation.watch.check)
        return rt.any_rank(should_stop() or run.data_error is not None)

    if run.step == 0:
        report.announce_score(run)
        try:
            run.progress.before = evaluate(run, should_stop=should_give_up)
        except EvaluationStoppedError:
            rt.raise_if_any(run.data_error)
            return False
        if metrics is not None:
            metrics.write({"step": 0, **report.score_record(run.progress.before)})
    elif run.progress.unscored is not None:  # a kill came between the checkpoint and its score
        try:
            record = {**run.progress.unscored, **score_run(run, should_give_up)}
        except EvaluationStoppedError:
            rt.raise_if_any(run.data_error)
            return False
        keep_score(run)
        if metrics is not None:
            metrics.write(record)
    run.total_steps = planned_steps(run)
    if run.step:
        run.lr_factor = lr_factor(run.step - 1, run.total_steps, cfg.schedule)
    warm_up(run)
    run.clock.restart()
    is_decaying = decay_begins(run.step, run.total_steps, cfg.schedule)
    eval_every, saved_at = steps_between_scores(run), time.monotonic()
    while not is_over(run):
        loss, norm = train_step(run)
        is_last = is_over(run)
        if not is_last:
            note_changed_data(run, lambda: read_ahead(run))  # ahead of what is saved, so that no step is lost
        # what could not be written is raised by `save`
        wants_stop = should_stop() or run.singular_values.stops(wait=is_last) or run.writer.failed
        is_stopping = rt.any_rank(wants_stop or run.data_error is not None)
        decay_starts = not (is_decaying or is_last) and decay_begins(run.step, run.total_steps, cfg.schedule)
        is_decaying |= decay_starts
        scores = not is_stopping and (is_last or is_due(run.step, eval_every))
        saves = is_last or is_stopping or decay_starts or is_due(run.step, cfg.checkpoint_every)
        logs = run.step == 1 or is_due(run.step, cfg.log_every) or run.anomalies.full
        if logs and cfg.checkpoint_minutes:  # the first rank's clock decides
            saves |= rt.any_rank(rt.is_rank0 and time.monotonic() > saved_at + 60 * cfg.checkpoint_minutes)
        if logs or scores or saves:
            record = report.log_step(run, metrics, loss, norm)
            if run.step_timer is not None:
                run.step_timer.caught_up()
            if metrics is not None and not scores:
                metrics.write(record)
            if saves:  # ahead of the score, which may take long
                names = [DECAY_START] if decay_starts else []
                save(run, names, record if scores else None, at_once=is_last or is_stopping)
            if scores:
                is_stopping = not score_step(run, record, saves, should_give_up)
                saves |= is_stopping or run.progress.best_step == run.step
                if metrics is not None and not is_stopping:  # else the line waits in the checkpoint
                    metrics.write(record)
                    page.refresh_page(run.folder)
            if saves:
                tell_of_checkpoint(run, record)
                saved_at = time.monotonic()
            run.clock.restart()
            if run.step_timer is not None:
                run.step_timer.restart()
        if is_stopping:
            rt.raise_if_any(run.data_error)
            rt.broadcast_from_rank0(lambda: run.singular_values.check(run.folder))
            return False
    if run.after is None:  # a run that was at its end already
        try:
            score_run(run, should_give_up)
        except EvaluationStoppedError:
            rt.raise_if_any(run.data_error)
            return False
    return True


def planned_steps(run: Run) -> float:
    """Return how many steps the run makes, as far as is known by now."""
    if run.step_timer is None or run.cfg.schedule.seconds is None:
        return run.cfg.steps
    return run.rt.broadcast_value(run.step_timer.total(run.cfg.steps, run.cfg.schedule.seconds))


def is_over(run: Run) -> bool:
    """Return whether no step is left: none that ends in time, or with schedule.overrun none that begins in time."""
    if run.cfg.schedule.overrun:
        return run.step >= run.total_steps
    return run.step + 1 > run.total_steps


def steps_between_scores(run: Run) -> int:
    """Return train.eval_every, or what it is by default: a token scored costs a third of one trained on."""
    cfg = run.cfg
    if cfg.eval_every is not None:
        return cfg.eval_every
    scored = run.validation.num_tokens * (1 + len(run.averages.by_name))
    count = min(EVALUATIONS, cfg.steps * cfg.batch_size * cfg.seq_len // scored)
    return math.ceil(cfg.steps / max(1, count))


def is_due(step: int, every: int) -> bool:
    """Return whether something that is done every `every` steps, or never for 0, is done after `step` of them."""
    return every > 0 and step % every == 0


# ---------------------------------------------------------------------------------------------------------------------
# One step


def train_step(run: Run) -> tuple[Tensor, Tensor]:
    """Make one update. Returns the global loss in nats and the gradient's norm, both on the device."""
    cfg, optimizer = run.cfg, run.optimizer
    if run.dead_parts is not None:
        run.dead_parts.begin_step()
    factor_before, run.lr_factor = run.lr_factor, lr_factor(run.step, run.total_steps, cfg.schedule)
    run.model.mtp_weight = mtp_weight(run, factor_before)
    compute_gradient(run, read_batch(run), run.step)
    module_norms = optimizer.norms() if run.anomalies.modules else optimizer.loss.new_empty(0)
    norm = optimizer.clip()
    if run.anomalies.judge_step(optimizer.loss, norm, module_norms):
        optimizer.step(run.lr_factor, momentum_at(run.step, cfg.muon))
    count_step(run)
    return optimizer.loss, norm


def compute_gradient(run: Run, batch: Batch, step: int) -> None:
    """Put the gradient and the loss of `batch`, that of 0-based `step`, summed over all ranks, into the optimizer."""
    rt = run.rt
    # dropout is a function of (seed, step, rank): nothing to store, and ranks differ
    torch.manual_seed((run.cfg.seed * 1_000_003 + step * 8_191 + rt.rank) % 2**63)
    run.optimizer.grads_and_loss.zero_()
    for micro_batch in batch.micro_batches(run.loader.micro_batch_size):
        backward(run, micro_batch)
    rt.all_reduce_(run.optimizer.grads_and_loss)


def mtp_weight(run: Run, factor_before: float) -> float:
    """Return what the loss of the heads for further tokens counts in this step. factor_before: the lr's a step ago."""
    cfg = run.model.cfg
    if cfg.mtp_decay == "none":
        return cfg.mtp_weight
    return cfg.mtp_weight * (run.lr_factor if cfg.mtp_decay == "rate" else factor_before)


def warm_up(run: Run) -> None:
    """Make `kernel_warmup` steps and undo them: what they compile and allocate is there when the clock starts.

    Then the first step is timed like all others, for it compiles nothing.
    """
    steps = 0 if is_over(run) else run.cfg.kernel_warmup
    if steps == 0:
        return
    with run.optimizer.undone():
        for step in range(run.step, run.step + steps):
            compute_gradient(run, run.batches.batch(step, run.cfg.document_mask), step)
            run.optimizer.step(1.0)
    if run.rt.device.type == "cuda":
        torch.cuda.synchronize(run.rt.device)
    if run.step_timer is not None:
        run.step_timer.restart()


def read_batch(run: Run) -> Batch:
    """Return the next step's batch, which mostly was read ahead. Raises ManifestError as `Loader.batch` does."""
    read_ahead(run)
    batch, run.next_batch = run.next_batch, None
    assert batch is not None
    return batch


def read_ahead(run: Run) -> None:
    """Read the next step's batch, if it is not there; the time that takes is counted as waiting."""
    if run.next_batch is None:
        started = time.perf_counter()
        run.next_batch = run.batches.batch(run.step, run.cfg.document_mask)
        run.seconds_waited += time.perf_counter() - started


def note_changed_data(run: Run, read: Callable[[], None]) -> None:
    """Call `read`, and keep the error where it met a file that has changed under the run."""
    try:
        read()
    except ManifestError as error:
        run.data_error = error


def backward(run: Run, micro_batch: MicroBatch) -> None:
    """Add one micro-batch to the gradient and the loss of the step."""
    total, cross_entropy = run.model(
        micro_batch.ids, micro_batch.targets, micro_batch.num_targets, micro_batch.cu_seqlens
    )
    (total * micro_batch.share).backward()
    run.optimizer.loss += cross_entropy.detach() * micro_batch.share


def count_step(run: Run) -> None:
    """Count the step that was made, and let all know that follow the steps."""
    run.progress.step += 1
    run.clock.steps += 1
    run.averages.update(run.step, run.lr_factor)
    turn_on_fake_quant(run)
    run.singular_values.after_step(run.step)
    if run.dead_parts is not None:
        run.dead_parts.end_step(run.step)
    if run.step_timer is not None:
        run.step_timer.step()
        run.total_steps = planned_steps(run)


def turn_on_fake_quant(run: Run) -> None:
    """Round matrices from the next step on, once the learning rate has fallen far enough."""
    if run.fake_quant is None or run.fake_quant.is_on:
        return
    if has_fallen_below(run.step, run.lr_factor, run.cfg.qat.start_frac, run.cfg.schedule):
        run.fake_quant.turn_on()
        count = len(run.fake_quant.rounded)
        run.rt.print_rank0(f"step {run.step}: from here on {count} matrices are rounded to few bits: train.qat")


# ---------------------------------------------------------------------------------------------------------------------
# Scores


def evaluate(run: Run, average: str = "", should_stop: Callable[[], bool] | None = None) -> Score:
    """Score the model as it is, and print the score. average: whose weights it has now; empty: its own.

    should_stop: the same answer on all ranks. Raises EvaluationStoppedError when it says yes.
    """
    score = run.validation.score(run.model, run.rt.device, should_stop)
    if should_stop is not None and should_stop() and run.rt.any_rank(run.data_error is not None):
        raise EvaluationStoppedError  # the last pass may have read what was written over the file
    report.print_score(run, score, average)
    return score


def score_run(run: Run, should_stop: Callable[[], bool]) -> dict[str, Any]:
    """Score the model and its averages, keep the scores in `run`, and return what metrics.jsonl says of them.

    Raises EvaluationStoppedError, with no score kept, when `should_stop` says yes in between.
    """
    run.after, run.averaged = None, {}
    score, averaged = evaluate(run, should_stop=should_stop), {}
    record = report.score_record(score)
    for name in run.averages.usable():
        with run.averages.used(name):
            averaged[name] = evaluate(run, name, should_stop)
        record |= report.score_record(averaged[name], f"_{name}")
    run.after, run.averaged = score, averaged
    return record


def score_step(run: Run, record: dict[str, Any], is_saved: bool, should_stop: Callable[[], bool]) -> bool:
    """Score the step that was made and add it to `record`; where it is the best one so far, see that it is kept.

    is_saved: its checkpoint is there. Returns False when `should_stop` ended the scoring: then the step is saved.
    """
    try:
        record |= score_run(run, should_stop)
    except EvaluationStoppedError:
        if not is_saved:
            save(run, [], record, at_once=True)
        return False
    if is_saved:
        keep_score(run)
    elif note_best(run):
        save(run, [BEST], None, at_once=False)
    return True


def note_best(run: Run) -> bool:
    """Return whether the last score is to be kept as the best so far; if so note it."""
    if run.after is None or not run.cfg.keep_best:
        return False
    score = {"step": run.step, "val_loss": run.after.nats, "tokens": run.after.tokens}
    is_best = is_better(score, run.progress.best)
    if is_best:
        run.progress.best = score
    return is_best


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints


def save(run: Run, names: list[str], unscored: dict[str, Any] | None, at_once: bool) -> None:
    """Save a checkpoint, to be called `names`, on rank 0 while training goes on, or `at_once`.

    unscored: the step's line of metrics.jsonl, where it waits for a score, which a run that continues makes up for.
    Raises TrainError, on all ranks, when this checkpoint or the one before it could not be written.
    """
    rt, folder, step = run.rt, run.folder / "checkpoints", run.step
    waited = rt.broadcast_from_rank0(run.writer.wait)
    if waited > LONG_WAIT:
        rt.print_rank0(f"step {step}: waited {waited:.1f} s for the checkpoint before this one; the disk is slow")
    # on every rank, for what is sharded over them is gathered
    tensors = {**run.optimizer.state_tensors(), **run.averages.state_tensors(), "sentinel": run.anomalies.stats}
    state = {**checkpoint_state(run), "unscored": unscored}
    if rt.is_rank0:
        (model, optimizer), wait_for_copies = run.writer.copy_to_host(run.model.state_dict(), tensors)

        def write() -> None:
            wait_for_copies()
            save_checkpoint(folder, step, model, optimizer, state, names)
            prune_checkpoints(folder, run.cfg.keep_last)

        run.writer.start(write)
    if at_once or run.on_save is not None:
        rt.broadcast_from_rank0(run.writer.wait)


def keep_score(run: Run) -> None:
    """Have the last score written beside the checkpoint of its step, which is called the best if it is."""
    is_best, score, folder, step = note_best(run), run.after, run.folder / "checkpoints", run.step
    assert score is not None
    value = {"val_loss": score.nats, "tokens": score.tokens}
    if run.rt.is_rank0:
        run.writer.start(lambda: name_score(folder, step, value, is_best))


def tell_of_checkpoint(run: Run, record: dict[str, Any]) -> None:
    """Call on_save, on all ranks, with what is known of a checkpoint that is on the disk."""
    if run.on_save is not None:
        path = run.folder / "checkpoints" / checkpoint_name(run.step)
        run.on_save(record, str(path) if run.rt.is_rank0 else None)


def checkpoint_state(run: Run) -> dict[str, Any]:
    """Return what a checkpoint's state.json says beside the step; train/main.py reads it again."""
    progress = run.progress
    own = {} if run.fake_quant is None else {"qat": run.fake_quant.is_on}
    # how long the run was to be, which a resume compares, and by the clock what was timed
    schedule: dict[str, Any] = {"steps": run.cfg.steps, "seconds": run.cfg.schedule.seconds, "total": run.total_steps}
    if run.step_timer is not None:
        schedule["pace"] = [run.step_timer.seconds, run.step_timer.steps]
    return {
        "identity": run.identity,
        "builds": run.builds,
        "seconds": progress.seconds,
        "before": None if progress.before is None else progress.before.to_dict(),
        "best": progress.best,
        "world_size": run.rt.world_size,
        "micro_batch": run.loader.micro_batch_size,
        "updates": run.optimizer.steps,
        "skipped": run.anomalies.skipped,
        "averages": run.averages.counts(),
        "schedule": schedule,
        **own,
    }
