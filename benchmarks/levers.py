"""What each part of the model and lever of the trainer is worth, in bits per byte of held-out text at equal tokens.

A baseline of 1.9 M parameters, Shard with the width and depth of quickstart, against the same with one lever turned:
1,024 tokens a step, the same batches in the same order, the same held-out text, one run a line. A lever that changes
the number of parameters gets an MLP that much narrower or wider, so that all have the baseline's number to within one
hidden unit. Weights are drawn from the same seed, but a part that draws its own moves the draws behind it.

Differences are paired by seed. Their error is that over seeds, with Student's t; the verdict has Holm's correction for
the number of levers. It says what holds on this held-out text, model and length of training, and nothing beyond them.

Each result is written as soon as it is there, and a run that is in the file is not made again: the command can be
interrupted, and the same command goes on, seed by seed, with all levers of a seed ahead of the next.

    python -m benchmarks.levers [--steps 300] [--seeds 3] [--only embed_norm,relu2] [--minutes 25] [--out FILE]

--search tunes the rates of Muon, of AdamW beside it and of AdamW alone first, by doubling and halving until both
neighbours of the best are worse; without it they are --muon, --beside and --alone, found so on 2026-11-21. --data
FOLDER holds web/ and math/ of parquet files. --build FOLDER keeps the packed mixture, which takes minutes to make, for
the next time. --seeds and --only can be widened later over the same file. A loss that is not finite fails the command,
and so does AdamW alone ahead of Muon.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import measure, training_runs
from benchmarks.paired import compare
from benchmarks.processes import run_pipeline
from benchmarks.training_runs import (
    DIFFERENCES,
    Runs,
    Settings,
    TimeIsOverError,
    difference_rows,
    digest_of,
    web_source,
)

SHARED = measure.SHARED.parent
VOCAB = 8192
MODEL = {"dim": 128, "n_layers": 4, "n_heads": 4, "mlp_hidden": 384, "max_seq_len": 128, "sliding_window": 32}
TRAIN = {
    "batch_size": 8,
    "seq_len": 128,
    "schedule": {"kind": "wsd", "warmup": 20},
    "prompts": [],
    "log_every": 1,
    "eval_every": 0,
    "eval_tokens": 50_000,
    "checkpoint_every": 0,
}
BASELINE = "baseline"
ADAMW = "adamw"
QUICKSTART = ["train.muon.lr=0.006", "train.adamw.lr=0.006"]  # the rates of manifests/quickstart.yaml


class Rates(NamedTuple):
    """Learning rates: Muon's, AdamW's beside it, and AdamW's where it trains all."""

    muon: float
    beside: float
    alone: float

    def settings(self) -> list[str]:
        """Return the settings of the baseline."""
        return [f"train.muon.lr={self.muon:g}", f"train.adamw.lr={self.beside:g}"]


class Lever(NamedTuple):
    """Settings that turn a lever, all of them, and the lever whose runs they are held against."""

    settings: list[str]
    against: str = BASELINE


def levers(rates: Rates) -> dict[str, Lever]:
    """Return every lever by name, the most promising first."""
    parts = {
        "embed_norm": ["model.embed_norm=true"],
        "embed_rate_x1/3": [f"train.groups.tokens.lr={rates.beside / 3:g}"],
        "embed_rate_x3": [f"train.groups.tokens.lr={rates.beside * 3:g}"],
        "residual_mix": ["model.residual_mix=true"],
        "smear": ["model.smear=true"],
        "relu2": ["model.mlp=relu2"],
        "bigram": ["model.bigram_buckets=1024", "model.bigram_dim=32"],
        "bigram+relu2": ["model.bigram_buckets=1024", "model.bigram_dim=32", "model.mlp=relu2"],
        "branch_scales": ["model.branch_scales=true"],
        "qk_norm": ["model.qk_norm=rms"],
        "qk_norm+q_gain": ["model.qk_norm=rms", "model.q_gain=1.5"],
        "unet_skips": ["model.unet_skips=true"],
        "depth_scale": ["model.depth_scale=true"],
        "kv_heads_2": ["model.n_kv_heads=2"],
        "zero_init_out": ["model.zero_init_out=true"],
        "orthogonal_init": ["model.init=orthogonal"],
        "momentum_warmup": ["train.muon.momentum_warmup=100"],
        "scalar_rate_x1/8": [f"train.groups.scalars.lr={rates.beside / 8:g}"],
        "all_global": ["model.attention_pattern=all_global"],
        "no_logit_cap": ["model.lm_head_logit_cap=null"],
        "no_z_loss": ["model.z_loss_weight=0"],
        "constant_rate": ["train.schedule.kind=constant"],
        "cosine_rate": ["train.schedule.kind=cosine"],
        "engram": ["model.engram_enabled=true", "model.engram_inject_layer=2"],
        "jordan5": ["train.muon.ns=jordan5"],
    }
    base = rates.settings()
    return {
        BASELINE: Lever(base),
        "quickstart_rates": Lever(QUICKSTART),
        "quickstart_rates+embed_norm": Lever([*QUICKSTART, *parts["embed_norm"]], "quickstart_rates"),
        "quickstart_rates+embed_rate_x3": Lever([*QUICKSTART, "train.groups.tokens.lr=0.018"], "quickstart_rates"),
        **{name: Lever([*base, *settings]) for name, settings in parts.items()},
        ADAMW: Lever(["train.optimizer=adamw", f"train.adamw.lr={rates.alone:g}"]),
    }


