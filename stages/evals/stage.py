"""Evaluation sets: the questions that the recipe's `evals` names, read once and kept as tables with stable ids.

What is asked is read by the source module that reads the same data for training, with its checks of columns, labels and
answers. An item's id is the document id that its row has as a training document, so an item that slipped into the
corpus word for word shows as an id that is in both.
"""

from __future__ import annotations

import asyncio
from typing import Any

from stages.errors import DataError
from stages.evals import passages
from stages.evals.passages import AgainstConfig
from stages.sources.base import Identify, SourceUnit
from stages.sources.questions import EvalConfig
from stages.sources.registry import SOURCES
from stages.stage import BuildContext, Record, Stage, Unit
from stages.task import Artifact

NAMED_COLUMNS = {"parquet": passages.from_parquet, "jsonl": passages.from_jsonl}


async def build(context: BuildContext) -> dict[str, Record]:
    """Read each set: return its record, with the output `items`, by its name."""
    evals = context.recipe.evals
    records = await context.gather(read_set(context, name, config) for name, config in evals.items())
    return dict(zip(evals, records, strict=True))


async def read_set(context: BuildContext, name: str, config: EvalConfig | AgainstConfig) -> Record:
    """Read one set, or find it done. Raises DataError when its files cannot be listed or lack a column."""
    specs = await asyncio.to_thread(units_of, name, config, context.identify)
    keys = [key for key in ("files", "groups") if key in specs[0].params]  # jsonl has no row groups
    params: dict[str, Any] = {key: [value for spec in specs for value in spec.params[key]] for key in keys}
    inputs = [artifact for spec in specs for artifact in spec.inputs]
    label = "items" if isinstance(config, EvalConfig) else place_of(name, config)
    if columns_of(config):
        params["fields"] = columns_of(config)
        return await context.run(EVALS, Unit(NAMED_COLUMNS[config.kind], params, inputs, label, name))
    return await context.run(EVALS, Unit(SOURCES[config.kind].items, params, inputs, label, name))


def columns_of(config: EvalConfig | AgainstConfig) -> list[str]:
    """The columns that a set names, or none where it is questions with choices."""
    found: list[str] = getattr(config, "fields", [])
    return found


def place_of(name: str, config: EvalConfig | AgainstConfig) -> str:
    """Where the recipe has a set."""
    return f"evals.{name}" if isinstance(config, EvalConfig) else f"decontaminate.against.{name}"


def units_of(name: str, config: EvalConfig | AgainstConfig, identify: Identify) -> list[SourceUnit]:
    """The set's files, as its source cuts them. Raises DataError."""
    module = SOURCES[config.kind]
    keys = {"kind": config.kind, "path": config.path, "revision": config.revision}
    if columns_of(config):
        keys["template"] = "".join(f"{{{column}}}" for column in columns_of(config))  # names the columns to the cutter
    try:
        return list(module.units(module.Config(**keys), identify))
    except DataError as error:
        raise DataError(f"{place_of(name, config)}: {error}") from error


def publish(records: dict[str, Record]) -> dict[str, dict[str, Artifact]]:
    """`evals/<name>.parquet`."""
    return {"evals": {f"{name}.parquet": r.output("items") for name, r in records.items()}} if records else {}


EVALS = Stage(
    name="evals",
    reads="recipe.evals",
    writes="evals/: questions with choices, never trained on",
    build=build,
    libraries=("pyarrow",),
    publish=publish,
    reads_files=True,
)
