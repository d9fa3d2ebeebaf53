"""Data never waits: the share of a step's time that a consumer of 1 M tokens/s spends waiting for its batch.

A stand-in for a GPU takes 524,288 tokens a step, as 64 x 8192 and as 512 x 1024, on 16 shards, and sleeps as long as
1 M tokens/s leave it. Timed is what `train_step` times as waiting: the call for the batch, of the loader itself
(`in_step`, as on a CPU) and of the thread that is one batch ahead (`ahead`, as on a GPU), in turn. Once with the shards
in the page cache and once from the disk (the kernel asked to forget the files before each round): a mixture too large
to be hashed at the start is read so in its first epoch. The target is 1 %.

    python -m benchmarks.wait [--megabytes 400] [--steps 20] [--rounds 3]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import measure
from benchmarks.processes import forget_cache
from benchmarks.reader import BOS, write_shards
from train.config import TrainConfig
from train.data.loader import Loader
from train.data.manifest import load_manifest
from train.data.prefetch import Prefetcher

SHAPES = ((64, 8192), (512, 1024))
RATE = 1e6  # tokens a second
TARGET = 0.01


def waiting(batch: Callable[[int], Any], tokens: int, steps: int) -> dict[str, float]:
    """Over `steps` steps of tokens / RATE seconds each: the first call for a batch, which opens the shards and works
    out the order, and of the others the share of the time and the longest; ms."""
    waits = []
    for step in range(steps):
        start = time.perf_counter()
        batch(step)
        waits.append(time.perf_counter() - start)
        time.sleep(tokens / RATE)
    first, *later = waits
    share = sum(later) / (sum(later) + len(later) * tokens / RATE)
    return {"share": share, "longest_ms": 1000 * max(later), "first_ms": 1000 * first}


def main() -> None:
    """Run, print, save."""
    options = measure.parser(__doc__, megabytes=400.0, steps=20, rounds=3).parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"machine": measure.machine(("numpy", "torch")), "target_share": TARGET, "waiting": {}}
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:  # /tmp may be memory
        tokens = np.random.default_rng(0).integers(0, BOS, int(options.megabytes * 5e5), np.uint16)
        path = write_shards(Path(name) / "m", tokens, 16)
        for rows, length in SHAPES:
            cfg = TrainConfig(batch_size=rows, seq_len=length)
            for state in ("cached", "from_disk"):
                seen: dict[str, list[dict[str, float]]] = {"in_step": [], "ahead": []}
                for _ in range(options.rounds):
                    for how, found in seen.items():
                        if state == "from_disk":
                            forget_cache(path.parent, "*.bin")
                        loader = Loader(load_manifest(path), cfg)
                        loader.verified = state == "cached"
                        source = Prefetcher(loader) if how == "ahead" else loader
                        found.append(waiting(source.batch, rows * length, options.steps))
                        del loader, source  # and with them the maps, which would keep the pages
                for how, found in seen.items():
                    result["waiting"][f"{rows}x{length} {state} {how}"] = {
                        **{key: round(measure.median(f[key] for f in found), 6) for key in found[0]},
                        "rounds": [round(f["share"], 6) for f in found],
                    }
    for what, figures in result["waiting"].items():
        print(
            f"{what:28} {figures['share']:8.3%} of the time, longest {figures['longest_ms']:.1f} ms, "
            f"first {figures['first_ms']:.1f} ms"
        )
    measure.save("wait", result)


if __name__ == "__main__":
    main()
