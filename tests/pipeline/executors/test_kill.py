"""kill -9 at any moment, of the driver or of a worker: nothing is lost, nothing runs twice, nothing stays behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from engine_harness import LIMIT, Work, copy_project, descendants, edit, gone, kill, marked, new_work, wait_for

pytestmark = pytest.mark.slow


def record_files(work: Work) -> list[Path]:
    return list(work.out.glob("store/*/??/*/record.json"))


def run_and_kill(work: Work, records: int, *options: str) -> bool:
    """Start a run, kill -9 its driver when `records` units are done. False if it ended before."""
    driver = work.start("run", "pack_pretrain", *options)
    wait_for(lambda: len(record_files(work)) >= records or driver.poll() is not None, "records")
    killed = driver.poll() is None
    kill(driver.pid)
    driver.wait()
    # The next run starts at once, while whatever the dead driver left may still be there.
    return killed


def check_nothing_ran_twice(work: Work, seen: dict[tuple[str, str], Any]) -> None:
    """No unit that had a record was started again: the record is the same, no later attempt wrote beside it."""
    for unit, record in seen.items():
        now = work.records()[unit]
        assert (now["attempt"], now["started"]) == (record["attempt"], record["started"]), record["label"]
        folder = work.out / "store" / unit[0] / unit[1][:2] / unit[1]
        for path in folder.iterdir():
            if path.name.split(".")[0] not in (record["attempt"], "record"):
                # An attempt that was under way when its twin committed may end; none may begin later.
                assert path.stat().st_mtime <= record["finished"] + 1, f"{path} was written after the record"


def kill_at(reference: Work, folder: Path, moments: list[int], *options: str) -> None:
    """Kill the driver after so many records, each time running again at once; the end must be the same."""
    work = new_work(folder, corpus=reference.corpus)
    seen: dict[tuple[str, str], Any] = {}
    killed = 0
    for records in moments:
        killed += run_and_kill(work, records, *options)
        seen |= work.records()
    done = work.cli("run", "pack_pretrain", *options)
    assert done.returncode == 0, done.stderr
    work.run("pack_anneal_mix")
    assert killed >= len(moments) - 1
    check_nothing_ran_twice(work, seen)
    assert work.results() == reference.results()


def test_kill_the_driver_of_a_pool(reference: Work, tmp_path: Path) -> None:
    kill_at(reference, tmp_path, [1, 8, 14, 20], "--executor", "local")


def test_kill_the_driver_of_ray(reference: Work, tmp_path: Path) -> None:
    kill_at(reference, tmp_path, [8], "--executor", "ray", "--workers", "2")


@pytest.mark.soak
@pytest.mark.parametrize("executor", ["local", "ray"])
def test_kill_the_driver_at_every_record(reference: Work, tmp_path: Path, executor: str) -> None:
    kill_at(reference, tmp_path, list(range(1, 22)), "--executor", executor, "--workers", "2")


def slow_project(folder: Path, seconds: float) -> Path:
    """A project whose tokeniser takes its time, so that a test can meet it at work."""
    root = copy_project(folder)
    sleep = f'__import__("time").sleep({seconds})'
    edit(
        root / "stages/tokenize/work.py",
        "    encoded = encode_slice(task)",
        f"    {sleep}\n    encoded = encode_slice(task)",
    )
    return root


def busy(work: Work) -> bool:
    """Whether the tokeniser is at work."""
    return bool(list(work.out.glob("store/tokenize/??/*")))


LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


def listening(pids: set[int]) -> list[str]:
    """The addresses, in hex as the kernel has them, that processes listen on."""
    inodes = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            links = [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir()]
            inodes |= {link[8:-1] for link in links if link.startswith("socket:[")}
    addresses = []
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                addresses.append(fields[1].partition(":")[0])
    return addresses


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_nothing_outlives_a_killed_driver(tmp_path: Path, executor: str) -> None:
    work = new_work(tmp_path, slow_project(tmp_path, 20))
    mark = uuid.uuid4().hex
    driver = work.start("run", "tokenize", "--executor", executor, SHARDMILL_TEST=mark)
    wait_for(lambda: busy(work), "the tokeniser")
    time.sleep(0.3)
    assert len(marked(mark)) >= (2 if executor == "local" else 4)
    if executor == "ray":  # one of our own is heard on this machine alone
        found = listening(set(marked(mark)))
        assert len(found) >= 4 and set(found) <= set(LOOPBACK), found
    kill(driver.pid)
    driver.wait()
    assert gone(mark, 15) == {}
    before = work.snapshot()
    time.sleep(1)
    assert work.snapshot() == before


def workers(driver: int, executor: str) -> list[int]:
    """Workers of a run; those of the pool are children of the driver's one child, the fork server."""
    below = descendants(driver)
    if executor == "ray":
        return [p for p, command in below.items() if "ray::tokenize" in command]
    return [p for child in below for p in descendants(child)]


