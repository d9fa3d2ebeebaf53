"""What a run says of itself: lines for people at its start, in its steps and at its end, run.json and summary.json."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train import page
from train.checkpoint import run_folder
from train.data import sampler
from train.data.manifest import Manifest
from train.data.remote import RemoteManifest, is_address
from train.distributed import hardware
from train.eval.rows import FILE as ROWS
from train.eval.validation import Score, sample_texts
from train.files import write_atomic
from train.model.transformer import count_parameters
from train.monitor.dead_parts import DeadParts
from train.monitor.metrics import Metrics, read_json_lines
from train.monitor.source_losses import losses_at_end
from train.monitor.text import clock_text, counted_processes, dead_part_rows, event_text
from train.run import Run

# ---------------------------------------------------------------------------------------------------------------------
# The start


def print_start(run: Run, manifest: Manifest, parameters: int) -> None:
    """Print what is about to happen, in some five lines, and what a person should know about it."""
    cfg, rt = run.cfg, run.rt
    if cfg.order == "sequential":
        order = f"read one after another, {sampler.tokens_per_step(cfg):,} a step"
    else:
        tail = sampler.tail_tokens(manifest, cfg.seq_len)
        order = f"{sum(run.loader.counts):,} windows of {cfg.seq_len}, {tail:,} tokens in no window"
    where = f"{counted_processes(rt.world_size)} on {rt.device.type}"
    epochs = run.epochs_per_step * cfg.steps
    rt.print_rank0(f"run        {manifest.name}/{manifest.phase}, build {manifest.build_id[:16]}, {where}")
    print_model(run, parameters)
    rt.print_rank0(
        f"data       {manifest.tokens:,} tokens in {len(run.loader.shards)} shard(s): {order}; "
        f"{manifest.val_tokens:,} for validation"
    )
    if isinstance(manifest, RemoteManifest):
        rt.print_rank0(f"           {manifest.cache.describe()}")
    rt.print_rank0(
        f"training   {cfg.steps} steps of {cfg.batch_size} x {cfg.seq_len} = {cfg.batch_size * cfg.seq_len:,} tokens: "
        f"{epochs:.2f} epochs; {cfg.optimizer}, {', '.join([cfg.schedule.kind, *run.averages.by_name])}"
    )
    for text in cfg.warnings():
        rt.print_rank0(f"warning: {text}")
    if cfg.schedule.seconds is not None:
        limit = f"{cfg.schedule.seconds:g} s in steps"
        rt.print_rank0(f"           or {limit}, whichever comes first: it does not repeat to the bit")
    if rt.device.type == "cuda" and not cfg.deterministic:
        rt.print_rank0("note: some kernels add in no fixed order: a resume is exact to rounding, to the bit with")
        rt.print_rank0("      train.deterministic=true, which is slower")
    if rt.device.type == "cuda" and run.meter.peak is None:
        name = hardware.device_name(rt.device)
        rt.print_rank0(f"note: no peak is known for {name}, so MFU is left out; name one with train.peak_tflops")
    rt.print_rank0(f"folder     {run.place}")


def print_model(run: Run, parameters: int) -> None:
    """Print the size of the model and what it has that Shard has not."""
    cfg, rt = run.model.cfg, run.rt
    engram = f", an engram of {cfg.engram_slots} slots ahead of layer {cfg.engram_inject_layer}"
    dtype = str(run.model.dtype).removeprefix("torch.")
    rt.print_rank0(
        f"model      {parameters:,} parameters: {cfg.n_layers} layers of {cfg.dim}, "
        f"{cfg.layers_text}{engram if cfg.engram_enabled else ''}, {dtype}"
    )
    further = {name: value for name, value in cfg.further_parts().items() if name != "layer_kinds"}
    parts = [name if value is True else f"{name} {value}" for name, value in further.items()]
    if parts:
        rt.print_rank0(f"           {', '.join(parts)}")
    if cfg.mtp_heads:
        exported = count_parameters(cfg.without_training_parts(), run.model.vocab_size)
        rt.print_rank0(f"           exported {exported:,} of them: without the heads of further tokens")


@contextlib.contextmanager
def open_metrics(run: Run, manifest: Manifest, path: str, overrides: list[str]) -> Iterator[Metrics | None]:
    """Write run.json and open the metrics' files, on rank 0; None elsewhere.

    path, overrides: as they were given on the command line.
    """
    if not run.rt.is_rank0:
        yield None
        return
    facts = run_facts(run, manifest, path, overrides)
    with Metrics(run.folder, run.step, run.cfg, facts, run.progress.unscored is not None) as metrics:
        if metrics.wandb:
            facts["wandb"] = metrics.wandb
        start = {"step": run.step, "world_size": run.rt.world_size}
        run_folder.write_run(run.folder, run.identity, facts, start)
        yield metrics


def given_command(run: Run, path: str, overrides: list[str]) -> dict[str, Any]:
    """Return what `continue_command` makes the command of: the manifest's path, the run's folder, the settings."""
    return {"manifest": path, "folder": run.place, "set": overrides}


def run_facts(run: Run, manifest: Manifest, path: str, overrides: list[str]) -> dict[str, Any]:
    """Return what run.json says of this start: all that replaying the data order needs, and what the page tells."""
    cfg, model, rt = run.cfg, run.model, run.rt
    return {
        "manifest": manifest_place(run, path),
        "code": run_folder.code_digest(),
        "command": given_command(run, path, overrides),
        "name": manifest.name,
        "build_id": manifest.build_id,
        "builds": run.builds,
        "phase": manifest.phase,
        **{key: getattr(cfg, key) for key in ("seed", "batch_size", "seq_len", "steps")},
        "model": asdict(model.cfg),
        "train": asdict(cfg),
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_per_token": run.meter.flops._asdict(),
        "data": {
            "tokens": manifest.tokens,
            "val_tokens": manifest.val_tokens,
            "epochs_a_step": run.epochs_per_step,
            "sources": [
                {key: getattr(s, key) for key in ("name", "origin", "tokens", "ratio_got", "epochs")}
                for s in manifest.sources
            ],
        },
        "world_size": rt.world_size,
        "micro_batch": run.loader.micro_batch_size,
        "device": str(rt.device),
        "device_name": hardware.device_name(rt.device),
        "peak_tflops": run.meter.peak,
    }


def manifest_place(run: Run, path: str) -> str:
    """Return where the manifest is, as run.json says it: relative to the run's folder, if both are on this machine."""
    if is_address(path):
        return path
    file = Path(path).absolute()
    return str(file) if run.address else os.path.relpath(file, run.folder.absolute())


