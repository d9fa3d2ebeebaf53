"""The dry run: what is cached, what would run and why, and what the recipe would give: tokens, mix, disk.

Nothing is written but to a temporary folder. What is not built yet is predicted from a small sample of each source.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pipeline.commands.quarantined import printable
from pipeline.commands.report import TextConsole, grid
from pipeline.engine.context import Context, drive
from pipeline.engine.graph import find_stage
from pipeline.errors import NotBuilt, UserError
from stages.errors import DataError
from stages.estimate.forecast import (
    TOKENIZER_STAGE,
    TRAIN_STAGE,
    Forecast,
    Survey,
    disk,
    forecast,
    list_sources,
    question_sets,
    text_through,
    too_long_phases,
)
from stages.estimate.mixtures import (
    DOES_NOT_FIT,
    held_out_note,
    packed_mixtures,
    shared_sources,
    source_shares,
    unknown_sources,
    verdict,
)
from stages.paths import is_remote
from stages.recipe import Recipe
from train.config import ModelConfig
from train.monitor.text import clock_text

Row = tuple[object, ...]  # of a table: whole numbers are shown with separators, all else as it is

UNKNOWN = "?"
ENOUGH_UNITS = 4  # below which a rate may be that of compilation
SOURCE_HEADER = (
    "source",
    "from",
    "units",
    "MB",
    "documents",
    "kept",
    "bytes/token",
    "tokens to train on",
    "tokens/doc",
)
MIXTURE_HEADER = ("source", "asked", "tokens", "available", "cap", "epochs", "documents/window")
SHARED_HEADER = ("source", "pretrain", "anneal", "together", "seen", "of anneal seen before")
PHASE_HEADER = ("phase", "mixture", "steps", "tokens trained", "mixture holds", "epochs", "")


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


def stage_rows(context: Context, target: str) -> list[Row]:
    """Return a row for each stage: units known, cached, to run, and why."""
    rows: list[Row] = []
    blocked = False
    for stage in find_stage(target).upstream():
        state = context.states.get(stage.name)
        if context.built(stage) is not None and not context.state(stage.name).units:
            rows.append((stage.name, 0, 0, 0, "nothing to do"))
        elif state is None or (not state.units and not state.reasons):
            why = "not reached: waits for the stages above" if blocked else "waits until every source can be listed"
            rows.append((stage.name, UNKNOWN, "-", UNKNOWN, why))
            blocked = True
        else:
            reasons = [f"{reason} ({n})" if n > 1 else reason for reason, n in state.reasons.most_common(3)]
            why = ", ".join(reasons) or "cached"
            rows.append((stage.name, len(state.units), state.done, state.reasons.total(), why))
            blocked = blocked or bool(state.reasons)
    return rows


def about(n: float) -> str:
    """Return a count that is predicted, to three digits: ~1.25 M."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if n >= size * 0.9995:
            return f"~{n / size:.3g}{unit}"
    return f"~{n:.0f}"


def count(n: float, counted: bool) -> str:
    """Return a count as it is, or one that is predicted to three digits."""
    return f"{n:,.0f}" if counted else about(n)


def source_rows(context: Context, survey: Survey) -> list[Row]:
    """Return a row for each source: what it holds, and what it gives to training."""
    rows: list[Row] = []
    for name, config in context.recipe.sources.items():
        units = survey.units.get(name)
        number = len(units) if units is not None else UNKNOWN
        size = f"{sum(unit.weight for unit in units) / 1e6:,.1f}" if units is not None else UNKNOWN
        source = survey.forecasts.get(name)
        gives = forecast_cells(source) if source else [UNKNOWN] * (len(SOURCE_HEADER) - 4)
        rows.append((name, config.kind, number, size, *gives))
    return rows


def forecast_cells(source: Forecast) -> list[str]:
    """Return what a source gives, as cells: documents, share kept, bytes a token, tokens, tokens a document."""
    tokens = count(source.tokens, source.counted)
    return [
        count(source.documents, source.counted),
        f"{source.kept_text / source.text:.1%}" if source.text else "-",
        f"{source.kept_text / source.tokens:.2f}" if source.tokens else "-",
        tokens if source.counted else f"{tokens} ± {source.error:.0%}",
        f"{source.tokens / source.documents:,.0f}" if source.documents else "-",
    ]


def shown(value: float | None, form: str) -> str:
    """Return `value` in the format `form`, or a question mark where it is not known."""
    return UNKNOWN if value is None else format(value, form)


def mixture_rows(recipe: Recipe, name: str, survey: Survey) -> list[Row]:
    """Return a row for each source of a mixture: what is asked of it, and what it has."""
    rows: list[Row] = []
    for share in source_shares(recipe, name, survey):
        available = UNKNOWN
        if share.available is not None:
            available = count(share.available, survey.forecasts[share.source].counted)
        rows.append(
            (
                share.source,
                shown(share.ratio, ".2%"),
                shown(share.tokens, ",d"),
                available,
                f"{share.cap:g}",
                shown(share.epochs, ".3f"),
                shown(share.documents_per_window, ".2f"),
            )
        )
    return rows


