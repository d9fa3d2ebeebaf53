"""Ends what a killed driver left of its own Ray, whose agents would stay for minutes.

A process of its own that holds one end of a pipe and notes what descends from the driver. When the driver is
gone, however it ended, the pipe closes, and all of that is killed, and what carries the mark of that driver's
Ray in its environment (some overwrite theirs with a title, some were only being started). Linux only.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

MARK = "SHARDMILL_RAY"
ROUNDS = 20  # looks, a quarter of a second apart, for processes that were just being started


def start(environment: dict[str, str]) -> subprocess.Popen[bytes] | None:
    """Mark the processes that this one starts from now on, and watch over them. Close stdin to end them."""
    if not Path("/proc/self/environ").exists():
        return None
    mark = uuid.uuid4().hex
    watcher = subprocess.Popen(
        [sys.executable, "-m", "pipeline.executors.ray_cleanup", mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # Ctrl-C in a terminal is not for it
    )
    os.environ[MARK] = mark
    return watcher


def marked(mark: str) -> list[int]:
    """Return the processes whose environment carries the mark."""
    wanted = f"{MARK}={mark}".encode()
    pids = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                pids.append(int(entry.name))
    return pids


def parents() -> dict[int, tuple[int, str]]:
    """Return pid -> (parent, start time) of every process."""
    processes = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                processes[int(entry.name)] = int(fields[1]), fields[19]
    return processes


def watch(driver: int) -> dict[int, str]:
    """Note what descends from `driver` until the pipe closes; then return pid -> start time of all that was seen."""
    seen: dict[int, str] = {}
    while True:
        now = parents()
        family = {driver, *(pid for pid, began in seen.items() if now.get(pid, (0, ""))[1] == began)}
        size = 0
        while len(family) > size:
            size = len(family)
            family |= {pid for pid, (parent, _) in now.items() if parent in family}
        seen |= {pid: now[pid][1] for pid in family - {driver, os.getpid()} if pid in now}
        if select.select([sys.stdin], [], [], 0.5)[0]:
            return seen


def reap(mark: str, seen: dict[int, str]) -> None:
    """Kill what was seen, and all that carries the mark, until a second has passed without any."""
    quiet = 0
    for _ in range(ROUNDS):
        now = parents()
        left = {pid for pid, began in seen.items() if now.get(pid, (0, ""))[1] == began} | set(marked(mark))
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        quiet = 0 if left else quiet + 1
        if quiet == 4:
            return
        time.sleep(0.25)


if __name__ == "__main__":
    reap(sys.argv[1], watch(os.getppid()))