# ---------------------------------------------------------------------------------------------------------------------
# The steps


def log_step(run: Run, metrics: Metrics | None, loss: Tensor, norm: Tensor) -> dict[str, Any]:
    """Print the line of a step and what happened up to it. Returns the record for metrics.jsonl, on every rank.

    This is where the host waits for the device. Raises TrainError where the run must end.
    """
    cfg, rt = run.cfg, run.rt
    nats, grad_norm = float(loss), float(norm)
    if run.dead_parts is not None:
        run.dead_parts.look_at_gradients()
    seconds, steps = run.clock.read()
    run.progress.seconds += seconds
    waited, run.seconds_waited = run.seconds_waited, 0.0
    spectra, lost_ranks = run.singular_values.read()
    spikes = run.anomalies.read_events(run.step)
    by_source: dict[str, float] = {}
    if run.source_losses is not None:
        read = run.source_losses.read(rt)
        run.source_losses.name_sources(spikes, read, run.step)
        by_source = run.source_losses.record(read)
    slow = run.anomalies.slow_events(run.step, seconds, steps, waited)
    report_events(run, metrics, [*lost_ranks, *spikes, *slow])
    speed = steps * cfg.batch_size * cfg.seq_len / seconds
    left = max(0.0, run.total_steps - run.step) * seconds / steps
    lr = (cfg.muon.lr if cfg.optimizer == "muon" else cfg.adamw.lr) * run.lr_factor
    rates = run.meter.rates(speed)
    used = f"  MFU {rates['mfu_causal']:.1%}" if "mfu_causal" in rates else ""
    rt.print_rank0(
        f"step {run.step:>{len(str(cfg.steps))}}/{cfg.steps}  loss {nats:.4f}  lr {lr:.2e}  grad {grad_norm:.3f}  "
        f"{speed:>7,.0f} tok/s{used}  {clock_text(left)} left"
    )
    return {
        "step": run.step,
        "loss": nats,
        "lr": lr,
        "lr_adamw": cfg.adamw.lr * run.lr_factor,
        "grad_norm": grad_norm,
        "waiting_for_data": round(waited / seconds, 4),
        "seconds_waited": round(waited, 4),
        "tokens": run.step * cfg.batch_size * cfg.seq_len,
        "tokens_per_second": round(speed, 1),
        **rates,
        "memory_gb": round(hardware.peak_bytes(rt.device) / 1e9, 3),
        "epoch": run.step * run.epochs_per_step,
        "seconds": round(run.progress.seconds, 3),
        "seconds_left": round(left, 1),
        **spectra,
        **by_source,
        **{f"grad_norm/{module}": value for module, value in run.anomalies.last_norms.items()},
    }


