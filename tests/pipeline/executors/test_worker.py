"""One unit, run to its record: what is hashed, how often, and what slices of one file share."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from pipeline.engine.executor import UnitSpec, WorkerLost
from pipeline.engine.store import open_store
from pipeline.executors import local, worker
from pipeline.executors.local import LocalExecutor
from stages.task import Artifact, Task

ROOT = Path(__file__).resolve().parents[3]
DATA = b"some tokens"
SHA256 = hashlib.sha256(DATA).hexdigest()


def write(task: Task) -> None:
    """A file whose hash is known, one whose hash is not, and two slices of a third."""
    paths = [task.output(name) for name in ("known", "unknown", "table")]
    for path in paths:
        Path(path).write_bytes(DATA)
    task.add("known", paths[0], sha256=SHA256, rows=1)
    task.add("unknown", paths[1], tokens=2, colour="red")
    for i in range(2):
        task.outputs.append(Artifact(paths[2], f"{i}" * 64, name=f"slice-{i}", rows_from=i, rows_to=i + 1))


FORK_ONE = """
import pathlib, stages.registry
from pipeline.executors.forkserver import ForkServer
server = ForkServer()
pid, connection = server.start_worker()
print(*("llvmlite" in pathlib.Path(f"/proc/{who}/maps").read_text() for who in ("self", pid)))
connection.close()
server.close()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_is_forked_with_the_compiler_of_kernels_that_its_driver_lacks() -> None:
    done = subprocess.run([sys.executable, "-c", FORK_ONE], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_each_file_is_read_back_once_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def noted(path: str) -> str:
        read.append(Path(path).name.partition(".")[2])
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()

    monkeypatch.setattr(worker, "sha256_file", noted)
    monkeypatch.setattr(worker, "find_work", lambda _: write)
    spec: dict[str, Any] = {"out": str(tmp_path), "stage": "filter", "key": "ab" * 20, "label": "x", "work": "w"}
    spec |= {"inputs": [], "params": {}, "places": {}, "versions": {}, "executor": "local", "cpus": 1}
    reply = worker.run_unit(spec)
    assert "record" in reply, reply
    assert sorted(read) == ["table", "unknown"]
    record = open_store(str(tmp_path)).find("filter", spec["key"])
    assert record is not None
    assert [a.name for a in record.outputs] == ["known", "unknown", "slice-0", "slice-1"]
    assert {a.sha256 for a in record.outputs} == {SHA256}
    assert [a.digest for a in record.outputs] == [SHA256, SHA256, "0" * 64, "1" * 64]
    assert [(a.rows, a.tokens, a.bytes) for a in record.outputs] == [(1, 0, 11), (0, 2, 11), (0, 0, 11), (0, 0, 11)]
    assert record.outputs[1].meta["colour"] == "red"
    assert record.outputs[2].path == record.outputs[3].path != record.outputs[0].path


def test_what_a_worker_writes_to_standard_error_goes_through_the_display(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # so that workers are forks, and have the next line
    monkeypatch.setattr(worker, "find_work", lambda _: lambda _: os.write(2, b"step 1\nstep \xff2\n"))
    executor = LocalExecutor(1, show=shown.append)
    spec: dict[str, Any] = {"out": str(tmp_path), "stage": "filter", "key": "ab" * 20, "label": "x", "work": "w"}
    spec |= {"inputs": [], "params": {}, "places": {}, "versions": {}, "executor": "local", "cpus": 1}
    reply = asyncio.run(executor.submit(cast(UnitSpec, spec)))
    executor.close()
    assert "record" in reply and shown == ["step 1", "step \ufffd2"]


@pytest.mark.parametrize(
    ("kills", "said", "slots"),
    [
        ([0, 0], r"killed \(signal 9\).*memory runs out: 3 units .* share \d+ GB; fewer", 3),
        ([7, 8], r"was killed by the system as memory ran out: 3 units .* shared \d+ GB; from now on 1 at a time", 1),
    ],
    ids=["by somebody", "by the kernel"],
)
def test_a_worker_that_was_killed_says_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: list[int], said: str, slots: int
) -> None:
    """kills: what the kernel counts of its own, before and after. test_memory.py has real ones, soaks."""
    counts = iter(kills)
    monkeypatch.setattr(local, "kernel_kills", lambda: next(counts))
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    monkeypatch.setattr(worker, "find_work", lambda _: lambda _: os.kill(os.getpid(), signal.SIGKILL))
    executor = LocalExecutor(3, show=print)
    spec: dict[str, Any] = {"out": str(tmp_path), "stage": "filter", "key": "ab" * 20, "label": "x", "work": "w"}
    spec |= {"inputs": [], "params": {}, "places": {}, "versions": {}, "executor": "local", "cpus": 1}
    with pytest.raises(WorkerLost, match=said):
        asyncio.run(executor.submit(cast(UnitSpec, spec)))
    assert executor.slots == slots
    executor.close()
