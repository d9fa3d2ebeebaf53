"""One step of training, on every rank:

    for each micro-batch:  total / (micro-batches * ranks)  backward      the global mean, exactly
    one all-reduce (sum) of the flat gradient and the loss; clip by its norm; judge; Muon and AdamW

Nothing in it waits for the device.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from train.data.loader import Batch, MicroBatch
from train.optim.muon import momentum_at
from train.optim.schedule import has_fallen_below, lr_factor
from train.run import Run


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
    seed_generators(rt.device, (run.cfg.seed * 1_000_003 + step * 8_191 + rt.rank) % 2**63)
    run.optimizer.grads_and_loss.zero_()
    if run.source_losses is not None:
        run.source_losses.begin_step()
    for micro_batch in batch.micro_batches(run.loader.micro_batch_size):
        backward(run, micro_batch)
    rt.all_reduce_(run.optimizer.grads_and_loss)


def seed_generators(device: torch.device, seed: int) -> None:
    """Seed what dropout on `device` draws from. torch.manual_seed takes 1 ms more, for devices that are not there."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


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


def backward(run: Run, micro_batch: MicroBatch) -> None:
    """Add one micro-batch to the gradient and the loss of the step."""
    by_source = run.source_losses
    by_target = None if by_source is None else by_source.by_target(micro_batch.targets.numel())
    total, cross_entropy = run.model(
        micro_batch.ids, micro_batch.targets, micro_batch.num_targets, micro_batch.cu_seqlens, by_target
    )
    (total * micro_batch.share).backward()
    run.optimizer.loss += cross_entropy.detach() * micro_batch.share
    if by_source is not None and by_target is not None and micro_batch.sources is not None:
        by_source.add(by_target, micro_batch.sources, micro_batch.share)


def count_step(run: Run) -> None:
    """Count the step that was made, and let all know that follow the steps."""
    run.progress.step += 1
    run.clock.steps += 1
    run.averages.update(run.step, run.lr_factor)
    if run.source_losses is not None:
        run.source_losses.end_step()
    turn_on_fake_quant(run)
    run.singular_values.after_step(run.step)
    if run.dead_parts is not None and (warning := run.dead_parts.end_step(run.step)):
        run.rt.print_rank0(f"warning: step {run.step}: {warning}")
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
