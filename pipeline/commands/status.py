"""`status` and `clean`: what the store holds, which of it results refer to, and the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.commands.report import grid
from pipeline.engine.changes import KeyHistory
from pipeline.engine.locks import active_runs, store_lock
from pipeline.engine.store import RECORD, RUNNING, UNITS, Store
from pipeline.errors import UserError
from stages.paths import glob_below
from stages.registry import STAGES
from stages.stage import Record


def print_status(store: Store, recipe: str) -> None:
    """Print the units of the last build of `recipe` by stage, and what has gone wrong."""
    console = Console(highlight=False, soft_wrap=True)
    states = dict(build_states(store, recipe))
    for run in active_runs(store):
        console.print(f"running: {run['command']} (process {run['pid']})", markup=False)
    if not states:
        console.print(f"{recipe}: nothing is built in {store.out}; start with `python -m pipeline run`", markup=False)
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
    for stage, state in states.items():
        for label, message in state["failed"].items():
            console.print(f"failed: {stage} {label}: {message}", markup=False)


def build_states(store: Store, recipe: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (stage, what the last build of `recipe` noted of its units), in the order of the pipeline."""
    for stage in STAGES:
        state = store.read_state(recipe, f"{UNITS}/{stage}.json")
        if state:
            yield stage, state


def referenced(store: Store) -> dict[str, set[str]]:
    """Return stage -> keys of the units that any recipe's results refer to."""
    keys: dict[str, set[str]] = {}
    for file in glob_below(store.fs, store.out, f"*/{UNITS}/*.json"):
        stage = file.rpartition("/")[2].removesuffix(".json")
        keys.setdefault(stage, set()).update(KeyHistory(json.loads(store.fs.cat_file(file))).unit_keys())
    return keys


def clean_store(store: Store, dry_run: bool, force: bool) -> None:
    """Delete units no result refers to, leftovers of killed attempts, and builds no link points to.

    Raises UserError while a run is using the store.
    """
    try:
        with store_lock(store, exclusive=True):
            freed = clean_units(store, dry_run, force) + (clean_builds(store, dry_run) if store.local else 0)
    except BlockingIOError:
        run = next(iter(active_runs(store)), None)
        who = f"process {run['pid']} is running `{run['command']}` here" if run else "another run is using this store"
        raise UserError(f"{who}; clean when it has ended") from None
    print(f"{'would free' if dry_run else 'freed'} {freed / 1e6:.1f} MB")


def clean_units(store: Store, dry_run: bool, force: bool) -> int:
    """Delete units and leftovers, unless `dry_run`. Return their bytes."""
    keep = referenced(store)
    freed = 0
    for stage, key, folder in store.unit_folders():
        if key in keep.get(stage, ()):
            record = store.find(stage, key)
            freed += remove_leftovers(store, record, folder, dry_run) if record else 0
        elif keeps_runs(stage) and not force:
            print(f"kept: {folder} holds a training run; --force deletes it")
        else:
            freed += remove(store, folder, dry_run)
    return freed


def clean_builds(store: Store, dry_run: bool) -> int:
    """Delete published builds no link points to, and marks of runs that are over. Return their bytes."""
    freed = 0
    for recipe in {build.parent.parent for build in Path(store.out).glob("*/builds/*")}:
        linked = {path.resolve() for path in recipe.rglob("*") if path.is_symlink()}
        for build in sorted((recipe / "builds").iterdir()):
            if build.resolve() not in linked:
                freed += remove(store, str(build), dry_run)
    if not dry_run:
        for stale in Path(store.root).glob(f"{RUNNING}/*"):  # the store is locked, so none of these runs is alive
            stale.unlink(missing_ok=True)
    return freed


def remove(store: Store, folder: str, dry_run: bool) -> int:
    """Delete a folder, unless `dry_run`. Return the bytes in it."""
    size = int(store.fs.du(folder))
    print(f"{'would delete' if dry_run else 'deleted'} {folder}")
    if not dry_run:
        store.remove(folder)
    return size


def remove_leftovers(store: Store, record: Record, folder: str, dry_run: bool) -> int:
    """Delete files of attempts that never got a record, unless `dry_run`. Return their bytes."""
    if keeps_runs(record.stage):
        return 0
    named = {store.absolute(output) for output in record.outputs} | {f"{folder}/{RECORD}"}
    size = 0
    for path in store.files(folder):
        if path not in named:
            size += int(store.fs.size(path))
            print(f"{'would delete' if dry_run else 'deleted'} {path}")
            if not dry_run:
                store.fs.rm_file(path)
    return size


def keeps_runs(stage: str) -> bool:
    """Whether units of `stage` keep more in their folder than they name; a store may hold stages that are no more."""
    return stage in STAGES and STAGES[stage].keeps_runs
