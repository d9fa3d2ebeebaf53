"""The Context of a command: recipe, store, executor and progress, as its options say."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pipeline.engine.context import Context
from pipeline.engine.executor import Executor
from pipeline.engine.graph import find_stage
from pipeline.engine.progress import Progress
from pipeline.engine.store import open_store
from pipeline.errors import UsageError
from pipeline.executors.choose import KINDS, choose_executor
from pipeline.executors.forkserver import ForkServer
from pipeline.executors.last_word import fork_driver
from pipeline.options import DEFAULT_RECIPE, given_options
from pipeline.recipe import find_recipe, load_recipe
from stages.recipe import Recipe
from train.data.manifest import RECIPE


def make_context(
    stage: str,
    recipe: str | Recipe,
    overrides: list[str] | None,
    out: str,
    executor: str | None = None,
    address: str | None = None,
    workers: int | None = None,
    *,
    dry: bool = False,
    quiet: bool = False,
    force: bool = False,
    debug: bool = False,
) -> Context:
    """Return the Context of one command that builds `stage`; `force` runs its units again. Raises UserError."""
    find_stage(stage)
    loaded = load_recipe(recipe, overrides) if isinstance(recipe, str) else recipe
    kind = executor or ("ray" if address else loaded.executor)
    if kind not in KINDS:
        raise UsageError(f"--executor {kind}: allowed are {', '.join(KINDS)}")
    if kind in ("auto", "ray") and not address and os.environ.get("RAY_ADDRESS", "local") != "local":
        kind, address = "ray", "auto"  # as Ray does itself; `ray job submit` sets it
    store = open_store(out)
    forkserver = ForkServer() if kind in ("auto", "local") and not dry else None  # before there are threads
    if kind == "ray" and not dry:
        fork_driver()
    progress = Progress(quiet)

    def make_executor() -> Executor:
        note = context.dispatcher.note
        return choose_executor(kind, address, workers, progress.known_bytes(), progress.line, note, forkserver)

    forced = frozenset([stage]) if force else frozenset()
    options = given_options(recipe if isinstance(recipe, str) else DEFAULT_RECIPE, out)
    file = str(find_recipe(recipe).resolve()) if isinstance(recipe, str) else ""
    context = Context(
        loaded,
        store,
        make_executor,
        progress,
        dry=dry,
        force=forced,
        debug=debug,
        options=options,
        recipe_file=file,
        settings=overrides or (),
    )
    warn_of_shared_name(context)
    return context


def warn_of_shared_name(context: Context) -> None:
    """Warn where the results that the recipe's name stands for were last made of another recipe file."""
    store, name, file = context.store, context.recipe.name, None
    with contextlib.suppress(ValueError):  # damaged: a run writes it anew
        file = (store.read_state(name, RECIPE) or {}).get("file")
    if not isinstance(file, str) or not context.recipe_file or file == context.recipe_from_store():
        return
    other = Path(store.out, file).resolve() if store.local else Path(file)
    if other.is_file():  # else it was moved
        context.warn(
            f"{context.recipe_file} has the name of {other}, {name}, and both write their results to "
            f"{context.folder('')}; give one of them another name"
        )
