"""Filter: each part of each source goes through the source's rules as soon as it is downloaded.

A source with a budget takes its units in hash order, a few at a time, and keeps the shortest sequence of
parts that fills it; parts beyond are not used even if they were built.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from stages.apply_rules import work
from stages.base import Artifact, DataError, Record, Stage
from stages.download import check_not_empty, fetch, units_of, within_budget
from stages.rules import parse_rules
from stages.sources.base import UnitSpec

LOOK_AHEAD = 16  # units started at a time for a source with a budget, at most


async def chain(context: Any, name: str, config: Any, spec: UnitSpec) -> tuple[Record, list[Record]]:
    """One download unit, then its parts through the rules: their records."""
    params = {"rules": [list(rule) for rule in parse_rules(config.rules)]}
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
    return record, [r for r in done if r is not None]


async def source_records(context: Any, name: str, config: Any) -> list[Record]:
    """The filter records that make up source `name`, in order: all, or the shortest prefix that fills a budget."""
    specs = await units_of(context, name, config)
    records: list[Record] = []
    downloaded: list[Record] = []
    start = 0
    while start < len(specs):
        window = len(specs) - start if not config.has_budget else next_window(config, records, start)
        batch = specs[start : start + window]
        start += len(batch)
        found = await context.gather(chain(context, name, config, spec) for spec in batch)
        for download, parts in filter(None, found):
            downloaded.append(download)
            records += parts
        enough = within_budget(config, [counts_of(r) for r in records])
        if enough is not None:
            return records[:enough]
    check_not_empty(name, downloaded)
    return records


def counts_of(record: Record) -> tuple[int, int]:
    """(documents, bytes of text) that a filter unit kept."""
    return record.counts.get("kept", 0), record.counts.get("text_bytes", 0)


def next_window(config: Any, records: list[Record], units: int) -> int:
    """How many more units to start: two to see what they hold, then what seems missing."""
    if not units:
        return 2
    documents, size = (max(1, sum(column)) for column in zip((0, 0), *map(counts_of, records), strict=True))
    pairs = ((documents, config.max_documents), (size, config.max_bytes), (size // 4, config.max_tokens))
    missing = min((limit - have) / max(1, have) for have, limit in pairs if limit is not None)
    return min(LOOK_AHEAD, max(1, round(missing * units)))


def check_some_kept(name: str, records: list[Record]) -> None:
    """Raises DataError when a source's rules leave no document, naming the commonest reason."""
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record.counts)
    if not counts["kept"]:
        reasons = {k.removeprefix("dropped."): n for k, n in counts.items() if k.startswith("dropped.")}
        reason, n = min(reasons.items(), key=lambda item: (-item[1], item[0]))
        raise DataError(
            f"source {name}: the rules dropped all {counts['rows_in']:,} documents, {n:,} of them for {reason}; "
            f"loosen that rule or drop it from sources.{name}.rules"
        )


async def build(context: Any) -> dict[str, list[Artifact]]:
    """Filtered documents by source, one table a part. Downloads as it goes."""

    async def one(name: str, config: Any) -> list[Artifact]:
        records = await source_records(context, name, config)
        check_some_kept(name, records)
        return [record.output("docs") for record in records]

    sources = context.recipe.sources
    found = await asyncio.gather(*(one(name, config) for name, config in sources.items()))
    return dict(zip(sources, found, strict=True))


STAGE = Stage(
    name="filter",
    reads="download",
    writes="the documents that pass their source's rules; counts by reason",
    build=build,
    after=("download",),
    libraries=("pyarrow",),
)