@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.soak)])
def test_a_killed_worker_is_replaced(reference: Work, tmp_path: Path, executor: str) -> None:
    work = new_work(tmp_path, slow_project(tmp_path, 1.5))
    mark = uuid.uuid4().hex
    driver = work.start("run", "tokenize", "--executor", executor, "--workers", "2", SHARDMILL_TEST=mark)
    wait_for(lambda: busy(work), "the tokeniser")
    time.sleep(0.3)
    kill(wait_for(lambda: workers(driver.pid, executor), "a worker at work", 10)[0])
    assert driver.wait(LIMIT) == 0, (tmp_path / "stderr").read_text()
    assert "trying again" in (tmp_path / "stderr").read_text()
    digests = {k: v for k, v in work.results().items() if k.startswith("tokenize")}
    theirs = reference.results()
    assert len(digests) > 3 and digests == {k: theirs[k] for k in digests}
    assert gone(mark, 15) == {}


def test_a_run_outlives_the_process_that_starts_its_workers(tmp_path: Path) -> None:
    work = new_work(tmp_path, slow_project(tmp_path, 1.5))
    driver = work.start("run", "tokenize", "--executor", "local", "--workers", "2")
    wait_for(lambda: busy(work), "the tokeniser")
    busy_ones = wait_for(lambda: workers(driver.pid, "local"), "a worker at work", 10)
    (forkserver,) = (p for p in descendants(driver.pid) if p not in busy_ones)
    kill(forkserver)
    kill(busy_ones[0])
    assert driver.wait(LIMIT) == 0, (tmp_path / "stderr").read_text()
    assert "trying again" in (tmp_path / "stderr").read_text()


@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.soak)])
def test_ctrl_c_says_so_and_leaves_nothing(tmp_path: Path, executor: str) -> None:
    work = new_work(tmp_path, slow_project(tmp_path, 20))
    mark = uuid.uuid4().hex
    driver = work.start("run", "tokenize", "--executor", executor, SHARDMILL_TEST=mark)
    wait_for(lambda: busy(work), "the tokeniser")
    time.sleep(0.3)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to the workers too
    assert driver.wait(20) == 130
    text = (tmp_path / "stderr").read_text()
    assert "interrupted; the same command continues" in text
    assert "Traceback" not in text
    assert gone(mark, 15) == {}


def test_no_rank_outlives_a_killed_driver(packed: Work) -> None:
    work = packed
    mark = uuid.uuid4().hex
    more = ("--set", "train.pretrain.steps=20000", "--set", "train.pretrain.epochs=1000", "--set", "ranks=2")
    driver = work.start("run", "train", "--executor", "local", *more, SHARDMILL_TEST=mark)
    wait_for(lambda: list(work.out.glob("store/train/??/*/run/metrics.jsonl")), "the first step")
    assert sum("train/main.py" in c for c in marked(mark).values()) == 2
    kill(driver.pid)
    driver.wait()
    assert gone(mark, 15) == {}
