"""`clean`: what no result refers to is deleted, once it is certain what results refer to."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pipeline.engine.changes import KeyHistory
from pipeline.engine.journal import forget_old_events
from pipeline.engine.locks import active_runs, forget_ended_runs, named, store_lock
from pipeline.engine.store import RECORD, UNITS, Store, StoredFolder
from pipeline.errors import UserError
from stages.registry import STAGES
from stages.stage import Record

YOUNG = timedelta(hours=1)


def clean_store(store: Store, dry_run: bool, force: bool) -> None:
    """Delete units no result refers to, leftovers of killed attempts, and builds no link points to.

    In a bucket what is younger than YOUNG stays: a worker whose driver is gone may be putting it there. Raises
    UserError while a run is using the store, and when what results refer to cannot be read.
    """
    if store.local and not Path(store.root).is_dir():
        raise UserError(f"--out {store.out}: there is no store, so nothing is deleted; name the folder of a run")
    try:
        with store_lock(store, exclusive=True) as held:
            freed = 0
            removals = [*unused_units(store, force), *store.unused_builds()]
            if not store.local:
                removals = older(removals)
            for removal in removals:
                if not held():
                    raise UserError(f"{store.out}: the store did not answer for too long; clean again")
                if not dry_run:
                    store.remove(removal)
                print(f"{'would delete' if dry_run else 'deleted'} {removal.path} ({removal.bytes / 1e6:.1f} MB)")
                freed += removal.bytes
            if not dry_run:
                forget_ended_runs(store)
                forget_old_events(store)
    except BlockingIOError:
        run = next(iter(active_runs(store)), None)
        who = f"{named(run)} is running `{run['command']}` here" if run else "another run is using this store"
        raise UserError(f"{who}; clean when it has ended") from None
    print(f"{'would free' if dry_run else 'freed'} {freed / 1e6:.1f} MB")


def older(removals: list[StoredFolder]) -> list[StoredFolder]:
    """Return those that are old enough to go, and say how many are not."""
    now = datetime.now(UTC)
    old = [removal for removal in removals if all(now - file.modified > YOUNG for file in removal.files)]
    if len(old) < len(removals):
        young = len(removals) - len(old)
        print(f"kept: {young:,} units, builds or files not {YOUNG} old: a worker may still be at them")
    return old


def referenced(store: Store) -> dict[str, set[str]]:
    """Return stage -> keys of the units that any recipe's results refer to.

    Raises UserError when a recipe's folder does not say, and when no folder does.
    """
    keys: dict[str, set[str]] = {}
    found = False
    for recipe in sorted(store.names(store.out)):
        folder = f"{store.out}/{recipe}"
        if folder == store.root or not (inside := store.names(folder)):
            continue
        states = [name for name in sorted(store.names(f"{folder}/{UNITS}")) if name.endswith(".json")]
        if not states and "builds" in inside:
            raise UserError(
                unreadable(store, recipe, folder, f"has builds, and no {UNITS}/*.json that names their units")
            )
        found = found or bool(states)
        for name in states:
            try:
                state = store.read_state(recipe, f"{UNITS}/{name}")
                if state is None:
                    raise ValueError("a link to what is not there")
                keys.setdefault(name.removesuffix(".json"), set()).update(KeyHistory(state).unit_keys())
            except (OSError, ValueError) as error:
                what = f"cannot be read ({type(error).__name__}: {error})"
                raise UserError(unreadable(store, recipe, f"{folder}/{UNITS}/{name}", what)) from error
        for stage, key in store.linked_units(recipe):
            keys.setdefault(stage, set()).add(key)
    if not found and any(store.units()):
        raise UserError(unreadable(store, "", store.out, f"has no <recipe>/{UNITS}/*.json that names the units in use"))
    return keys


def again(store: Store, recipe: str) -> str:
    """Return the command that builds `recipe` again: all that it trains, or else all that it packs."""
    options = store.run_options(recipe)
    states = store.names(f"{store.out}/{recipe}/{UNITS}")
    made = [name for name in STAGES if f"{name}.json" in states]
    if "--out" not in options:
        options += f" --out {shlex.quote(store.out)}"
    return f"python -m pipeline run {made[-1] if made else 'STAGE'} {options}"


def unreadable(store: Store, recipe: str, place: str, what: str) -> str:
    """Return the message about references that cannot be read: where, how much is in the store, and what to do."""
    sizes = [unit.folder.bytes for unit in store.units()]
    return (
        f"nothing deleted: {place} {what}, so it is not known which of the {len(sizes):,} units of {store.root} "
        f"({sum(sizes) / 1e6:.1f} MB) are in use; run the recipe again with `{again(store, recipe)}`, which "
        f"writes it anew, or delete the folder {store.root} yourself"
    )


def unused_units(store: Store, force: bool) -> list[StoredFolder]:
    """Return units that no result refers to, and leftovers in those that one does. Says which runs are kept."""
    keep = referenced(store)
    removals: list[StoredFolder] = []
    unknown: dict[str, list[int]] = {}  # stage of which no result names units -> bytes of each unit
    for stage, key, folder in store.units():
        if key in keep.get(stage, ()):
            record = store.find(stage, key)
            removals += leftovers(store, record, folder) if record else []
        elif keeps_runs(stage) and not force:
            print(f"kept: {folder.path} holds a training run; --force deletes it")
        elif stage not in keep and not force:
            unknown.setdefault(stage, []).append(folder.bytes)
        else:
            removals.append(folder)
    for stage, sizes in unknown.items():
        print(
            f"kept: {len(sizes):,} units of {stage} ({sum(sizes) / 1e6:.1f} MB), because there is no <recipe>/{UNITS}/"
            f"{stage}.json to say which are in use; --force deletes them"
        )
    return removals


def leftovers(store: Store, record: Record, folder: StoredFolder) -> list[StoredFolder]:
    """Return files of attempts that never got a record, each as a folder of its own."""
    if keeps_runs(record.stage):
        return []
    named = {store.absolute(output) for output in record.outputs} | {f"{folder.path}/{RECORD}"}
    return [StoredFolder(file.path, [file]) for file in folder.files if file.path not in named]


def keeps_runs(stage: str) -> bool:
    """Whether units of `stage` keep more in their folder than they name; a store may hold stages that are no more."""
    return stage in STAGES and STAGES[stage].keeps_runs
