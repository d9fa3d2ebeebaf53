"""Both parameter-golf recipes end to end: real text, training, the artefact; and what each of their parts is worth.

At full size each recipe is trained in both of its variants, as it should have been (fixed) and as it was (record), for
a few steps of 8 rows of 256 tokens. The artefact is written, read back and scored: bits per byte before and behind the
round trip, bytes with the code, and what each rule of it costs. Schedules and averages are the recipe's in proportion
to its record's steps; the clock that ends a record's run is left out. All count every target once, so that variants can
be held against each other.

At a small size (4 layers of width 64, 8 rows of 64 tokens) each part is switched off in turn, those that both recipes
have in the first of them but for the bigram, at equal parameters to within one hidden unit, with the same batches and
paired by seed. What is compared is what would be shipped: the average of the weights, if the recipe has one, behind the
artefact's round trip. Intervals are over seeds alone; they say what holds on this held-out text, at this size and
length of training, and nothing beyond them.

Each result is written as soon as it is there; the same command goes on where it was interrupted.

    python -m benchmarks.golf [--data FOLDER] [--steps 8] [--small-steps 120] [--seeds 3] [--minutes 30] [--out FILE]

--data FOLDER holds web/ of parquet files with a column `text`, in the place of the hub's. --build FOLDER keeps the
packed mixtures. One thread. Exits 1 where a fixed form has an artefact above its limit, or one that scores 0.01 bits
per byte worse than the weights that it was made of, or more; what a record does is its own.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from benchmarks import measure
from benchmarks.paired import compare
from benchmarks.processes import run_pipeline
from benchmarks.training_runs import (
    DIFFERENCES,
    Runs,
    Settings,
    TimeIsOverError,
    difference_rows,
    digest_of,
    level,
    web_source,
)
from train import main as trainer
from train.artefact import make_artefact
from train.config import TrainConfig
from train.data.manifest import load_manifest
from train.overrides import configs
from train.score import add_score_arguments, open_scored

SHARED = measure.SHARED.parent
VOCAB = 1024
ALL_PARTS, RECORD = "all parts", "record"
VARIANTS = ("fixed", RECORD)
ROUND_TRIP = 0.01  # bits per byte that it may cost


class System(NamedTuple):
    """The steps that a recipe's record made, and by part the settings that switch it off."""

    record_steps: int
    off: dict[str, list[str]]


SYSTEMS = {
    "golf_int5_sp1024": System(
        5999,
        {
            "norm behind the embedding": ["model.embed_norm=false"],
            "smear": ["model.smear=false"],
            "bigram hash": ["model.bigram_buckets=0"],
            "mixing with x0": ["model.residual_mix=false"],
            "learned scales": ["model.branch_scales=false"],
            "U-Net skips": ["model.unet_skips=false"],
            "norm of q and k": ["model.qk_norm=none"],
            "gain on q": ["model.q_gain=null"],
            "grouped queries": ["model.n_kv_heads=null"],
            "ReLU squared (SwiGLU)": ["model.mlp=swiglu"],
            "zeros at the outputs": ["model.zero_init_out=false"],
            "logit cap": ["model.lm_head_logit_cap=null"],
            "orthogonal start (normal)": ["model.init=normal"],
            "mean of the weights": ["train.swa.start_frac=0"],
        },
    ),
    "golf_memory_tokens": System(
        9030,
        {
            "memory tokens": ["model.memory_tokens=0"],
            "heads for further tokens": ["model.mtp_heads=0"],
            "bigram hash": ["model.bigram_buckets=0"],
            "scale by depth": ["model.depth_scale=false"],
            "partial rotation (all of it)": ["model.rope_dims=null"],
            "moving average": ["train.ema.decay=0"],
            "rounding in training": ["train.qat.start_frac=0"],
        },
    ),
}
FULL = ["train.batch_size=8", "train.seq_len=256", "train.eval_seq_len=256", "train.eval_stride=128"]
SMALL = ["train.batch_size=8", "train.seq_len=64", "train.eval_stride=null", "train.artefact.keep_numel=1024"]
SMALL += ["model.dim=64", "model.n_layers=4", "model.n_heads=4", "model.n_kv_heads=2", "model.mlp_hidden=192"]
SMALL += ["model.max_seq_len=64", "model.bigram_buckets=512", "model.bigram_dim=16", "model.expect_params=null"]
SMALL_MEMORY = ["model.memory_tokens=4", "model.rope_dims=8"]
ALWAYS = ["train.schedule.seconds=null", "train.schedule.overrun=false", "train.kernel_warmup=0", "train.eval_every=0"]
ALWAYS += ["train.eval_tokens=1000", "train.eval_counting=once", "train.checkpoint_every=0", "train.sample_tokens=0"]
ALWAYS += ["train.rank_loss.every=0"]
SCORED = {"full": 2048, "small": 20_000}  # targets, of an artefact


