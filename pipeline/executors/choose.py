"""Where units run: a pool of processes on this machine, or tasks on a Ray cluster. The bytes are the same."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import threading
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from pipeline.engine.executor import Executor, Reply, UnitSpec, WorkerLost
from pipeline.engine.fingerprint import PROJECT, ROOT
from pipeline.engine.signals import kept_handlers
from pipeline.errors import UsageError, UserError
from pipeline.executors import ray_cleanup
from pipeline.executors.forkserver import Nursery
from pipeline.executors.inline import InlineExecutor
from pipeline.executors.worker import receive, run_unit, send
from train.distributed.launch_env import cores


@dataclass(eq=False)
class Worker:
    """One process of the pool, and the stream of messages to and from it."""

    pid: int
    stream: BinaryIO


class LocalExecutor:
    """A pool of worker processes, each with its own connection, replaced when one dies."""

    name = "local"

    def __init__(self, workers: int | None = None, nursery: Nursery | None = None):
        self.slots = workers or cores()
        self.nursery = nursery
        self.lock = threading.Lock()
        self.idle: list[Worker] = []
        self.all: set[Worker] = set()

    def _start(self) -> Worker:
        try:
            self.nursery = self.nursery or Nursery()
            pid, connection = self.nursery.hatch()
        except ConnectionError as error:
            self.nursery = None
            raise WorkerLost(str(error)) from None
        with connection:
            worker = Worker(pid, cast(BinaryIO, connection.makefile("rwb")))
        self.all.add(worker)
        return worker

    def _call(self, worker: Worker, spec: UnitSpec) -> Reply:
        try:
            send(worker.stream, spec)
            reply: Reply = receive(worker.stream)
        except (EOFError, ConnectionError, ValueError):
            raise WorkerLost(f"worker process {worker.pid} ended with {self._end(worker)}") from None
        return reply

    def _end(self, worker: Worker) -> int | None:
        """Kill a worker, once, and return its exit status if it is known."""
        with self.lock:
            if worker not in self.all:
                return None
            self.all.discard(worker)
            os.kill(worker.pid, signal.SIGKILL)
            with contextlib.suppress(ConnectionError):
                return self.nursery.wait(worker.pid) if self.nursery else None
            return None

    async def submit(self, spec: UnitSpec) -> Reply:
        """Run one unit on an idle worker, started if there is none."""
        worker = self.idle.pop() if self.idle else self._start()
        reply = await asyncio.to_thread(self._call, worker, spec)
        self.idle.append(worker)
        return reply

    def close(self) -> None:
        """Kill the workers."""
        for worker in list(self.all):
            self._end(worker)
        self.idle.clear()
        if self.nursery is not None:
            self.nursery.close()
            self.nursery = None


class RayExecutor:
    """Plain Ray tasks of a few KB in and out; a local Ray is started and stopped here, a cluster only joined."""

    name = "ray"

    def __init__(self, address: str | None = None, workers: int | None = None):
        self.address, self.workers = address, workers
        self.slots = workers or cores()
        self.remote: Any = None
        self.reaper: subprocess.Popen[bytes] | None = None  # ends our Ray if we are killed

    def start(self) -> None:
        """Join the cluster at `address`, or start a Ray of our own on this machine."""
        # Ray's own start-up lines and its warning about accelerators are not ours to show.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        # Ray nices its workers to 15, behind everything else on a shared machine; here they are the job.
        os.environ.setdefault("RAY_worker_niceness", "0")
        # Torch's threads must sleep while they wait: a spinning one costs a busy machine tenfold.
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        os.environ["PYTHONPATH"] = python_path()
        import ray

        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        try:
            if self.address:
                # The three packages alone: beside them lies a clone's build folder, or all of site-packages.
                environment = {"py_modules": [str(ROOT / package) for package in PROJECT]}
                with kept_handlers():
                    ray.init(address=self.address, runtime_env=environment, **options)
                self.slots = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
            else:
                self.reaper = ray_cleanup.start(dict(os.environ))
                # Data goes through files, so the object store holds only records.
                memory = 128 << 20
                local: dict[str, Any] = {"address": "local", "num_cpus": self.slots, "object_store_memory": memory}
                with kept_handlers():
                    ray.init(include_dashboard=False, **local, **options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            where = f"at {self.address}" if self.address else "on this machine"
            raise UserError(f"no Ray {where}: {' '.join(str(error).split())}; try --executor local") from None
        # Retries are the engine's business: it knows a lost worker from a bad row.
        self.remote = ray.remote(num_cpus=1, max_retries=0)(run_unit)

    async def submit(self, spec: UnitSpec) -> Reply:
        """Run one unit as a Ray task."""
        if self.remote is None:
            self.start()
        import ray

        try:
            task = self.remote.options(name=f"{spec['stage']} {spec['label']}", num_cpus=spec["cpus"])
            reply: Reply = await task.remote(spec)
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise WorkerLost(" ".join(str(error).split())[:300]) from None
        return reply

    def close(self) -> None:
        """Leave the cluster; stop a Ray of our own."""
        if self.remote is not None:
            import ray

            ray.shutdown()
            self.remote = None
        if self.reaper is not None and self.reaper.stdin:
            self.reaper.stdin.close()
            self.reaper = None


def python_path() -> str:
    """PYTHONPATH with the project first, so that workers import it from the clone, uninstalled."""
    rest = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p and p != str(ROOT)]
    return os.pathsep.join([str(ROOT), *rest])


# Ray costs some five seconds to start; below this much input a pool of processes is done before that.
SMALL_INPUT = 1 << 30


def choose_executor(
    kind: str, address: str | None, workers: int | None, input_bytes: int, nursery: Nursery | None = None
) -> Executor:
    """The executor for `kind`; `auto` is local for small inputs without an address."""
    if kind == "auto":
        kind = "ray" if address or input_bytes > SMALL_INPUT else "local"
    if kind != "ray" and address:
        raise UsageError("--address needs --executor ray")
    if kind == "inline":
        return InlineExecutor()
    return RayExecutor(address, workers) if kind == "ray" else LocalExecutor(workers, nursery)
