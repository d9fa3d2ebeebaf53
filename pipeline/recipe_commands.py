"""The commands on a recipe: what it would do, doing it, and what came of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import UsageError, UserError
from pipeline.options import (
    DEFAULT_OUT,
    DEFAULT_RECIPE,
    AddressOption,
    DebugOption,
    ExecutorOption,
    JsonOption,
    OutOption,
    RecipeOption,
    SetOption,
    StageArgument,
    WorkersOption,
    given_options,
)

app = typer.Typer()
PANEL = "A recipe and what it builds"


@app.command(rich_help_panel=PANEL)
def init(
    places: Annotated[
        list[str], typer.Argument(help="Folders, files, addresses, or owner/name of datasets of the hub.")
    ],
    minutes: Annotated[float, typer.Option(min=0.1, help="That training may take.")] = 10.0,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs to train on; those of this machine by default.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Their name, for another machine: H200, L40S, H100 PCIe ...")] = None,
    name: Annotated[str | None, typer.Option(help="Of the recipe; that of the first place by default.")] = None,
    file: Annotated[Path | None, typer.Option(help="To write; NAME.yaml where you stand by default.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Look at text and write a recipe for it that runs, each line with its reason."""
    from pipeline.commands.init import propose, recipe_name_for

    name = recipe_name_for(name, places[0])
    file = file or Path(f"{name}.yaml")
    if file.exists() and not force:
        raise UsageError(f"{file} is there; name another --file, or give --force to write over it")
    propose(places, file, name, minutes, gpus, gpu)


@app.command(rich_help_panel=PANEL)
def plan(
    stage: StageArgument,
    recipe: RecipeOption = DEFAULT_RECIPE,
    overrides: SetOption = None,
    out: OutOption = DEFAULT_OUT,
    debug: DebugOption = False,
) -> None:
    """Dry run: the graph, what is cached, what would run and why, the mixture solved."""
    from pipeline.commands.plan import print_plan
    from pipeline.make_context import make_context

    context = make_context(stage, recipe, overrides, out, dry=True, quiet=True, debug=debug)
    if wrong := print_plan(context, stage):
        raise UserError(f"{recipe} cannot be run as it is:\n" + "\n".join(wrong))


@app.command(rich_help_panel=PANEL)
def run(
    stage: StageArgument,
    recipe: RecipeOption = DEFAULT_RECIPE,
    overrides: SetOption = None,
    out: OutOption = DEFAULT_OUT,
    executor: ExecutorOption = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    force: Annotated[bool, typer.Option("--force", help="Run STAGE's units again, whatever is cached.")] = False,
    debug: DebugOption = False,
) -> None:
    """Build STAGE and everything it needs that is not built yet."""
    from pipeline.commands.report import print_report
    from pipeline.engine import quarantine
    from pipeline.engine.context import drive
    from pipeline.engine.graph import find_stage
    from pipeline.engine.locks import store_lock, suppress_read_only
    from pipeline.make_context import make_context
    from stages.estimate.forecast import check_inputs
    from stages.estimate.mixtures import check_mixtures

    context = make_context(stage, recipe, overrides, out, executor, address, workers, force=force, debug=debug)
    with store_lock(context.store):
        stages = [needed.name for needed in find_stage(stage).upstream()]
        context.listed = check_inputs(context, stages)
        check_mixtures(context, stages)
        try:
            drive(context, context.stage(find_stage(stage)))
        except Exception as error:
            if context.command("quarantined") not in str(error):
                print("".join(f"{line}\n" for line in quarantine.summary(context)), end="", file=sys.stderr)
            raise
        finally:
            quarantine.publish(context)
            with suppress_read_only():
                context.save_state()
    print_report(context)


