"""What losses by source cost: a training step with them against the same step without, in turn.

Two runs of one recipe are built as the trainer builds them, on the same mixture, with the same batches; the one knows
whose tokens it reads, the other does not. They take their steps in turn, and lines are read as often as in a run. Time
is the processor's: on a shared machine it says more than the clock. First, losses of both must be the same to the bit,
and those by source must add up to them.

    OMP_NUM_THREADS=1 python -m benchmarks.source_losses --manifest build/quickstart/pretrain [--steps 200]

It fails where the median step costs more than one hundredth more.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks import measure
from train.data.manifest import load_manifest
from train.data.sources import sources_to_tell
from train.distributed.runtime import join_processes
from train.main import build_run
from train.overrides import configs
from train.run import Run
from train.step import train_step

LIMIT = 1.01
LOG_EVERY = 10  # steps a line


def advance(run: Run) -> float:
    """Make LOG_EVERY steps and read what a line has. Returns the processor's seconds."""
    begun = time.process_time()
    for _ in range(LOG_EVERY):
        loss, _ = train_step(run)
    nats = float(loss)
    run.anomalies.read_events(run.step)
    if run.source_losses is not None:
        read = run.source_losses.read(run.rt)
        run.source_losses.name_sources([], read, run.step)
        run.source_losses.record(read)
        if abs(float(read[-1, 0].sum()) - nats) > 1e-5 * nats:
            raise SystemExit(f"error: sources add up to {read[-1, 0].sum():.7f}, the loss is {nats:.7f}")
    return time.process_time() - begun


def main() -> None:
    """Run, print, save."""
    options = measure.parser(__doc__, manifest="build/quickstart/pretrain", steps=200).parse_args()
    manifest = load_manifest(options.manifest)
    with tempfile.TemporaryDirectory() as name, join_processes() as rt:
        runs: dict[str, Run] = {}
        for kind in ("with", "without"):
            settings = [f"train.out={Path(name) / kind}", f"train.log_every={LOG_EVERY}", "train.epochs=99"]
            model, cfg = configs(manifest.recipe, manifest.phase, settings, options.manifest)
            tell = sources_to_tell if kind == "with" else lambda manifest: ([], "")
            with mock.patch("train.main.sources_to_tell", tell):
                runs[kind] = build_run(rt, manifest, model, cfg)
        sources = runs["with"].loader.sources
        if not sources:
            raise SystemExit(f"error: {options.manifest}: it has one source, or nobody knows whose tokens these are")
        seconds: dict[str, list[float]] = {kind: [] for kind in runs}
        for number in range(options.steps // LOG_EVERY + 1):
            for kind in runs if number % 2 else reversed(runs):
                seconds[kind].append(advance(runs[kind]))
        weights = [run.optimizer.weights for run in runs.values()]
        if not torch.equal(*weights):
            raise SystemExit("error: the weights of the two runs differ")
    ratios = [a / b for a, b in zip(seconds["with"][1:], seconds["without"][1:], strict=True)]  # the first warms up
    ratio = statistics.median(ratios)
    spread = statistics.quantiles(ratios, n=4)
    shape = f"{cfg.batch_size} x {cfg.seq_len} tokens, {len(sources)} sources"
    each = {kind: statistics.median(values[1:]) / LOG_EVERY for kind, values in seconds.items()}
    print(f"{shape}: {each['with']:.5f} s a step with, {each['without']:.5f} s without, weights equal to the bit")
    print(f"ratio {ratio:.4f} (the middle half of {len(ratios)} pairs: {spread[0]:.4f} to {spread[2]:.4f})")
    result: dict[str, Any] = {"shape": shape, "ratio": ratio, "quartiles": spread, "seconds": each}
    measure.save("source_losses", {"machine": measure.machine(("torch",)), **result})
    if ratio > LIMIT:
        raise SystemExit(f"error: a step costs {ratio:.4f} times as much, {LIMIT} at most was wanted")


if __name__ == "__main__":
    main()
