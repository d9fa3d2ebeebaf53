"""`status` and `clean`: what the store holds, which of it results refer to, and the rest."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.errors import UserError
from pipeline.report import grid
from pipeline.storage import RECORD, RUNNING, Store, runs
from stages.base import Record


def running(store: Store) -> dict[str, Any] | None:
    """A run that is using this store now on this machine, if one is."""
    return next(iter(runs(store)), None)


def print_status(store: Store, recipe: str) -> None:
    """Units by stage of the last build of `recipe`, and what has gone wrong."""
    console = Console(highlight=False, soft_wrap=True)
    state = store.read_state(recipe, "units.json")
    for now in runs(store):
        console.print(f"running: {now['command']} (process {now['pid']})", markup=False)
    if not state:
        console.print(f"{recipe}: nothing is built in {store.out}; start with `python -m pipeline run`", markup=False)
        return
    rows = []
    quarantined = 0
    for stage, units in state["units"].items():
        records = [store.find(stage, key) for key in units.values()]
        done = [r for r in records if r is not None]
        quarantined += sum(r.counts.get("quarantined", 0) for r in done)
        failed = len(state.get("failed", {}).get(stage, {}))
        seconds = sum(r.seconds for r in done)
        size = sum(a.bytes for r in done for a in r.outputs)
        rows.append((stage, len(done), len(units) - len(done), failed, f"{seconds:.1f}", f"{size / 1e6:.1f}"))
    console.print(grid(f"{recipe}", ("stage", "done", "missing", "failed", "seconds", "MB"), rows))
    console.print(f"quarantined rows: {quarantined:,}", markup=False)
    for stage, errors in state.get("failed", {}).items():
        for label, message in errors.items():
            console.print(f"failed: {stage} {label}: {message}", markup=False)


def referenced(store: Store) -> set[tuple[str, str]]:
    """(stage, key) of every unit that a recipe's results refer to."""
    found: set[tuple[str, str]] = set()
    for file in store.fs.glob(f"{store.out}/*/units.json"):
        state = json.loads(store.fs.cat_file(file))
        for stage, units in state["units"].items():
            found.update((stage, key) for key in units.values())
    return found


def clean_store(store: Store, dry_run: bool, force: bool) -> None:
    """Delete units no result refers to, leftovers of killed attempts, and builds no link points to.

    Raises UserError while a run is using the store.
    """
    now = running(store)
    if now:
        raise UserError(f"process {now['pid']} is running `{now['command']}` here; clean when it has ended")
    keep = referenced(store)
    freed = 0
    for stage, key, folder in store.unit_folders():
        record = store.find(stage, key)
        if (stage, key) not in keep:
            if stage == "train" and not force:
                print(f"kept: {folder} holds a training run; --force deletes it")
                continue
            freed += remove(store, folder, dry_run)
        elif record is not None:
            freed += remove_leftovers(store, record, folder, dry_run)
    if store.local:
        for build in Path(store.out).glob("*/builds/*"):
            links = [p for p in build.parent.parent.rglob("*") if p.is_symlink()]
            if build.resolve() not in {link.resolve() for link in links}:
                freed += remove(store, str(build), dry_run)
        for stale in [] if dry_run else Path(store.root).glob(f"{RUNNING}/*"):
            stale.unlink(missing_ok=True)
    print(f"{'would free' if dry_run else 'freed'} {freed / 1e6:.1f} MB")


def remove(store: Store, folder: str, dry_run: bool) -> int:
    """Delete a folder; returns the bytes in it."""
    size = int(store.fs.du(folder))
    print(f"{'would delete' if dry_run else 'deleted'} {folder}")
    if not dry_run:
        if store.local:
            shutil.rmtree(folder)
        else:
            store.fs.rm(folder, recursive=True)
    return size


def remove_leftovers(store: Store, record: Record, folder: str, dry_run: bool) -> int:
    """Delete files of attempts that never got a record; a training run's own folder stays."""
    if record.stage == "train":
        return 0
    named = {store.absolute(a) for a in record.outputs} | {f"{folder}/{RECORD}"}
    size = 0
    for path in store.fs.find(folder):
        if path not in named:
            size += int(store.fs.size(path))
            print(f"{'would delete' if dry_run else 'deleted'} {path}")
            if not dry_run:
                store.fs.rm_file(path)
    return size
