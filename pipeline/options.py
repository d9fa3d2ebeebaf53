"""Options that several commands have, and how a command line is read."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from pipeline.errors import UsageError

DEFAULT_RECIPE, DEFAULT_OUT = "quickstart", "build"

StageArgument = Annotated[str, typer.Argument(help="A stage; see `list`.")]
RecipeOption = Annotated[str, typer.Option("--recipe", help="A recipe that ships, or a YAML file.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override a key of the recipe: a.b=value.")]
OutOption = Annotated[str, typer.Option("--out", help="Folder, or s3://bucket/prefix, for store and results.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show stack traces.")]
ManifestArgument = Annotated[str, typer.Argument(help="A manifest.json, or the folder that holds it.")]
PlacesOption = Annotated[list[str] | None, typer.Option("--source", help="Where a source's files are now: NAME=PATH.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
ExecutorOption = Annotated[
    str | None, typer.Option("--executor", help="auto, ray, local or inline; the recipe's by default.")
]
AddressOption = Annotated[
    str | None,
    typer.Option("--address", help="A Ray cluster to join: ray://host:10001; on a node of it host:6379 or auto."),
]
WorkersOption = Annotated[int | None, typer.Option("--workers", min=1, help="Units at a time; all cores by default.")]
RunOption = Annotated[str | None, typer.Option("--run", help="The folder of a training run.")]


def given_options(recipe: str, out: str) -> str:
    """Return ` --recipe R --out O` as a shell reads them, without those that are as by default."""
    given = (("--recipe", recipe, DEFAULT_RECIPE), ("--out", out, DEFAULT_OUT))
    return "".join(f" {name} {shlex.quote(value)}" for name, value, default in given if value != default)


def split_settings(arguments: list[str]) -> list[str]:
    """Return `--set a=1 b=2` as `--set a=1 --set b=2`, so that it means here what it means to train/main.py."""
    result: list[str] = []
    after_set = False
    for argument in arguments:
        if argument.startswith("-"):
            after_set = argument == "--set"
        elif after_set and "=" in argument and result[-1] != "--set":
            result.append("--set")
        result.append(argument)
    return result


def check_arguments(arguments: list[str]) -> None:
    """Raise UsageError at an argument that is no UTF-8, which neither records nor manifests could repeat."""
    from stages.paths import escaped, is_utf8

    for argument in arguments:
        if not is_utf8(argument):
            raise UsageError(f"argument '{escaped(argument)}' is no UTF-8; rename what it names, or write it in UTF-8")
