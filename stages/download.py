"""Download: rows of every source become parts of documents with their ids; bad rows go to the quarantine.

The work functions live with their sources, so that editing one source re-runs only its own units. A unit's
parameters hold what its reading depends on and no thresholds.
"""

from __future__ import annotations

import asyncio
from typing import Any

from stages.base import Artifact, DataError, Record, Stage
from stages.sources.base import BaseConfig, UnitSpec
from stages.sources.registry import SOURCES


async def units_of(context: Any, name: str, config: Any) -> list[UnitSpec]:
    """The units of source `name`: in the order of its files, or in hash order if it has a budget.

    Hash order makes the first units a fair sample of the source, and does not change when a file is added.
    Listing and footers may wait for a network, so it runs beside the event loop. Raises DataError.
    """
    try:
        specs: list[UnitSpec] = context.listed.get(name) or await asyncio.to_thread(
            SOURCES[config.kind].units, config, context.identify
        )
    except DataError as error:
        raise DataError(f"source {name}: {error}") from error
    return sorted(specs, key=lambda s: (s.order, s.name)) if config.has_budget else specs


async def fetch(context: Any, name: str, config: Any, spec: UnitSpec) -> Record:
    """Download one unit of source `name`, or find it done."""
    record: Record = await context.run(
        "download",
        SOURCES[config.kind].work,
        spec.params,
        spec.inputs,
        label=spec.name,
        source=name,
        weight=spec.weight,
    )
    return record


def within_budget(config: BaseConfig, counts: list[tuple[int, int]]) -> int | None:
    """How many leading entries of (documents, bytes) fill the budget; None when all together do not.

    A source with several budgets ends at the first that is full. Without one nothing is ever enough.
    """
    documents = size = 0
    for n, (more_documents, more_bytes) in enumerate(counts, 1):
        documents += more_documents
        size += more_bytes
        pairs = [
            (documents, config.max_documents),
            (size, config.max_bytes),
            (size // 4, config.max_tokens),
        ]
        if any(limit is not None and have >= limit for have, limit in pairs):
            return n
    return None


def check_not_empty(context: Any, name: str, one: Record | None) -> None:
    """Raises DataError when a source has no rows, or none that can be used, with the commonest reason in `one` unit."""
    counts = context.counts("download", name)
    rows = counts.get("rows_in", 0)
    if not rows:
        raise DataError(f"source {name} has no rows; check what it points at")
    if one and not counts.get("rows_out", 0):
        reason = one.output("quarantine").meta["commonest"]
        raise DataError(f"source {name}: none of its {rows:,} rows can be used ({reason}); mend the file or the recipe")


async def build(context: Any) -> dict[str, list[Artifact]]:
    """Download every source whole; `filter` fetches for itself and stops at a source's budget."""

    async def one(name: str, config: Any) -> list[Artifact]:
        specs = await units_of(context, name, config)
        records = await context.gather(fetch(context, name, config, spec) for spec in specs)
        done = [r for r in records if r is not None]
        check_not_empty(context, name, next(iter(done), None))
        return [part for record in done for part in record.named("part-")]

    sources = context.recipe.sources
    found = await asyncio.gather(*(one(name, config) for name, config in sources.items()))
    return dict(zip(sources, found, strict=True))


STAGE = Stage(
    name="download",
    reads="the files of each source",
    writes="documents with their ids, in parts; bad rows with their reason",
    build=build,
    libraries=("pyarrow",),
)
