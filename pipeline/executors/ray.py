"""Tasks on a Ray cluster, or on a Ray of our own on this machine."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.engine.executor import NodeLost, Reply, UnitSpec, WorkerLost
from pipeline.engine.fingerprint import PROJECT, ROOT
from pipeline.engine.signals import kept_handlers
from pipeline.errors import UserError
from pipeline.executors import ray_cleanup
from pipeline.executors.last_word import typed_command
from pipeline.executors.memory import Memory, kernel_kills
from pipeline.executors.ray_address import CLIENT, resolve
from pipeline.executors.ray_node import ID_DIGITS, announced, run_on_node
from pipeline.executors.ray_nodes import Nodes
from train.distributed.launch_env import cores

ENVIRONMENT = {
    # Ray's own start-up lines and its warning about accelerators are not ours to show.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Ray nices its workers to 15, behind everything else on a shared machine; here they are the job.
    "RAY_worker_niceness": "0",
    # Torch's threads must sleep while they wait: a spinning one costs a busy machine tenfold.
    "OMP_WAIT_POLICY": "passive",
    # Ray ends the process 60 s after the head is gone, with a line of its own; here `Nodes` notices, and we say it.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "86400",
    # Once a connection is lost, Ray would look for another cluster by itself, or start one.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Ray gives a worker back after 0.5 s, and one is asked for anew: a tenth of a second between units of a second.
    "RAY_worker_lease_timeout_milliseconds": "10000",
}
OBJECT_STORE_BYTES = 128 << 20  # data goes through files, so Ray's object store holds only records
HEAD_PATIENCE = 30.0  # seconds without an answer, after which the head is given up
NODE_PATIENCE = 10.0  # seconds in which Ray may say itself what becomes of the units of a node that died
LOOK_EVERY = 1.0  # seconds
LEAST_WAITING = 4  # units that wait in a cluster: one that grows does so by what waits


@dataclass(eq=False)
class Flight:
    """A unit that was handed to Ray: the node it began on, once it has, and where its loss is said."""

    lost: asyncio.Future[Reply]
    node: str = ""
    kernel_kills: int = 0  # of that node, as the unit began


class RayExecutor:
    """Plain Ray tasks of a few KB in and out; a local Ray is started and stopped here, a cluster only joined."""

    name = "ray"

    def __init__(self, address: str | None = None, workers: int | None = None, note: Callable[[str], None] = print):
        """address: of a cluster, as `--address` has it. workers: units at a time. note: says a line and keeps it."""
        self.address, self.workers, self.note = address, workers, note
        self.cleanup: subprocess.Popen[bytes] | None = None  # ends our Ray if we are killed
        self.flights: set[Flight] = set()
        self.memory: dict[str, Memory] = {}  # by stage
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        target = resolve(address) if address else "local"
        self._start(target)
        self.nodes = Nodes()
        # Retries are the engine's business: it knows a lost worker from a bad row. Ray Client has no generators.
        self._announced = not target.startswith(CLIENT)
        import ray

        self._run: Any = ray.remote(num_cpus=1, max_retries=0)(announced if self._announced else run_on_node)
        self._watcher = asyncio.ensure_future(self._watch())
        if address:
            self.note(f"cluster at {target}: {self.nodes}")

    @property
    def slots(self) -> int:
        """Units that may be in flight: one for each CPU, and as many that wait for one; follows the cluster."""
        if not self.address:
            return self.workers or cores()
        return min(self.nodes.cpus + max(self.nodes.cpus, LEAST_WAITING), self.workers or sys.maxsize)

    def _start(self, target: str) -> None:
        """Join the cluster at `target`, or start a Ray of our own on this machine. Raises UserError."""
        os.environ["PYTHONPATH"] = python_path()
        if not self.address:
            # A Ray that no other machine is to join listens on the loopback interface alone. Read as ray is imported.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
            # And takes orders from us alone. Without a token Ray writes one into the home.
            os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
        import ray

        options: dict[str, Any] = {"address": target, "logging_level": logging.ERROR, "log_to_driver": False}
        if self.address:
            # The three packages alone: beside them lies a clone's build folder, or all of site-packages.
            options["runtime_env"] = {"py_modules": [str(ROOT / package) for package in PROJECT]}
        else:
            self.cleanup = ray_cleanup.start(dict(os.environ))
            options |= {
                "num_cpus": self.workers or cores(),
                "object_store_memory": OBJECT_STORE_BYTES,
                "include_dashboard": False,
            }
        try:
            with kept_handlers():
                ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            where = f"at {self.address}" if self.address else "on this machine"
            raise UserError(f"no Ray {where}: {' '.join(str(error).split())}; try --executor local") from None

    async def submit(self, spec: UnitSpec) -> Reply:
        """Run one unit as a Ray task. Raises WorkerLost, and UserError when the head is gone."""
        flight = Flight(asyncio.get_running_loop().create_future())
        self.flights.add(flight)
        reply = asyncio.ensure_future(self._reply(spec, flight))
        try:
            await asyncio.wait({reply, flight.lost}, return_when=asyncio.FIRST_COMPLETED)
            return (reply if reply.done() else flight.lost).result()
        finally:
            self.flights.discard(flight)
            reply.cancel()
            flight.lost.cancel()

    async def _reply(self, spec: UnitSpec, flight: Flight) -> Reply:
        """Hand a unit to Ray and wait for what comes back."""
        import ray

        stage = spec["stage"]
        memory = self.memory.setdefault(stage, Memory())
        asked = memory.ask(self.nodes.most_memory)
        task = self._run.options(name=f"{stage} {spec['label']}", num_cpus=spec["cpus"], memory=asked or None)
        try:
            returned = task.remote(spec)
            if self._announced:
                flight.node, flight.kernel_kills = await (await anext(returned))
            # The generator must live until its last value is here.
            reply: Reply = await (await anext(returned) if self._announced else returned)
        except ray.exceptions.OutOfMemoryError:
            raise self._out_of_memory(spec, flight, asked, "Ray") from None
        except ray.exceptions.RayTaskError as error:
            return {"error": {"kind": "permanent", "message": last_line(error), "trace": str(error)}}
        except (ray.exceptions.NodeDiedError, ray.exceptions.ObjectLostError) as error:
            if not flight.node and (named := re.search(rf"node ID: ([0-9a-f]{{{ID_DIGITS}}})", str(error))):
                # It died before the unit could say where it is.
                flight.node = self.nodes.alive.get(named[1], named[1])
            raise NodeLost(f"{self._place(flight)}the node is gone") from None
        except ray.exceptions.WorkerCrashedError:
            if flight.node and await self._kernel_kills(flight.node) > flight.kernel_kills:
                raise self._out_of_memory(spec, flight, asked, "the system") from None
            raise WorkerLost(
                f"{self._place(flight)}its process was ended from outside, as the system does when memory runs out; "
                f"{self._memory(spec, asked)}"
            ) from None
        except (ray.exceptions.RayError, ConnectionError) as error:
            if not ray.is_initialized():  # Ray Client has given up
                raise UserError(self._head_gone()) from None
            raise WorkerLost(f"{self._place(flight)}{' '.join(str(error).split())[:300]}") from None
        if "record" in reply:
            memory.needed = max(memory.needed, reply["record"]["peak_mb"] * 2**20)
        return reply

    def _out_of_memory(self, spec: UnitSpec, flight: Flight, asked: int, who: str) -> WorkerLost:
        """Return what is said of a unit that `who` ended for want of memory; from now on such ones ask for more."""
        memory, most = self.memory[spec["stage"]], self.nodes.most_memory
        text = f"{self._place(flight)}memory ran out there, and {who} ended it; {self._memory(spec, asked)}"
        memory.ran_out(asked, self.nodes.memory_share)
        return WorkerLost(f"{text}; from now on {memory.ask(most) / 1e9:.1f} GB, so that fewer run at a time")

    async def _kernel_kills(self, node: str) -> int:
        """Return how many processes the kernel of a node has killed for want of memory; 0 if it does not answer."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        there = NodeAffinitySchedulingStrategy(self.nodes.whole_ids[node.rpartition("/")[2]], soft=False)
        asked = ray.remote(num_cpus=0, max_retries=0)(kernel_kills).options(scheduling_strategy=there).remote()
        try:
            return int(await asyncio.wait_for(asked, NODE_PATIENCE))
        except (ray.exceptions.RayError, TimeoutError):
            return 0

    def _place(self, flight: Flight) -> str:
        return f"on node {flight.node}: " if flight.node else ""

    def _memory(self, spec: UnitSpec, asked: int) -> str:
        """Say how much memory a unit has asked for, and what others of its stage have needed."""
        needed = self.memory[spec["stage"]].needed
        known = f", others of {spec['stage']} have needed up to {needed / 1e9:.1f} GB" if needed else ""
        return f"it had asked for {asked / 1e9:.1f} GB{known}" if asked else f"it had asked for no share of it{known}"

    async def _watch(self) -> None:
        """Say how the cluster changes, and end the wait for units whose node, or whose head, is gone."""
        nodes, known, warned = self.nodes, self.nodes.alive, False
        while True:
            await asyncio.sleep(LOOK_EVERY)
            silent = nodes.silent()
            if silent > HEAD_PATIENCE and warned:
                self._lose(self.flights, lambda: UserError(self._head_gone()))
            elif silent > HEAD_PATIENCE / 3 and not warned:
                self.note(f"the head of the cluster does not answer; waiting for it for {HEAD_PATIENCE:.0f} s")
            warned = silent > HEAD_PATIENCE / 3
            dead = nodes.dead_for(NODE_PATIENCE)
            gone = {flight for flight in self.flights if flight.node.rpartition("/")[2] in dead}
            self._lose(gone, lambda: NodeLost("its node does not answer any more"))
            if self.address and nodes.alive != known:
                self.note(f"the cluster has changed: {nodes}; {nodes.difference(known)}")
                known = nodes.alive

    def _lose(self, flights: set[Flight], error: Callable[[], Exception]) -> None:
        for flight in flights:
            if not flight.lost.done():
                flight.lost.set_exception(error())

    def _head_gone(self) -> str:
        at = f"of the cluster at {self.address}" if self.address else "of our own Ray"
        return (
            f"the head {at} has not answered for {HEAD_PATIENCE:.0f} s; what is done is kept, and once there is a "
            f"cluster this goes on: {typed_command()}"
        )

    def close(self) -> None:
        """Leave the cluster; stop a Ray of our own."""
        import ray

        self._watcher.cancel()
        self.nodes.stop()
        if self.nodes.silent() < HEAD_PATIENCE / 3:  # else Ray would end this process before our last line
            ray.shutdown()
        if self.cleanup is not None and self.cleanup.stdin:
            self.cleanup.stdin.close()
            self.cleanup = None


def last_line(error: Exception) -> str:
    """Return what a trace ends with."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:300]


def python_path() -> str:
    """Return PYTHONPATH with the project first, so that workers import it from the clone, uninstalled."""
    rest = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(ROOT)]
    return os.pathsep.join([str(ROOT), *rest])
