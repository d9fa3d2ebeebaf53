"""The training loop: steps, and now and then a line, a score, a checkpoint.

Nothing in a step waits for the device but the lines that are printed, and nothing waits for the disk.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

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
from train.data.manifest import ManifestError
from train.eval.passes import EvaluationStoppedError
from train.eval.validation import Score
from train.monitor import report
from train.monitor.metrics import Metrics
from train.optim.schedule import decay_begins, lr_factor
from train.run import Run
from train.step import is_over, planned_steps, read_ahead, train_step, warm_up

EVALUATIONS = 15  # in a run, by default
LONG_WAIT = 1.0  # seconds that a save may wait for the one before it without saying so


def train(run: Run, metrics: Metrics | None, should_stop: Callable[[], bool]) -> bool:
    """Train to the end; `metrics` is there on rank 0.

    Returns False when `should_stop` asked for it: then the step was finished and everything saved.
    Raises TrainError where an anomaly ends the run, and where a checkpoint cannot be written. Raises ManifestError,
    with everything saved, where files of the mixture have changed since they were opened.
    """
    rt = run.rt

    def should_give_up() -> bool:
        note_changed_data(run, run.validation.watch.check)
        return rt.any_rank(should_stop() or run.data_error is not None)

    try:
        score_start(run, metrics, should_give_up)
        prepare(run)
        with paused_collector():
            is_finished = make_steps(run, metrics, should_stop, should_give_up)
        if not is_finished:
            rt.raise_if_any(run.data_error)
            rt.broadcast_from_rank0(lambda: run.singular_values.check(run.place))
            return False
        if run.after is None:  # a run that was at its end already
            score_run(run, should_give_up)
    except EvaluationStoppedError:
        rt.raise_if_any(run.data_error)
        return False
    return True


# ---------------------------------------------------------------------------------------------------------------------
# Before the first step


def score_start(run: Run, metrics: Metrics | None, should_stop: Callable[[], bool]) -> None:
    """Score a new run, and a continued one where a kill came between its checkpoint and the score.

    Raises EvaluationStoppedError when `should_stop` says yes.
    """
    if run.step == 0:
        report.announce_score(run)
        run.progress.before = evaluate(run, should_stop=should_stop)
        record = {"step": 0, **report.score_record(run.progress.before)}
    elif run.progress.unscored is not None:
        record = {**run.progress.unscored, **score_run(run, should_stop)}
        keep_score(run)
    else:
        return
    if metrics is not None:
        metrics.write(record)


def prepare(run: Run) -> None:
    """Set what the steps go by, warm up, and start the clocks."""
    run.total_steps = planned_steps(run)
    if run.step:
        run.lr_factor = lr_factor(run.step - 1, run.total_steps, run.cfg.schedule)
    warm_up(run)
    run.clock.restart()
    run.is_decaying = decay_begins(run.step, run.total_steps, run.cfg.schedule)
    run.saved_at = time.monotonic()


# ---------------------------------------------------------------------------------------------------------------------
# The steps, and what follows each


@dataclass(frozen=True)
class Due:
    """What is done after a step; the same on all ranks."""

    is_last: bool
    is_stopping: bool  # the run ends early: it was asked to, or cannot go on
    decay_starts: bool  # the learning rate falls from the next step on
    logs: bool
    scores: bool
    saves: bool


def make_steps(
    run: Run, metrics: Metrics | None, should_stop: Callable[[], bool], should_give_up: Callable[[], bool]
) -> bool:
    """Make all steps that are left. Returns False when the run ends early, with everything saved."""
    eval_every = steps_between_scores(run)
    while not is_over(run):
        loss, norm = train_step(run)
        if not is_over(run):
            note_changed_data(run, lambda: read_ahead(run))  # ahead of what is saved, so that no step is lost
        due = decide(run, should_stop, eval_every)
        is_stopping = due.is_stopping
        if due.logs or due.scores or due.saves:
            is_stopping = follow_up(run, metrics, due, report.log_step(run, metrics, loss, norm), should_give_up)
        if is_stopping:
            return False
    return True


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
    """Run Python's collector of cycles only where `gc.collect` is called: a rank that it stops holds up the others.

    What is there already is set aside, so that a call looks at what came since. Where our caller has done so, that
    stays as it is: it could not be told from ours afterwards.
    """
    was_on, is_ours = gc.isenabled(), gc.get_freeze_count() == 0
    gc.collect()
    if is_ours:
        gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        if is_ours:
            gc.unfreeze()
        if was_on:
            gc.enable()


def decide(run: Run, should_stop: Callable[[], bool], eval_every: int) -> Due:
    """Agree with the other ranks on what is done after the step that was made."""
    cfg, rt, is_last = run.cfg, run.rt, is_over(run)
    # what could not be written is raised by `save`
    wants_stop = should_stop() or run.singular_values.stops(wait=is_last) or run.writer.failed
    is_stopping = rt.any_rank(wants_stop or run.data_error is not None)
    decay_starts = not (run.is_decaying or is_last) and decay_begins(run.step, run.total_steps, cfg.schedule)
    run.is_decaying |= decay_starts
    logs = run.step == 1 or is_due(run.step, cfg.log_every) or run.anomalies.full
    scores = not is_stopping and (is_last or is_due(run.step, eval_every))
    saves = is_last or is_stopping or decay_starts or is_due(run.step, cfg.checkpoint_every)
    if logs and cfg.checkpoint_minutes:  # the first rank's clock decides
        saves |= rt.any_rank(rt.is_rank0 and time.monotonic() > run.saved_at + 60 * cfg.checkpoint_minutes)
    return Due(is_last, is_stopping, decay_starts, logs, scores, saves)


def follow_up(
    run: Run, metrics: Metrics | None, due: Due, record: dict[str, Any], should_give_up: Callable[[], bool]
) -> bool:
    """Write the step's line `record`, save it and score it, as is due. Returns whether the run ends early."""
    is_stopping, is_saved = due.is_stopping, due.saves
    if run.step_timer is not None:
        run.step_timer.caught_up()
    if metrics is not None and not due.scores:
        metrics.write(record)
    if due.saves:  # ahead of the score, which may take long
        names = [DECAY_START] if due.decay_starts else []
        save(run, names, record if due.scores else None, at_once=due.is_last or due.is_stopping)
    if due.scores:
        is_stopping = not score_step(run, record, due.saves, should_give_up)
        is_saved |= is_stopping or run.progress.best_step == run.step
        if metrics is not None and not is_stopping:  # else the line waits in the checkpoint
            metrics.write(record)
            page.refresh_page(run.folder)
    if is_saved:
        tell_of_checkpoint(run, record)
        run.saved_at = time.monotonic()
    if due.saves or due.scores:
        gc.collect()
    run.clock.restart()
    if run.step_timer is not None:
        run.step_timer.restart()
    return is_stopping


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


def note_changed_data(run: Run, read: Callable[[], None]) -> None:
    """Call `read`, and keep the error where it met a file that has changed under the run."""
    try:
        read()
    except ManifestError as error:
        run.data_error = error


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
