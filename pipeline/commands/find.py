"""`find`: a document to its shards, its tokens and the training steps that read them, or to what became of it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable

from pipeline.commands.report import TextConsole
from pipeline.commands.stored_records import records_beside
from pipeline.commands.trace import Run, open_run
from pipeline.errors import UserError
from stages.lineage.curated import curated_folder
from stages.lineage.drop_reason import explain_drops
from stages.lineage.find import FoundDocument, Query, find
from train.data.manifest import Manifest
from train.data.sampler import steps_that_read
from train.monitor.text import printable

BUDGETS = ("max_tokens", "max_documents", "max_bytes")
SHOWN = 20  # documents, and steps of one, unless all are asked for


def print_found(manifest: Manifest, query: Query, run_folder: str | None, as_json: bool, full: bool) -> None:
    """Print all documents that `query` means. Raises UserError when nothing is known of any."""
    documents = find_all(manifest, query)
    run = open_run(manifest, run_folder) if run_folder else None
    if run:
        add_steps(manifest, run, documents)
    if as_json:
        for document in documents:
            print(json.dumps(document.to_dict()))
    if not documents:
        raise UserError("no such document, in this mixture or in what it was made from")
    if not as_json:
        print_documents(documents, run, full)


def find_all(manifest: Manifest, query: Query) -> list[FoundDocument]:
    """Return the documents of the corpus that `query` means, then those that were dropped on the way to it."""
    documents = find(manifest, query)
    stored = records_beside(manifest)
    downloaded = explain_drops(query, stored)
    if stored.missing:
        stage, label = min(stored.missing)
        print(
            f"{len(stored.missing):,} units of this build are missing or damaged ({printable(f'{stage} {label}')}), so "
            "what became of documents that are not in the mixture is not all known; run it again to mend them",
            file=sys.stderr,
        )
    missing = {name: document for name, document in downloaded.items() if name not in documents}
    explain_curated(manifest, query, [document for document in missing.values() if document.status == "curated"])
    return [*documents.values(), *missing.values()]


def explain_curated(manifest: Manifest, query: Query, documents: list[FoundDocument]) -> None:
    """Say of documents that no rule and no later stage dropped why they are not among those of the corpus."""
    if not documents or not curated_folder(manifest):
        return
    ids = [document.document_id for document in documents]
    in_corpus = find(manifest, Query(ids=ids)) if query.text else {}
    for document in documents:
        config = manifest.recipe_value("sources", document.source)
        if document.name in in_corpus:
            document.note = document.note or "the source's text has the phrase, the curated text does not"
        elif any(config.get(key) is not None for key in BUDGETS):
            document.status, document.note = "not taken", f"beyond the budget of {document.source}"


def add_steps(manifest: Manifest, run: Run, documents: Iterable[FoundDocument]) -> None:
    """Fill in the steps of a run that read any token of each document's places, in this build of the data."""
    for document in documents:
        steps: set[int] = set()
        for place in document.places:
            steps.update(steps_that_read(manifest, run.config, place.shard, place.start, place.stop))
        document.steps = [step + 1 for step in sorted(steps) if run.build_of(step + 1) == manifest.build_id]


def print_documents(documents: list[FoundDocument], run: Run | None, full: bool) -> None:
    """Print how many documents there are of each status, and the documents, SHOWN of them or all."""
    console = TextConsole()
    counts = Counter(document.status for document in documents)
    summary = ", ".join(f"{n:,} {status}" for status, n in sorted(counts.items()))
    console.print(f"{len(documents):,} documents: {summary}")
    if run and len(run.builds) > 1:
        console.print(f"{run.folder} went on with another build; the steps are those that read this one")
    for document in documents if full else documents[:SHOWN]:
        print_document(console, document, run, full)
    if not full and len(documents) > SHOWN:
        console.print(f"and {len(documents) - SHOWN:,} more; --full or --json shows all")


def print_document(console: TextConsole, document: FoundDocument, run: Run | None, full: bool) -> None:
    """Print one document: what it is, what became of it, where it lies and which steps of `run` read it."""
    console.print()
    origin = f"{document.source}: {document.source_file} row {document.source_row:,}"
    console.print(f"{document.document_id}  {origin}  {document.url or ''}".rstrip())
    console.print(f"  {document.status}{': ' if document.note else ''}{document.note}")
    for place in document.places:
        notes = [f"copy {place.copy}"] if place.copy else []
        notes += [f"part {place.part}"] if place.part else []
        suffix = f"  ({', '.join(notes)})" if notes else ""
        console.print(f"  {place.shard} tokens {place.start:,} to {place.stop - 1:,}{suffix}")
    if run and document.steps is not None and document.status == "training":
        shown = document.steps if full else document.steps[:SHOWN]
        more = f" and {len(document.steps) - len(shown):,} more" if len(shown) < len(document.steps) else ""
        steps = f"read in steps {', '.join(map(str, shown))}{more}" if shown else "read in no step"
        console.print(f"  {steps} of {run.folder}")
