"""Starting a training job from a unit: child processes on this machine, or Ray Train (pipeline/executors/ray_train.py).

The trainer knows neither: both call `train.main` with the same manifest and the same overrides.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from pipeline.engine.fingerprint import ROOT
from pipeline.executors.ray_train import train_with_ray
from stages.errors import DataError

Launch = Callable[[str, list[str], int, Path], bool]  # (manifest, overrides, ranks, stop) -> whether it ended
STOPPED = 75  # the trainer's status for "not done, everything saved"; see train/main.py
ERROR = "error: "  # with which a trainer's last words begin
SAVE_SECONDS = 25.0  # that it may take from being asked to stop until it has saved


def launcher(executor: str) -> Launch:
    """Return the way to start training that goes with an executor."""
    return train_with_ray if executor == "ray" else train_with_processes


def _die_with_parent() -> None:
    """Have the kernel (Linux) kill this child when its parent is killed, so that no trainer outlives its driver."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL("libc.so.6", use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)


def train_with_processes(manifest: str, overrides: list[str], ranks: int, stop: Path) -> bool:
    """Train with `ranks` processes on this machine. False when they were stopped, by a signal or by the file `stop`.

    Raises DataError with the trainer's last words.

    Started here and not by torchrun, whose ranks would live on when torchrun itself is killed.
    """
    command = [sys.executable, str(ROOT / "train" / "main.py"), "--manifest", manifest, "--set", *overrides]
    # The pool gives its workers one thread each; the trainer is alone and takes the machine.
    threads = ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in threads}
    if ranks > 1:
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(ranks)}
        environment["LOCAL_WORLD_SIZE"] = str(ranks)
    children = []
    for rank in range(ranks):
        names_of_rank = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        children.append(
            subprocess.Popen(
                command,
                env=environment | names_of_rank,
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
                preexec_fn=_die_with_parent,
            )
        )
    tails: list[list[str]] = [[] for _ in children]
    errors: list[list[str]] = [[] for _ in children]
    streams = [*zip([child.stderr for child in children], tails, errors, strict=True), (children[0].stdout, [], [])]
    readers = [threading.Thread(target=_relay, args=lines) for lines in streams]
    for reader in readers:
        reader.start()
    try:
        stopped = _wait_for_ranks(children, stop)
    finally:
        failed = _first_failed(children)
        for child in children:
            child.kill()
        for reader in readers:
            reader.join()
    raised = errors[failed] if failed is not None and not stopped else []
    for line in dict.fromkeys(line for lines in errors for line in lines if line not in raised):
        _show(f"{line}\n")
    if failed is not None and not stopped:
        said = "\n".join(raised) or " ".join(tails[failed])[-400:]
        raise DataError(f"training ended with status {children[failed].returncode}: {said}")
    return all(child.returncode == 0 for child in children)


def _wait_for_ranks(children: list[subprocess.Popen[str]], stop: Path) -> bool:
    """Wait until all ranks have ended, or one badly, or those that were asked to stop have had their time.

    Returns whether they were asked to stop, by the file `stop`.
    """
    asked = 0.0
    while (running := [child for child in children if child.poll() is None]) and _first_failed(children) is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            running[0].wait(timeout=0.5)
        if not asked and stop.exists():
            asked = time.monotonic()
            for child in running:
                child.send_signal(signal.SIGTERM)
        if asked and time.monotonic() > asked + SAVE_SECONDS:
            break
    return asked > 0


def _first_failed(children: list[subprocess.Popen[str]]) -> int | None:
    """Return the first rank that ended badly."""
    return next((rank for rank, child in enumerate(children) if child.poll() not in (None, 0, STOPPED)), None)


def _relay(stream: IO[str], tail: list[str], error: list[str]) -> None:
    """Pass on what a rank prints, and remember its last four lines in `tail`.

    Its error, from a line that begins with ERROR on, goes to `error` alone: whoever started the job says it, once.
    """
    for line in stream:
        if error or line.startswith(ERROR):
            error.append(line.rstrip().removeprefix(ERROR))
            continue
        _show(line)
        tail[:] = [*tail[-3:], line.strip()]


def _show(line: str) -> None:
    sys.stderr.write(line)  # not to the descriptor: a live display in this process shows it above itself
    sys.stderr.flush()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
