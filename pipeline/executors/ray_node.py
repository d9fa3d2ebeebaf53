"""What a unit meets first in a worker of Ray, whose node may lack a package of the driver's or have another version.

Our own packages travel to every node; what they import does not. So this module needs the standard library alone.
"""

from __future__ import annotations

import functools
import os
import platform
import socket
import traceback
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING

from pipeline.executors.memory import kernel_kills

if TYPE_CHECKING:
    from pipeline.engine.executor import Reply, UnitSpec

ID_DIGITS = 8  # of a node's id, which tell it from others of the same host


def here() -> str:
    """Return the node that this worker is on, as records name it: host/id."""
    import ray

    return f"{socket.gethostname()}/{ray.get_runtime_context().get_node_id()[:ID_DIGITS]}"


def announced(spec: UnitSpec) -> Iterator[tuple[str, int] | Reply]:
    """Yield the node as the unit begins, so that the driver knows what goes with a node; then the reply.

    With the node comes how many processes its kernel has killed for want of memory.
    """
    yield here(), kernel_kills()
    yield run_on_node(spec)


def run_on_node(spec: UnitSpec) -> Reply:
    """Run a unit, unless this node has other versions or other code than the driver, whose key the result bears."""
    spec["node"] = here()
    try:
        if different := difference(spec):
            return _refusal(spec, different)
        from pipeline.engine.executor import find_work
        from pipeline.executors.ray_metrics import count
        from pipeline.executors.worker import run_unit

        find_work(spec["work"])
    except ImportError as error:
        return _refusal(spec, f"{error}")
    reply = run_unit(spec)
    count(spec["stage"], reply)
    return reply


def difference(spec: UnitSpec) -> str:
    """Return in words what this node has in another version than the driver, or an empty text."""
    found = {library: installed_version(library) for library in spec["versions"]}
    wanted = sorted(spec["versions"].items())
    words = [f"{name} is {found[name]}, the driver's {version}" for name, version in wanted if found[name] != version]
    if not words:
        from pipeline.engine.fingerprint import fingerprint

        module = spec["work"].partition(":")[0]
        if fingerprint(module) != spec["code"]:
            words = [f"the code of {module} is not the driver's, which was started before an edit or lies elsewhere"]
    return "; ".join(words)


@functools.cache
def installed_version(library: str) -> str:
    """Return the version of a library on this node, or of Python its minor version."""
    if library == "python":
        return ".".join(platform.python_version_tuple()[:2])
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "not installed"


def _refusal(spec: UnitSpec, what: str) -> Reply:
    """Return the fault that ends the run: nothing that this node makes could be taken for the driver's."""
    message = (
        f"node {spec['node']} (pid {os.getpid()}): {what}; install requirements.lock of this version there, "
        "or take the node out of the cluster, and run the same command again"
    )
    return {"error": {"kind": "fatal", "message": message, "trace": traceback.format_exc()}}
