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
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

from stages.errors import DataError
from stages.sources.base import BaseConfig, SourceUnit
from stages.sources.files import with_notes
from stages.sources.registry import SOURCES
from stages.stage import BuildContext, Record, Stage, Unit
from stages.task import Artifact

MAX_WINDOW = 16  # units started at a time for a source with a budget, at most
MAX_GROWTH = 8  # times the parts read so far that the next slice of a stream may have


class Counted(Protocol):
    """How much is in a part that a source may keep."""

    @property
    def documents(self) -> int:
        """Return its number of documents."""

    @property
    def text_bytes(self) -> int:
        """Return the bytes of their text."""


class KeptPart(NamedTuple):
    """A part that a source may keep, and how much is in it; records themselves are too many to keep."""

    docs: Artifact
    documents: int
    text_bytes: int


Part = TypeVar("Part", bound=Counted)
# Takes one unit of a source through its steps: (context, source, its configuration, unit) -> (record of the download,
# what is kept of each of its parts).
Chain = Callable[[BuildContext, str, BaseConfig, SourceUnit], Awaitable[tuple[Record, list[Part]]]]


async def list_units(context: BuildContext, name: str, config: BaseConfig) -> list[SourceUnit]:
    """Return the units of source `name`: in the order of its files, or in hash order if it has a budget.

    Hash order makes the first units a fair sample of the source, and does not change when a file is added.
    Listing and footers may wait for a network, so it runs beside the event loop. Raises DataError.
    """
    units = list(context.listed.get(name, ()))
    try:
        if not units:
            lister = partial(SOURCES[config.kind].units, config, context.identify)
            units, notes = await asyncio.to_thread(with_notes, lister)
            for text in notes:
                context.warn(f"source {name}: {text}")
    except DataError as error:
        raise DataError(f"source {name}: {error}") from error
    return in_hash_order(units) if config.has_budget else units


def in_hash_order(units: Sequence[SourceUnit]) -> list[SourceUnit]:
    """Return `units` in the order in which a budget takes them."""
    return sorted(units, key=lambda unit: (unit.order, unit.name))


async def fetch(context: BuildContext, name: str, config: BaseConfig, unit: SourceUnit) -> Record:
    """Download one unit of source `name`, or find it done."""
    work = SOURCES[config.kind].work
    return await context.run(DOWNLOAD, Unit(work, unit.params, unit.inputs, unit.name, name, unit.weight))


async def fetch_source(context: BuildContext, name: str, config: BaseConfig, chain: Chain[Part]) -> list[Part]:
    """Return the parts that make up source `name`, in order: all, or the shortest prefix that fills a budget.

    `chain` downloads one unit and says what is kept of it. Raises DataError for a source without rows.
    """
    units = await list_units(context, name, config)
    kept: list[Part] = []
    first_record: Record | None = None
    start = 0
    while start < len(units):
        window = units[start : start + next_window(config, kept, start, units)]
        start += len(window)
        have = tuple(kept)
        fetched = await context.gather(fetch_unit(context, name, config, unit, chain, have) for unit in window)
        for record, parts in fetched:
            first_record = first_record or record
            kept += parts
        enough = parts_in_budget(config, kept)
        if enough is not None:
            return kept[:enough]
    check_not_empty(context, name, first_record)
    return kept


async def fetch_unit(
    context: BuildContext, name: str, config: BaseConfig, unit: SourceUnit, chain: Chain[Part], have: tuple[Part, ...]
) -> tuple[Record, list[Part]]:
    """Take one unit through `chain`; of a stream with a budget only as many parts as fill it after the parts `have`.

    Returns the record of the (first slice's) download and what is kept of it.
    """
    if not is_stream(unit):
        return await chain(context, name, config, unit)
    kept: list[Part] = []
    first_record: Record | None = None
    start, stop = 0, max(1, math.ceil(missing_bytes(config, have) / unit.params["part_bytes"]))
    while True:
        stream_slice = replace(
            unit, name=f"{unit.name}({start}:{stop})", params={**unit.params, "parts": [start, stop]}
        )
        record, parts = await chain(context, name, config, stream_slice)
        first_record = first_record or record
        kept += parts
        at_end = not record.output("quarantine").meta["more"]
        if at_end or parts_in_budget(config, [*have, *kept]) is not None:
            return first_record, kept
        bytes_per_part = max(1, sum(part.text_bytes for part in kept)) / stop
        lacking = max(1, math.ceil(missing_bytes(config, (*have, *kept)) / bytes_per_part))
        start, stop = stop, stop + min(MAX_GROWTH * stop, lacking)


