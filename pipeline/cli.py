"""The command line. Exit status: 0 done, 1 failed, 2 wrong usage, 75 training was stopped by a signal and saved."""

from __future__ import annotations

import json
import re
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import UsageError, UserError
from pipeline.executors.last_word import say_goodbye
from pipeline.executors.no_pandas import without_pandas
from pipeline.exit_status import report_error
from pipeline.options import (
    DEFAULT_OUT,
    DEFAULT_RECIPE,
    DebugOption,
    ExecutorOption,
    JsonOption,
    ManifestArgument,
    OutOption,
    PlacesOption,
    RecipeOption,
    RunOption,
    SetOption,
    StageArgument,
    check_arguments,
    given_options,
    split_settings,
)
from train.data.manifest import Manifest
from train.monitor.text import printable

app = typer.Typer(
    help="Shardmill: from raw text to a trained small language model, with every token accounted for.",
    no_args_is_help=True,
    add_completion=Path(sys.argv[0]).stem == "shardmill",  # a shell completes a command, not `python -m pipeline`
    pretty_exceptions_enable=False,
)
TERMINATED = 128 + signal.SIGTERM  # as shells say it


def print_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        from importlib import metadata

        try:
            print(f"shardmill {metadata.version('shardmill')}")
        except metadata.PackageNotFoundError:  # run from a clone that is not installed
            print("shardmill, from a clone that is not installed")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Shardmill: from raw text to a trained small language model, with every token accounted for."""


@app.command("list")
def list_stages() -> None:
    """The stages, what each reads and writes."""
    from pipeline.commands.report import TextConsole, grid
    from stages.registry import STAGES

    rows = [
        (stage.name, ", ".join(needed.name for needed in stage.after) or "-", stage.reads, stage.writes)
        for stage in STAGES.values()
    ]
    header = ("stage", "after", "reads", "writes")
    table = grid("Stages", header, rows, left=header)
    for column, cells in zip(table.columns, zip(*rows, strict=True), strict=True):
        column.min_width = max(len(word) for cell in cells for word in cell.split())
    TextConsole().print(table)


@app.command()
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


@app.command()
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


@app.command()
def run(
    stage: StageArgument,
    recipe: RecipeOption = DEFAULT_RECIPE,
    overrides: SetOption = None,
    out: OutOption = DEFAULT_OUT,
    executor: ExecutorOption = None,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster to join: ray://host:10001; on a node of it host:6379 or auto.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Units at a time; all cores by default.")] = None,
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


@app.command()
def status(recipe: RecipeOption = DEFAULT_RECIPE, out: OutOption = DEFAULT_OUT) -> None:
    """What is done, running, failed, quarantined."""
    from pipeline.commands.status import print_status
    from pipeline.engine.store import open_store

    print_status(open_store(out), recipe_name(recipe), given_options(recipe, out))


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
def inspect(
    manifest: ManifestArgument,
    shard: Annotated[int, typer.Option(min=0, help="Which shard to decode a window of.")] = 0,
    token: Annotated[int, typer.Option(min=0, help="Where the window starts.")] = 0,
    length: Annotated[int, typer.Option(min=1, help="Tokens in the window.")] = 120,
) -> None:
    """Mixture, counts, drop reasons, and a decoded window of any shard."""
    from pipeline.commands.inspect import print_manifest

    print_manifest(open_manifest(manifest), shard, token, length)


@app.command()
def adopt(
    folder: Annotated[Path, typer.Argument(help="Where the shards are: *_train_*.bin and *_val_*.bin, as llm.c's.")],
    tokenizer: Annotated[
        str, typer.Option(help="That they were made with: tokenizer.json, its folder, or owner/name of the hub.")
    ],
    bos: Annotated[str | None, typer.Option(help="Its token between documents, if not a known name.")] = None,
    vocab_size: Annotated[
        int | None, typer.Option(help="Ids of the model, where the tokenizer has special ones beyond.")
    ] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Whose model and training settings to take.")] = None,
    overrides: SetOption = None,
) -> None:
    """Write a manifest for shards made elsewhere, into their folder, so that they train here."""
    from pipeline.recipe import load_recipe
    from stages.pack.adopt import adopt as adopt_shards

    if overrides and not recipe:
        raise UsageError("adopt: --set changes keys of --recipe; name one")
    whose = load_recipe(recipe, overrides) if recipe else None
    adopted = adopt_shards(folder, tokenizer, bos, whose, vocab_size)
    train, ids = len(adopted.split("train")), adopted.tokenizer.vocab_size
    print(f"{folder}: {adopted.tokens:,} tokens in {train} shards to train on, {adopted.val_tokens:,} held out")
    print(f"all of them are within the {ids:,} ids, and hashed; which documents they are is not known")
    print(f"torchrun train/main.py --manifest {shlex.quote(str(folder / 'manifest.json'))}")


@app.command()
def verify(manifest: ManifestArgument) -> None:
    """Every checksum and every invariant; non-zero exit on any difference."""
    from stages.lineage.rows import mend
    from stages.pack.verify import verify as differences

    loaded = open_manifest(manifest)
    problems = 0
    for problem in differences(loaded):
        problems += 1
        print(printable(f"differs: {problem}"))
    if problems:
        raise UserError(f"{manifest}: {problems} differences; {mend(loaded)}")
    files = len(loaded.packed_files())
    print(f"{manifest}: {files} files, {loaded.tokens:,} training and {loaded.val_tokens:,} held-out tokens agree")
    if loaded.adopted:
        print("their lineage is unknown: they were made elsewhere and adopted")


@app.command()
def fetch(
    manifest: ManifestArgument,
    folder: Annotated[Path, typer.Argument(help="A new folder, or one that an earlier fetch began to fill.")],
) -> None:
    """Copy a build from a bucket to a folder, for machines without its client; given again, it goes on where it was."""
    from pipeline.commands.fetch import fetch_build

    fetch_build(manifest, folder)
    print(f"torchrun train/main.py --manifest {shlex.quote(str(folder / 'manifest.json'))}")


@app.command()
def publish(
    manifest: ManifestArgument,
    folder: Annotated[Path, typer.Argument(help="A new folder, or one that an earlier publish began to fill.")],
    run: RunOption = None,
    push: Annotated[str | None, typer.Option(help="Upload as OWNER/NAME of the hub, private.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Upload for all to see.")] = False,
) -> None:
    """Write a data set, and with --run its model, for others: text, shards, cards, Croissant, facts for the EU."""
    from pipeline.publish.publish import publish as publish_build

    publish_build(manifest, folder, run, push, public)


@app.command("trace")
def trace_tokens(
    manifest: ManifestArgument,
    shard: Annotated[str | None, typer.Option(help="A shard's number or file name.")] = None,
    token: Annotated[int | None, typer.Option(help="A token of that shard, from 0.")] = None,
    run: RunOption = None,
    step: Annotated[int | None, typer.Option(help="A step of that run, from 1, as metrics.jsonl counts.")] = None,
    places: PlacesOption = None,
    full: Annotated[bool, typer.Option("--full", help="Whole texts.")] = False,
    as_json: JsonOption = False,
) -> None:
    """A token (--shard, --token) or a training step (--run, --step) back to documents and rows of source files."""
    from pipeline.commands.trace import parse_source_paths, print_step, print_token

    loaded = open_manifest(manifest)
    if shard is not None and token is not None and run is None and step is None:
        print_token(loaded, shard, token, parse_source_paths(places), as_json, full)
    elif run is not None and step is not None and shard is None and token is None:
        print_step(loaded, run, step, parse_source_paths(places), as_json, full)
    else:
        raise UsageError("trace: say --shard S --token N, or --run DIR --step K")


@app.command("find")
def find_documents(
    manifest: ManifestArgument,
    ids: Annotated[list[str] | None, typer.Option("--id", help="A document id, 32 hex digits.")] = None,
    urls: Annotated[list[str] | None, typer.Option("--url", help="A whole address.")] = None,
    domains: Annotated[list[str] | None, typer.Option("--domain", help="A domain, subdomains included.")] = None,
    text: Annotated[str, typer.Option("--text", help="A phrase, letter for letter.")] = "",
    run: RunOption = None,
    full: Annotated[bool, typer.Option("--full", help="All documents and steps.")] = False,
    as_json: JsonOption = False,
) -> None:
    """A document (--id, --url, --domain or --text) to shards, tokens and the training steps of --run."""
    from pipeline.commands.find import print_found
    from stages.lineage.find import Query

    if bool(text) == bool(ids or urls or domains):
        raise UsageError("find: say --id, --url or --domain, or else --text")
    if wrong := [i for i in ids or [] if not re.fullmatch("[0-9a-f]{32}", i)]:
        raise UsageError(f"--id {wrong[0]}: an id is 32 hex digits, as trace prints them")
    query = Query(ids or (), urls or (), domains or (), text)
    print_found(open_manifest(manifest), query, run, as_json, full)


@app.command("rebuild")
def rebuild_mixture(
    manifest: ManifestArgument,
    places: PlacesOption = None,
    out: Annotated[str | None, typer.Option(help="An empty folder; by default rebuild/<build id>.")] = None,
    executor: ExecutorOption = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Units at a time; all cores by default.")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Build though code or versions differ.")] = False,
    debug: DebugOption = False,
) -> None:
    """Build again from a manifest alone; the hashes must agree. Refused, by name, where they could not."""
    from pipeline.commands import rebuild
    from pipeline.commands.trace import parse_source_paths
    from pipeline.engine.context import drive
    from pipeline.engine.graph import find_stage
    from pipeline.engine.locks import store_lock
    from pipeline.make_context import make_context
    from stages.registry import packing_stage

    loaded, moved = open_manifest(manifest), parse_source_paths(places)
    folder = out or f"rebuild/{loaded.build_id[:16]}"
    rebuild.require_empty(folder)
    stage = packing_stage(loaded.mixture)
    context = make_context(stage, rebuild.recipe_of(loaded, moved), None, folder, executor, None, workers, debug=debug)
    rebuild.require_same_inputs(loaded, context.recipe, context.store, moved, anyway)
    with store_lock(context.store):
        try:
            drive(context, context.stage(find_stage(stage)))
        finally:
            context.save_state()
    rebuild.require_same_outputs(loaded, folder, moved)


@app.command("diff")
def diff_manifests(
    a: Annotated[str, typer.Argument(help="A manifest.json, or its folder.")],
    b: Annotated[str, typer.Argument(help="Another.")],
    as_json: JsonOption = False,
) -> None:
    """What changed between two manifests: sources, recipe, tokenizer, code, and how many documents and tokens."""
    from pipeline.commands.diff import print_diff

    print_diff(open_manifest(a), open_manifest(b), as_json)


@app.command("compare")
def compare_runs(
    runs: Annotated[
        list[str], typer.Argument(help="Runs, or manifests for the runs trained on them; A0,A1 are seeds of one side.")
    ],
    interest: Annotated[float, typer.Option(min=1e-6, help="Smallest difference that matters, bits per byte.")] = 0.005,
    deviations: Annotated[
        str | None,
        typer.Option(help="A file of deviations over seeds: written where there are seeds, read where there are none."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Which trained run is better, by how much, and whether that is the recipe or the seed."""
    from pipeline.commands.compare import print_compared

    print_compared(runs, interest, deviations, as_json)


