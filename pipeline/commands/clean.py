"""`clean`: what no result refers to is deleted, once it is certain what results refer to."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.engine.changes import KeyHistory
from pipeline.engine.locks import active_runs, store_lock
from pipeline.engine.store import RECORD, RUNNING, UNITS, Store
from pipeline.errors import UserError
from stages.registry import STAGES
from stages.stage import Record
from train.data.manifest import run_options


class Removal(NamedTuple):
    """A folder, or a file of an attempt that was killed, that nothing refers to."""

    path: str
    bytes: int


def clean_store(store: Store, dry_run: bool, force: bool) -> None:
    """Delete units no result refers to, leftovers of killed attempts, and builds no link points to.

    Raises UserError while a run is using the store, and when what results refer to cannot be read.
    """
    if store.local and not Path(store.root).is_dir():
        raise UserError(f"--out {store.uri}: there is no store, so nothing is deleted; name the folder of a run")
    try:
        with store_lock(store, exclusive=True):
            freed = 0
            for removal in [*unused_units(store, force), *(unused_builds(store) if store.local else ())]:
                print(f"{'would delete' if dry_run else 'deleted'} {removal.path} ({removal.bytes / 1e6:.1f} MB)")
                freed += removal.bytes
                if not dry_run:
                    store.remove(removal.path)
            if store.local and not dry_run:
                for stale in Path(store.root).glob(f"{RUNNING}/*"):  # the store is locked: none of these runs is alive
                    stale.unlink(missing_ok=True)
    except BlockingIOError:
        run = next(iter(active_runs(store)), None)
        who = f"process {run['pid']} is running `{run['command']}` here" if run else "another run is using this store"
        raise UserError(f"{who}; clean when it has ended") from None
    print(f"{'would free' if dry_run else 'freed'} {freed / 1e6:.1f} MB")


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
        if store.local:
            for stage, key in linked_units(store, folder):
                keys.setdefault(stage, set()).add(key)
    if not found and any(store.unit_folders()):
        raise UserError(unreadable(store, "", store.out, f"has no <recipe>/{UNITS}/*.json that names the units in use"))
    return keys


def again(store: Store, recipe: str) -> str:
    """Return the command that builds `recipe` again: all that it trains, or else all that it packs."""
    options = run_options(Path(f"{store.out}/{recipe}")) if store.local else "--recipe RECIPE"
    made = [name for name in STAGES if f"{name}.json" in store.names(f"{store.out}/{recipe}/{UNITS}")]
    if "--out" not in options:
        options += f" --out {shlex.quote(store.uri)}"
    return f"python -m pipeline run {made[-1] if made else 'STAGE'} {options}"


def unreadable(store: Store, recipe: str, place: str, what: str) -> str:
    """Return the message about references that cannot be read: where, how much is in the store, and what to do."""
    sizes = [int(store.fs.du(folder)) for _, _, folder in store.unit_folders()]
    return (
        f"nothing deleted: {place} {what}, so it is not known which of the {len(sizes):,} units of {store.root} "
        f"({sum(sizes) / 1e6:.1f} MB) are in use; run the recipe again with `{again(store, recipe)}`, which "
        f"writes it anew, or delete the folder {store.root} yourself"
    )


def linked_units(store: Store, folder: str) -> Iterator[tuple[str, str]]:
    """Yield (stage, key) of units in the store that a link in a recipe's folder leads to: training runs."""
    root = Path(store.root).resolve()
    for path in Path(folder).rglob("*"):
        if path.is_symlink() and path.resolve().is_relative_to(root):
            parts = path.resolve().relative_to(root).parts  # stage, two digits of the key, the key
            if len(parts) >= 3:
                yield parts[0], parts[2]


def unused_units(store: Store, force: bool) -> list[Removal]:
    """Return units that no result refers to, and leftovers in those that one does. Says which runs are kept."""
    keep = referenced(store)
    removals = []
    unknown: dict[str, list[int]] = {}  # stage of which no result names units -> bytes of each unit
    for stage, key, folder in store.unit_folders():
        if key in keep.get(stage, ()):
            record = store.find(stage, key)
            removals += leftovers(store, record, folder) if record else []
        elif keeps_runs(stage) and not force:
            print(f"kept: {folder} holds a training run; --force deletes it")
        elif stage not in keep and not force:
            unknown.setdefault(stage, []).append(int(store.fs.du(folder)))
        else:
            removals.append(Removal(folder, int(store.fs.du(folder))))
    for stage, sizes in unknown.items():
        print(
            f"kept: {len(sizes):,} units of {stage} ({sum(sizes) / 1e6:.1f} MB), because there is no <recipe>/{UNITS}/"
            f"{stage}.json to say which are in use; --force deletes them"
        )
    return removals


def unused_builds(store: Store) -> list[Removal]:
    """Return published builds that no link points to."""
    removals = []
    for recipe in sorted({build.parent.parent for build in Path(store.out).glob("*/builds/*")}):
        linked = {path.resolve() for path in recipe.rglob("*") if path.is_symlink()}
        for build in sorted((recipe / "builds").iterdir()):
            if build.resolve() not in linked:
                removals.append(Removal(str(build), int(store.fs.du(str(build)))))
    return removals


def leftovers(store: Store, record: Record, folder: str) -> list[Removal]:
    """Return files of attempts that never got a record."""
    if keeps_runs(record.stage):
        return []
    named = {store.absolute(output) for output in record.outputs} | {f"{folder}/{RECORD}"}
    return [Removal(path, int(store.fs.size(path))) for path in store.files(folder) if path not in named]


def keeps_runs(stage: str) -> bool:
    """Whether units of `stage` keep more in their folder than they name; a store may hold stages that are no more."""
    return stage in STAGES and STAGES[stage].keeps_runs
