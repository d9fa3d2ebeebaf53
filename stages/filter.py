"""Filter: each part of each source goes through the source's rules as soon as it is downloaded.

A source with a budget takes its units in hash order, a few at a time, and keeps the shortest sequence of
parts that fills it; parts beyond are not used even if they were built.
"""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from stages import dropped
from stages.apply_rules import work
from stages.base import Artifact, DataError, Record, Stage
from stages.download import check_not_empty, fetch, units_of, within_budget
from stages.edits import libraries, parse_edits
from stages.rules import parse_rules
from stages.sources.base import UnitSpec

LOOK_AHEAD = 16  # units started at a time for a source with a budget, at most


class Kept(NamedTuple):
    """A filtered part, a sample of what was dropped, and how much is in it; records are too many to keep."""

    docs: Artifact
    dropped: Artifact
    documents: int
    text_bytes: int


async def chain(context: Any, name: str, config: Any, spec: UnitSpec) -> tuple[Record, list[Kept]]:
    """One download unit, and its parts through the rules."""
    params: dict[str, Any] = {"rules": [list(rule) for rule in parse_rules(config.rules)]}
    if config.edit:
        params |= {"edit": parse_edits(config.edit), "versions": libraries(config.edit)}
    record = await fetch(context, name, config, spec)
    done: list[Record | None] = await context.gather(
        context.run(
            "filter",
            work,
            params,
            [part],
            label=f"{spec.name} {part.name}",
            source=name,
            weight=part.meta.get("text_bytes", 0),
        )
        for part in record.named("part-")
    )
    return record, [kept_of(r) for r in done if r is not None]


def kept_of(record: Record) -> Kept:
    """What later steps need of a filter unit's record."""
    counts = record.counts
    return Kept(record.output("docs"), record.output("dropped"), counts.get("kept", 0), counts.get("text_bytes", 0))


async def source_parts(context: Any, name: str, config: Any) -> list[Kept]:
    """The filtered parts that make up source `name`, in order: all, or the shortest prefix that fills a budget."""
    specs = await units_of(context, name, config)
    kept: list[Kept] = []
    start, first = 0, None
    while start < len(specs):
        window = len(specs) - start if not config.has_budget else next_window(config, kept, start)
        batch = specs[start : start + window]
        start += len(batch)
        found = await context.gather(chain(context, name, config, spec) for spec in batch)
        for download, parts in filter(None, found):
            first = first or download
            kept += parts
        enough = within_budget(config, [(k.documents, k.text_bytes) for k in kept])
        if enough is not None:
            return kept[:enough]
    check_not_empty(context, name, first)
    return kept


def next_window(config: Any, kept: list[Kept], units: int) -> int:
    """How many more units to start: two to see what they hold, then what seems missing."""
    if not units:
        return 2
    documents, size = max(1, sum(k.documents for k in kept)), max(1, sum(k.text_bytes for k in kept))
    pairs = ((documents, config.max_documents), (size, config.max_bytes), (size // 4, config.max_tokens))
    missing = min((limit - have) / max(1, have) for have, limit in pairs if limit is not None)
    return min(LOOK_AHEAD, max(1, round(missing * units)))


def check_some_kept(context: Any, name: str) -> None:
    """Raises DataError when a source's rules leave no document, naming the commonest reason."""
    counts = context.counts("filter", name)
    if not counts.get("kept", 0):
        reasons = {k.removeprefix("dropped."): n for k, n in counts.items() if k.startswith("dropped.")}
        reason, n = min(reasons.items(), key=lambda item: (-item[1], item[0]))
        raise DataError(
            f"source {name}: the rules dropped all {counts['rows_in']:,} documents, {n:,} of them for {reason}; "
            f"loosen that rule or drop it from sources.{name}.rules"
        )


class Filtered(dict[str, list[Artifact]]):
    """Filtered documents by source, one table a part; and of each source the sample of what was dropped.

    Where the recipe takes documents down, the stage `exclude` publishes the samples, without them.
    """

    dropped: dict[str, Artifact]
    publish_dropped: bool


async def build(context: Any) -> Filtered:
    """Filtered documents by source. Downloads as it goes."""

    async def one(name: str, config: Any) -> tuple[list[Artifact], Artifact | None]:
        parts = await source_parts(context, name, config)
        check_some_kept(context, name)
        docs, samples = [part.docs for part in parts], [part.dropped for part in parts if part.dropped.rows]
        if not samples:
            return docs, None
        record = await context.run("filter", dropped.work, {}, samples, label="dropped", source=name)
        return docs, record.output("dropped")

    sources, exclude = context.recipe.sources, context.recipe.exclude
    found = await asyncio.gather(*(one(name, config) for name, config in sources.items()))
    result = Filtered((name, docs) for name, (docs, _) in zip(sources, found, strict=True))
    result.dropped = {name: sample for name, (_, sample) in zip(sources, found, strict=True) if sample}
    result.publish_dropped = not any((exclude.ids, exclude.urls, exclude.domains))
    return result


def publish(result: Filtered) -> dict[str, dict[str, Artifact]]:
    """`dropped/<source>.parquet`, where any document was dropped."""
    return dropped.folder(result.dropped) if result.publish_dropped else {}


STAGE = Stage(
    name="filter",
    reads="download",
    writes="the documents that pass their source's rules; counts by reason; dropped/: a sample for each reason",
    build=build,
    after=("download",),
    libraries=("pyarrow",),
    publish=publish,
)
