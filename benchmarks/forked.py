"""Commands in forks of this process, each under a limit of time and of memory, and what became of them."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

SECONDS = 20
MEMORY = 4 << 30  # bytes that a command may ask for beyond what this process has
TRAINING = [
    "train.steps=8",
    "train.checkpoint_every=2",
    "train.keep_last=9",
    "train.sample_tokens=0",
    "train.resume=auto",
    "train.eval_tokens=512",
]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit status (-n: signal n), what it printed, and how long it took."""

    status: int
    output: str
    seconds: float

    @property
    def fault(self) -> str:
        """The name of what may never happen, or ""."""
        if self.status == -signal.SIGKILL:
            return "hang"
        if self.status < 0:
            return f"signal {-self.status}"
        for text, name in (
            ("MemoryError", "memory"),
            ("Traceback (most", "trace"),
            ("a fault of ours", "fault of ours"),
        ):
            if text in self.output:
                return name
        return "" if self.status in (0, 1, 2) else f"status {self.status}"


def run(call: Callable[[], None], seconds: float = SECONDS, memory: int = MEMORY) -> Outcome:
    """Return how `call` ends in a fork of this process, within the limits."""
    with tempfile.TemporaryFile() as output:
        start = time.monotonic()
        child = os.fork()
        if child == 0:
            _be_a_command(call, output.fileno(), memory)
        with contextlib.suppress(OSError):  # the child does so too, whoever is first
            os.setpgid(child, child)
        status = None
        while status is None:
            done, code = os.waitpid(child, os.WNOHANG)
            if done:
                status = os.waitstatus_to_exitcode(code)
            elif time.monotonic() - start > seconds:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                status = -signal.SIGKILL
            else:
                time.sleep(0.005)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)  # what the command may have left running
        output.seek(0)
        return Outcome(status, output.read().decode(errors="replace"), time.monotonic() - start)


def _be_a_command(call: Callable[[], None], output: int, memory: int) -> None:
    """Do `call` as a process of its own and leave. Never returns."""
    os.setpgid(0, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (os.fdopen(handle, "w", closefd=False) for handle in (1, 2))
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + memory, in_use + memory))
    status: object = 1
    try:
        call()
        status = 0
    except SystemExit as stopped:
        status = stopped.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 0 if status is None else 1)


def shardmill(*arguments: object) -> Callable[[], None]:
    """Return a call of the command line."""

    def call() -> None:
        from pipeline.cli import main

        sys.argv = ["shardmill", *map(str, arguments)]
        main()

    return call


def trainer(manifest: Path, *settings: object) -> Callable[[], None]:
    """Return a call of train/main.py."""

    def call() -> None:
        from train.main import main

        sys.exit(main(["--manifest", str(manifest), "--set", *TRAINING, *map(str, settings)]))

    return call


def require(outcome: Outcome) -> Outcome:
    """Return the outcome of a command on undamaged files. Raises RuntimeError if it failed."""
    if outcome.status != 0:
        raise RuntimeError(f"undamaged files: status {outcome.status}\n{outcome.output}")
    return outcome


def warm_up() -> None:
    """Import what the commands import, and load the kernels' machine code, so that a fork has it."""
    import pyarrow as pa
    import torch

    for module in ("pipeline.cli", "pipeline.engine.context", "stages.registry", "train.main", "train.generate"):
        importlib.import_module(module)

    from stages.filter.apply import apply_to_column

    apply_to_column(pa.array(["a text"]), None, [("length", {"min_chars": 1, "max_chars": 9})])
    torch.set_num_threads(1)
