"""Filter: each part of each source is measured as soon as it is downloaded, and its measures judged.

Two stages, because they cost so differently: `measure` reads the text, once for as long as nothing changes that changes
a measure; `filter` compares measures with thresholds. What it leaves is a list of rows: no text is written again.

A source with a budget keeps the shortest sequence of parts that fills it with what the rules leave; see
`stages.download.stage.fetch_source`. Parts beyond are not used even if they were built.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from stages.download.stage import DOWNLOAD, fetch, fetch_source
from stages.errors import DataError
from stages.filter import fasttext, measure
from stages.filter.edits import library_versions, parse_edits
from stages.filter.parse import parse_rules
from stages.filter.rules import EDITING
from stages.filter.samples import choose_samples, dropped_folder, write_samples
from stages.filter.verdict import Rules, measured_rules
from stages.filter.where import SHARES, asks_language, find_thresholds, shares, unlisted_rules, with_thresholds
from stages.filter.work import work
from stages.scores.stage import BUILD_SCORES
from stages.sources.base import BaseConfig, SourceUnit
from stages.stage import BuildContext, Record, Stage, Unit
from stages.task import Artifact


class MeasuredPart(NamedTuple):
    """A part of a source and what was measured of it."""

    label: str
    source: Artifact  # as it was read
    docs: Artifact  # with the texts that edits left; `source` itself where none was asked for
    measures: Artifact
    documents: int
    text_bytes: int


class FilteredPart(NamedTuple):
    """What the rules left of a part of a source, and how much it is."""

    source: Artifact
    docs: Artifact
    kept: Artifact  # the rows of `docs` that stay (stages.kept)
    ruled_out: Artifact
    documents: int  # that stay
    text_bytes: int

    @property
    def inputs(self) -> list[Artifact]:
        """What a unit needs to read the documents that stay."""
        return [self.kept, self.docs]


@dataclass(frozen=True)
class Filtered:
    """What the rules left, by source.

    Where the recipe takes documents down, the stage `exclude` publishes the samples, without them.
    """

    docs: dict[str, list[FilteredPart]]
    dropped: dict[str, Artifact]  # a sample of what was dropped, of sources that lost any
    publish_dropped: bool


def edits_texts(config: BaseConfig) -> bool:
    """Return whether a source's text may be another after `measure`, which then writes it."""
    return bool(config.edit) or any(name in EDITING for name, _ in parse_rules(config.rules))


async def measure_part(
    context: BuildContext, name: str, config: BaseConfig, label: str, part: Artifact
) -> MeasuredPart:
    """Measure one part of source `name` by what its rules look at, and by the recipe's scores."""
    rules = parse_rules(config.rules, config.words)
    rules = [*rules, *parse_rules(unlisted_rules(rules), config.words)]
    scorers = await context.stage(BUILD_SCORES)
    params: dict[str, Any] = {"rules": [list(rule) for rule in measured_rules(rules)]}
    if config.edit:
        params |= {"edit": parse_edits(config.edit), "versions": library_versions(config.edit)}
    if scorers:
        params["scores"] = [[score, scorer.label] for score, scorer in scorers.items()]
    if tells_language := asks_language(rules):
        params["language"] = True
    if tells_language or any(scorer.label for scorer in scorers.values()):
        params["fasttext"] = fasttext.library_versions()
    inputs = [part, *(scorer.model for scorer in scorers.values())]
    size = part.meta.get("text_bytes", 0)
    record = await context.run(MEASURE, Unit(measure.work, params, inputs, label, name, size))
    docs = next(iter(record.named("docs")), part)
    return MeasuredPart(label, part, docs, record.output("measures"), part.rows, size)


async def fetch_and_measure(
    context: BuildContext, name: str, config: BaseConfig, spec: SourceUnit
) -> tuple[Record, list[MeasuredPart]]:
    """Run one download unit, and measure its parts. Returns its record, and the parts, none of them left out."""
    record = await fetch(context, name, config, spec)
    labels = {f"{spec.name} {part.name}": part for part in record.named("part-")}
    return record, await context.gather(measure_part(context, name, config, *item) for item in labels.items())