@app.command()
def schema(what: Annotated[str, typer.Argument(help="recipe, manifest or reference.")]) -> None:
    """The JSON Schema of recipes or manifests, or the page docs/reference.md, generated from the models."""
    from pydantic import TypeAdapter

    from pipeline.commands.reference import reference_page
    from stages.recipe import Recipe
    from train.data.manifest import Manifest

    if what == "reference":
        print(reference_page(typer.main.get_group(app)), end="")
        return
    if what not in ("recipe", "manifest"):
        raise UsageError(f"schema {what}: allowed are recipe, manifest, reference")
    value = Recipe.model_json_schema(by_alias=True) if what == "recipe" else TypeAdapter(Manifest).json_schema()
    print(json.dumps(value, indent=1, sort_keys=True))


def open_manifest(address: str) -> Manifest:
    """Return a manifest, in a folder or in a bucket."""
    from pipeline.commands.open_build import open_build

    return open_build(address)


def recipe_name(recipe: str) -> str:
    """Return the name inside a recipe file, which names its folder of results."""
    from pipeline.recipe import load_recipe

    return load_recipe(recipe).name


def main() -> None:
    """Run a command: people get a line, programs an exit status, and --debug the stack trace."""
    without_pandas()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    try:
        check_arguments(sys.argv[1:])
        arguments = split_settings(sys.argv[1:]) or ["--help"]
        status = app(arguments, standalone_mode=False)  # typer turns Ctrl-C into a status and returns it
        if status == 130:
            raise KeyboardInterrupt
        sys.exit(status if isinstance(status, int) else 0)
    except KeyboardInterrupt:
        print("interrupted; the same command continues where it stopped", file=sys.stderr)
        sys.exit(130)
    except SystemExit as end:
        if end.code == TERMINATED:
            print("terminated; the same command continues where it stopped", file=sys.stderr)
        raise
    except Exception as error:
        sys.exit(report_error(error, "--debug" in sys.argv))
    finally:
        sys.stderr.flush()
        say_goodbye()
