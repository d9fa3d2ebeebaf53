"""Take-downs: documents that a recipe names by id, address or domain leave the corpus, and their copies with them.

What is named is looked for among all documents that the rules kept, before duplicates were dropped. Whatever has the
same normalized text as one of them (the hash that exact deduplication compares) is excluded too, from every source: so
a duplicate that was dropped in favor of an excluded document does not come back, and where the copy that was named
had itself been dropped, the one that was kept in its place goes.

`find_named` and `find_copies` read ids, addresses and hashes only; a part that holds no excluded document is passed on
as it is, so that nothing after it runs again. The tokenizer stays trained on the text before exclusion, or one
take-down would change every token of the corpus; `retrain_tokenizer` asks for that.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow.parquet as pq

from stages.decontaminate.stage import DECONTAMINATE
from stages.dedup.stage import DEDUP
from stages.exclude.work import find_copies, find_named, find_standing, merge_values, work
from stages.filter.samples import dropped_folder, leave_out
from stages.filter.stage import FILTER, FilteredPart
from stages.stage import BuildContext, Stage, Unit
from stages.task import Artifact

SHOWN_NEAR = 5  # near-duplicates named in a warning
SHOWN_UNUSED = 20  # selectors named in a warning


@dataclass(frozen=True)
class Curated:
    """The corpus as it is tokenized, by source."""

    docs: dict[str, list[Artifact]]  # one table a part
    dropped: dict[str, Artifact]  # samples of what the rules dropped, where anything is taken down


async def build(context: BuildContext) -> Curated:
    """Build the curated documents of each source, without those taken down. Warns of names that match nothing."""
    docs = (await context.stage(DECONTAMINATE)).docs
    if not context.recipe.exclude.asked:
        return Curated(docs, {})
    selectors = context.recipe.exclude.selectors()
    filtered = await context.stage(FILTER)
    resampled = await context.map(
        EXCLUDE,
        (Unit(leave_out, selectors, [sample], "dropped", name) for name, sample in filtered.dropped.items()),
    )
    records = zip(filtered.dropped, resampled, strict=True)
    dropped = {name: record.output("dropped") for name, record in records}
    excluded = await find_excluded(context, filtered.docs, selectors)
    if excluded is None:
        return Curated(docs, dropped)
    await warn_of_standing(context, excluded)
    parts = [(name, i, part) for name, parts in docs.items() for i, part in enumerate(parts)]
    rewritten = await context.map(
        EXCLUDE, (Unit(work, {}, [part, excluded], f"{i:05d}", name, part.bytes) for name, i, part in parts)
    )
    left: dict[str, list[Artifact]] = {name: [] for name in docs}
    for (name, _, part), record in zip(parts, rewritten, strict=True):
        left[name].append(next(iter(record.named("docs")), part))
    return Curated(left, dropped)


async def find_excluded(
    context: BuildContext, filtered: dict[str, list[FilteredPart]], selectors: dict[str, list[str]]
) -> Artifact | None:
    """Return the table of all documents that are taken down, copies included; None when nothing is meant."""
    parts = [(name, i, part) for name, parts in filtered.items() for i, part in enumerate(parts)]
    searched = await context.map(
        EXCLUDE, (Unit(find_named, dict(selectors), part.inputs, f"find {i:05d}", name) for name, i, part in parts)
    )
    used = {selector for record in searched for selector in record.output("named").meta["used"]}
    unused = sorted({selector for names in selectors.values() for selector in names} - used)
    if unused:
        more = " ..." if len(unused) > SHOWN_UNUSED else ""
        context.warn(f"exclude: no document is meant by {', '.join(unused[:SHOWN_UNUSED])}{more}")
    named = [record.output("named") for record in searched if record.output("named").rows]
    if not named:
        return None
    hashes = (await context.run(EXCLUDE, Unit(merge_values, {}, named, "named"))).output("union")
    copied = await context.map(
        EXCLUDE, (Unit(find_copies, {}, [part.kept, hashes], f"copies {i:05d}", name) for name, i, part in parts)
    )
    copies = [record.output("excluded") for record in copied if record.output("excluded").rows]
    return (await context.run(EXCLUDE, Unit(merge_values, {}, copies, "excluded"))).output("union")


async def warn_of_standing(context: BuildContext, excluded: Artifact) -> None:
    """Warn of excluded documents that had been dropped already, as nearly the same as one that stays."""
    drops = [artifact for artifact in (await context.stage(DEDUP)).drops if artifact.rows]
    if not drops:
        return
    record = await context.run(EXCLUDE, Unit(find_standing, {}, [excluded, *drops], "near-duplicates that stay"))
    table = record.output("standing")
    for row in pq.read_table(context.artifact_path(table))[:SHOWN_NEAR].to_pylist() if table.rows else []:
        gone, kept = row["document_id"].hex(), row["kept_id"].hex()
        context.warn(
            f"exclude: {gone} was dropped before, nearly the same as {kept} of {row['kept_source']}, which stays"
        )
    if table.rows > SHOWN_NEAR:
        more = table.rows - SHOWN_NEAR
        context.warn(f"exclude: and {more:,} more were nearly the same as one that stays; `find` says which")


def publish(result: Curated) -> dict[str, dict[str, Artifact]]:
    """Publish `curated/<source>-00000.parquet`, ...; and `dropped/<source>.parquet`, without what is excluded."""
    files = {f"{name}-{i:05d}.parquet": part for name, parts in result.docs.items() for i, part in enumerate(parts)}
    return {"curated": files, **dropped_folder(result.dropped)}


EXCLUDE = Stage(
    name="exclude",
    reads="decontaminate, filter, recipe.exclude",
    writes="curated/: documents without those that the recipe takes down, nor their copies",
    build=build,
    after=(DECONTAMINATE, FILTER, DEDUP),
    libraries=("pyarrow",),
    publish=publish,
    drops_documents=True,
)
