"""`find`: a document to its shards, its tokens and the training steps that read them, or to what became of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from rich.console import Console

from pipeline.commands.drop_reason import fates
from pipeline.commands.trace import Run, open_run
from pipeline.errors import UserError
from stages.lineage.find import Found, Query, find
from stages.lineage.trace import curated_folder
from train.data.manifest import Manifest
from train.data.sampler import steps_that_read

BUDGETS = ("max_tokens", "max_documents", "max_bytes")
SHOWN = 20  # documents, and steps of one, unless all are asked for


def print_found(manifest: Manifest, query: Query, folder: str | None, as_json: bool, full: bool) -> None:
    """All documents that `query` means. Raises UserError when nothing is known of any."""
    documents = find(manifest, query)
    missed = {key: one for key, one in fates(manifest, query).items() if key not in documents}
    explain(manifest, query, [one for one in missed.values() if one.status == "curated"])
    documents |= missed
    found = list(documents.values())
    run = open_run(manifest, folder) if folder else None
    if run:
        read_in(manifest, run, found)
    if as_json:
        for one in found:
            print(json.dumps(one.to_dict()))
    if not found:
        raise UserError("no such document, in this mixture or in what it was made from")
    if as_json:
        return
    console = Console(highlight=False, soft_wrap=True)
    counts = Counter(one.status for one in found)
    summary = ", ".join(f"{n:,} {status}" for status, n in sorted(counts.items()))
    console.print(f"{len(found):,} documents: {summary}", markup=False)
    if run and len(run.builds) > 1:
        console.print(f"{folder} went on with another build; the steps are those that read this one", markup=False)
    for one in found if full else found[:SHOWN]:
        describe(console, one, folder, full)
    if not full and len(found) > SHOWN:
        console.print(f"and {len(found) - SHOWN:,} more; --full or --json shows all", markup=False)


def explain(manifest: Manifest, query: Query, kept: list[Found]) -> None:
    """Say of documents that no rule and no later stage dropped why they are not among those of the corpus."""
    if not kept or curated_folder(manifest) is None:
        return
    there = find(manifest, Query(ids=[one.document_id for one in kept])) if query.text else {}
    for one in kept:
        asked = manifest.recipe_value("sources", one.source)
        if (one.source, one.document_id) in there:
            one.note = one.note or "the source's text has the phrase, the curated text does not"
        elif any(asked.get(name) is not None for name in BUDGETS):
            one.status, one.note = "not taken", f"beyond the budget of {one.source}"


def read_in(manifest: Manifest, run: Run, found: Iterable[Found]) -> None:
    """Fill in the steps of a run that read any token of each document's places, in this build of the data."""
    for one in found:
        steps = {s for p in one.places for s in steps_that_read(manifest, run.config, p.shard, p.start, p.stop)}
        one.steps = [s + 1 for s in sorted(steps) if run.build_of(s + 1) == manifest.build_id]


def describe(console: Console, one: Found, folder: str | None, full: bool) -> None:
    """One document, for people."""
    console.print()
    where = f"{one.source}: {one.source_file} row {one.source_row:,}"
    console.print(f"{one.document_id}  {where}  {one.url or ''}".rstrip(), markup=False)
    console.print(f"  {one.status}{': ' if one.note else ''}{one.note}", markup=False)
    for place in one.places:
        notes = [f"copy {place.copy}"] if place.copy else []
        notes += [f"part {place.part}"] if place.part else []
        said = f"  ({', '.join(notes)})" if notes else ""
        console.print(f"  {place.shard} tokens {place.start:,} to {place.stop - 1:,}{said}", markup=False)
    if one.steps is not None and one.status == "training":
        shown = one.steps if full else one.steps[:SHOWN]
        more = f" and {len(one.steps) - len(shown):,} more" if len(shown) < len(one.steps) else ""
        steps = f"read in steps {', '.join(map(str, shown))}{more}" if one.steps else "read in no step"
        console.print(f"  {steps} of {folder}", markup=False)
