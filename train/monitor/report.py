"""What a run says about itself at its start and at its end: lines for people, and summary.json."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from train import page
from train.checkpoint import run_folder
from train.config import ModelConfig
from train.data import sampler
from train.data.manifest import Manifest
from train.distributed import hardware
from train.eval.validation import Score, samples
from train.files import write_atomic
from train.loop import Run, score_averages
from train.monitor.metrics import Metrics


def describe(this: Run, manifest: Manifest, model_cfg: ModelConfig, count: int, epochs: float) -> None:
    """What is about to happen, in five lines."""
    cfg, rt = this.cfg, this.rt
    windows = sum(this.loader.counts)
    tail = sampler.tail_tokens(manifest, cfg.seq_len)
    slots, layer = model_cfg.engram_slots, model_cfg.engram_inject_layer
    engram = f", an engram of {slots} slots ahead of layer {layer}" if model_cfg.engram_enabled else ""
    where = f"{rt.world} process{'es' if rt.world > 1 else ''} on {rt.device.type}"
    rt.say(f"run        {manifest.name}/{manifest.phase}, build {manifest.build_id[:16]}, {where}")
    rt.say(
        f"model      {count:,} parameters: {model_cfg.n_layers} layers of {model_cfg.dim}, "
        f"{model_cfg.attention_pattern}{engram}, {str(this.model.dtype).removeprefix('torch.')}"
    )
    rt.say(
        f"data       {manifest.tokens:,} tokens in {len(this.loader.shards)} shard(s): {windows:,} windows of "
        f"{cfg.seq_len}, {tail:,} tokens in no window; {manifest.val_tokens:,} for validation"
    )
    rt.say(
        f"training   {cfg.steps} steps of {cfg.batch_size} x {cfg.seq_len} = {cfg.batch_size * cfg.seq_len:,} tokens: "
        f"{epochs:.2f} epochs; {cfg.optimizer}, {', '.join([cfg.schedule.kind, *this.averages.by_name])}"
    )
    if cfg.schedule.warmup > cfg.steps:
        rt.say(
            f"warning: train.schedule.warmup = {cfg.schedule.warmup:,} is longer than the run, train.steps = "
            f"{cfg.steps:,}: the learning rate never gets to its full value"
        )
    if cfg.schedule.seconds is not None:
        rt.say(f"           or {cfg.schedule.seconds:g} s in steps, whichever comes first: not repeatable to the bit")
    if rt.device.type == "cuda" and not cfg.deterministic:
        rt.say("note: some kernels add in no fixed order: a resume is exact to rounding, to the bit with")
        rt.say("      train.deterministic=true, which is slower")
    if rt.device.type == "cuda" and this.meter.peak is None:
        name = hardware.device_name(rt.device)
        rt.say(f"note: no peak is known for {name}, so MFU is left out; name one with train.peak_tflops")
    rt.say(f"folder     {this.folder}")


@contextlib.contextmanager
def records(this: Run, manifest: Manifest, path: str, overrides: list[str]) -> Iterator[None]:
    """Run with run.json written and `metrics` open, on the first rank. `path` and `overrides` as they were given."""
    if not this.rt.first:
        yield
        return
    facts = run_facts(this, manifest, path, overrides)
    with Metrics(this.folder, this.step, this.cfg, facts) as this.metrics:
        facts |= {"wandb": this.metrics.wandb} if this.metrics.wandb else {}
        start = {"step": this.step, "world_size": this.rt.world}
        run_folder.write_run(this.folder, this.state["identity"], facts, start)
        yield


def run_facts(this: Run, manifest: Manifest, path: str, overrides: list[str]) -> dict[str, Any]:
    """What run.json says of this start: all that replaying the data order needs, and what the page tells."""
    cfg, model, rt = this.cfg, this.model, this.rt
    return {
        "manifest": os.path.relpath(Path(path).absolute(), this.folder.absolute()),
        "command": {"manifest": path, "folder": str(this.folder), "set": overrides},
        "name": manifest.name,
        "build_id": manifest.build_id,
        "builds": this.state["builds"],
        "phase": manifest.phase,
        **{key: getattr(cfg, key) for key in ("seed", "batch_size", "seq_len", "steps")},
        "model": asdict(model.cfg),
        "train": asdict(cfg),
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_per_token": this.meter.flops._asdict(),
        "data": {
            "tokens": manifest.tokens,
            "val_tokens": manifest.val_tokens,
            "epochs_a_step": this.epochs_a_step,
            "sources": [
                {key: getattr(s, key) for key in ("name", "origin", "tokens", "ratio_got", "epochs")}
                for s in manifest.sources
            ],
        },
        "world_size": rt.world,
        "micro_batch": this.loader.micro,
        "device": str(rt.device),
        "device_name": hardware.device_name(rt.device),
        "peak_tflops": this.meter.peak,
    }


def compared(before: Score | None, unigram: Score, after: Score) -> str:
    """Bits per byte, before and after, and of the unigram."""
    first = "" if before is None else f"{before.bits_per_byte:.4f} before, "
    below = 100 * (1 - after.bits_per_byte / unigram.bits_per_byte) if unigram.bits_per_byte else 0.0
    return (
        f"{first}{unigram.bits_per_byte:.4f} add-one unigram, {after.bits_per_byte:.4f} after "
        f"({abs(below):.1f} % {'above' if below < 0 else 'below'} the unigram)"
    )


def finish(this: Run, manifest: Manifest, count: int) -> dict[str, Any]:
    """Last scores, samples, summary.json."""
    cfg, rt = this.cfg, this.rt
    after = this.after or this.validation.score(this.model, rt.device)
    averaged = this.averaged if this.after else score_averages(this)
    unigram = this.validation.unigram(manifest)
    texts = samples(this.model, manifest, cfg.prompts, cfg.sample_tokens, cfg.seed) if rt.first else []
    tokens = this.step * cfg.batch_size * cfg.seq_len
    speed = tokens / this.seconds if this.seconds else None
    summary = {
        "status": "done",
        "name": manifest.name,
        "phase": manifest.phase,
        "build_id": manifest.build_id,
        "parameters": count,
        "steps": this.step,
        "tokens": tokens,
        "seconds": round(this.seconds, 3),
        "tokens_per_second": speed and round(speed, 1),
        **{"model_tflops": None, "mfu_causal": None, "mfu_full": None},
        **(this.meter.rates(speed) if speed else {}),
        "memory_gb": round(hardware.peak_bytes(rt.device) / 1e9, 3),
        "before": None if this.before is None else this.before.to_dict(),
        "unigram": unigram.to_dict(),
        "after": after.to_dict(),
        "averages": {
            name: {**score.to_dict(), "updates": this.averages.by_name[name].count} for name, score in averaged.items()
        },
        "samples": texts,
        "folder": str(this.folder),
    }
    if rt.first:
        write_atomic(this.folder / "summary.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
        page.refresh(this.folder)
    rt.say(f"bits/byte  {compared(this.before, unigram, after)}")
    for name, score in after.sources.items():
        before = None if this.before is None else this.before.sources.get(name)
        rt.say(f"           {compared(before, unigram.sources[name], score)}: {name}, {score.bytes:,} bytes")
    for name, asked in after.choices.items():
        rt.say(f"choices    {asked}: {name}, {asked.items} questions")
        if this.before is not None and name in this.before.choices:
            rt.say(f"           before: {this.before.choices[name]}")
    for name, score in averaged.items():
        rt.say(f"           {score.bits_per_byte:.4f} with the weights of {name}")
    for name in this.averages.by_name.keys() - averaged.keys():
        rt.say(f"warning: {name} was never updated: the run ended before, see train.{name}")
    for sample in texts:
        prompt, text = (json.dumps(sample[key], ensure_ascii=False) for key in ("prompt", "text"))
        rt.say(f"sample     {prompt} -> {text}")
    rt.say(f"done       {this.step} steps in {this.seconds:.1f} s: {tokens / max(this.seconds, 1e-9):,.0f} tokens/s")
    for name in ("summary.md", "metrics.jsonl", "checkpoints/"):
        rt.say(f"           {this.folder / name}")
    return summary
