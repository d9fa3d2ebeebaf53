"""Choosing where units run: in this process, in a pool of processes, or on Ray. The bytes are the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from pipeline.engine.executor import Executor
from pipeline.errors import UsageError
from pipeline.executors.forkserver import ForkServer
from pipeline.executors.inline import InlineExecutor
from pipeline.executors.local import LocalExecutor
from pipeline.executors.ray import RayExecutor
from stages.recipe import ExecutorName

KINDS: tuple[str, ...] = get_args(ExecutorName)
SMALL_INPUT = 1 << 30  # bytes; Ray takes some five seconds to start, and a pool is done with less before that


def choose_executor(
    kind: str,
    address: str | None,
    workers: int | None,
    input_bytes: int,
    show: Callable[[str], None],
    note: Callable[[str], None],
    forkserver: ForkServer | None = None,
) -> Executor:
    """Return the executor for `kind`; `auto` is local for small inputs without an address. Raises UsageError.

    show: prints a line; it is called with each that workers of this machine write to standard error. note: prints one
    that is kept as well; it is called with what becomes of a cluster.
    """
    if kind == "auto":
        kind = "ray" if address or input_bytes > SMALL_INPUT else "local"
    if kind != "ray" and address:
        raise UsageError("--address needs --executor ray")
    if kind == "inline":
        return InlineExecutor()
    return RayExecutor(address, workers, note) if kind == "ray" else LocalExecutor(workers, forkserver, show)