@app.command("ladder", rich_help_panel=PANEL)
def train_ladder(
    layers: Annotated[list[int], typer.Argument(min=1, help="Numbers of layers of the sizes to train, three or more.")],
    target: Annotated[int, typer.Option(min=2, help="Layers of the size whose loss is predicted.")],
    recipe: RecipeOption = DEFAULT_RECIPE,
    overrides: SetOption = None,
    out: OutOption = DEFAULT_OUT,
    phase: Annotated[str | None, typer.Option(help="Of the recipe; its first by default.")] = None,
    tokens_per_weight: Annotated[
        float | None, typer.Option(min=0.001, help="Tokens to train on; as many as the recipe has by default.")
    ] = None,
    rates: Annotated[
        bool, typer.Option("--rates", help="Train two sizes at half and twice the rates, too: do they transfer?")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be trained.")] = False,
    executor: ExecutorOption = None,
    address: AddressOption = None,
    workers: WorkersOption = None,
    debug: DebugOption = False,
) -> None:
    """Train a recipe at several small sizes by a stated rule, and predict the loss of a larger one."""
    from pipeline.commands.ladder import ladder
    from pipeline.make_context import make_context

    context = make_context(
        "train", recipe, overrides, out, executor, address, workers, dry=dry_run, quiet=dry_run, debug=debug
    )
    ladder(context, phase, layers, target, tokens_per_weight, rates)


@app.command(rich_help_panel=PANEL)
def status(recipe: RecipeOption = DEFAULT_RECIPE, out: OutOption = DEFAULT_OUT) -> None:
    """What is done, running, failed, quarantined."""
    from pipeline.commands.status import print_status
    from pipeline.engine.store import open_store

    print_status(open_store(out), recipe_name(recipe), given_options(recipe, out))


@app.command(rich_help_panel=PANEL)
def doctor(
    addresses: Annotated[
        list[str] | None, typer.Argument(help="What should be readable from here: hf://datasets/OWNER/NAME, s3://...")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Look at what this recipe needs, too.")] = None,
    overrides: SetOption = None,
    out: OutOption = DEFAULT_OUT,
    address: Annotated[str | None, typer.Option(help="A Ray cluster, as `run` joins it.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Whether this machine can run what is asked of it: a line for each thing that a run needs, and how to mend it."""
    from pipeline.commands.doctor import diagnose, print_findings

    if wrong := print_findings(diagnose(recipe, overrides, out, addresses or (), address), as_json):
        raise UserError(f"{wrong} of these {'is' if wrong == 1 else 'are'} wrong; each line says how to mend it")


@app.command(rich_help_panel=PANEL)
def dropped(
    recipe: RecipeOption = DEFAULT_RECIPE,
    out: OutOption = DEFAULT_OUT,
    source: Annotated[str | None, typer.Option(help="Of one source.")] = None,
    reason: Annotated[str | None, typer.Option(help="Show the documents dropped for it.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Whole texts.")] = False,
) -> None:
    """Read what the rules dropped: a sample of documents for each reason, with their text."""
    from pipeline.commands.dropped import print_dropped
    from pipeline.engine.store import open_store

    print_dropped(open_store(out), recipe_name(recipe), source, reason, full, given_options(recipe, out))


@app.command(rich_help_panel=PANEL)
def report(
    recipe: RecipeOption = DEFAULT_RECIPE,
    overrides: SetOption = None,
    out: OutOption = DEFAULT_OUT,
    to: Annotated[str | None, typer.Option(help="Folder of the pages; OUT/RECIPE/report by default.")] = None,
    documents: Annotated[int, typer.Option(min=1, help="Read at most so many; of more, a sample by hash.")] = 100_000,
    max_size: Annotated[str, typer.Option(help="Most bytes of the pages together.")] = "20MB",
) -> None:
    """Pages about a build, to open from the disk: what went in, what was left out and why, what was learnt."""
    from pipeline.report.command import make_report

    make_report(recipe, overrides, out, to, documents, max_size)


@app.command(rich_help_panel=PANEL)
def quarantined(
    recipe: RecipeOption = DEFAULT_RECIPE,
    out: OutOption = DEFAULT_OUT,
    source: Annotated[str | None, typer.Option(help="Of one source.")] = None,
    full: Annotated[bool, typer.Option("--full", help="Every row; a few of each reason by default.")] = False,
) -> None:
    """Rows that could not be read, by reason: file, row and how the row begins."""
    from pipeline.commands.quarantined import print_quarantined
    from pipeline.engine.store import open_store

    print_quarantined(open_store(out), recipe_name(recipe), source, full, given_options(recipe, out))


@app.command(rich_help_panel=PANEL)
def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep file; docs/sweep.md has one.")],
    out: OutOption = DEFAULT_OUT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would run, why, and how long.")] = False,
    to: Annotated[str | None, typer.Option(help="Folder of notes and results; OUT/NAME/sweep by default.")] = None,
    executor: ExecutorOption = None,
    address: Annotated[str | None, typer.Option(help="A Ray cluster, as `run` joins it.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Units at a time; all cores by default.")] = None,
    parallel: Annotated[int, typer.Option(min=1, help="Runs at a time, each with GPUs of its own; of Ray alone.")] = 1,
    debug: DebugOption = False,
) -> None:
    """Train small models on many mixes, say which mix is best, and confirm that with fresh seeds."""
    from pipeline.commands.sweep import sweep_command

    sweep_command(file, out, to, dry_run, executor, address, workers, parallel, debug)


@app.command(rich_help_panel=PANEL)
def clean(
    out: OutOption = DEFAULT_OUT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Delete unreferenced training runs too, and stages that no result names.")
    ] = False,
) -> None:
    """Delete what no result refers to. Training runs stay unless --force."""
    from pipeline.commands.clean import clean_store
    from pipeline.engine.store import open_store

    clean_store(open_store(out), dry_run, force)


def recipe_name(recipe: str) -> str:
    """Return the name inside a recipe file, which names its folder of results."""
    from pipeline.recipe import load_recipe

    return load_recipe(recipe).name