def loader_note(recipe: Recipe, name: str) -> list[str]:
    """Return a warning where a shard is shorter than what llm.c's loader takes from one for a step.

    That is world * B * T + 1 tokens.
    """
    phase = recipe.train.get(recipe.phase_of(name))
    if phase is None:
        return []
    tokens = recipe.mixtures[name].tokens
    shard = tokens // -(-tokens // recipe.shard_tokens)
    batch = phase.micro_batch or max(1, phase.batch_size // recipe.ranks)
    step = recipe.ranks * batch * phase.seq_len + 1
    if shard >= step:
        return []
    return [
        f"llm.c's loader could not read it: a shard has about {shard:,} tokens, and {recipe.ranks} x {batch} x "
        f"{phase.seq_len} + 1 = {step:,} must fit; lower the micro-batch or raise shard_tokens or the mixture's tokens"
    ]


def shared_rows(recipe: Recipe, survey: Survey) -> list[Row]:
    """Return a row for each source that both mixtures take: its epochs in each, in all, and what anneal repeats."""
    rows: list[Row] = []
    for shared in shared_sources(recipe, survey):
        epochs = (shared.pretrain_epochs, shared.anneal_epochs, shared.pretrain_epochs + shared.anneal_epochs)
        rows.append((shared.source, *(f"{n:.3f}" for n in epochs), shared.seen, f"{shared.seen_before:.0%}"))
    return rows


def phase_rows(recipe: Recipe) -> list[Row]:
    """Return a row for each phase: the tokens it trains on, and the epochs that makes of its mixture."""
    rows: list[Row] = []
    for phase, config in recipe.train.items():
        mixture = recipe.mixtures[config.mixture or phase]
        used = config.steps * config.batch_size * config.seq_len
        epochs = used / mixture.tokens
        note = f"above train.{phase}.epochs = {config.epochs}" if epochs > config.epochs else "ok"
        rows.append((phase, config.mixture or phase, config.steps, used, mixture.tokens, f"{epochs:.3f}", note))
    return rows


def parameters(recipe: Recipe) -> str:
    """Return the model's parameter count. Raises UserError where the recipe's expect_params says another."""
    from train.model.transformer import count_parameters  # loads torch, which nothing else here needs

    model: ModelConfig = recipe.model
    if recipe.tokenizer.vocab_size is None:
        return f"parameters follow from the vocabulary of {recipe.tokenizer.source}; tokenizer.vocab_size can state it"
    count = count_parameters(model, recipe.tokenizer.vocab_size)
    expected = model.expect_params
    if expected is not None and expected != count:
        raise UserError(f"model has {count:,} parameters, expect_params says {expected:,}; mend one of them")
    return f"{count:,} parameters" + (" (expect_params agrees)" if expected else "")


def disk_line(context: Context, survey: Survey, stages: list[str]) -> str:
    """Return the bytes that `stages` take, by stage."""
    sizes = {name: size for name, size in disk(context, survey, stages).items() if size}
    by_stage = ", ".join(f"{name} {megabytes(size)}" for name, size in sizes.items())
    return f"Disk: {megabytes(sum(sizes.values()))} in all ({by_stage}){left_out(survey, context.recipe)}"


def megabytes(size: float) -> str:
    """Return bytes as people say them."""
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"


def left_out(survey: Survey, recipe: Recipe) -> str:
    """Say that some sources are not in a figure; "" where all are."""
    lacking = [name for name in recipe.sources if name not in survey.forecasts]
    named = ", ".join(lacking) if survey.forecasts else "all that the sources need"
    return f"; without {named}" if lacking else ""


def seconds_ahead(context: Context, survey: Survey) -> dict[str, float]:
    """Return seconds of work on one worker for each stage of documents that has units cached and units to run.

    The rate is the median of the stage's own records: the first units of a machine compile their loops too.
    """
    seconds = {}
    for name, text in text_through(survey).items():
        state = context.states.get(name)
        if state is None or not state.reasons or len(state.text_rates) < ENOUGH_UNITS:
            continue
        seconds[name] = state.reasons.total() / len(state.units) * text * statistics.median(state.text_rates)
    return seconds


def time_line(context: Context, survey: Survey) -> str:
    """Return seconds by stage, of stages that have run in part; "" where there are none."""
    by_stage = ", ".join(f"{stage} {duration(spent)}" for stage, spent in seconds_ahead(context, survey).items())
    return f"Time on one worker, at the rate of what is cached: {by_stage}" if by_stage else ""


def duration(spent: float) -> str:
    """Return seconds as people say them."""
    if spent < 100:
        return f"{spent:.0f} s" if spent >= 1 else "under 1 s"
    return f"{spent / 60:.0f} min" if spent < 6000 else f"{spent / 3600:.1f} h"


@contextlib.contextmanager
def doing() -> Iterator[Callable[[str], None]]:
    """Give a function that says on stderr what takes seconds, before it starts: in a terminal one line, with a clock.

    Nothing is printed inside but by that function.
    """
    what, since = "", time.monotonic()
    stderr = Console(stderr=True, highlight=False)

    def line() -> Text:
        return Text(f"plan: {printable(what)} ... {clock_text(time.monotonic() - since)}")

    def tell(text: str) -> None:
        nonlocal what
        what = text
        if not stderr.is_terminal:
            stderr.print(f"plan: {printable(what)} ...", markup=False, soft_wrap=True)

    shown = Live(console=stderr, get_renderable=line, refresh_per_second=4, transient=True)
    with shown if stderr.is_terminal else contextlib.nullcontext():
        yield tell


def say(console: TextConsole, *lines: str) -> None:
    """Print lines of plain text."""
    for line in lines:
        console.print(line, markup=False)


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
            say(console, f"{name}: rows of the sample that go to the quarantine: {n:,} ({printable(reason)})")
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