@functools.cache
def level(settings: tuple[str, ...]) -> tuple[str, ...]:
    """Return the settings with the width of the MLP that gives the model the baseline's number of parameters."""
    recipe = {"model": MODEL, "train": {"pretrain": TRAIN}}
    return (*settings, *training_runs.level(recipe, [], list(settings), VOCAB))


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def recipe(data: Path, steps: int) -> dict[str, Any]:
    """Web text and mathematics from `data` (laid out as the shared text), else the text of installed packages."""
    sources: dict[str, Any] = {"web": web_source(data), "maths": {"from": "installed_docs", "packages": ["sympy"]}}
    if data.is_dir():
        sources["maths"] = {"from": "parquet", "path": f"{data}/math/*.parquet"}
    tokens = steps * TRAIN["batch_size"] * TRAIN["seq_len"] + 20_000  # type: ignore[operator]  # the tail of a shard
    return {
        "name": "levers",
        "executor": "local",
        "sources": sources,
        "tokenizer": {"vocab_size": VOCAB, "sample": "20MB"},
        "mixtures": {"pretrain": {"tokens": tokens, "ratios": {"web": "80%", "maths": "20%"}, "max_epochs": 1}},
        "model": MODEL,
        "train": {"pretrain": {"mixture": "pretrain", "steps": steps, **TRAIN}},
    }


def build(folder: Path, data: Path, steps: int) -> Path:
    """Pack the mixture. Returns its manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / "build"
    run_pipeline("pack_pretrain", recipe(data, steps), out)
    return out / "levers" / "pretrain" / "manifest.json"


def train(manifest: Path, folder: Path, settings: Settings) -> dict[str, Any]:
    """Train with `settings` in a process of one thread. Returns what the run's folder says; it is not kept."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [sys.executable, "train/main.py", "--manifest", str(manifest), "--set", f"train.out={out}"]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        done = subprocess.run([*command, *settings], cwd=measure.ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"error: {' '.join(settings)}: {done.stderr.strip()}")
        return result_of(Path(out))


def result_of(out: Path) -> dict[str, Any]:
    """Return what the folder of a run says of it."""
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    events = [json.loads(line)["event"] for line in (out / "events.jsonl").read_text().splitlines()]
    bits = summary["after"]["bits_per_byte"]
    bits = math.nan if bits is None else bits
    return {
        "bits_per_byte": bits,
        "parameters": summary["parameters"],
        "finite": all(map(math.isfinite, [*losses, bits])),
        "spikes": sum("spike" in event for event in events),
        "last_loss": losses[-1],
    }


# ---------------------------------------------------------------------------------------------------------------------
# Tuning

Made = Callable[[list[list[str]]], list[dict[str, Any]]]


def tune(runs: Made, at: Callable[[float], list[str]], rate: float) -> float:
    """Return the rate among start * 2^k that scores best, with both its neighbours measured."""
    best = 0
    while True:
        near = [best - 1, best, best + 1]
        scores = [r["bits_per_byte"] if r["finite"] else math.inf for r in runs([at(rate * 2.0**k) for k in near])]
        if scores[1] <= min(scores):
            return rate * 2.0**best
        best = near[scores.index(min(scores))]


