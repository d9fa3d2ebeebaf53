"""Memory that runs out: the kernel kills workers, or Ray does. It is said, fewer run at a time, and all is built."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from engine_harness import LIMIT, Work, copy_project, edit, new_work
from memory_limit import inside, memory_limit
from ray_cluster import RayCluster

from pipeline.executors import memory
from pipeline.executors.memory import Memory, kernel_kills


def hungry_project(folder: Path, megabytes: int) -> Path:
    """A project whose tokenizer takes so much memory for a second and a half."""
    root = copy_project(folder)
    hog = f'held = b"x" * ({megabytes} << 20); __import__("time").sleep(1.5); del held'
    edit(
        root / "stages/tokenize/work.py",
        "    encoded = encode_slice(task)",
        f"    {hog}\n    encoded = encode_slice(task)",
    )
    return root


def check_built(work: Work, reference: Work) -> None:
    """What the tokenizer made is what it makes elsewhere, and records say why some units were tried again."""
    digests = {k: v for k, v in work.results().items() if k.startswith("tokenize")}
    theirs = reference.results()
    assert len(digests) > 3 and digests == {k: theirs[k] for k in digests}
    assert any("memory ran out" in why for record in work.records().values() for why in record["tries"])


@pytest.mark.soak
def test_of_workers_that_the_kernel_kills_fewer_go_on(reference: Work, tmp_path: Path) -> None:
    """Four at a time need 2 GB; there are 1.4."""
    work = new_work(tmp_path, hungry_project(tmp_path, 500))
    with memory_limit(1400) as group:
        command = inside(group, work.command("run", "tokenize", "--executor", "local", "--workers", "4"))
        done = subprocess.run(
            command, cwd=tmp_path, env=work.environment(), capture_output=True, text=True, timeout=LIMIT
        )
    assert done.returncode == 0, done.stderr
    said = re.findall(
        r"was killed by the system as memory ran out: (\d) units at a time .*; from now on (\d)", done.stderr
    )
    assert said and said[0] == ("4", "2"), done.stderr
    check_built(work, reference)


@pytest.mark.soak
@pytest.mark.parametrize("who", ["the system", "Ray"])
def test_on_a_cluster_what_ran_out_asks_for_more(reference: Work, tmp_path: Path, who: str) -> None:
    """A node of four CPUs has room for two or three such units. Its kernel kills, or Ray's monitor before it does."""
    work = new_work(tmp_path, hungry_project(tmp_path, 900))
    monitor = {"RAY_memory_monitor_refresh_ms": "0" if who == "the system" else "200"}
    cluster = RayCluster((0,))
    try:
        with memory_limit(3400) as group:
            here = {"RAY_memory_usage_threshold": "0.88", **monitor}
            mark = cluster.add_altered(4, {group.parent: group}, group, **here)
            options = ("--executor", "ray", "--address", cluster.address)
            done = work.cli("run", "tokenize", *options, **cluster.driver_environment())
            cluster.remove_altered(mark)
    finally:
        cluster.close()
    assert done.returncode == 0, done.stderr
    said = re.findall(
        rf"on node \S+: memory ran out there, and {who} ended it; it had asked for (\S+) GB.*; from now on (\S+) GB",
        done.stderr.replace("no share of it", "0 GB"),
    )
    assert said, done.stderr
    print(said, done.stderr)
    check_built(work, reference)


def test_a_unit_that_ran_out_asks_for_more_than_it_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unknown, most, step = Memory(), 8 << 30, 1.25
    assert unknown.ask(most) == 0
    unknown.ran_out(0, share=1e9)
    asked = unknown.ask(most)
    assert 2e9 <= asked <= step * 2e9, "twice the share that its CPU has of a node"
    for _ in range(4):
        before = asked
        unknown.ran_out(before, share=1e9)
        asked = unknown.ask(most)
        assert 2 * before <= asked <= step * 2 * before or asked == most
    assert asked == most, "what the largest node has, at most"
    known = Memory(needed=1e9)
    assert 1.2e9 <= known.ask(most) <= step * 1.2e9
    known.ran_out(0, share=1e8)
    assert 2e9 <= known.ask(most) <= step * 2e9
    close = {Memory(needed=megabytes * 2**20).ask(most) for megabytes in range(150, 157)}
    assert len(close) == 1, "units that need about the same ask for the same"
    (tmp_path / "vmstat").write_text("nr_free_pages 1\noom_kill 17\n")
    monkeypatch.setattr(memory, "VMSTAT", tmp_path / "vmstat")
    assert kernel_kills() == 17
    monkeypatch.setattr(memory, "VMSTAT", tmp_path / "nothing")
    assert kernel_kills() == 0
