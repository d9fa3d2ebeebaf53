"""Training through Ray Train on a cluster of several nodes: room, and ranks and nodes that are lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trainer_harness import MODEL, TRAIN, losses, make_mixture, sets

from pipeline.executors import ray_train
from pipeline.executors.ray_train import Node, resources_of_rank, train_with_ray
from stages.errors import DataError, TransientError
from train.main import run

STEPS = 40
WAIT = 900  # seconds for anything: on a busy machine Ray takes minutes to start ranks


@pytest.mark.parametrize(
    ("nodes", "ranks", "wanted"),
    [
        ([(8, 0)], 2, {"CPU": 4}),
        ([(4, 0), (4, 0)], 2, {"CPU": 4}),
        ([(4, 0), (1, 0)], 2, {"CPU": 2}),  # not 5 // 2 of each, which the smaller one has not
        ([(2, 0), (2, 0), (2, 0)], 4, {"CPU": 1}),
        ([(16, 8), (4, 0)], 8, {"GPU": 1, "CPU": 2}),
        ([(64, 8), (16, 8)], 16, {"GPU": 1, "CPU": 2}),
        ([(2, 4)], 4, {"GPU": 1}),
    ],
)
def test_a_rank_asks_for_what_leaves_room_for_all(
    nodes: list[tuple[int, int]], ranks: int, wanted: dict[str, float]
) -> None:
    got = resources_of_rank([Node(f"n{i}", *has) for i, has in enumerate(nodes)], ranks)
    assert got == wanted
    if "GPU" not in got:
        assert sum(cpus // got["CPU"] for cpus, _ in nodes) >= ranks


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([(2, 0), (1, 0)], r"4 ranks need a CPU each, and the cluster has 3 CPUs \(n0: 2 CPUs, 0 GPUs; n1: .*ranks=3"),
        ([(32, 2)], r"4 ranks need a GPU each, and the cluster has 2 GPUs .*--set ranks=2"),
    ],
)
def test_no_room_is_said_with_what_each_node_has(nodes: list[tuple[int, int]], said: str) -> None:
    with pytest.raises(DataError, match=said):
        resources_of_rank([Node(f"n{i}", *has) for i, has in enumerate(nodes)], 4)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs and two nodes of two, all in this process's care, on the loopback interface."""
    variables = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "RAY_worker_niceness": "0",
    }
    os.environ.update(variables)
    import ray
    from ray.cluster_utils import Cluster

    memory = {"object_store_memory": 80 << 20, "memory": 1 << 30}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
    made.two = [made.add_node(num_cpus=2, **memory) for _ in range(2)]
    made.add = lambda: made.add_node(num_cpus=2, **memory)
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A mixture, and a run on it in this process."""
    folder = tmp_path_factory.mktemp("undisturbed")
    pretrain = make_mixture(folder / "tiny" / "pretrain", MODEL, {"pretrain": TRAIN}, "pretrain")
    run(pretrain, settings(folder / "run"))
    return pretrain, folder / "run"


def settings(out: Path) -> list[str]:
    return sets(out=str(out), steps=STEPS, resume="auto", epochs=2)


def ranks_alive() -> list[int]:
    """The processes of Ray Train's ranks."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if b"RayTrainWorker" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def once(out: Path, step: int, act: Callable[[], None]) -> threading.Thread:
    """Call `act` once the run in `out` has a checkpoint of `step`."""

    def wait() -> None:
        end = time.monotonic() + WAIT
        while not (out / "checkpoints" / f"step_{step:06d}").exists():
            if time.monotonic() > end:
                return
            time.sleep(0.02)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def close(out: Path, whole: Path) -> None:
    one, other = losses(out), losses(whole)
    assert one.keys() == other.keys()
    assert max(abs(one[step] - other[step]) for step in one) < 1e-5


@pytest.mark.soak
def test_more_than_there_is_is_said_soon_and_busy_nodes_are_waited_for(
    cluster: Any, undisturbed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    with pytest.raises(DataError, match=r"5 ranks need a CPU each, and the cluster has 4 CPUs .*--set ranks=4"):
        train_with_ray(str(undisturbed[0]), settings(tmp_path / "run"), 5, tmp_path / "stop")
    assert time.monotonic() - began < 30
    import ray

    @ray.remote(num_cpus=2)
    class Busy:
        def here(self) -> None:
            return

    busy = Busy.remote()
    ray.get(busy.here.remote())
    monkeypatch.setattr(ray_train, "START_SECONDS", 5)
    began = time.monotonic()
    with pytest.raises(TransientError, match=r"no place for 4 ranks of .* within 5 s .*: nodes are busy or gone"):
        train_with_ray(str(undisturbed[0]), settings(tmp_path / "run"), 4, tmp_path / "stop")
    ray.kill(busy)


@pytest.mark.soak
def test_a_rank_and_a_node_are_lost_and_the_losses_stay(
    cluster: Any, undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    """Two ranks on a node each. A rank is killed, then a node goes, and another comes."""
    pretrain, whole = undisturbed
    out = tmp_path / "run"

    def kill_a_rank() -> None:
        os.kill(ranks_alive()[0], signal.SIGKILL)

    def lose_a_node() -> None:
        cluster.remove_node(cluster.two.pop(), allow_graceful=False)
        cluster.two.append(cluster.add())

    acts = [once(out, 8, kill_a_rank), once(out, 20, lose_a_node)]
    for _ in range(6):  # as the engine does
        try:
            assert train_with_ray(str(pretrain), settings(out), 2, tmp_path / "stop")
            break
        except TransientError:
            time.sleep(1)
    for act in acts:
        act.join()
    starts = json.loads((out / "run.json").read_text())["starts"]
    assert [start["world_size"] for start in starts] == [2] * len(starts) and len(starts) >= 3
    assert starts[1]["step"] >= 8 and starts[-1]["step"] >= 20, "from the last checkpoints"
    close(out, whole)


@pytest.mark.soak
def test_four_ranks_on_two_nodes_stop_when_asked_and_go_on(
    cluster: Any, undisturbed: tuple[Path, Path], tmp_path: Path
) -> None:
    pretrain, whole = undisturbed
    out, stop = tmp_path / "run", tmp_path / "stop"
    thread = once(out, 8, stop.touch)
    assert not train_with_ray(str(pretrain), settings(out), 4, stop)
    thread.join()
    assert not (out / "summary.json").exists()
    stop.unlink()
    assert train_with_ray(str(pretrain), settings(out), 4, stop)
    close(out, whole)
    shutil.rmtree(out)
