"""What each lever of the trainer is worth: 300 steps on real text with it and without, in bits per byte held out.

A model of 1.9 M parameters (the width and depth of quickstart), 1,024 tokens a step, the same weights and the same
data in the same order each time; one run a line. First the learning rates are tuned, Muon's and AdamW's beside it, and
those of AdamW alone: doubled and halved until both neighbours of the best are worse. Then each lever alone is turned,
all else as tuned. Three seeds of the tuned run say how much of a difference is chance. Every loss of every run is
looked at: a NaN anywhere fails the benchmark, and so does AdamW ahead of Muon.

    python -m benchmarks.levers [--data FOLDER] [--steps 300] [--jobs 2] [--dry]

FOLDER holds web/ and math/ of parquet files; `--dry` saves nothing.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import measure
from benchmarks.processes import run_pipeline

SHARED = measure.SHARED.parent
START = {"muon": 1.2e-2, "beside": 6e-3, "adamw": 4e-3}  # where the search for each rate begins
MODEL = {"dim": 128, "n_layers": 4, "n_heads": 4, "mlp_hidden": 384, "max_seq_len": 128, "sliding_window": 32}
TRAIN = {
    "batch_size": 8,
    "seq_len": 128,
    "schedule": {"kind": "wsd", "warmup": 20},
    "prompts": [],
    "log_every": 1,
    "eval_tokens": 50_000,
}
SEEDS = (1, 2)  # beside 0
# lever -> the settings that turn it, against the tuned run: gemma4, Muon, cap 30, z-loss 1e-4, WSD, no engram
LEVERS = {
    "gemma4 off (all_global)": ["model.attention_pattern=all_global"],
    "cap off": ["model.lm_head_logit_cap=null"],
    "z-loss off": ["model.z_loss_weight=0"],
    "WSD off (constant)": ["train.schedule.kind=constant"],
    "WSD off (cosine)": ["train.schedule.kind=cosine"],
    "engram on": ["model.engram_enabled=true", "model.engram_inject_layer=2"],
    "Newton-Schulz jordan5": ["train.muon.ns=jordan5"],
}


def recipe(data: Path, steps: int) -> dict[str, Any]:
    """Web text and mathematics from `data` (laid out as the shared text), else the text of installed packages."""
    if data.is_dir():
        sources: dict[str, Any] = {
            "web": {"from": "parquet", "path": f"{data}/web/*.parquet"},
            "maths": {"from": "parquet", "path": f"{data}/math/*.parquet"},
        }
    else:
        sources = {
            "web": {"from": "installed_docs", "packages": ["stdlib", "numpy", "torch"]},
            "maths": {"from": "installed_docs", "packages": ["sympy"]},
        }
    tokens = steps * TRAIN["batch_size"] * TRAIN["seq_len"] + 20_000  # type: ignore[operator]  # the tail of a shard
    return {
        "name": "levers",
        "executor": "local",
        "sources": sources,
        "tokenizer": {"vocab_size": 8192, "sample": "20MB"},
        "mixtures": {"pretrain": {"tokens": tokens, "ratios": {"web": "80%", "maths": "20%"}, "max_epochs": 1}},
        "model": MODEL,
        "train": {"pretrain": {"mixture": "pretrain", "steps": steps, **TRAIN}},
    }


def build(folder: Path, data: Path, steps: int) -> Path:
    """Pack the mixture. Returns its manifest."""
    out = folder / "build"
    run_pipeline("pack_pretrain", recipe(data, steps), out)
    return out / "levers" / "pretrain" / "manifest.json"


class Runs:
    """Runs by what they set, each made once."""

    def __init__(self, folder: Path, manifest: Path) -> None:
        self.folder, self.manifest = folder, manifest
        self.known: dict[tuple[str, ...], dict[str, Any]] = {}

    def all(self, jobs: int, wanted: list[list[str]]) -> list[dict[str, Any]]:
        """The results of runs with these settings, `jobs` at a time on one thread each."""
        new = list(dict.fromkeys(tuple(s) for s in wanted if tuple(s) not in self.known))
        numbers = range(len(self.known), len(self.known) + len(new))
        with ThreadPoolExecutor(jobs) as pool:
            self.known.update(zip(new, pool.map(self._run, new, numbers), strict=True))
        return [self.known[tuple(settings)] for settings in wanted]

    def _run(self, settings: tuple[str, ...], number: int) -> dict[str, Any]:
        out = self.folder / f"run-{number:03}"
        command = [sys.executable, "train/main.py", "--manifest", str(self.manifest), "--set", f"train.out={out}"]
        env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        done = subprocess.run([*command, *settings], cwd=measure.ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"error: {' '.join(settings)}: {done.stderr.strip()}")
        summary = json.loads((out / "summary.json").read_text())
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        events = [json.loads(line)["event"] for line in (out / "events.jsonl").read_text().splitlines()]
        bits = summary["after"]["bits_per_byte"]
        bits = math.nan if bits is None else bits
        print(f"{bits:.4f}  {' '.join(settings)}", flush=True)
        return {
            "settings": list(settings),
            "bits_per_byte": bits,
            "parameters": summary["parameters"],
            "finite": all(map(math.isfinite, [*losses, bits])),
            "spikes": sum("spike" in e for e in events),
            "last_loss": losses[-1],
        }


Made = Callable[[list[list[str]]], list[dict[str, Any]]]


def tune(runs: Made, at: Callable[[float], list[str]], rate: float) -> float:
    """The rate among start * 2^k that scores best, with both its neighbours measured."""
    best = 0
    while True:
        near = [best - 1, best, best + 1]
        scores = [r["bits_per_byte"] if r["finite"] else math.inf for r in runs([at(rate * 2.0**k) for k in near])]
        if scores[1] <= min(scores):
            return rate * 2.0**best
        best = near[scores.index(min(scores))]


def rates(beside: float, muon: float | None = None) -> list[str]:
    """The settings of both rates; muon None: AdamW for everything."""
    matrices = ["train.optimizer=adamw"] if muon is None else [f"train.muon.lr={muon:g}"]
    return [*matrices, f"train.adamw.lr={beside:g}"]


def main() -> None:
    """Command line."""
    parser = measure.parser(__doc__, steps=300, jobs=2, dry=False)
    parser.add_argument("--data", type=Path, default=SHARED)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = Runs(folder, build(folder, options.data, options.steps))
        made = functools.partial(runs.all, options.jobs)
        adamw = tune(made, rates, START["adamw"])
        muon, beside = START["muon"], START["beside"]
        while True:  # each in turn until neither moves
            then = muon, beside
            muon = tune(made, lambda rate, b=beside: rates(b, rate), muon)  # type: ignore[misc]
            beside = tune(made, lambda rate, m=muon: rates(rate, m), beside)  # type: ignore[misc]
            if then == (muon, beside):
                break
        tuned = rates(beside, muon)
        wanted = {
            "tuned": tuned,
            "Muon off (AdamW, tuned)": rates(adamw),
            **{lever: [*tuned, *settings] for lever, settings in LEVERS.items()},
            **{f"tuned, seed {s}": [*tuned, f"train.seed={s}"] for s in SEEDS},
            **{f"AdamW, seed {s}": [*rates(adamw), f"train.seed={s}"] for s in SEEDS},
        }
        table = dict(zip(wanted, made(list(wanted.values())), strict=True))
        report(table, list(runs.known.values()), options)


def report(table: dict[str, dict[str, Any]], known: list[dict[str, Any]], options: argparse.Namespace) -> None:
    """Print the table, save it, and fail where a claim does not hold."""
    base = table["tuned"]["bits_per_byte"]
    bits = {lever: run["bits_per_byte"] for lever, run in table.items()}
    measure.show(
        ("lever", "bits/byte", "against tuned, %"),
        [(lever, round(value, 4), round(100 * (value / base - 1), 2)) for lever, value in bits.items()],
    )
    seeds = [(table[a]["bits_per_byte"], table[b]["bits_per_byte"]) for a, b in _pairs()]
    ahead, finite = all(m < a for m, a in seeds), all(r["finite"] for r in known)
    tuned, adamw = table["tuned"]["settings"], table["Muon off (AdamW, tuned)"]["settings"]
    print(f"tuned: {' '.join(tuned)}; AdamW alone: {' '.join(adamw)}")
    print(
        f"Muon ahead of AdamW in each of {len(seeds)} seeds: {ahead}; every loss of {len(known)} runs finite: {finite}"
    )
    if not options.dry:
        text = "web/ and math/ of the shared text" if options.data.is_dir() else "installed packages"
        result = {"steps": options.steps, "text": text, "machine": measure.machine(("torch",)), "table": table}
        measure.save("levers", {**result, "runs": known, "muon_ahead": ahead, "finite": finite})
    if not (ahead and finite):
        raise SystemExit("error: a claim does not hold")


def _pairs() -> list[tuple[str, str]]:
    return [("tuned", "Muon off (AdamW, tuned)"), *((f"tuned, seed {s}", f"AdamW, seed {s}") for s in SEEDS)]


if __name__ == "__main__":
    main()
