"""The commands on what was built: a manifest, its shards, and the runs trained on them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import UsageError, UserError
from pipeline.options import (
    DebugOption,
    ExecutorOption,
    JsonOption,
    ManifestArgument,
    PlacesOption,
    RunOption,
    SetOption,
    WorkersOption,
)
from train.data.manifest import Manifest
from train.monitor.text import printable

app = typer.Typer()
PANEL = "A manifest and the runs trained on it"


@app.command(rich_help_panel=PANEL)
def inspect(
    manifest: ManifestArgument,
    shard: Annotated[int, typer.Option(min=0, help="Which shard to decode a window of.")] = 0,
    token: Annotated[int, typer.Option(min=0, help="Where the window starts.")] = 0,
    length: Annotated[int, typer.Option(min=1, help="Tokens in the window.")] = 120,
) -> None:
    """Mixture, counts, drop reasons, and a decoded window of any shard."""
    from pipeline.commands.inspect import print_manifest

    print_manifest(open_manifest(manifest), shard, token, length)


@app.command(rich_help_panel=PANEL)
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


@app.command("trace", rich_help_panel=PANEL)
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


@app.command("find", rich_help_panel=PANEL)
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


@app.command("rebuild", rich_help_panel=PANEL)
def rebuild_mixture(
    manifest: ManifestArgument,
    places: PlacesOption = None,
    out: Annotated[str | None, typer.Option(help="An empty folder; by default rebuild/<build id>.")] = None,
    executor: ExecutorOption = None,
    workers: WorkersOption = None,
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


@app.command("diff", rich_help_panel=PANEL)
def diff_manifests(
    a: Annotated[str, typer.Argument(help="A manifest.json, or its folder.")],
    b: Annotated[str, typer.Argument(help="Another.")],
    as_json: JsonOption = False,
) -> None:
    """What changed between two manifests: sources, recipe, tokenizer, code, and how many documents and tokens."""
    from pipeline.commands.diff import print_diff

    print_diff(open_manifest(a), open_manifest(b), as_json)


@app.command("compare", rich_help_panel=PANEL)
def compare_runs(
    runs: Annotated[
        list[str], typer.Argument(help="Runs, or manifests for the runs trained on them; A0,A1 are seeds of one side.")
    ],
    interest: Annotated[float, typer.Option(min=1e-6, help="Smallest difference that matters, bits per byte.")] = 0.005,
    deviations: Annotated[
        str | None,
        typer.Option(help="A file of deviations over seeds: written where there are seeds, read where there are none."),
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="A folder to write a page of it into, to open in a browser.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Which trained run is better, by how much, and whether that is the recipe or the seed."""
    from pipeline.commands.compare import print_compared

    compared = print_compared(runs, interest, deviations, as_json)
    if page is not None:
        from pipeline.report.comparison import write_page

        write_page(compared, interest, page)


@app.command(rich_help_panel=PANEL)
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


@app.command(rich_help_panel=PANEL)
def fetch(
    manifest: ManifestArgument,
    folder: Annotated[Path, typer.Argument(help="A new folder, or one that an earlier fetch began to fill.")],
) -> None:
    """Copy a build from a bucket to a folder, for machines without its client; given again, it goes on where it was."""
    from pipeline.commands.fetch import fetch_build

    fetch_build(manifest, folder)
    print(f"torchrun train/main.py --manifest {shlex.quote(str(folder / 'manifest.json'))}")


@app.command("export", rich_help_panel=PANEL)
def export_tokens(
    manifest: ManifestArgument,
    folder: Annotated[Path, typer.Argument(help="A new folder.")],
    form: Annotated[
        str, typer.Option("--format", help="raw: nanoGPT; olmo: OLMo-core; ds: nanotron; tiktoken: the tokenizer.")
    ],
) -> None:
    """Write tokens and ends of documents, or the tokenizer, as another trainer reads them, and say how it does."""
    from pipeline.publish.export import export_build

    export_build(open_manifest(manifest), folder, form)


@app.command(rich_help_panel=PANEL)
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


def open_manifest(address: str) -> Manifest:
    """Return a manifest, in a folder or in a bucket."""
    from pipeline.commands.open_build import open_build

    return open_build(address)
