"""Filter: each part of each source goes through the source's rules as soon as it is downloaded.

A source with a budget keeps the shortest sequence of parts that fills it with what the rules leave; see
`stages.download.stage.take`. Parts beyond are not used even if they were built.
"""

from __future__ import annotations

import asyncio
from typing import Any

from stages.base import Artifact, DataError, Record, Stage
from stages.download.stage import Kept, fetch, take
from stages.filter import samples
from stages.filter.edits import libraries, parse_edits
from stages.filter.rules import parse_rules
from stages.filter.work import work
from stages.sources.base import UnitSpec


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
    return Kept(record.output("docs"), counts.get("kept", 0), counts.get("text_bytes", 0), record.output("dropped"))


class Filtered(dict[str, list[Artifact]]):
    """Filtered documents by source, one table a part; and of each source the sample of what was dropped.

    Where the recipe takes documents down, the stage `exclude` publishes the samples, without them.
    """

    dropped: dict[str, Artifact]
    publish_dropped: bool


async def build(context: Any) -> Filtered:
    """Filtered documents by source. Downloads as it goes."""

    async def one(name: str, config: Any) -> tuple[list[Artifact], Artifact | None]:
        parts = await take(context, name, config, chain)
        docs, sampled = (
            [part.docs for part in parts],
            [part.dropped for part in parts if part.dropped and part.dropped.rows],
        )
        if not sampled:
            return docs, None
        record = await context.run("filter", samples.work, {}, sampled, label="dropped", source=name)
        return docs, record.output("dropped")

    sources, exclude = context.recipe.sources, context.recipe.exclude
    found = await asyncio.gather(*(one(name, config) for name, config in sources.items()))
    result = Filtered((name, docs) for name, (docs, _) in zip(sources, found, strict=True))
    result.dropped = {name: sample for name, (_, sample) in zip(sources, found, strict=True) if sample}
    result.publish_dropped = not any((exclude.ids, exclude.urls, exclude.domains))
    return result


def check(context: Any, result: Filtered) -> None:
    """Raises DataError when a source's rules leave no document, naming the commonest reason."""
    for name in result:
        counts = context.counts("filter", name)
        if counts.get("kept", 0):
            continue
        reasons = {k.removeprefix("dropped."): n for k, n in counts.items() if k.startswith("dropped.")}
        reason, n = min(reasons.items(), key=lambda item: (-item[1], item[0]))
        shown = "; `python -m pipeline dropped` shows some" if result.publish_dropped else ""
        raise DataError(
            f"source {name}: the rules dropped all {counts['rows_in']:,} documents, {n:,} of them for {reason}{shown}; "
            f"loosen that rule or drop it from sources.{name}.rules"
        )


def publish(result: Filtered) -> dict[str, dict[str, Artifact]]:
    """`dropped/<source>.parquet`, where any document was dropped."""
    return samples.folder(result.dropped) if result.publish_dropped else {}


STAGE = Stage(
    name="filter",
    reads="download",
    writes="the documents that pass their source's rules; counts by reason; dropped/: a sample for each reason",
    build=build,
    after=("download",),
    libraries=("pyarrow",),
    publish=publish,
    check=check,
)
