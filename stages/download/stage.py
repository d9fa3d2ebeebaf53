"""Download: rows of every source become parts of documents with their ids; bad rows go to the quarantine.

The work functions live with their sources, so that editing one source re-runs only its own units. A unit's
parameters hold what its reading depends on and no thresholds.

A source with a budget takes its units in hash order, a few at a time, and keeps the shortest sequence of parts that
fills it. What fills it is counted after the filter, so the filter passes itself as `chain`. A stream may be all there
is: it is taken by slices of its parts, as many as would do if nothing were dropped, then as many as seem missing.
Which parts are kept depends on neither the slices nor the order in which units end.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from stages.errors import DataError
from stages.sources.base import BaseConfig, SourceUnit
from stages.sources.registry import SOURCES
from stages.stage import BuildContext, Record, Stage, Unit
from stages.task import Artifact

LOOK_AHEAD = 16  # units started at a time for a source with a budget, at most
GROWTH = 8  # times the parts read so far that the next slice of a stream may have


class Kept(NamedTuple):
    """A part that a source may keep, and how much is in it; records themselves are too many to keep."""

    docs: Artifact
    documents: int
    text_bytes: int
    dropped: Artifact | None = None  # a sample of what the filter dropped of it


Chain = Callable[[BuildContext, str, BaseConfig, SourceUnit], Awaitable[tuple[Record, list[Kept]]]]


async def units_of(context: BuildContext, name: str, config: BaseConfig) -> list[SourceUnit]:
    """The units of source `name`: in the order of its files, or in hash order if it has a budget.

    Hash order makes the first units a fair sample of the source, and does not change when a file is added.
    Listing and footers may wait for a network, so it runs beside the event loop. Raises DataError.
    """
    try:
        specs = list(context.listed.get(name, ()))
        if not specs:
            specs = await asyncio.to_thread(SOURCES[config.kind].units, config, context.identify)
    except DataError as error:
        raise DataError(f"source {name}: {error}") from error
    return sorted(specs, key=lambda s: (s.order, s.name)) if config.has_budget else specs


async def fetch(context: BuildContext, name: str, config: BaseConfig, spec: SourceUnit) -> Record:
    """Download one unit of source `name`, or find it done."""
    work = SOURCES[config.kind].work
    return await context.run(DOWNLOAD, Unit(work, spec.params, spec.inputs, spec.name, name, spec.weight))


async def take(context: BuildContext, name: str, config: BaseConfig, chain: Chain) -> list[Kept]:
    """The parts that make up source `name`, in order: all, or the shortest prefix that fills a budget.

    `chain` downloads one unit and says what is kept of it. Raises DataError for a source without rows.
    """
    specs = await units_of(context, name, config)
    kept: list[Kept] = []
    start, first = 0, None
    while start < len(specs):
        batch = specs[start : start + next_window(config, kept, start, specs)]
        start += len(batch)
        found = await context.gather(grow(context, name, config, spec, chain, tuple(kept)) for spec in batch)
        for download, parts in found:
            first = first or download
            kept += parts
        if (enough := within_budget(config, kept)) is not None:
            return kept[:enough]
    check_not_empty(context, name, first)
    return kept


async def grow(
    context: BuildContext, name: str, config: BaseConfig, spec: SourceUnit, chain: Chain, have: tuple[Kept, ...]
) -> tuple[Record, list[Kept]]:
    """One unit through `chain`; of a stream with a budget only as many parts as fill it after the parts `have`."""
    if not is_stream(spec):
        return await chain(context, name, config, spec)
    kept: list[Kept] = []
    first, start, stop = None, 0, max(1, math.ceil(missing(config, have) / spec.params["part_bytes"]))
    while True:
        cut = replace(spec, name=f"{spec.name}({start}:{stop})", params={**spec.params, "parts": [start, stop]})
        record, parts = await chain(context, name, config, cut)
        first = first or record
        kept += parts
        if not record.output("quarantine").meta["more"] or within_budget(config, [*have, *kept]) is not None:
            return first, kept
        rate = max(1, sum(k.text_bytes for k in kept)) / stop
        start, stop = stop, stop + min(GROWTH * stop, max(1, math.ceil(missing(config, (*have, *kept)) / rate)))


def is_stream(spec: SourceUnit) -> bool:
    """Whether a unit of a source with a budget can be stopped after some of its parts."""
    return "part_bytes" in spec.params and "groups" not in spec.params


def budgets(config: BaseConfig, kept: Sequence[Kept]) -> list[tuple[int, int]]:
    """(what there is, its limit) in each of the source's budgets."""
    documents, size = sum(k.documents for k in kept), sum(k.text_bytes for k in kept)
    pairs = [(documents, config.max_documents), (size, config.max_bytes), (size // 4, config.max_tokens)]
    return [(have, limit) for have, limit in pairs if limit is not None]


def missing(config: BaseConfig, kept: Sequence[Kept]) -> float:
    """Bytes of kept text until the first budget is full, about; 0 where nothing says yet how long documents are."""
    size, documents = sum(k.text_bytes for k in kept), sum(k.documents for k in kept)
    limits = [config.max_bytes, config.max_tokens and 4 * config.max_tokens]
    limits.append(config.max_documents and round(size / max(1, documents) * config.max_documents))
    return max(0, min(n for n in limits if n is not None) - size)


def next_window(config: BaseConfig, kept: list[Kept], units: int, specs: list[SourceUnit]) -> int:
    """How many more units to start: two to see what they hold, then what seems missing; one stream at a time."""
    if not config.has_budget:
        return len(specs)
    if is_stream(specs[units]):
        return 1
    if not units:
        return 2
    lacking = min((limit - have) / max(1, have) for have, limit in budgets(config, kept))
    return min(LOOK_AHEAD, max(1, round(lacking * units)))


def within_budget(config: BaseConfig, kept: Sequence[Kept]) -> int | None:
    """How many leading parts fill the budget; None when all together do not.

    A source with several budgets ends at the first that is full. Without one nothing is ever enough.
    """
    documents = size = 0
    for n, part in enumerate(kept, 1):
        documents += part.documents
        size += part.text_bytes
        pairs = [(documents, config.max_documents), (size, config.max_bytes), (size // 4, config.max_tokens)]
        if any(limit is not None and have >= limit for have, limit in pairs):
            return n
    return None


def check_not_empty(context: BuildContext, name: str, one: Record | None) -> None:
    """Raises DataError when a source has no rows, or none that can be used, with the commonest reason in `one` unit."""
    counts = context.counts(DOWNLOAD, name)
    rows = counts.get("rows_in", 0)
    if not rows:
        raise DataError(f"source {name} has no rows; check what it points at")
    if one and not counts.get("rows_out", 0):
        reason = one.output("quarantine").meta["commonest"]
        raise DataError(f"source {name}: none of its {rows:,} rows can be used ({reason}); mend the file or the recipe")


async def downloaded(
    context: BuildContext, name: str, config: BaseConfig, spec: SourceUnit
) -> tuple[Record, list[Kept]]:
    """One download unit, and its parts as they are: the chain of a download alone."""
    record = await fetch(context, name, config, spec)
    return record, [Kept(part, part.rows, part.meta.get("text_bytes", 0)) for part in record.named("part-")]


async def build(context: BuildContext) -> dict[str, list[Artifact]]:
    """Download every source, of one with a budget what would fill it if its rules dropped nothing.

    `filter` fetches for itself, and as much more as its rules make necessary.
    """

    async def parts_of(name: str, config: BaseConfig) -> list[Artifact]:
        return [part.docs for part in await take(context, name, config, downloaded)]

    sources = context.recipe.sources
    parts = await asyncio.gather(*(parts_of(name, config) for name, config in sources.items()))
    return dict(zip(sources, parts, strict=True))


DOWNLOAD = Stage(
    name="download",
    reads="the files of each source",
    writes="documents with their ids, in parts; bad rows with their reason",
    build=build,
    libraries=("pyarrow",),
    reads_files=True,
    may_lose_units=True,
)
