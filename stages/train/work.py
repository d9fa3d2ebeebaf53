"""The unit that trains one phase, through the launcher that its executor gives it."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

from stages.errors import DataError, Unfinished
from stages.paths import is_remote
from stages.task import Task
from train.bucket import Bucket, UnavailableError

RUN = "run"  # the run's folder in the unit's
LOOK_EVERY = 2.0  # seconds between two looks for the object in a bucket that asks the run to stop


def work(task: Task) -> None:
    """Train one phase to its end. params: phase; places: folder, manifest, init_from, ranks, stop.

    Raises Unfinished when it was stopped, by the file `stop` or by a signal, and has saved.
    """
    if task.launch is None:
        raise DataError("training needs a launcher; run it through `python -m pipeline run train`")
    run = f"{task.places['folder']}/{RUN}"
    overrides = [f"train.out={run}", "train.resume=auto", f"train.init_from={task.places['init_from']}"]
    with stop_file(task) as stop:
        ended = task.launch(task.places["manifest"], overrides, int(task.places["ranks"]), stop)
    bucket = Bucket(run) if is_remote(run) else None

    def here(name: str) -> Path:
        """Return the path of a file of the run: where it is, or a copy of it that is an output."""
        if bucket is None:
            return Path(run, name)
        copy = Path(task.output(name.rpartition("/")[2]))
        bucket.download(f"{run}/{name}", copy)
        return copy

    try:
        saved, *_ = here("checkpoints/latest").read_text().split()
    except FileNotFoundError:
        saved = "nothing yet"
    if not ended:
        raise Unfinished(f"stopped by a signal, saved: {saved}")
    summary = here("summary.json")
    for name in ("metrics.jsonl", "run.json"):
        task.add(name, str(here(name)))
    task.add("summary.json", str(summary))
    task.add("model", str(here(f"checkpoints/{saved}/model.safetensors")))
    task.count("steps", json.loads(summary.read_text())["steps"])


@contextlib.contextmanager
def stop_file(task: Task) -> Iterator[Path]:
    """Give the file of this machine whose appearance asks the run to stop: of an object in a bucket, its shadow."""
    asked = task.places["stop"]
    if not is_remote(asked):
        yield Path(asked)
        return
    shadow, ended = task.folder / "stop", threading.Event()

    def look() -> None:
        while not ended.wait(LOOK_EVERY):
            with contextlib.suppress(FileNotFoundError, UnavailableError):
                Bucket(asked).head(asked)
                shadow.touch()

    threading.Thread(target=look, daemon=True).start()
    try:
        yield shadow
    finally:
        ended.set()
