"""`status`: the units of the last build of a recipe, by stage, and what has gone wrong."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.commands.report import TextConsole, grid
from pipeline.engine.locks import active_runs, named
from pipeline.engine.state import LastBuild, read_last_build
from pipeline.engine.store import Store
from stages.registry import STAGES


def print_status(store: Store, recipe: str, options: str = "") -> None:
    """Print the units of the last build of `recipe` by stage, and what has gone wrong.

    `options` are the `--recipe` and `--out` that were given, for the commands it suggests.
    """
    console = TextConsole()
    states = dict(build_states(store, recipe))
    for run in active_runs(store):
        console.print(f"running: {run['command']} ({named(run)})", markup=False)
    if not states:
        start = f"start with `python -m pipeline run STAGE{options}`"
        console.print(f"{recipe}: nothing is built in {store.out}; {start}", markup=False)
        return
    rows = []
    quarantined = 0
    for stage, state in states.items():
        done = size = 0
        seconds = 0.0
        store.list_outputs(stage)
        for key in state.units.unit_keys():
            record = store.find(stage, key)
            if record is not None:
                done += 1
                seconds += record.seconds
                quarantined += record.counts.get("quarantined", 0)
                bytes_by_path = {output.path: output.bytes for output in record.outputs}  # slices share a file
                size += sum(bytes_by_path.values())
        rows.append((stage, done, len(state.units) - done, len(state.failed), f"{seconds:.1f}", f"{size / 1e6:.1f}"))
    console.print(grid(f"{recipe}", ("stage", "done", "missing", "failed", "seconds", "MB"), rows))
    console.print(f"quarantined rows: {quarantined:,}", markup=False)
    if quarantined:
        console.print(f"`python -m pipeline quarantined{options}` shows them", markup=False)
    for stage, state in states.items():
        for label, message in state.failed.items():
            console.print(f"failed: {stage} {label}: {message}", markup=False)


def build_states(store: Store, recipe: str) -> Iterator[tuple[str, LastBuild]]:
    """Yield (stage, what the last build of `recipe` noted of it), in the order of the pipeline. Raises UserError."""
    for stage in STAGES:
        state = read_last_build(store, recipe, stage)
        if state:
            yield stage, state