def shortened(cfg: TrainConfig, record_steps: int, steps: int, layers: int) -> list[str]:
    """Return what makes of a recipe's run one of `steps`, with what is counted in steps in proportion.

    The last few steps at least are rounded, where matrices are, and an average has two steps or more.
    """
    share = steps / record_steps
    warmdown = max(4, round(share * cfg.schedule.warmdown))
    settings = [
        f"train.steps={steps}",
        f"train.schedule.warmdown={warmdown}",
        f"train.muon.momentum_warmup={round(share * cfg.muon.momentum_warmup)}",
        "train.log_every=10",
    ]
    if cfg.swa.start_frac:
        settings.append(f"train.swa.every={max(1, round(share * cfg.swa.every))}")
    if cfg.ema.decay:
        memory = max(2.0, share * cfg.ema.every / (1 - cfg.ema.decay))  # steps that an average reaches back, about
        settings += ["train.ema.every=1", f"train.ema.decay={1 - 1 / memory:.4f}"]
    if cfg.qat.start_frac:
        settings.append(f"train.qat.start_frac={max(cfg.qat.start_frac, 3 / warmdown):.4f}")
    rules = [rule.replace("blocks.9.", f"blocks.{layers - 1}.") for rule in cfg.artefact.rules]
    return [*settings, f"train.artefact.rules={json.dumps(rules)}"]


# ---------------------------------------------------------------------------------------------------------------------
# Data


def build(folder: Path, data: Path, tokens: int) -> dict[tuple[str, str], Path]:
    """Pack the mixtures of both recipes, in both variants, of `tokens`. Returns their manifests."""
    folder.mkdir(parents=True, exist_ok=True)
    manifests = {}
    for name in SYSTEMS:
        raw = yaml.safe_load((measure.ROOT / "manifests" / f"{name}.yaml").read_text(encoding="utf-8"))
        raw |= {"sources": {"fineweb": web_source(data)}, "executor": "local"}
        for variant in VARIANTS:
            settings = [f"mixtures.pretrain.tokens={tokens}", "mixtures.pretrain.val_tokens=25000"]
            settings += ["tokenizer.sample=5MB", "shard_tokens=200k"]
            settings += [f"variant={RECORD}"] if variant == RECORD else []
            run_pipeline("pack_pretrain", raw, folder / "build", "--set", *settings)
            own = f"{name}_{RECORD}" if variant == RECORD else name
            manifests[name, variant] = folder / "build" / own / "pretrain" / "manifest.json"
    return manifests


# ---------------------------------------------------------------------------------------------------------------------
# Runs


class Plan(NamedTuple):
    """What the runs are made of: manifests by recipe and variant, and steps by size."""

    manifests: dict[tuple[str, str], Path]
    steps: dict[str, int]

    def settings(self, name: str, variant: str, size: str, off: list[str], seed: int = 0) -> list[str]:
        """Return the settings of a run, what it is ahead of them."""
        manifest = load_manifest(self.manifests[name, variant])
        model, cfg = configs(manifest.recipe, manifest.phase, [], name)
        shape = [*SMALL, *(SMALL_MEMORY if model.memory_tokens else [])] if size == "small" else FULL
        layers = configs(manifest.recipe, manifest.phase, shape, name)[0].n_layers
        base = [*ALWAYS, *shape, *shortened(cfg, SYSTEMS[name].record_steps, self.steps[size], layers)]
        width = level(manifest.recipe, base, [*base, *off], VOCAB) if off else []
        seeded = [f"train.seed={seed}"] if size == "small" else []
        return [name, variant, size, *base, *off, *width, *seeded]


def make(plan: Plan, folder: Path, settings: Settings) -> dict[str, Any]:
    """Train, write the artefact, read it back and score it. Returns what the file keeps of it; the run is not kept."""
    name, variant, size, *keys = settings
    with tempfile.TemporaryDirectory(dir=folder) as out, contextlib.redirect_stdout(sys.stderr):
        summary = trainer.run(plan.manifests[name, variant], [*keys, f"train.out={out}"])
        arguments = argparse.ArgumentParser()
        add_score_arguments(arguments)
        given = arguments.parse_args([out, "--tokens", str(SCORED[size]), "--set", *_of_scores(keys)])
        trained, cfg, scorer = open_scored(given)
        report = make_artefact(trained, cfg, scorer, Path(out) / "model.artefact", costs=size == "full")
    plain = next(iter(report.after))
    result: dict[str, Any] = {
        "bits_per_byte": report.after[plain].bits_per_byte,
        "before": {windows: score.bits_per_byte for windows, score in report.before.items()},
        "after": {windows: score.bits_per_byte for windows, score in report.after.items()},
        "average": trained.average,
        "parameters": summary["parameters"],
        "tokens_per_second": summary["tokens_per_second"],
        "dead_parts": summary["dead_parts"],
    }
    if size == "full":
        result |= {
            "file_bytes": report.file_bytes,
            "code_bytes": report.code_bytes,
            "limit": report.limit,
            "packings": report.sizes,
            "entropy_bytes": report.entropy,
            "if_fp16": {
                rule: {"tensors": count, "more_bytes": size - report.file_bytes, "bits_per_byte": score.bits_per_byte}
                for rule, (count, size, score) in report.rules.items()
            },
        }
    return result


