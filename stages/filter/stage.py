"""Filter: each part of each source goes through the source's rules as soon as it is downloaded.

A source with a budget keeps the shortest sequence of parts that fills it with what the rules leave; see
`stages.download.stage.fetch_source`. Parts beyond are not used even if they were built.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from stages.download.stage import DOWNLOAD, KeptPart, fetch, fetch_source
from stages.errors import DataError
from stages.filter.edits import library_versions, parse_edits
from stages.filter.rules import parse_rules
from stages.filter.samples import dropped_folder, merge_samples
from stages.filter.work import work
from stages.sources.base import BaseConfig, SourceUnit
from stages.stage import BuildContext, Record, Stage, Unit
from stages.task import Artifact


async def fetch_and_filter(
    context: BuildContext, name: str, config: BaseConfig, spec: SourceUnit
) -> tuple[Record, list[KeptPart]]:
    """Run one download unit, and its parts through the rules. Returns its record, and what the rules kept."""
    params: dict[str, Any] = {"rules": [list(rule) for rule in parse_rules(config.rules, config.words)]}
    if config.edit:
        params |= {"edit": parse_edits(config.edit), "versions": library_versions(config.edit)}
    record = await fetch(context, name, config, spec)
    filtered = await context.map(
        FILTER,
        (
            Unit(work, params, [part], f"{spec.name} {part.name}", name, part.meta.get("text_bytes", 0))
            for part in record.named("part-")
        ),
    )
    return record, [kept_of(part) for part in filtered]


def kept_of(record: Record) -> KeptPart:
    """Return what later steps need of a filter unit's record."""
    counts = record.counts
    return KeptPart(record.output("docs"), counts.get("kept", 0), counts.get("text_bytes", 0), record.output("dropped"))


@dataclass(frozen=True)
class Filtered:
    """What the rules left, by source.

    Where the recipe takes documents down, the stage `exclude` publishes the samples, without them.
    """

    docs: dict[str, list[Artifact]]  # one table a part
    dropped: dict[str, Artifact]  # a sample of what was dropped, of sources that lost any
    publish_dropped: bool


async def build(context: BuildContext) -> Filtered:
    """Build the filtered documents of each source. Downloads as it goes."""

    async def filter_source(name: str, config: BaseConfig) -> tuple[list[Artifact], Artifact | None]:
        parts = await fetch_source(context, name, config, fetch_and_filter)
        docs = [part.docs for part in parts]
        part_samples = [part.dropped for part in parts if part.dropped and part.dropped.rows]
        if not part_samples:
            return docs, None
        record = await context.run(FILTER, Unit(merge_samples, {}, part_samples, "dropped", name))
        return docs, record.output("dropped")

    sources = context.recipe.sources
    results = await asyncio.gather(*(filter_source(name, config) for name, config in sources.items()))
    by_source = dict(zip(sources, results, strict=True))
    return Filtered(
        docs={name: docs for name, (docs, _) in by_source.items()},
        dropped={name: sample for name, (_, sample) in by_source.items() if sample},
        publish_dropped=not context.recipe.exclude.asked,
    )


def check(context: BuildContext, result: Filtered) -> None:
    """Raise DataError when a source's rules leave no document, naming the commonest reason."""
    for name in result.docs:
        counts = context.counts(FILTER, name)
        if counts.get("kept", 0):
            continue
        reasons = {k.removeprefix("dropped."): n for k, n in counts.items() if k.startswith("dropped.")}
        reason, n = min(reasons.items(), key=lambda item: (-item[1], item[0]))
        shown = f"; `{context.command('dropped')}` shows some" if result.publish_dropped else ""
        raise DataError(
            f"source {name}: the rules dropped all {counts['rows_in']:,} documents, {n:,} of them for {reason}{shown}; "
            f"loosen that rule or drop it from sources.{name}.rules"
        )


def publish(result: Filtered) -> dict[str, dict[str, Artifact]]:
    """Publish `dropped/<source>.parquet`, where any document was dropped."""
    return dropped_folder(result.dropped) if result.publish_dropped else {}


FILTER = Stage(
    name="filter",
    reads="download",
    writes="the documents that pass their source's rules; counts by reason; dropped/: a sample for each reason",
    build=build,
    after=(DOWNLOAD,),
    libraries=("pyarrow",),
    publish=publish,
    check=check,
    drops_documents=True,
)
