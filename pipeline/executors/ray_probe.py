"""Whether Ray starts here, or a cluster can be used: asked in a process of its own, which Ray may end.

    python -m pipeline.executors.ray_probe [ADDRESS]

Prints one JSON object: what the cluster has, and in words what its nodes have in another version than this machine.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

from pipeline.engine.executor import UnitSpec
from pipeline.engine.fingerprint import fingerprint, versions
from pipeline.errors import UserError

EVERYTHING = "stages.registry"  # a module that imports all that units run
PATIENCE = 180.0  # seconds that all of it may take
NODE_PATIENCE = 60.0  # that the nodes may take together


def probe(address: str | None) -> dict[str, Any]:
    """Return what a process of its own found out. Raises UserError with what it, or Ray, said last."""
    command = [sys.executable, "-m", __spec__.name, *([address] if address else [])]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        try:
            said, complaints = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()  # what it started ends with it: see ray_cleanup
            raise UserError(f"Ray gave no answer within {PATIENCE:.0f} s") from None
    if process.returncode:
        lines = complaints.decode(errors="replace").strip().splitlines() or [f"ended with status {process.returncode}"]
        raise UserError(lines[-1].removeprefix("error: ")[:300])
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


async def look(address: str | None) -> dict[str, Any]:
    """Start Ray or join the cluster at `address`, ask each node what differs there, and leave."""
    from pipeline.executors.ray import RayExecutor

    executor = RayExecutor(address)
    try:
        return {"cluster": str(executor.nodes), "different": differences()}
    finally:
        executor.close()


def differences() -> list[str]:
    """Return what each node has in another version than this machine, or lacks, for people. Ray was started."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from pipeline.executors.ray_node import difference
    from stages.registry import STAGES

    libraries = tuple(sorted({library for stage in STAGES.values() for library in stage.libraries}))
    spec: Any = {"versions": versions(libraries), "work": f"{EVERYTHING}:", "code": fingerprint(EVERYTHING)}
    task = ray.remote(num_cpus=0)(on_node)
    asked = {}
    for node in ray.nodes():
        if node["Alive"]:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[node["NodeManagerHostname"]] = task.options(scheduling_strategy=there).remote(difference, spec)
    found = []
    for host, answer in asked.items():
        try:
            if words := ray.get(answer, timeout=NODE_PATIENCE):
                found.append(f"{host}: {words}")
        except Exception as error:  # of Ray's many kinds
            found.append(f"{host}: {(str(error).strip().splitlines() or [type(error).__name__])[-1][:200]}")
    return found


def on_node(difference: Any, spec: UnitSpec) -> str:
    """Return what differs on the node that this runs on."""
    return str(difference(spec))


if __name__ == "__main__":
    try:
        print(json.dumps(asyncio.run(look(sys.argv[1] if len(sys.argv) > 1 else None))), flush=True)
    except UserError as error:
        sys.exit(f"error: {error}")
