"""A training job through Ray Train: what each rank gets, an end where the cluster has no room, ranks and nodes lost.

Ray Train starts all ranks again where one is lost, or its node; the trainer's own checkpoints decide where they go on
(train.resume=auto), as Ray forgets one that was reported just before a kill.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from pipeline.engine.fingerprint import ROOT
from stages.errors import DataError, TransientError
from stages.paths import is_remote
from train.bucket import Bucket

START_SECONDS = 15  # in which the ranks must have their places; the unit is tried again later
ROOM_SECONDS = 60  # that a run which has begun waits, in each try, for nodes that take the place of lost ones
PEER_SECONDS = 900  # that a rank waits for one that says nothing: it may wait for its first shards
LOST_GROUPS = 3  # times that all ranks are started again in one try of the unit
ASK_EVERY = 1.0  # seconds between two questions whether to stop


class Node(NamedTuple):
    """What a node of the cluster has for ranks."""

    name: str
    cpus: int
    gpus: int


def nodes_of_cluster() -> list[Node]:
    """Return the nodes that are alive."""
    import ray

    return [
        Node(node["NodeManagerHostname"], int(has.get("CPU", 0)), int(has.get("GPU", 0)))
        for node in ray.nodes()
        if node["Alive"] and (has := node["Resources"])
    ]


def resources_of_rank(nodes: Sequence[Node], ranks: int) -> dict[str, float]:
    """Return what each rank asks for, so that all of them have a place: a GPU where there are any, and its CPUs.

    Without GPUs each has as many CPUs as leave room for all, none of them split over nodes. Raises DataError, with what
    each node has, where there is no room.
    """
    gpus = sum(node.gpus for node in nodes)
    if gpus >= ranks:
        share = min(node.cpus // node.gpus for node in nodes if node.gpus)
        return {"GPU": 1, "CPU": share} if share else {"GPU": 1}
    most = 0 if gpus else sum(node.cpus for node in nodes)
    if most < ranks:
        has = "; ".join(f"{node.name}: {node.cpus} CPUs, {node.gpus} GPUs" for node in nodes)
        room = f"{gpus} GPUs" if gpus else f"{most} CPUs"
        raise DataError(
            f"ranks: {ranks} ranks need a {'GPU' if gpus else 'CPU'} each, and the cluster has {room} ({has}); "
            f"add nodes, or say --set ranks={max(1, gpus or most)}"
        )
    sizes = range(max(node.cpus for node in nodes), 0, -1)
    return {"CPU": next(size for size in sizes if sum(node.cpus // size for node in nodes) >= ranks)}


def wait_for_room(ranks: int, out: str, stop: Path) -> tuple[list[Node], dict[str, float]]:
    """Return the nodes, and what each rank asks for, once there is room for all ranks.

    A run that has begun in `out` had room once, and waits for ROOM_SECONDS, or until the file `stop` is there; then
    TransientError is raised. Another run has DataError at once.
    """
    end = time.monotonic() + ROOM_SECONDS
    while True:
        nodes = nodes_of_cluster()
        try:
            return nodes, resources_of_rank(nodes, ranks)
        except DataError as error:
            if not has_begun(out):
                raise
            if stop.exists() or time.monotonic() > end:
                raise TransientError(f"nodes are gone, and no others have come: {error}") from None
        time.sleep(ASK_EVERY)


def has_begun(out: str) -> bool:
    """Whether a run has been in this folder, which may be in a bucket."""
    file = f"{out}/run.json"
    if not is_remote(out):
        return Path(file).exists()
    with contextlib.suppress(FileNotFoundError):
        Bucket(file).head(file)
        return True
    return False


def train_with_ray(manifest: str, overrides: list[str], ranks: int, stop: Path) -> bool:
    """Train with `ranks` ranks through Ray Train; a lost rank or node resumes from the last checkpoint.

    False when it was stopped by the file `stop`: in a worker of Ray the loop is not in the main thread, so signals do
    not reach it, and SIGTERM to a worker ends that worker. Raises DataError, and TransientError where the cluster has
    no room for now.
    """
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(START_SECONDS)
    import ray
    from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
    from ray.train.torch import TorchConfig, TorchTrainer

    prefix = "train.out="
    out = next(text.removeprefix(prefix) for text in overrides if text.startswith(prefix))
    nodes, resources = wait_for_room(ranks, out, stop)
    failures: dict[str, Any] = {
        "max_failures": LOST_GROUPS,
        "controller_failure_limit": 0,
    }  # the second is unknown to mypy
    with messenger(stop) as between:
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config={"root": str(ROOT), "manifest": manifest, "overrides": overrides, "between": between},
            torch_config=TorchConfig(timeout_s=PEER_SECONDS),
            scaling_config=ScalingConfig(num_workers=ranks, use_gpu="GPU" in resources, resources_per_worker=resources),
            run_config=RunConfig(
                name="ray",
                storage_path=storage_of(out),
                failure_config=FailureConfig(**failures),
            ),
        )
        try:
            trainer.fit()
        except ControllerError as error:
            has = "; ".join(f"{node.name}: {node.cpus} CPUs, {node.gpus} GPUs" for node in nodes)
            raise TransientError(
                f"Ray Train found no place for {ranks} ranks of {resources} within {START_SECONDS} s ({has}): nodes "
                f"are busy or gone ({last_line(error)})"
            ) from error
        except WorkerGroupError as error:
            if lost := lost_ranks(error.worker_failures):
                raise TransientError(f"ranks were lost {LOST_GROUPS + 1} times, the last time {lost}") from error
            raise DataError(f"training under Ray Train failed: {last_line(error)}") from error
        except ray.exceptions.RayActorError as error:  # of what steers the ranks, on whatever node that was
            raise TransientError(f"Ray Train lost the process that steers the ranks: {last_line(error)}") from error
        except Exception as error:  # Ray Train wraps whatever the loop raised
            raise DataError(f"training under Ray Train failed: {last_line(error)}") from error
        return bool(ray.get(between.get_status.remote()) == "done")


def lost_ranks(failures: dict[int, Exception]) -> str:
    """Name the ranks that do not answer any more; the others have raised an error, be it for a lost peer."""
    silent = [rank for rank, error in sorted(failures.items()) if type(error).__name__.startswith("WorkerHealthCheck")]
    return ", ".join(f"rank {rank}" for rank in silent)


def last_line(error: Exception) -> str:
    """Return the last line of an error, which of a trace says most."""
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else repr(error)


def storage_of(out: str) -> str:
    """Return where Ray Train keeps its own notes: beside the run, in a bucket as pyarrow names it."""
    folder = out.rpartition("/")[0]
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if not is_remote(out) or not endpoint:
        return folder
    return f"{folder}?endpoint_override={quote(endpoint, safe='')}&scheme={endpoint.partition(':')[0]}"


@contextlib.contextmanager
def messenger(stop: Path) -> Iterator[Any]:
    """Give a Messenger as an actor, which hears of the file `stop` of this machine once that is there.

    It is on this node, so that no other node's end is its own.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    make: Any = ray.remote(num_cpus=0)(Messenger)
    between: Any = make.options(scheduling_strategy=here).remote()
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(ASK_EVERY / 2):
            if stop.exists():
                between.ask_to_stop.remote()
                return

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield between
    finally:
        ended.set()
        ray.kill(between)


