"""`status`: the units of the last build of a recipe, by stage, and what has gone wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pipeline.commands.report import TextConsole, grid
from pipeline.engine.changes import KeyHistory
from pipeline.engine.locks import active_runs
from pipeline.engine.store import UNITS, Store
from stages.registry import STAGES


def print_status(store: Store, recipe: str, options: str = "") -> None:
    """Print the units of the last build of `recipe` by stage, and what has gone wrong.

    `options` are the `--recipe` and `--out` that were given, for the commands it suggests.
    """
    console = TextConsole()
    states = dict(build_states(store, recipe))
    for run in active_runs(store):
        console.print(f"running: {run['command']} (process {run['pid']})", markup=False)
    if not states:
        start = f"start with `python -m pipeline run STAGE{options}`"
        console.print(f"{recipe}: nothing is built in {store.out}; {start}", markup=False)
        return
    rows = []
    quarantined = 0
    for stage, state in states.items():
        done = size = 0
        seconds = 0.0
        units = KeyHistory(state)
        for key in units.unit_keys():
            record = store.find(stage, key)
            if record is not None:
                done += 1
                seconds += record.seconds
                quarantined += record.counts.get("quarantined", 0)
                bytes_by_path = {output.path: output.bytes for output in record.outputs}  # slices share a file
                size += sum(bytes_by_path.values())
        rows.append((stage, done, len(units) - done, len(state["failed"]), f"{seconds:.1f}", f"{size / 1e6:.1f}"))
    console.print(grid(f"{recipe}", ("stage", "done", "missing", "failed", "seconds", "MB"), rows))
    console.print(f"quarantined rows: {quarantined:,}", markup=False)
    if quarantined:
        console.print(f"`python -m pipeline quarantined{options}` shows them", markup=False)
    for stage, state in states.items():
        for label, message in state["failed"].items():
            console.print(f"failed: {stage} {label}: {message}", markup=False)


def build_states(store: Store, recipe: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (stage, what the last build of `recipe` noted of its units), in the order of the pipeline."""
    for stage in STAGES:
        state = store.read_state(recipe, f"{UNITS}/{stage}.json")
        if state:
            yield stage, state
