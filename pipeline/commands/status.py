"""`status`: the units of the last build of a recipe, by stage, and what has gone wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

from pipeline.commands.report import TextConsole, grid
from pipeline.engine.journal import read_run_events
from pipeline.engine.locks import ActiveRun, named, noted_runs
from pipeline.engine.state import LastBuild, read_last_build
from pipeline.engine.store import Store
from stages.registry import STAGES
from stages.stage import Record

REASONS = 12  # for trying units again, that are shown


def print_status(store: Store, recipe: str, options: str = "") -> None:
    """Print the units of the last build of `recipe` by stage, and what has gone wrong.

    `options` are the `--recipe` and `--out` that were given, for the commands it suggests.
    """
    console = TextConsole()
    states = dict(build_states(store, recipe))
    runs = list(noted_runs(store))
    for run, alive in runs:
        console.print(f"{'running' if alive else 'killed'}: {run['command']} ({named(run)})")
    if not states:
        start = f"start with `python -m pipeline run STAGE{options}`"
        console.print(f"{recipe}: nothing is built in {store.out}; {start}")
        return
    rows = []
    totals = UnitTotals()
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
                totals.add(record)
                quarantined += record.counts.get("quarantined", 0)
                bytes_by_path = {output.path: output.bytes for output in record.outputs}  # slices share a file
                size += sum(bytes_by_path.values())
        rows.append((stage, done, len(state.units) - done, len(state.failed), f"{seconds:.1f}", f"{size / 1e6:.1f}"))
    console.print(grid(f"{recipe}", ("stage", "done", "missing", "failed", "seconds", "MB"), rows))
    console.print(f"quarantined rows: {quarantined:,}")
    if quarantined:
        console.print(f"`python -m pipeline quarantined{options}` shows them")
    totals.print(console)
    print_events(console, store, [run for run, alive in runs if alive])
    for stage, state in states.items():
        for label, message in state.failed.items():
            console.print(f"failed: {stage} {label}: {message}")


@dataclass
class UnitTotals:
    """What ran where, and what was tried again and why, summed over records."""

    units: Counter[str] = field(default_factory=Counter)  # by node
    seconds: Counter[str] = field(default_factory=Counter)  # by node, rounded
    tried: int = 0  # units that were tried more than once
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # reason -> a unit

    def add(self, record: Record) -> None:
        """Add a record."""
        self.units[record.node] += 1
        self.seconds[record.node] += round(record.seconds)
        self.tried += bool(record.tries)
        self.reasons.update(record.tries)
        for why in record.tries:
            self.examples.setdefault(why, f"{record.stage} {record.label}")

    def print(self, console: TextConsole) -> None:
        """Print a line a node, where there were several, and a line a reason."""
        nodes = [(node or "not noted", self.units[node], self.seconds[node]) for node in sorted(self.units)]
        if len(nodes) > 1:
            console.print(grid("where units ran", ("node", "units", "seconds"), nodes))
        if self.tried:
            console.print(f"tried again: {self.tried:,} units")
        for why, count in self.reasons.most_common(REASONS):
            console.print(f"  {count:,} times, as {self.examples[why]}: {why}")
        if len(self.reasons) > REASONS:
            console.print(f"  and for {len(self.reasons) - REASONS:,} more reasons, in `tries` of records")


def print_events(console: TextConsole, store: Store, active: list[ActiveRun]) -> None:
    """Print what befell runs on clusters, a line an event: when, which run, and what. `active` are those at work."""
    at_work = {(run["pid"], run["command"]) for run in active}
    rows = []
    for run in read_run_events(store):
        name = f"process {run.pid} on {run.host}"
        for at, what in run.events:
            rows.append((f"{datetime.fromtimestamp(at):%Y-%m-%d %H:%M:%S}", name, what))
        if not run.ended and (run.pid, run.command) not in at_work:
            rows.append(("after that", name, f"was killed: {run.command}"))
    if rows:
        console.print(grid("what befell runs on clusters", ("when", "run", "what"), rows, left=("when", "run", "what")))


def build_states(store: Store, recipe: str) -> Iterator[tuple[str, LastBuild]]:
    """Yield (stage, what the last build of `recipe` noted of it), in the order of the pipeline. Raises UserError."""
    for stage in STAGES:
        state = read_last_build(store, recipe, stage)
        if state:
            yield stage, state