def report_events(run: Run, metrics: Metrics | None, events: list[dict[str, Any]]) -> None:
    """Print events and keep them in events.jsonl. Raises TrainError where the run must end."""
    for event in events:
        run.rt.print_rank0(f"step {event['step']}: {event_text(event)}")
        if metrics is not None:
            metrics.event(event)
    run.anomalies.check(events, run.folder, run.place)


def announce_score(run: Run) -> None:
    """Say ahead of the first step how much is scored, for that may take a while."""
    validation = run.validation
    mixture, total = validation.groups[""].tokens, validation.num_tokens
    questions = sum(map(len, validation.choices.sets.values())) if validation.choices else 0
    asked = f", {questions:,} questions" if questions else ""
    run.rt.print_rank0(
        f"step 0: scoring {total:,} tokens ahead of training ({mixture:,} of the mixture, the rest by source{asked}); "
        "train.eval_tokens bounds it"
    )
    if validation.documents == 1:
        run.rt.print_rank0("warning: one document alone is held out: its scores say little about any other text")


def print_score(run: Run, score: Score, average: str = "") -> None:
    """Print a score of the model, or of an average of its weights."""
    of = f" of {average}" if average else ""
    run.rt.print_rank0(
        f"step {run.step}: validation loss{of} {score.nats:.4f} nats/token, {score.bits_per_byte:.4f} bits/byte "
        f"({score.tokens:,} tokens{' of one document' if run.validation.documents == 1 else ''})"
    )
    if score.sources:
        by_source = ", ".join(f"{name} {s.bits_per_byte:.4f}" for name, s in score.sources.items())
        run.rt.print_rank0(f"step {run.step}: bits/byte{of} by source: {by_source}")
    for name, choices in score.choices.items():
        run.rt.print_rank0(f"step {run.step}: {name}{of}: {choices}")


def score_record(score: Score, suffix: str = "") -> dict[str, Any]:
    """Return what metrics.jsonl says of a score: val_loss, val_bits_per_byte, and val_loss/SOURCE and SET/acc.

    suffix: "_ema" or "_swa" of an average: val_loss_ema, val_loss_ema/SOURCE, SET/acc_ema.
    """
    record = {f"val_loss{suffix}": score.nats, f"val_bits_per_byte{suffix}": score.bits_per_byte}
    for name, s in score.sources.items():
        record |= {f"val_loss{suffix}/{name}": s.nats, f"val_bits_per_byte{suffix}/{name}": s.bits_per_byte}
    for name, choices in score.choices.items():
        record |= {f"{name}/{figure}{suffix}": value for figure, value in choices.metrics().items()}
    return record


# ---------------------------------------------------------------------------------------------------------------------
# The end


