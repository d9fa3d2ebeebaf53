"""Decontamination: documents that hold a piece of an evaluation set leave, or have it cut out, with evidence for each.

What is looked for is `stages.decontaminate.ngrams`'s affair. Each curated part is searched for the n-grams of all sets;
what was found goes through one small unit that leaves out n-grams which many documents of the corpus hold; each part
with evidence left is written again. A part without is passed on as it is, so that nothing after it runs again, and
without sets all are, and no unit runs. Validation documents are searched like all others. Ids stay those of the
sources' texts, so no document moves between training and validation.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from stages.decontaminate.search import find_hits, index_ngrams, weigh_hits
from stages.decontaminate.work import gather_evidence, work
from stages.dedup.stage import DEDUP
from stages.evals.stage import EVALS, read_set
from stages.stage import BuildContext, Record, Stage, Unit
from stages.task import Artifact


@dataclass(frozen=True)
class Decontaminated:
    """What decontamination left, by source."""

    docs: dict[str, list[Artifact]]  # one table a part
    evidence: dict[str, Artifact]  # of what left, of sources that lost anything


class PartWithHits(NamedTuple):
    """A part in which something was found."""

    source: str
    number: int  # of the part in its source
    part: Artifact
    hits: Artifact


async def item_sets(context: BuildContext) -> dict[str, Record]:
    """Return the items of each set that the corpus is searched for, by its name."""
    config = context.recipe.decontaminate
    evals = await context.stage(EVALS)
    records = await context.gather(read_set(context, name, against) for name, against in config.against.items())
    return {**(evals if config.evals else {}), **dict(zip(config.against, records, strict=True))}


async def build(context: BuildContext) -> Decontaminated:
    """Build the decontaminated documents of each source. Warns of items found, and of those that cannot be."""
    corpus = asyncio.ensure_future(context.stage(DEDUP))
    reading = asyncio.ensure_future(item_sets(context))
    await asyncio.wait({corpus, reading}, return_when=asyncio.FIRST_EXCEPTION)
    if not context.dry and reading.done():  # a set that cannot be read is told of before the corpus is ready
        reading.result()
    untouched = Decontaminated((await corpus).docs, {})
    sets = await reading
    if not sets:
        return untouched
    return await search_and_take_out(context, untouched, sets)


async def search_and_take_out(
    context: BuildContext, untouched: Decontaminated, sets: dict[str, Record]
) -> Decontaminated:
    """Search all parts for the items of `sets`, and write those that hold evidence again."""
    config = context.recipe.decontaminate
    params = {"ngram": config.ngram, "short": config.short, "common": config.common}
    items = [record.output("items") for record in sets.values()]
    indexed = await context.run(DECONTAMINATE, Unit(index_ngrams, {"sets": list(sets), **params}, items, "index"))
    known = [indexed.output("passages"), indexed.output("grams")]
    parts = [(name, i, part) for name, parts in untouched.docs.items() for i, part in enumerate(parts)]
    searched = await context.map(
        DECONTAMINATE,
        (
            Unit(
                find_hits,
                {"ngram": config.ngram, "short": config.short},
                [part, *known],
                f"look {i:05d}",
                name,
                part.bytes,
            )
            for name, i, part in parts
        ),
    )
    suspects = [PartWithHits(*part, record.output("hits")) for part, record in zip(parts, searched, strict=True)]
    suspects = [suspect for suspect in suspects if suspect.hits.rows]
    result, gathered, common_ngrams = untouched, None, 0
    if suspects:
        all_hits = [suspect.hits for suspect in suspects]
        weighed = await context.run(DECONTAMINATE, Unit(weigh_hits, {"common": config.common}, all_hits, "evidence"))
        common_ngrams = weighed.counts.get("common", 0)
        left = zip(suspects, weighed.named("hits-"), strict=True)
        guilty = [suspect._replace(hits=hits) for suspect, hits in left if hits.rows]
        if guilty:
            result, gathered = await take_out(context, untouched, guilty, known)
    for line in warnings(indexed, gathered, list(sets), common_ngrams):
        context.warn(line)
    return result


async def take_out(
    context: BuildContext, untouched: Decontaminated, guilty: list[PartWithHits], known: list[Artifact]
) -> tuple[Decontaminated, Record]:
    """Write the parts with evidence again. Returns what is left, and the record of `gather_evidence`."""
    config, exclude = context.recipe.decontaminate, context.recipe.exclude
    records = await context.map(
        DECONTAMINATE,
        (
            Unit(
                work,
                {"policy": config.policy_of(source)},
                [part, hits, *known],
                f"{number:05d}",
                source,
                part.bytes,
            )
            for source, number, part, hits in guilty
        ),
    )
    docs = {name: list(parts) for name, parts in untouched.docs.items()}
    tables: dict[str, list[Artifact]] = defaultdict(list)
    for suspect, record in zip(guilty, records, strict=True):
        docs[suspect.source][suspect.number] = record.output("docs")
        tables[suspect.source].append(record.output("evidence"))
    params: dict[str, Any] = {"sources": [[name, len(parts)] for name, parts in tables.items()]}
    if exclude.asked:  # what is taken down is not shown either
        params |= exclude.selectors()
    inputs = [table for parts in tables.values() for table in parts]
    gathered = await context.run(DECONTAMINATE, Unit(gather_evidence, params, inputs, "gathered"))
    evidence_by_source = {name: gathered.output(f"evidence-{name}") for name in tables}
    return replace(untouched, docs=docs, evidence=evidence_by_source), gathered


def warnings(indexed: Record, gathered: Record | None, sets: list[str], common_ngrams: int) -> Iterator[str]:
    """Yield what a person should know: items found, and those that cannot be."""
    found = gathered.outputs[-1].meta["found"] if gathered else {}
    for name in sets:
        total, unsearched = indexed.counts[f"items.{name}"], indexed.counts.get(f"unsearched.{name}", 0)
        if name in found:
            items, documents = found[name]
            yield f"{name}: {items:,} of {total:,} items found in {documents:,} documents; see contaminated/"
        if unsearched:
            why = "too short, or in words that many items share"
            yield f"{name}: {unsearched:,} of {total:,} items are not searched for: {why}"
    if common_ngrams:
        yield f"decontaminate: {common_ngrams:,} n-grams are no evidence, more documents hold them than `common` says"


def publish(result: Decontaminated) -> dict[str, dict[str, Artifact]]:
    """Publish `contaminated/<source>.parquet`, where anything was found."""
    files = {f"{name}.parquet": table for name, table in result.evidence.items()}
    return {"contaminated": files} if files else {}


DECONTAMINATE = Stage(
    name="decontaminate",
    reads="dedup, evals, recipe.decontaminate",
    writes="curated documents without pieces of evaluation sets; contaminated/: the evidence",
    build=build,
    after=(DEDUP, EVALS),
    libraries=("pyarrow", "numpy"),
    publish=publish,
    drops_documents=True,
)
