"""The command line. Exit status: 0 done, 1 failed, 2 wrong usage, 75 training was stopped by a signal and saved."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline import manifest_commands, recipe_commands
from pipeline.errors import UsageError
from pipeline.executors.last_word import say_goodbye
from pipeline.executors.no_pandas import without_pandas
from pipeline.exit_status import report_error
from pipeline.options import check_arguments, split_settings

app = typer.Typer(
    help="Shardmill: from raw text to a trained small language model, with every token accounted for.",
    no_args_is_help=True,
    add_completion=Path(sys.argv[0]).stem == "shardmill",  # a shell completes a command, not `python -m pipeline`
    pretty_exceptions_enable=False,
)
app.add_typer(recipe_commands.app)
app.add_typer(manifest_commands.app)
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


@app.command("list", rich_help_panel="What there is")
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


@app.command(rich_help_panel="What there is")
def schema(what: Annotated[str, typer.Argument(help="recipe, manifest, sweep or reference.")]) -> None:
    """The JSON Schema of recipes, sweeps or manifests, or the page docs/reference.md, generated from the models."""
    from pydantic import TypeAdapter

    from pipeline.commands.reference import reference_page
    from pipeline.sweep.config import Sweep
    from stages.recipe import Recipe
    from train.data.manifest import Manifest

    if what == "reference":
        print(reference_page(typer.main.get_group(app)), end="")
        return
    types = {"recipe": Recipe, "manifest": Manifest, "sweep": Sweep}
    if what not in types:
        raise UsageError(f"schema {what}: allowed are {', '.join(types)}, reference")
    value = TypeAdapter(types[what]).json_schema(by_alias=True)
    print(json.dumps(value, indent=1, sort_keys=True))


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