def search(runs: Made, rates: Rates) -> Rates:
    """Return the best rates, of Muon and beside it in turn until neither moves."""
    alone = tune(runs, lambda rate: levers(rates._replace(alone=rate))[ADAMW].settings, rates.alone)
    rates = rates._replace(alone=alone)
    while True:
        before = rates
        rates = rates._replace(muon=tune(runs, lambda rate, r=rates: r._replace(muon=rate).settings(), rates.muon))  # type: ignore[misc]
        rates = rates._replace(
            beside=tune(runs, lambda rate, r=rates: r._replace(beside=rate).settings(), rates.beside)  # type: ignore[misc]
        )
        if rates == before:
            return rates


# ---------------------------------------------------------------------------------------------------------------------
# The command


def report(runs: Runs, rates: Rates, seeds: int) -> None:
    """Print the table and save it. Raises SystemExit where a loss is not finite, or AdamW alone is ahead of Muon."""
    every = levers(rates)
    scores: dict[str, dict[int, float]] = {name: {} for name in every}
    for name, lever in every.items():
        for seed in range(seeds):
            run = runs.known.get(tuple(settings_of(lever, seed)))
            if run is not None:
                scores[name][seed] = run["bits_per_byte"]
    table = compare(scores, {name: lever.against for name, lever in every.items()})
    base = [round(score, 4) for score in scores[BASELINE].values()]
    print(f"{BASELINE}: {', '.join(map(str, base))} bits/byte ({' '.join(rates.settings())})")
    measure.show(("lever", *DIFFERENCES), difference_rows(table))
    missing = [f"{name} ({len(s)} of {seeds} seeds)" for name, s in scores.items() if len(s) < seeds]
    print(f"not measured: {'; '.join(missing) or 'nothing'}")
    runs.save(baseline=scores[BASELINE], rates=rates._asdict(), table=table, not_measured=missing)
    if not all(run["finite"] for run in runs.known.values()):
        raise SystemExit("error: a loss is not finite")
    if ADAMW in table and min(table[ADAMW]["differences"]) < 0:
        raise SystemExit("error: AdamW alone is ahead of Muon")


def settings_of(lever: Lever, seed: int) -> list[str]:
    """Return all settings of the run of a lever at a seed."""
    return [*level(tuple(lever.settings)), *([f"train.seed={seed}"] if seed else [])]


def chosen(only: str | None, rates: Rates) -> list[Lever]:
    """Return the levers named in `only`, with what they are held against. Raises SystemExit for an unknown name."""
    every = levers(rates)
    names = list(every) if only is None else [name.strip() for name in only.split(",")]
    if unknown := [name for name in names if name not in every]:
        raise SystemExit(f"error: --only {unknown[0]}: write some of {', '.join(every)}")
    wanted = {every[name].against for name in names} | set(names)
    return [lever for name, lever in every.items() if name in wanted]


def main() -> None:
    """Command line."""
    options = measure.parser(
        __doc__, steps=300, seeds=3, jobs=1, minutes=math.inf, only=None, out=None, build=None, search=False,
        muon=3e-3, beside=4.8e-2, alone=2e-3, data=str(SHARED),
    ).parse_args()  # fmt: skip
    run(options)


def run(options: argparse.Namespace) -> None:
    """Make the runs that are not there and fit the time, and report."""
    deadline = time.monotonic() + 60 * options.minutes
    rates, data = Rates(options.muon, options.beside, options.alone), Path(options.data)
    chosen(options.only, rates)
    file = Path(options.out or measure.RESULTS / f"{datetime.date.today().isoformat()}-levers.json")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = build(Path(options.build or folder), data, options.steps)
        about = {
            "steps": options.steps,
            "tokens_a_run": options.steps * TRAIN["batch_size"] * TRAIN["seq_len"],
            "text": "web/ and math/ of the shared text" if data.is_dir() else "installed packages",
            "data": digest_of(manifest),
            "machine": measure.machine(("torch",)),
        }
        runs = Runs(file, about, ("steps", "data"), functools.partial(train, manifest, folder), deadline)
        made = functools.partial(runs.all, options.jobs)
        with contextlib.suppress(TimeIsOverError):
            if options.search:
                rates = search(made, rates)
            for seed in range(options.seeds):
                made([settings_of(lever, seed) for lever in chosen(options.only, rates)])
        report(runs, rates, options.seeds)


if __name__ == "__main__":
    main()