def found_before(folder: Path) -> dict[str, Any] | None:
    """Return the dead parts in the summary of an earlier start: one that finds a run at its end makes no step."""
    try:
        found: dict[str, Any] | None = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["dead_parts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


def finish_run(run: Run, manifest: Manifest, parameters: int) -> dict[str, Any]:
    """Draw samples, write summary.json and the page, print how the run went. Returns the summary."""
    cfg, rt = run.cfg, run.rt
    assert run.after is not None, "a run that has ended was scored"
    unigram = run.validation.unigram(manifest)
    samples = sample_texts(run.model, manifest, cfg.prompts, cfg.sample_tokens, cfg.seed) if rt.is_rank0 else []
    ids = torch.from_numpy(run.validation.windows[0][:-1].astype("int64"))[None].to(rt.device)
    dead = None if run.dead_parts is None else run.dead_parts.find(run.model, ids)
    summary = run_summary(run, manifest, parameters, run.after, unigram, samples)
    summary["dead_parts"] = found_before(run.folder) if dead is None else dead.to_dict()
    if run.after.document_nats is None and not manifest.adopted and cfg.eval_counting == "once":
        rt.print_rank0(
            f"note: no {ROWS}: an .idx of what is held out is missing or does not fit, so documents are unknown"
        )
    if rt.is_rank0:
        run.validation.keep(run.folder / ROWS, manifest, run.after, {"step": run.step, "average": ""})
        write_atomic(run.folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
        page.refresh_page(run.folder)
    print_end(run, run.after, unigram, samples, dead)
    return summary


def run_summary(
    run: Run, manifest: Manifest, parameters: int, after: Score, unigram: Score, samples: list[dict[str, str]]
) -> dict[str, Any]:
    """Return what summary.json says."""
    progress = run.progress
    tokens = run.step * run.cfg.batch_size * run.cfg.seq_len
    speed = tokens / progress.seconds if progress.seconds else None
    averages = {
        name: {**score.to_dict(), "updates": run.averages.by_name[name].count} for name, score in run.averaged.items()
    }
    return {
        "status": "done",
        "name": manifest.name,
        "phase": manifest.phase,
        "build_id": manifest.build_id,
        "parameters": parameters,
        "steps": run.step,
        "tokens": tokens,
        "seconds": round(progress.seconds, 3),
        "tokens_per_second": speed and round(speed, 1),
        **{"model_tflops": None, "mfu_causal": None, "mfu_full": None},
        **(run.meter.rates(speed) if speed else {}),
        "memory_gb": round(hardware.peak_bytes(run.rt.device) / 1e9, 3),
        "before": None if progress.before is None else progress.before.to_dict(),
        "val_documents": run.validation.documents,
        "unigram": unigram.to_dict(),
        "after": after.to_dict(),
        "training_loss": losses_at_end(read_json_lines(run.folder / "metrics.jsonl")) if run.rt.is_rank0 else {},
        "averages": averages,
        "samples": samples,
        "folder": run.place,
    }


def print_end(
    run: Run, after: Score, unigram: Score, samples: list[dict[str, str]], dead: DeadParts | None = None
) -> None:
    """Print the last scores beside those of the start and the unigram, samples, dead parts, where everything lies."""
    rt, before = run.rt, run.progress.before
    rt.print_rank0(f"bits/byte  {compared_text(before, unigram, after)}")
    for name, score in after.sources.items():
        source_before = None if before is None else before.sources.get(name)
        compared = compared_text(source_before, unigram.sources[name], score)
        rt.print_rank0(f"           {compared}: {name}, {score.bytes:,} bytes")
    for name, choices in after.choices.items():
        rt.print_rank0(f"choices    {choices}: {name}, {choices.items} questions")
        if before is not None and name in before.choices:
            rt.print_rank0(f"           before: {before.choices[name]}")
    for name, score in run.averaged.items():
        rt.print_rank0(f"           {score.bits_per_byte:.4f} with the weights of {name}")
    for name in run.averages.by_name.keys() - run.averaged.keys():
        rt.print_rank0(f"warning: {name} was never updated: the run ended before, see train.{name}")
    for sample in samples:
        prompt, text = (json.dumps(sample[key], ensure_ascii=False) for key in ("prompt", "text"))
        rt.print_rank0(f"sample     {prompt} -> {text}")
    for line in dead_part_lines(run, dead):
        rt.print_rank0(line)
    seconds = run.progress.seconds
    speed = run.step * run.cfg.batch_size * run.cfg.seq_len / max(seconds, 1e-9)
    rt.print_rank0(f"done       {run.step} steps in {seconds:.1f} s: {speed:,.0f} tokens/s")
    for name in ("summary.md", "metrics.jsonl", "checkpoints/"):
        rt.print_rank0(f"           {run.place}/{name}")


def dead_part_lines(run: Run, dead: DeadParts | None) -> list[str]:
    """Write the table of dead parts: one line where there is none, no line where no step was made."""
    if dead is None:
        return []
    rows = dead_part_rows(dead.to_dict())
    if not rows:
        count = len(run.optimizer.parameters)
        return [f"parts      none is dead: {count} parameters moved, nothing was compiled inside the clock"]
    return [f"warning: {len(rows)} dead part(s)", *(f"           {what}: {why}" for what, why in rows)]


def compared_text(before: Score | None, unigram: Score, after: Score) -> str:
    """Write bits per byte before, of the unigram, and after."""
    first = "" if before is None else f"{before.bits_per_byte:.4f} before, "
    below = 100 * (1 - after.bits_per_byte / unigram.bits_per_byte) if unigram.bits_per_byte else 0.0
    return (
        f"{first}{unigram.bits_per_byte:.4f} add-one unigram, {after.bits_per_byte:.4f} after "
        f"({abs(below):.1f} % {'above' if below < 0 else 'below'} the unigram)"
    )
