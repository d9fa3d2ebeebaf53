"""Tasks on a Ray cluster, or on a Ray of our own on this machine."""

from __future__ import annotations

import logging
import os
import subprocess
from typing import Any

from pipeline.engine.executor import Reply, UnitSpec, WorkerLost
from pipeline.engine.fingerprint import PROJECT, ROOT
from pipeline.engine.signals import kept_handlers
from pipeline.errors import UserError
from pipeline.executors import ray_cleanup
from pipeline.executors.worker import run_unit
from train.distributed.launch_env import cores

ENVIRONMENT = {
    # Ray's own start-up lines and its warning about accelerators are not ours to show.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Ray nices its workers to 15, behind everything else on a shared machine; here they are the job.
    "RAY_worker_niceness": "0",
    # Torch's threads must sleep while they wait: a spinning one costs a busy machine tenfold.
    "OMP_WAIT_POLICY": "passive",
}
OBJECT_STORE_BYTES = 128 << 20  # data goes through files, so Ray's object store holds only records


class RayExecutor:
    """Plain Ray tasks of a few KB in and out; a local Ray is started and stopped here, a cluster only joined."""

    name = "ray"

    def __init__(self, address: str | None = None, workers: int | None = None):
        self.address, self.workers = address, workers
        self.slots = workers or cores()
        self.remote: Any = None  # `run_unit` as a Ray function, once Ray has started
        self.cleanup: subprocess.Popen[bytes] | None = None  # ends our Ray if we are killed

    def start(self) -> None:
        """Join the cluster at `address`, or start a Ray of our own on this machine. Raises UserError."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if not self.address:
            # A Ray that no other machine is to join listens on the loopback interface alone. Read as ray is imported.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        os.environ["PYTHONPATH"] = python_path()
        import ray

        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if self.address:
            # The three packages alone: beside them lies a clone's build folder, or all of site-packages.
            modules = [str(ROOT / package) for package in PROJECT]
            options |= {"address": self.address, "runtime_env": {"py_modules": modules}}
        else:
            self.cleanup = ray_cleanup.start(dict(os.environ))
            options |= {"address": "local", "num_cpus": self.slots, "object_store_memory": OBJECT_STORE_BYTES}
            options["include_dashboard"] = False
        try:
            with kept_handlers():
                ray.init(**options)
            if self.address:
                self.slots = self.workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            where = f"at {self.address}" if self.address else "on this machine"
            raise UserError(f"no Ray {where}: {' '.join(str(error).split())}; try --executor local") from None
        # Retries are the engine's business: it knows a lost worker from a bad row.
        self.remote = ray.remote(num_cpus=1, max_retries=0)(run_unit)

    async def submit(self, spec: UnitSpec) -> Reply:
        """Run one unit as a Ray task. Raises WorkerLost, and UserError when Ray does not start."""
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
        if self.cleanup is not None and self.cleanup.stdin:
            self.cleanup.stdin.close()
            self.cleanup = None


def python_path() -> str:
    """Return PYTHONPATH with the project first, so that workers import it from the clone, uninstalled."""
    rest = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path and path != str(ROOT)]
    return os.pathsep.join([str(ROOT), *rest])
