"""The Context of a command: recipe, store, executor and progress, as its options say."""

from __future__ import annotations

import os

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
    context.warn_of_shared_name()
    return context
