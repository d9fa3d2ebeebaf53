"""The contract between the engine and whatever runs units: what is sent, what comes back.

A unit travels to its worker as JSON, so its work is named, not passed: "stages.filter.work:work".
"""

from __future__ import annotations

import importlib
from typing import Any, Literal, NotRequired, Protocol, TypedDict

from stages.task import Work


class UnitSpec(TypedDict):
    """One unit of work as it is sent to a worker. The first six keys make its key."""

    stage: str
    work: str  # see `work_name`
    code: str  # fingerprint of the module of `work`
    versions: dict[str, str]  # of the libraries that the stage declares
    params: dict[str, Any]
    inputs: list[dict[str, Any]]  # `Artifact.to_dict`, with absolute paths; the key has their digests
    key: str
    label: str
    out: str  # the folder or URI of the store
    places: dict[str, str]
    cpus: int
    executor: NotRequired[str]  # name of the executor that runs it
    node: NotRequired[str]  # where it runs: a host, and of a cluster the node's id
    tries: NotRequired[list[str]]  # why earlier attempts of this run came to nothing


class Fault(TypedDict):
    """How a unit failed."""

    # permanent: the input or the code is at fault. fatal: stop the run. unfinished: it was asked to stop, and saved.
    kind: Literal["transient", "permanent", "fatal", "unfinished"]
    message: str
    trace: str


class Reply(TypedDict, total=False):
    """What comes back of a unit: one of the two."""

    record: dict[str, Any]  # `Record.to_dict`
    error: Fault


class WorkerLost(Exception):  # noqa: N818 - reads as what happened
    """The worker died in the middle of a unit: killed, or out of memory."""


class NodeLost(WorkerLost):
    """The node that ran a unit is gone, which says nothing against the unit."""


class Executor(Protocol):
    """Runs units somewhere. It starts nothing until the first unit is submitted."""

    name: str

    @property
    def slots(self) -> int:
        """Units that may be in flight; it may change while they are."""

    async def submit(self, spec: UnitSpec) -> Reply:
        """Run one unit. Raises WorkerLost when the process that ran it died."""

    def close(self) -> None:
        """Stop all workers; units in flight are lost."""


def work_name(work: Work) -> str:
    """Return `module:function` of a module-level function."""
    return f"{work.__module__}:{work.__qualname__}"


def find_work(name: str) -> Work:
    """Return the function that `work_name` named."""
    module, function = name.split(":")
    work: Work = getattr(importlib.import_module(module), function)
    return work
