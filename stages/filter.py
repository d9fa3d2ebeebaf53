"""Filter: each part of each source goes through the source's rules as soon as it is downloaded.

A source with a budget keeps the shortest sequence of parts that fills it with what the rules leave; see
`stages.download.take`. Parts beyond are not used even if they were built.
"""

from __future__ import annotations

import asyncio
from typing import Any

from stages.apply_rules import work
from stages.base import Artifact, DataError, Record, Stage
from stages.download import Kept, fetch, take
from stages.rules import parse_rules
from stages.sources.base import UnitSpec


async def chain(context: Any, name: str, config: Any, spec: UnitSpec) -> tuple[Record, list[Kept]]:
    """One download unit, and its parts through the rules."""
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
    kept = [r for r in done if r is not None]
    return record, [Kept(r.output("docs"), r.counts.get("kept", 0), r.counts.get("text_bytes", 0)) for r in kept]


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


async def build(context: Any) -> dict[str, list[Artifact]]:
    """Filtered documents by source, one table a part. Downloads as it goes."""

    async def one(name: str, config: Any) -> list[Artifact]:
        parts = await take(context, name, config, chain)
        check_some_kept(context, name)
        return [part.docs for part in parts]

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
