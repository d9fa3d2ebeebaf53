"""The unit that trains one phase, through the launcher that its executor gives it."""

from __future__ import annotations

import json
from pathlib import Path

from stages.errors import DataError, Unfinished
from stages.task import Task


def work(task: Task) -> None:
    """Train one phase to its end. params: phase; places: manifest, init_from, ranks, stop.

    Raises Unfinished when it was stopped, by the file `stop` or by a signal, and has saved.
    """
    if task.launch is None:
        raise DataError("training needs a launcher; run it through `python -m pipeline run train`")
    run = task.folder / "run"
    overrides = [f"train.out={run}", "train.resume=auto", f"train.init_from={task.places['init_from']}"]
    ended = task.launch(task.places["manifest"], overrides, int(task.places["ranks"]), Path(task.places["stop"]))
    latest = run / "checkpoints" / "latest"
    saved = latest.read_text().strip() if latest.exists() else "nothing yet"
    if not ended:
        raise Unfinished(f"stopped by a signal, saved: {saved}")
    summary = json.loads((run / "summary.json").read_text())
    for name in ("summary.json", "metrics.jsonl", "run.json"):
        task.add(name, str(run / name))
    task.add("model", str(run / "checkpoints" / saved / "model.safetensors"))
    task.count("steps", summary["steps"])
