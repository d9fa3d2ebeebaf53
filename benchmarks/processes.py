"""Looking at processes from outside: their memory, the bytes they move, and what a run of the pipeline left.

Linux, through /proc.
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks import measure
from pipeline.engine.store import RECORD, open_store
from stages.stage import Record
from train.sealed import parse_sealed


def tree(root: int) -> Iterator[int]:
    """`root` and all its descendants."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            continue
        parents.setdefault(parent, []).append(int(entry.name))
    todo = [root]
    while todo:
        yield (pid := todo.pop())
        todo += parents.get(pid, [])


def resident(pid: int) -> float:
    """Resident MB of a process; pages of files that it maps count in."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, ValueError, IndexError):
        return 0.0


def processor(pids: list[int]) -> float:
    """Seconds of processor that processes have used. On a busy machine they say more than the clock."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Watched:
    """What was seen of a command and all its descendants, sampled every 30 ms."""

    out: str
    seconds: float  # by the clock
    waited: float  # seconds of processor of all processes that were waited for
    sampled: float  # those of all processes, as last seen
    peak_mb: float  # resident, of all at once
    largest_mb: float  # resident, of the largest at any time


def observed(command: list[str]) -> Watched:
    """Run a command in the root of the repository. Raises SystemExit if it fails."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    paths = [str(measure.ROOT), os.environ.get("PYTHONPATH", "")]  # where peers may lie
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # a user's second run does not compile our modules anew
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=measure.ROOT
    )
    peak = largest = 0.0
    used: dict[int, float] = {}
    done = threading.Event()

    def sample() -> None:
        nonlocal peak, largest
        while not done.wait(0.03):
            sizes = {pid: resident(pid) for pid in tree(process.pid)}
            peak, largest = max(peak, sum(sizes.values())), max(largest, *sizes.values())
            for pid in sizes:
                with contextlib.suppress(OSError, IndexError, ValueError):
                    used[pid] = processor([pid])

    watcher = threading.Thread(target=sample)
    watcher.start()
    out, err = process.communicate()
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"error: {' '.join(command)} ended with {process.returncode}:\n{out}{err}")
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    waited = now.ru_utime + now.ru_stime - spent.ru_utime - spent.ru_stime
    return Watched(out, seconds, waited, sum(used.values()), peak, largest)


def run_pipeline(stage: str, recipe: dict[str, Any], out: Path, *options: str) -> Watched:
    """Run `python -m pipeline run` of a recipe, which is written beside `out`, with the local executor."""
    file = out.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "pipeline", "run", stage, "--recipe", str(file), "--out", str(out)]
    return observed([*command, "--executor", "local", *options])


def records(out: Path, since: float = 0.0) -> list[Record]:
    """Return the records of all units in a store that started after `since`, in the order in which they did."""
    files = (Path(unit.folder.path) / RECORD for unit in open_store(str(out)).units())
    found = (Record.from_dict(parse_sealed(f.read_bytes())) for f in files if f.is_file())
    return sorted((record for record in found if record.started >= since), key=lambda record: record.started)


def counters(pids: list[int]) -> Counter[str]:
    """/proc/PID/io summed: rchar and wchar through calls, read_bytes and write_bytes to and from the disk."""
    total: Counter[str] = Counter()
    for pid in pids:
        for line in Path(f"/proc/{pid}/io").read_text().splitlines():
            total[line.split(":")[0]] += int(line.split()[1])
    return total


def forget_cache(folder: Path, pattern: str = "*") -> None:
    """Drop a folder's files from the page cache, so that what is read afterwards comes from the disk.

    Nothing may have them mapped.
    """
    for path in folder.rglob(pattern):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)
