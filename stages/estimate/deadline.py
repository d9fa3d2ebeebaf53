"""Calls that a network may hold up: nobody waits for them beyond a deadline."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TypeVar

from stages.errors import DataError

Result = TypeVar("Result")


def call_all(calls: Mapping[str, Callable[[], Result]], seconds: float) -> dict[str, Future[Result]]:
    """Make each call in a thread of its own; those still at it after `seconds` are left behind, with a DataError.

    The threads are daemons: a pool's would keep the process from ending.
    """
    futures: dict[str, Future[Result]] = {name: Future() for name in calls}

    def run(call: Callable[[], Result], future: Future[Result]) -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    for name, future in futures.items():
        threading.Thread(target=run, args=(calls[name], future), daemon=True).start()
    deadline = time.monotonic() + seconds
    for name, future in list(futures.items()):
        try:
            future.exception(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            futures[name] = Future()
            futures[name].set_exception(DataError(f"no answer within {seconds:.0f} s; check the network"))
    return futures