def is_stream(unit: SourceUnit) -> bool:
    """Return whether a unit of a source with a budget can be stopped after some of its parts."""
    return "part_bytes" in unit.params and "groups" not in unit.params


def budgets(config: BaseConfig, documents: int, text_bytes: int) -> list[tuple[int, int]]:
    """Return (what there is, its limit) in each of the source's budgets, for so many kept documents and bytes."""
    pairs = [
        (documents, config.max_documents),
        (text_bytes, config.max_bytes),
        (text_bytes // 4, config.max_tokens),
    ]
    return [(have, limit) for have, limit in pairs if limit is not None]


def totals(kept: Sequence[Counted]) -> tuple[int, int]:
    """Return (documents, bytes of text) of all `kept`."""
    return sum(part.documents for part in kept), sum(part.text_bytes for part in kept)


def missing_bytes(config: BaseConfig, kept: Sequence[Counted]) -> float:
    """Estimate the bytes of kept text until the first budget is full; 0 where the length of documents is not known."""
    documents, text_bytes = totals(kept)
    limits = [config.max_bytes, config.max_tokens and 4 * config.max_tokens]
    limits.append(config.max_documents and round(text_bytes / max(1, documents) * config.max_documents))
    return max(0, min(limit for limit in limits if limit is not None) - text_bytes)


def next_window(config: BaseConfig, kept: Sequence[Counted], started: int, units: Sequence[SourceUnit]) -> int:
    """Return how many units to start after the first `started`: two at first, then as many as seem missing.

    Without a budget it is all of them; of streams one at a time.
    """
    if not config.has_budget:
        return len(units)
    if is_stream(units[started]):
        return 1
    if not started:
        return 2
    lacking = min((limit - have) / max(1, have) for have, limit in budgets(config, *totals(kept)))
    return min(MAX_WINDOW, max(1, round(lacking * started)))


def parts_in_budget(config: BaseConfig, kept: Sequence[Counted]) -> int | None:
    """Return how many leading parts fill the budget; None when all together do not.

    A source with several budgets ends at the first that is full. Without one nothing is ever enough.
    """
    documents = text_bytes = 0
    for count, part in enumerate(kept, 1):
        documents += part.documents
        text_bytes += part.text_bytes
        if any(have >= limit for have, limit in budgets(config, documents, text_bytes)):
            return count
    return None


def check_not_empty(context: BuildContext, name: str, record: Record | None) -> None:
    """Raise DataError when source `name` has no rows, or none that can be used, with the commonest reason of `record`.

    `record` is of one of its downloads, if there was any.
    """
    counts = context.counts(DOWNLOAD, name)
    rows = counts.get("rows_in", 0)
    if not rows:
        raise DataError(f"source {name} has no rows; check what it points at")
    if record and not counts.get("rows_out", 0):
        reason = record.output("quarantine").meta["commonest"]
        raise DataError(f"source {name}: none of its {rows:,} rows can be used ({reason}); mend the file or the recipe")


async def download_unit(
    context: BuildContext, name: str, config: BaseConfig, unit: SourceUnit
) -> tuple[Record, list[KeptPart]]:
    """Download one unit and keep its parts as they are: the chain of a download alone."""
    record = await fetch(context, name, config, unit)
    return record, [KeptPart(part, part.rows, part.meta.get("text_bytes", 0)) for part in record.named("part-")]


async def build(context: BuildContext) -> dict[str, list[Artifact]]:
    """Download every source, of one with a budget what would fill it if its rules dropped nothing.

    `filter` fetches for itself, and as much more as its rules make necessary.
    """

    async def parts_of(name: str, config: BaseConfig) -> list[Artifact]:
        return [part.docs for part in await fetch_source(context, name, config, download_unit)]

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
