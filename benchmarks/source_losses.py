"""What losses by source cost: a training step with them against the same run's step without, in turn.

Two runs of one recipe, one that knows whose tokens it reads and one that does not, take a few steps first: their
weights must stay the same to the bit, and losses by source must add up to the loss. Then the first run alone takes its
steps in pairs, with the losses and without, so that both find the same memory: two runs of one kind were seen to differ
by a hundredth. Time is the processor's: on a shared machine it says more than the clock. The middle three fifths of the
pairs say how much it can be at most (mean and winsorised deviation, Student's interval); the parts that only the one
has are timed alone too, which says how much it is.

    OMP_NUM_THREADS=1 python -m benchmarks.source_losses --manifest build/quickstart/pretrain [--pairs 200]

It fails where the parts are more than a hundredth of a step, or the pairs show that the step is as much slower.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import measure
from stages.compare.stats import t_quantile
from train.data.manifest import load_manifest
from train.data.sources import sources_to_tell
from train.distributed.runtime import join_processes
from train.main import build_run
from train.overrides import configs
from train.run import Run
from train.step import train_step

LIMIT = 0.01
LOG_EVERY = 10  # steps a line
STEPS = 10  # of the two runs whose weights are compared
TRIMMED = 0.2  # of the pairs, on either side
REPEATS = 200  # of a part timed alone


def advance(run: Run, line: bool) -> float:
    """Make a step, and read what a line has where one is due. Returns the processor's seconds."""
    begun = time.process_time()
    loss, _ = train_step(run)
    if line:
        nats = float(loss)
        run.anomalies.read_events(run.step)
        if run.source_losses is not None:
            read = run.source_losses.read(run.rt)
            run.source_losses.name_sources([], read, run.step)
            run.source_losses.record(read)
            if abs(float(read[-1, 0].sum()) - nats) > 1e-5 * nats:
                raise SystemExit(f"error: sources add up to {read[-1, 0].sum():.7f}, the loss is {nats:.7f}")
    return time.process_time() - begun


def parts(run: Run) -> dict[str, float]:
    """Return the processor's seconds of what a step has more, by part."""
    by_source, loader = run.source_losses, run.loader
    assert by_source is not None
    shard, first, _ = loader._order.rows(0)
    micro_batch = next(loader.batch(0).micro_batches(loader.micro_batch_size))
    count = loader.cfg.batch_size // loader.micro_batch_size
    by_target, targets = by_source.by_target(micro_batch.targets.numel()), micro_batch.targets.flatten()
    nats, sources = torch.rand(len(targets)), micro_batch.sources
    assert sources is not None

    def note() -> None:
        by_target[1] = targets >= 0
        by_target[0] = nats

    def seconds(part: Callable[[], Any]) -> float:
        part()
        begun = time.process_time()
        for _ in range(REPEATS):
            part()
        return (time.process_time() - begun) / REPEATS

    return {
        "whose tokens they are": seconds(lambda: loader._sources(shard, first)),
        "losses noted": count * seconds(note),
        "losses added up": count * seconds(lambda: by_source.add(by_target, sources, 1 / count)),
    }


def interval(logs: NDArray[np.float64]) -> tuple[float, float]:
    """Return Student's interval, as changes, for the mean of logarithms without the outer ones on either side.

    Its error is of the values drawn in to the outermost that stay (Tukey and McLaughlin, 1963).
    """
    ordered, out = np.sort(logs), int(TRIMMED * len(logs))
    kept = len(logs) - 2 * out
    mean = ordered[out : len(logs) - out].mean()
    drawn_in = ordered.clip(ordered[out], ordered[-out - 1])
    error = drawn_in.std(ddof=1) / ((1 - 2 * TRIMMED) * math.sqrt(len(logs)))
    half = t_quantile(0.95, kept - 1) * error
    return math.exp(mean - half) - 1, math.exp(mean + half) - 1


def pair(run: Run, number: int) -> float:
    """Make a step with the losses and one without, every other time the other way round; the logarithm of the ratio."""
    told = run.loader.sources, run.source_losses
    line = 2 * (number + 1) % LOG_EVERY == 0
    seconds = {}
    for kind in ("with", "without") if number % 2 else ("without", "with"):
        run.loader.sources, run.source_losses = told if kind == "with" else ([], None)
        seconds[kind] = advance(run, line)
    run.loader.sources, run.source_losses = told
    return math.log(seconds["with"] / seconds["without"])


def main() -> None:
    """Run, print, save."""
    options = measure.parser(__doc__, manifest="build/quickstart/pretrain", pairs=200).parse_args()
    manifest = load_manifest(options.manifest)
    with tempfile.TemporaryDirectory() as name, join_processes() as rt:
        runs: dict[str, Run] = {}
        for kind in ("with", "without"):
            settings = [f"train.out={Path(name) / kind}", f"train.log_every={LOG_EVERY}", "train.epochs=99"]
            model, cfg = configs(manifest.recipe, manifest.phase, settings, options.manifest)
            tell = sources_to_tell if kind == "with" else lambda manifest: ([], "")
            with mock.patch("train.main.sources_to_tell", tell):
                runs[kind] = build_run(rt, manifest, model, cfg)
        run = runs["with"]
        if not run.loader.sources:
            raise SystemExit(f"error: {options.manifest}: it has one source, or nobody knows whose tokens these are")
        steps = [[advance(each, step == STEPS) for each in runs.values()] for step in range(1, STEPS + 1)]
        if not torch.equal(*(each.optimizer.weights for each in runs.values())):
            raise SystemExit("error: the weights of the two runs differ")
        logs = np.array([pair(run, number) for number in range(options.pairs)])
        alone = parts(run)
    low, high = interval(logs)
    step = statistics.median(without for _, without in steps)
    share = sum(alone.values()) / step
    shape = f"{cfg.batch_size} x {cfg.seq_len} tokens, {len(run.loader.sources)} sources, {step:.4f} s a step"
    print(f"{shape}; weights equal to the bit")
    measure.show(("part", "us a step"), [(part, f"{1e6 * seconds:.0f}") for part, seconds in alone.items()])
    print(f"together {share:.3%} of a step; {len(logs)} pairs of steps differ by {low:+.2%} to {high:+.2%}")
    result = {"shape": shape, "share": share, "parts": alone, "pairs": len(logs), "interval": [low, high]}
    measure.save("source_losses", {"machine": measure.machine(("torch",)), **result})
    if share > LIMIT or low > LIMIT:
        raise SystemExit(f"error: more than {LIMIT:.0%} of a step")


if __name__ == "__main__":
    main()
