"""`report`: a folder of pages about a finished build."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from pathlib import Path

from pipeline.engine.store import Store, open_store
from pipeline.errors import UsageError
from pipeline.options import DEFAULT_RECIPE, given_options
from pipeline.recipe import load_recipe
from pipeline.report.facts import read_facts
from pipeline.report.site import INDEX, write_report
from stages.paths import is_remote
from stages.quantities import quantity
from stages.recipe import Recipe
from train.data.manifest import RECIPE
from train.monitor.text import printable


def make_report(
    recipe: str, overrides: list[str] | None, out: str, to: str | None, documents: int, max_size: str
) -> None:
    """Write the pages of a build, and say where they are. Raises UserError."""
    started = time.monotonic()
    store = open_store(out)
    if to is None and is_remote(store.out):
        raise UsageError(
            "--out is in a bucket, and pages are written to a disk; name a folder of this machine with --to"
        )
    try:
        most_bytes = int(str(quantity(max_size)))
    except ValueError as error:
        raise UsageError(f"--max-size {max_size}: {error}") from None
    loaded = recipe_of(store, recipe, overrides)
    folder = Path(to or f"{store.out}/{loaded.name}/report")
    name = Path(recipe).name
    shown = "" if recipe == DEFAULT_RECIPE else f" --recipe {shlex.quote(name)}"
    facts = read_facts(store, loaded, given_options(recipe, out), shown, documents, say)
    say("making pages")
    size = write_report(facts, folder, most_bytes)
    store.drop_scratch()
    say("")
    sampled = "" if facts.whole else f", {facts.drawn:,} of them read"
    print(
        f"{folder / INDEX}: {size / 1e6:.2f} MB of pages about {facts.documents:,} documents{sampled}, "
        f"in {time.monotonic() - started:.1f} s; open it in a browser"
    )


def recipe_of(store: Store, recipe: str, overrides: list[str] | None) -> Recipe:
    """Return a recipe with the settings given, or else with those of its last run."""
    loaded = load_recipe(recipe, overrides)
    if not overrides:
        with contextlib.suppress(ValueError):  # damaged: the recipe as it is
            noted = store.read_state(loaded.name, RECIPE)
            if noted and noted.get("set"):
                return load_recipe(recipe, [str(setting) for setting in noted["set"]])
    return loaded


def say(text: str) -> None:
    """Say on standard error what is going on: on a terminal in the place of what was said before, else as a line."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{printable(text)}", end="", file=sys.stderr, flush=True)
    elif text:
        print(printable(text), file=sys.stderr, flush=True)