def _of_scores(keys: list[str]) -> list[str]:
    """Return the settings that scoring and packing read; the others are those of the run."""
    return [key for key in keys if key.startswith(("train.eval", "train.artefact"))]


# ---------------------------------------------------------------------------------------------------------------------
# The command


def full_runs(plan: Plan) -> list[list[str]]:
    """Return the runs at full size."""
    return [plan.settings(name, variant, "full", []) for variant in VARIANTS for name in SYSTEMS]


def small_runs(plan: Plan, seed: int) -> dict[tuple[str, str], list[str]]:
    """Return the runs at a small size, by recipe and by the part that is off; RECORD: all faults are on."""
    runs = {}
    for name, system in SYSTEMS.items():
        runs[name, ALL_PARTS] = plan.settings(name, "fixed", "small", [], seed)
        runs[name, RECORD] = plan.settings(name, RECORD, "small", [], seed)
        for part, off in system.off.items():
            runs[name, part] = plan.settings(name, "fixed", "small", off, seed)
    return runs


def show_full(runs: Runs, plan: Plan) -> list[str]:
    """Print the runs at full size side by side. Returns what was wanted of them and is not so."""
    rows, missed = [], []
    for settings in full_runs(plan):
        run = runs.known.get(tuple(settings))
        if run is None:
            continue
        label = " ".join(settings[:2])
        total = run["file_bytes"] + run["code_bytes"]
        lost = {windows: run["after"][windows] - before for windows, before in run["before"].items()}
        for windows, before in run["before"].items():
            rows.append(
                (label, windows, f"{before:.4f}", f"{run['after'][windows]:.4f}", f"{lost[windows]:+.4f}", total)
            )
        if settings[1] == RECORD:
            continue
        if total > run["limit"]:
            missed.append(f"{label}: {total:,} bytes, above {run['limit']:,}")
        if not max(lost.values()) <= ROUND_TRIP:
            missed.append(f"{label}: the round trip costs {max(lost.values()):+.4f} bits per byte")
    measure.show(("full size", "bits/byte in", "before", "after", "difference", "bytes with code"), rows)
    for settings in full_runs(plan):
        for rule, cost in runs.known.get(tuple(settings), {}).get("if_fp16", {}).items():
            saved = runs.known[tuple(settings)]["bits_per_byte"] - cost["bits_per_byte"]
            print(f"{' '.join(settings[:2])}: {rule}: saves {cost['more_bytes']:,} bytes, costs {saved:+.5f} bits/byte")
    return missed


def report(runs: Runs, plan: Plan, seeds: int) -> None:
    """Print both tables and save them. Raises SystemExit where an artefact is not what was wanted of it."""
    missed = show_full(runs, plan)
    tables: dict[str, Any] = {}
    missing = sum(tuple(settings) not in runs.known for settings in full_runs(plan))
    for name, system in SYSTEMS.items():
        scores: dict[str, dict[int, float]] = {part: {} for part in (ALL_PARTS, RECORD, *system.off)}
        for seed in range(seeds):
            for (owner, part), settings in small_runs(plan, seed).items():
                run = runs.known.get(tuple(settings))
                missing += owner == name and run is None
                if owner == name and run is not None:
                    scores[part][seed] = run["bits_per_byte"]
        tables[name] = {"all_parts": scores[ALL_PARTS], "table": compare(scores, dict.fromkeys(scores, ALL_PARTS))}
        base = ", ".join(f"{score:.4f}" for score in scores[ALL_PARTS].values())
        print(f"\n{name}, small, with all parts: {base} bits/byte")
        measure.show(("without", *DIFFERENCES), difference_rows(tables[name]["table"]))
    print(f"not measured: {missing} run(s)")
    runs.save(tables=tables, not_reached=missed)
    if missed:
        raise SystemExit("error: " + "; ".join(missed))


def main() -> None:
    """Command line."""
    options = measure.parser(
        __doc__, data=str(SHARED), steps=8, small_steps=120, seeds=3, minutes=math.inf, out=None, build=None
    ).parse_args()
    deadline, data = time.monotonic() + 60 * options.minutes, Path(options.data)
    file = Path(options.out or measure.RESULTS / f"{datetime.date.today().isoformat()}-golf.json")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        steps = {"full": options.steps, "small": options.small_steps}
        tokens = 8 * max(256 * steps["full"], 128 * steps["small"]) + 8 * max(steps.values()) + 20_000
        plan = Plan(build(Path(options.build or folder), data, tokens), steps)
        about = {
            "steps": steps,
            "text": "web/ of the shared text" if data.is_dir() else "installed packages",
            "data": digest_of(plan.manifests["golf_int5_sp1024", "fixed"]),
            "machine": measure.machine(("torch",)),
        }
        runs = Runs(file, about, ("steps", "data"), functools.partial(make, plan, folder), deadline)
        with contextlib.suppress(TimeIsOverError):
            runs.all(1, full_runs(plan))
            for seed in range(options.seeds):
                runs.all(1, list(small_runs(plan, seed).values()))
        report(runs, plan, options.seeds)


if __name__ == "__main__":
    main()