class Messenger:
    """What the unit and the ranks, on whatever nodes, tell each other: whether to stop, and how it ended."""

    def __init__(self) -> None:
        self.stops, self.status = False, ""

    def ask_to_stop(self) -> None:
        """Ask the run to stop."""
        self.stops = True

    def must_stop(self) -> bool:
        """Return whether the run was asked to stop."""
        return self.stops

    def set_status(self, status: str) -> None:
        """Say how the run ended: done or stopped."""
        self.status = status

    def get_status(self) -> str:
        """Return how the run ended; empty before that."""
        return self.status


def asker(between: Any) -> Callable[[], bool]:
    """Return a function that says whether to stop, and asks the actor once in ASK_EVERY at most."""
    asked, answer = 0.0, False

    def ask() -> bool:
        nonlocal asked, answer
        import ray

        if not answer and time.monotonic() > asked + ASK_EVERY:
            asked, answer = time.monotonic(), ray.get(between.must_stop.remote())
        return answer

    return ask


def _ray_worker(config: dict[str, Any]) -> None:
    """Train as one rank under Ray Train, which has made the process group already."""
    import ray.train

    sys.path.insert(0, config["root"])
    from train.main import run

    between = config["between"]

    def on_save(metrics: dict[str, Any], path: str | None) -> None:
        # A barrier for all ranks. The checkpoint stays where the trainer put it: no second copy.
        ray.train.report({**metrics, "checkpoint": str(path or "")})

    summary = run(config["manifest"], config["overrides"], on_save=on_save, stop=asker(between))
    ray.get(between.set_status.remote(summary["status"]))
