"""The work of units of `benchmarks.ray_share`, which copies this module into a project of its own."""

from __future__ import annotations

import os
import time
from pathlib import Path

from stages.task import Task


def nap(task: Task) -> None:
    """Wait for `seconds`, and leave one small output. Counts `pid`, its process, which tells CPUs apart."""
    time.sleep(task.params["seconds"])
    task.count("pid", os.getpid())
    path = task.output("line.txt")
    Path(path).write_text(f"{task.params['number']}\n")
    task.add("line", path)
