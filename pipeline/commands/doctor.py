"""`doctor`: whether this machine can run what is asked of it, a line for each thing that a run needs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from pipeline.commands import doctor_access as access
from pipeline.commands import doctor_machine as machine
from pipeline.commands.doctor_machine import Finding
from pipeline.engine.context import Context
from pipeline.errors import UserError
from pipeline.make_context import make_context
from stages.errors import DataError, TransientError
from stages.paths import escaped
from train.data.manifest import ManifestError
from train.monitor.text import printable

WIDTHS = (9, 15)  # columns of the state and of what was looked at


def diagnose(
    recipe: str | None, overrides: list[str] | None, out: str, addresses: Sequence[str], cluster: str | None
) -> Iterator[Finding]:
    """Yield what is found, in the order in which things are looked at. Nothing that is wrong ends the rest.

    recipe: what it needs is looked at too. addresses: are opened for reading. cluster: a Ray to join, as `run` has it.
    """
    yield from found("python", machine.python_version)
    yield from found("packages", machine.packages)
    context: list[Context] = []
    if recipe is not None:
        yield from found("recipe", lambda: read_recipe(recipe, overrides, out, context))
    known = context[0] if context else None
    yield from found("memory", machine.memory)
    yield from found("torch", partial(machine.torch_devices, known.recipe if known else None))
    yield from found("disk", partial(machine.disk, out))
    yield from found("temporary", machine.temporary_folder)
    yield from found("descriptors", partial(machine.descriptors, known.recipe if known else None))
    yield from found("shared memory", machine.shared_memory)
    yield from found("kernel cache", machine.kernel_cache)
    yield from found("ray", partial(access.ray, cluster, known.recipe.executor if known else "ray"))
    clocks: access.Clocks = {}
    yield from found("bucket", partial(access.bucket, out, clocks))
    for address in addresses:
        yield from found("address", partial(access.address, address, clocks))
    if known is not None:
        yield from found("sources", partial(access.needs, known, clocks))
    yield from found("clock", partial(access.clock, out, clocks))


def found(check: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield what `look` finds; an error that it raises is a finding too."""
    try:
        yield from look()
    except (UserError, DataError, TransientError, ManifestError) as error:
        yield Finding("wrong", check, str(error))
    except ImportError as error:
        yield Finding("wrong", check, f"cannot be looked at: {error}", machine.INSTALL)
    except Exception as error:  # of whatever is broken here: it is what a doctor is for
        text = (str(error).splitlines() or [""])[0][:300]
        yield Finding("wrong", check, f"cannot be looked at: {type(error).__name__}: {text}")


def read_recipe(recipe: str, overrides: list[str] | None, out: str, context: list[Context]) -> Iterator[Finding]:
    """Say whether the recipe is one, and put the Context of its dry run into `context`."""
    context.append(make_context("train", recipe, overrides, out, dry=True, quiet=True))
    loaded = context[0].recipe
    yield Finding("ok", "recipe", f"{loaded.name}: {len(loaded.sources)} sources, {len(loaded.train)} phases")


def print_findings(findings: Iterator[Finding], as_json: bool) -> int:
    """Print a line for each as it is found, and return how many are wrong."""
    wrong = 0
    for finding in findings:
        wrong += finding.state == "wrong"
        values: dict[str, Any] = dataclasses.asdict(finding)
        print(json.dumps(values) if as_json else line_of(finding), flush=True)
    return wrong


def line_of(finding: Finding) -> str:
    """Return a finding as one line: state, what was looked at, what was found, how to mend it."""
    text = " ".join(escaped(finding.text).split())
    mend = f"; mend: {finding.mend}" if finding.mend else ""
    return printable(f"{finding.state:<{WIDTHS[0]}}{finding.check:<{WIDTHS[1]}}{text}{mend}")
