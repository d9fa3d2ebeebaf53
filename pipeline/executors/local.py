"""A pool of worker processes on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, cast

from pipeline.engine.executor import Reply, UnitSpec, WorkerLost
from pipeline.executors.forkserver import ForkServer
from pipeline.executors.memory import kernel_kills
from pipeline.executors.worker import receive, send
from train.distributed.launch_env import cores


@dataclass(eq=False)
class Worker:
    """One process of the pool, and the stream of messages to and from it."""

    pid: int
    stream: BinaryIO


class LocalExecutor:
    """A pool of worker processes, each with its own connection, replaced when one dies."""

    name = "local"

    def __init__(
        self,
        workers: int | None = None,
        forkserver: ForkServer | None = None,
        show: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    ):
        """workers: by default one a core. show: is called with each line that workers write to standard error."""
        self.slots = workers or cores()  # fewer once memory has run out
        self.kernel_kills = kernel_kills()  # that are not for what is done here, or were answered
        self.forkserver, self.show = forkserver, show
        self.lock = threading.Lock()
        self.idle: list[Worker] = []
        self.workers: set[Worker] = set()

    def _start_worker(self) -> Worker:
        try:
            self.forkserver = self.forkserver or ForkServer()
            self.forkserver.show(self.show)
            pid, connection = self.forkserver.start_worker()
        except ConnectionError as error:
            self.forkserver = None
            raise WorkerLost(str(error)) from None
        with connection:
            worker = Worker(pid, cast(BinaryIO, connection.makefile("rwb")))
        self.workers.add(worker)
        return worker

    def _run_on(self, worker: Worker, spec: UnitSpec) -> Reply:
        try:
            send(worker.stream, spec)
            reply: Reply = receive(worker.stream)
        except (EOFError, ConnectionError, ValueError):
            raise WorkerLost(self._describe_end(worker.pid, self._end_worker(worker))) from None
        return reply

    def _describe_end(self, pid: int, status: int | None) -> str:
        """Return how a worker ended, for people."""
        if status != -signal.SIGKILL:
            return f"worker process {pid} ended with {status}"
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        if kernel_kills() > self.kernel_kills:
            self.kernel_kills += 1
            before, self.slots = self.slots, max(1, self.slots // 2)
            return (
                f"worker process {pid} was killed by the system as memory ran out: {before} units at a time shared "
                f"{memory:.0f} GB; from now on {self.slots} at a time"
            )
        return (
            f"worker process {pid} was killed (signal 9), as the system does when memory runs out: {self.slots} units "
            f"at a time share {memory:.0f} GB; fewer --workers leave each more"
        )

    def _end_worker(self, worker: Worker) -> int | None:
        """Kill a worker, once, and return its exit status if it is known."""
        with self.lock:
            if worker not in self.workers:
                return None
            self.workers.discard(worker)
            os.kill(worker.pid, signal.SIGKILL)
            with contextlib.suppress(ConnectionError):
                return self.forkserver.wait(worker.pid) if self.forkserver else None
            return None

    async def submit(self, spec: UnitSpec) -> Reply:
        """Run one unit on an idle worker, started if there is none. Raises WorkerLost."""
        worker = self.idle.pop() if self.idle else self._start_worker()
        reply = await asyncio.to_thread(self._run_on, worker, spec)
        self.idle.append(worker)
        return reply

    def close(self) -> None:
        """Kill the workers."""
        for worker in list(self.workers):
            self._end_worker(worker)
        self.idle.clear()
        if self.forkserver is not None:
            self.forkserver.close()
            self.forkserver = None
