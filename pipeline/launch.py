"""Starting a training job from a unit: torchrun in a child process, or Ray Train on the cluster.

The trainer knows neither: both call `train.main` with the same manifest and the same overrides.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.code import ROOT
from stages.base import DataError

Launch = Callable[[str, list[str], int], None]


def launcher(executor: str) -> Launch:
    """The way to start training that goes with an executor."""
    return ray_train if executor == "ray" else torchrun


def _die_with_parent() -> None:
    """Linux: the child is killed when its parent is, so that no trainer outlives its driver."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL("libc.so.6", use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)


def torchrun(manifest: str, overrides: list[str], workers: int) -> None:
    """Train with `workers` processes on this machine. Raises DataError with the trainer's last words."""
    script = str(ROOT / "train" / "main.py")
    command = [sys.executable]
    if workers > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={workers}"]
    command += [script, "--manifest", manifest]
    for override in overrides:
        command += ["--set", override]
    # The pool gives its workers one thread each; the trainer is alone and takes the machine.
    threads = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in threads}
    child = subprocess.Popen(
        command, env=environment, stdout=2, stderr=subprocess.PIPE, text=True, preexec_fn=_die_with_parent
    )
    assert child.stderr
    tail: list[str] = []
    for line in child.stderr:
        sys.stderr.write(line)
        tail = [*tail[-4:], line.strip()]
    if child.wait() != 0:
        raise DataError(f"training ended with {child.returncode}: {' '.join(tail)[-400:]}")


def _ray_worker(config: dict[str, Any]) -> None:
    """One rank under Ray Train, which has made the process group already."""
    import ray.train

    sys.path.insert(0, config["root"])
    from train.main import run

    def on_save(metrics: dict[str, Any], path: str | None) -> None:
        # A barrier for all ranks. The checkpoint stays where the trainer put it: no second copy.
        ray.train.report({**metrics, "checkpoint": str(path or "")})

    run(config["manifest"], config["overrides"], on_save=on_save)


def ray_train(manifest: str, overrides: list[str], workers: int) -> None:
    """Train with `workers` ranks through Ray Train; a lost worker resumes from the last checkpoint.

    Raises DataError.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    gpus = ray.cluster_resources().get("GPU", 0) >= workers
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)
    resources = {"CPU": 1} if gpus else {"CPU": cpus}
    out = next(o.removeprefix("train.out=") for o in overrides if o.startswith("train.out="))
    trainer = TorchTrainer(
        _ray_worker,
        train_loop_config={"root": str(ROOT), "manifest": manifest, "overrides": overrides},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=gpus, resources_per_worker=resources),
        run_config=RunConfig(
            name="ray", storage_path=str(Path(out).parent), failure_config=FailureConfig(max_failures=3)
        ),
    )
    try:
        trainer.fit()
    except Exception as error:  # Ray Train wraps whatever the loop raised
        cause = str(error).strip().splitlines()
        raise DataError(f"training under Ray Train failed: {cause[-1] if cause else error!r}") from error
