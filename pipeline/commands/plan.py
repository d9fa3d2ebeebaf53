"""The dry run: what is cached, what would run and why, and what the recipe would give: tokens, mix, disk.

Nothing is written but to a temporary folder. What is not built yet is predicted from a small sample of each source.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.commands.plan_rows import (
    MIXTURE_HEADER,
    PHASE_HEADER,
    SHARED_HEADER,
    SOURCE_HEADER,
    UNKNOWN,
    Row,
    disk_line,
    loader_note,
    mixture_rows,
    parameters,
    phase_rows,
    shared_rows,
    source_rows,
    stage_rows,
    time_line,
)
from pipeline.commands.report import TextConsole, grid
from pipeline.engine.context import Context, drive
from pipeline.engine.graph import find_stage
from pipeline.errors import UserError
from stages.errors import DataError, NotBuilt
from stages.estimate.forecast import (
    TOKENIZER_STAGE,
    TRAIN_STAGE,
    Survey,
    forecast,
    list_sources,
    question_sets,
    too_long_phases,
)
from stages.estimate.mixtures import (
    DOES_NOT_FIT,
    held_out_note,
    packed_mixtures,
    unknown_sources,
    verdict,
)
from stages.paths import is_remote
from stages.recipe import Recipe
from train.monitor.text import clock_text, printable


def explore(context: Context, target: str) -> tuple[str, bool]:
    """Walk the graph as far as the store knows it. Returns (why it stopped or "", whether a run would too)."""
    try:
        drive(context, context.stage(find_stage(target)))
    except NotBuilt as error:
        return f"stages after {error.stage} follow from what it will write", False
    except (DataError, UserError) as error:
        return str(error), True
    except OSError as error:
        return f"{type(error).__name__}: {error}", True
    return "", False


def survey_of(context: Context, target: str) -> tuple[Survey, str, bool]:
    """Return the sources, listed, and what `explore` says: units are known, nothing is read yet."""
    survey = list_sources(context)
    context.listed = survey.units
    return (survey, "", False) if survey.problems else (survey, *explore(context, target))


@contextlib.contextmanager
def doing(command: str = "plan") -> Iterator[Callable[[str], None]]:
    """Give a function that says on stderr what takes seconds, before it starts: in a terminal one line, with a clock.

    Nothing is printed inside but by that function.
    """
    what, since = "", time.monotonic()
    stderr = Console(stderr=True, highlight=False)

    def line() -> Text:
        return Text(f"{command}: {printable(what)} ... {clock_text(time.monotonic() - since)}")

    def tell(text: str) -> None:
        nonlocal what
        what = text
        if not stderr.is_terminal:
            stderr.print(f"{command}: {printable(what)} ...", markup=False, soft_wrap=True)

    shown = Live(console=stderr, get_renderable=line, refresh_per_second=4, transient=True)
    with shown if stderr.is_terminal else contextlib.nullcontext():
        yield tell


def say(console: TextConsole, *lines: str) -> None:
    """Print lines of plain text."""
    for line in lines:
        console.print(line)


def print_table(console: TextConsole, title: str, header: tuple[str, ...], rows: list[Row]) -> None:
    """Print a table after an empty line."""
    console.print()
    console.print(grid(title, header, rows))


def print_graph(console: TextConsole, context: Context, target: str, stopped: str) -> None:
    """Print the stages, and why no more is known of them."""
    every = stage_rows(context, target)
    rows = [row for row in every if row[1] != UNKNOWN]
    waiting = {row[-1]: [str(other[0]) for other in every if other[-1] == row[-1]] for row in every if row not in rows}
    table = grid("Graph", ("stage", "units", "cached", "to run", "why"), rows)
    table.columns[-1].justify = "left"
    console.print()
    if rows:
        console.print(table)
    say(console, *(f"{', '.join(stages)}: {why}" for why, stages in waiting.items()))
    if stopped:
        say(console, f"Not known yet: {stopped}")


def print_sources(console: TextConsole, context: Context, survey: Survey) -> None:
    """Print the table of sources, how it came about, and why some are not in it."""
    columns = len(SOURCE_HEADER) if survey.forecasts else 4  # the others would be unknown
    rows = [row[:columns] for row in source_rows(context, survey)]
    print_table(console, "Sources", SOURCE_HEADER[:columns], rows)
    if survey.samples:
        read = sum(sample.read for sample in survey.samples.values())
        say(
            console,
            f"~ predicted from {read / 1e6:,.1f} MB read, for 95 % of such samples within ±; duplicates not deducted",
        )
    if survey.tokenizer:
        say(console, survey.tokenizer)
    for name, sample in survey.samples.items():
        for reason, n in sample.bad.most_common():
            say(console, f"{name}: rows of the sample that go to the quarantine: {n:,} ({reason})")
    later = missing_sources(context, survey)
    say(console, *(f"{name}: {problem}" for name, problem in survey.problems.items() if name not in later))
    say(console, *(f"{name}: cannot be read; why stands at the end" for name in later))


def print_mixtures(console: TextConsole, recipe: Recipe, survey: Survey, names: list[str]) -> None:
    """Print the mixtures `names`, whether each fits, and what both take."""
    for name in names:
        title = f"Mixture {name}: {recipe.mixtures[name].tokens:,} tokens"
        print_table(console, title, MIXTURE_HEADER, mixture_rows(recipe, name, survey))
        fits = verdict(recipe, name, survey)
        say(console, "does not fit; why, and what would, stands at the end" if fits.startswith(DOES_NOT_FIT) else fits)
        if not unknown_sources(recipe, name, survey):
            say(console, *loader_note(recipe, name))
        note, certain = held_out_note(recipe, name, survey)
        if note and not certain:
            say(console, f"warning: {note}")
    if "anneal" in names and "pretrain" in recipe.mixtures and (rows := shared_rows(recipe, survey)):
        print_table(console, "Epochs over both mixtures", SHARED_HEADER, rows)


def print_plan(context: Context, target: str) -> list[str]:
    """Print the plan of `target`, and return what keeps it from being run. Raises UserError for another model."""
    console = TextConsole()
    recipe = context.recipe
    say(console, f"recipe {recipe.name}, target {target}, results in {context.folder('')}")
    with doing() as tell:
        tell(f"listing {len(recipe.sources)} sources")
        survey, stopped, failed = survey_of(context, target)
    print_graph(console, context, target, "" if failed else stopped)
    with doing() as tell:
        forecast(context, survey, tell)
    print_sources(console, context, survey)
    stages = [stage.name for stage in find_stage(target).upstream()]
    print_mixtures(console, recipe, survey, packed_mixtures(recipe, stages))
    console.print()
    say(console, disk_line(context, survey, stages))
    if line := time_line(context, survey):
        say(console, line)
    say(console, f"Model: {parameters(recipe)}")
    if recipe.evals:
        sets = (name if n is None else f"{name} ({n:,} items)" for name, n in question_sets(context).items())
        say(console, f"Asked while training: {', '.join(sets)}")
    if recipe.train:
        print_table(console, "Training", PHASE_HEADER, phase_rows(recipe))
    told = [f"{phase}: {text}" for phase, config in recipe.train.items() for text in config.warnings()]
    say(console, *(f"warning: {text}" for text in dict.fromkeys([*context.warnings, *told])))
    verdicts = {name: verdict(recipe, name, survey) for name in packed_mixtures(recipe, stages)}
    notes = (held_out_note(recipe, name, survey) for name in verdicts)
    return [
        *(f"source {name}: {problem}" for name, problem in missing_sources(context, survey).items()),
        *([f"tokenizer: {survey.no_tokenizer}"] if survey.no_tokenizer and TOKENIZER_STAGE in stages else ()),
        *(f"mixture {name}: {text}" for name, text in verdicts.items() if text.startswith(DOES_NOT_FIT)),
        *(note for note, certain in notes if certain and target == TRAIN_STAGE),
        *(too_long_phases(recipe) if target == TRAIN_STAGE else ()),
        *([stopped] if failed else ()),
    ]


def missing_sources(context: Context, survey: Survey) -> dict[str, str]:
    """Return why sources cannot be read, of those that no network has: what does not answer now may do so later."""
    return {
        name: problem
        for name, problem in survey.problems.items()
        if name not in survey.units and not any(map(is_remote, context.recipe.sources[name].addresses()))
    }