async def measure_all(context: BuildContext) -> None:
    """Measure every source, of one with a budget what would fill it if its rules dropped nothing."""
    sources = context.recipe.sources
    await asyncio.gather(*(fetch_source(context, name, config, fetch_and_measure) for name, config in sources.items()))


async def judge_part(context: BuildContext, name: str, rules: Rules, part: MeasuredPart) -> FilteredPart:
    """Judge a part by its measures."""
    params = {"rules": [list(rule) for rule in rules]}
    record = await context.run(FILTER, Unit(work, params, [part.measures], part.label, name, part.measures.bytes))
    documents, text_bytes = record.counts.get("kept", 0), record.counts.get("text_bytes", 0)
    return FilteredPart(
        part.source, part.docs, record.output("kept"), record.output("ruled-out"), documents, text_bytes
    )


async def filter_source(context: BuildContext, name: str, config: BaseConfig) -> list[FilteredPart]:
    """Take one source through its rules. What is a share of it is known once all of it is measured."""
    rules = parse_rules(config.rules, config.words)

    async def fetch_and_filter(
        context: BuildContext, name: str, config: BaseConfig, spec: SourceUnit
    ) -> tuple[Record, list[FilteredPart]]:
        record, parts = await fetch_and_measure(context, name, config, spec)
        return record, await context.gather(judge_part(context, name, rules, part) for part in parts)

    wanted = shares(rules)
    if not wanted:
        return await fetch_source(context, name, config, fetch_and_filter)
    parts = await fetch_source(context, name, config, fetch_and_measure)
    unit = Unit(
        find_thresholds, {"shares": [list(share) for share in wanted]}, [p.measures for p in parts], "shares", name
    )
    thresholds = (await context.run(FILTER, unit)).output("thresholds").meta["values"]
    for (column, edge, share), value in zip(wanted, thresholds, strict=True):
        context.say(f"source {name}: the {edge} {share:.4g} of {column} is {SHARES[edge]} {value:.6g}")
    plain = with_thresholds(rules, thresholds)
    return await context.gather(judge_part(context, name, plain, part) for part in parts)


async def sample_dropped(context: BuildContext, name: str, parts: list[FilteredPart]) -> Artifact | None:
    """Return a sample of what the rules dropped of a source, None where that is nothing."""
    losing = [part for part in parts if part.ruled_out.rows]
    if not losing:
        return None
    ruled_out = [part.ruled_out for part in losing]
    chosen = (await context.run(FILTER, Unit(choose_samples, {}, ruled_out, "choose", name))).output("chosen")
    used = sorted(set(pq.read_table(context.artifact_path(chosen), columns=["part"])["part"].to_pylist()))
    inputs = [chosen, *(losing[number].source for number in used)]
    return (await context.run(FILTER, Unit(write_samples, {"parts": used}, inputs, "dropped", name))).output("dropped")


async def build(context: BuildContext) -> Filtered:
    """Build the filtered documents of each source. Downloads and measures as it goes."""

    async def filter_and_sample(name: str, config: BaseConfig) -> tuple[list[FilteredPart], Artifact | None]:
        parts = await filter_source(context, name, config)
        return parts, await sample_dropped(context, name, parts)

    sources = context.recipe.sources
    results = await asyncio.gather(*(filter_and_sample(name, config) for name, config in sources.items()))
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


MEASURE = Stage(
    name="measure",
    reads="download, build_scores",
    writes="what each rule measures of each document, whatever its thresholds; the texts that edits leave",
    build=measure_all,
    after=(DOWNLOAD, BUILD_SCORES),
    libraries=("pyarrow",),
)

FILTER = Stage(
    name="filter",
    reads="measure",
    writes="the rows that pass their source's rules; counts by reason; dropped/: a sample for each reason",
    build=build,
    after=(DOWNLOAD, BUILD_SCORES, MEASURE),
    libraries=("pyarrow",),
    publish=publish,
    check=check,
    drops_documents=True,
)
