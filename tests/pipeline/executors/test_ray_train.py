"""Training through Ray Train on a cluster of several nodes: room, and ranks and nodes that are lost."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_harness import Work, copy_project, descendants, edit, kill, new_work, wait_for
from ray_cluster import RayCluster
from test_cluster import finish
from trainer_harness import losses

from pipeline.executors import ray_train
from pipeline.executors.ray_train import Node, resources_of_rank, train_with_ray, wait_for_room
from stages.errors import DataError, TransientError

STEPS = 48
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


def test_a_run_that_has_begun_waits_for_nodes_and_another_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, whole = [Node("a", 2, 0)], [Node("a", 2, 0), Node("b", 2, 0)]
    answers = iter([small, small, small, whole])
    monkeypatch.setattr(ray_train, "nodes_of_cluster", lambda: next(answers, small))
    monkeypatch.setattr(ray_train, "ASK_EVERY", 0.01)
    out, stop = tmp_path / "run", tmp_path / "stop"
    with pytest.raises(DataError, match="4 ranks need a CPU each"):
        wait_for_room(4, str(out), stop)
    out.mkdir()
    (out / "run.json").touch()
    assert wait_for_room(4, str(out), stop) == (whole, {"CPU": 1})
    monkeypatch.setattr(ray_train, "ROOM_SECONDS", 0.05)
    with pytest.raises(TransientError, match=r"nodes are gone, and no others have come: .*has 2 CPUs"):
        wait_for_room(4, str(out), stop)
    monkeypatch.setattr(ray_train, "ROOM_SECONDS", 600)
    stop.touch()
    with pytest.raises(TransientError):
        wait_for_room(4, str(out), stop)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A head without CPUs, and two nodes of two."""
    made = RayCluster((0, 2, 2), {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "PACE": "0.25"})
    yield made
    made.close()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A mixture, and a run on it on this machine, by a project whose steps take a while on the cluster."""
    folder = tmp_path_factory.mktemp("undisturbed")
    root = copy_project(folder)
    pace = '__import__("time").sleep(float(__import__("os").environ.get("PACE", 0)))'
    edit(root / "train/step.py", "    cfg, optimizer = run.cfg", f"    {pace}\n    cfg, optimizer = run.cfg")
    work = new_work(folder, root)
    phase = {
        "mixture": "pretrain",
        "steps": STEPS,
        "batch_size": 8,
        "seq_len": 32,
        "checkpoint_every": 4,
        "log_every": 1,
    }
    work.write(train={"pretrain": phase})
    work.run("pack_pretrain")
    shutil.copytree(work.out, folder / "packed", symlinks=True)
    work.run("train")
    return work


def packed(undisturbed: Work, folder: Path) -> Work:
    """The same recipe and mixture, not trained on, in another folder."""
    work = Work(folder, undisturbed.root, undisturbed.corpus)
    shutil.copy(undisturbed.recipe, work.recipe)
    subprocess.run(["cp", "-a", undisturbed.folder / "packed", work.out], check=True)
    return work


def saved(work: Work) -> int:
    """The last step of which there is a checkpoint."""
    return max((int(path.name[5:]) for path in work.out.glob("store/train/??/*/run/checkpoints/step_*")), default=0)


@pytest.mark.soak
@pytest.mark.parametrize("ranks", [2, 4])
def test_a_rank_and_a_node_are_lost_and_the_losses_stay(
    cluster: RayCluster, undisturbed: Work, ranks: int, tmp_path: Path
) -> None:
    """A rank is killed, then a node goes and another comes, and then the run is stopped and given again."""
    work = packed(undisturbed, tmp_path)
    options = ("run", "train", "--address", cluster.address, "--set", f"ranks={ranks}")
    driver = work.start(*options, **cluster.driver_environment())

    def step(least: int) -> None:
        wait_for(lambda: saved(work) >= least or driver.poll() is not None, f"step {least}", WAIT)
        assert driver.poll() is None, (tmp_path / "stderr").read_text()

    step(8)
    rank = next(pid for pid, said in descendants(cluster.process.pid).items() if "RayTrainWorker" in said)
    kill(rank)
    step(saved(work) + 8)
    cluster.remove(cluster.nodes.pop())
    cluster.nodes.append(cluster.add(2))
    step(saved(work) + 8)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(WAIT) == 75, (tmp_path / "stderr").read_text()
    driver = work.start(*options, **cluster.driver_environment())
    said = finish(work, driver, WAIT)
    print(said)
    (run,) = work.out.glob("store/train/??/*/run")
    starts = json.loads((run / "run.json").read_text())["starts"]
    assert [start["world_size"] for start in starts] == [ranks] * len(starts) and len(starts) >= 4, starts
    assert all(before["step"] < after["step"] for before, after in itertools.pairwise(starts)), starts
    (whole,) = undisturbed.out.glob("store/train/??/*/run")
    one, other = losses(run), losses(whole)
    assert one.keys() == other.keys()
    differs = max(abs(one[step] - other[step]) for step in one)
    print(f"{ranks} ranks: starts at {[start['step'] for start in starts]}, losses differ by {differs:.1e} at most")
    assert differs < 1e-5


@pytest.mark.soak
def test_more_than_there_is_is_said_soon(cluster: RayCluster, undisturbed: Work, tmp_path: Path) -> None:
    """Within 30 seconds from the first unit on: what is before that is the start of Python and of Ray's client."""
    work = packed(undisturbed, tmp_path)
    options = ("run", "train", "--address", cluster.address, "--set", "ranks=5")
    driver = work.start(*options, **cluster.driver_environment())
    wait_for(lambda: "executor ray" in (tmp_path / "stderr").read_text() or driver.poll() is not None, "Ray", WAIT)
    began = time.monotonic()
    assert driver.wait(WAIT) == 1
    seconds = time.monotonic() - began
    said = (tmp_path / "stderr").read_text()
    assert re.search(r"error: .*5 ranks need a CPU each, and the cluster has 4 CPUs .*--set ranks=4", said), said
    print(f"said after {seconds:.1f} s")
    assert seconds < 30


@pytest.mark.soak
def test_busy_nodes_are_waited_for_and_then_said(
    cluster: RayCluster, undisturbed: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in cluster.driver_environment().items():
        monkeypatch.setenv(name, value)
    import ray

    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:

        @ray.remote(num_cpus=2)
        class Busy:
            def here(self) -> None:
                return

        busy = Busy.remote()
        ray.get(busy.here.remote())
        monkeypatch.setattr(ray_train, "START_SECONDS", 5)
        with pytest.raises(TransientError, match=r"no place for 4 ranks of .* within 5 s .*: nodes are busy or gone"):
            train_with_ray(str(undisturbed.out / "small/pretrain"), [f"train.out={tmp_path}/run"], 4, tmp_path / "stop")
    finally:
        ray.shutdown()
