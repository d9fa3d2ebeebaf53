"""Evaluation sets: the questions that the recipe's `evals` names, read once and kept as tables with stable ids.

What is asked is read by the source module that reads the same data for training, with its checks of columns, labels and
answers. An item's id is the document id that its row has as a training document, so an item that slipped into the
corpus word for word shows as an id that is in both.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from stages.errors import DataError
from stages.evals import passages
from stages.evals.passages import AgainstConfig
from stages.sources.base import Identify, SourceUnit
from stages.sources.files import with_notes
from stages.sources.questions import EvalConfig
from stages.sources.registry import QUESTIONS, SOURCES
from stages.stage import BuildContext, Record, Stage, Unit
from stages.task import Artifact

NAMED_COLUMNS = {"parquet": passages.from_parquet, "jsonl": passages.from_jsonl}
SetConfig = EvalConfig | AgainstConfig


async def build(context: BuildContext) -> dict[str, Record]:
    """Read each set: return its record, with the output `items`, by its name."""
    evals = context.recipe.evals
    records = await context.gather(read_set(context, name, config) for name, config in evals.items())
    return dict(zip(evals, records, strict=True))


async def read_set(context: BuildContext, name: str, config: SetConfig) -> Record:
    """Read one set, or find it done. Raises DataError when its files cannot be listed or lack a column."""
    lister = partial(units_of, name, config, context.identify)
    source_units, notes = await asyncio.to_thread(with_notes, lister)
    for text in notes:
        context.warn(f"{key_of(name, config)}: {text}")
    keys = [key for key in ("files", "groups") if key in source_units[0].params]  # jsonl has no row groups
    params: dict[str, Any] = {key: [value for unit in source_units for value in unit.params[key]] for key in keys}
    inputs = [artifact for unit in source_units for artifact in unit.inputs]
    label = "items" if isinstance(config, EvalConfig) else key_of(name, config)
    columns = columns_of(config)
    if columns:
        params["fields"] = columns
        work = NAMED_COLUMNS[config.kind]
    else:
        work = QUESTIONS[config.kind].items
    return await context.run(EVALS, Unit(work, params, inputs, label, name))


def columns_of(config: SetConfig) -> list[str]:
    """Return the columns that a set names: none where it is questions with choices."""
    return config.fields if isinstance(config, AgainstConfig) else []


def key_of(name: str, config: SetConfig) -> str:
    """Return the key under which the recipe has a set."""
    return f"evals.{name}" if isinstance(config, EvalConfig) else f"decontaminate.against.{name}"


def units_of(name: str, config: SetConfig, identify: Identify) -> list[SourceUnit]:
    """List the set's files, cut as its source cuts them. Raises DataError."""
    module = SOURCES[config.kind]
    keys: dict[str, Any] = {"kind": config.kind, "path": config.path, "revision": config.revision}
    if columns := columns_of(config):
        keys["template"] = "".join(f"{{{column}}}" for column in columns)  # names the columns to the cutter
    try:
        return module.units(module.Config(**keys), identify)
    except DataError as error:
        raise DataError(f"{key_of(name, config)}: {error}") from error


def publish(records: dict[str, Record]) -> dict[str, dict[str, Artifact]]:
    """Publish `evals/<name>.parquet`."""
    if not records:
        return {}
    return {"evals": {f"{name}.parquet": record.output("items") for name, record in records.items()}}


EVALS = Stage(
    name="evals",
    reads="recipe.evals",
    writes="evals/: questions with choices, never trained on",
    build=build,
    libraries=("pyarrow",),
    publish=publish,
    reads_files=True,
)
