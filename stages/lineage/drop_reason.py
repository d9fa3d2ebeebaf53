"""Why a document is not in the corpus: the records of the last build, and the tables they name, say it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.decontaminate.stage import DECONTAMINATE
from stages.dedup.stage import DEDUP
from stages.download.stage import DOWNLOAD
from stages.exclude.stage import EXCLUDE
from stages.filter.stage import FILTER
from stages.lineage.find import DocumentName, FoundDocument, Query
from stages.schemas import ID
from stages.stage import Record, Stage
from stages.task import Artifact

SHOWN = 120  # characters of a stretch that contaminates


class RecordReader(Protocol):
    """Reads what the units of a build left; `pipeline.commands.stored_records` reads them from a store."""

    def records(self, stage: str) -> Iterator[Record]:
        """Yield the record of each unit of a stage that is there, by label; none where there is no store."""

    def table(self, artifact: Artifact, columns: list[str] | None = None) -> pa.Table:
        """Read columns of an output, or of the slice that it is."""


def explain_drops(query: Query, reader: RecordReader) -> dict[DocumentName, FoundDocument]:
    """Return the documents read from the sources that `query` means, each with why it is not in the corpus.

    Those that are in it say so too (status `curated`): the caller knows more of them. Empty without records.
    """
    rows = list(downloaded_rows(query, reader))
    ids = pa.array(sorted({row["document_id"] for row in rows}), ID)
    reasons = rules_that_drop(ids, reader) if rows else {}
    documents: dict[DocumentName, FoundDocument] = {}
    for row in rows:
        document = FoundDocument(
            row["document_id"].hex(), row["source"], row["source_file"], row["source_row"], row["url"]
        )
        reason = reasons.get((row["part"], row["row"]))
        document.status, document.note = ("dropped", f"by the rule {reason}") if reason else ("curated", "")
        documents[document.name] = document
    if documents:
        note_duplicates(documents, ids, reader)
        note_contaminated(documents, ids, reader)
        note_excluded(documents, ids, reader)
    return documents


def downloaded_rows(query: Query, reader: RecordReader) -> Iterator[dict[str, Any]]:
    """Yield the downloaded documents that `query` means, with their `source`, and the `part` and `row` of them."""
    columns = list(dict.fromkeys([*query.columns, "source_file", "source_row"]))
    for record in reader.records(DOWNLOAD.name):
        source = record.label.partition(" ")[0]
        for part in record.named("part-"):
            table = reader.table(part, columns)
            rows = np.flatnonzero(query.mask(table))
            for row, document in zip(rows.tolist(), table.take(pa.array(rows)).to_pylist(), strict=True):
                yield {"source": source, "part": f"{record.label} {part.name}", "row": row, **document}


def rules_that_drop(ids: pa.Array, reader: RecordReader) -> dict[tuple[str, int], str]:
    """Return why the rules dropped documents `ids`, with the measure if there is one, by part and row of it."""
    reasons = {}
    for record in reader.records(FILTER.name):
        for artifact in record.named("ruled-out"):
            for row in rows_of(reader.table(artifact), ids):
                value = "" if row["value"] is None else f" ({row['value']:.4g})"
                reasons[record.label, row["row"]] = row["reason"] + value
    return reasons


def note_duplicates(documents: Mapping[DocumentName, FoundDocument], ids: pa.Array, reader: RecordReader) -> None:
    """Say of documents that deduplication dropped which one was kept for them."""
    drops: dict[bytes, list[dict[str, Any]]] = {}
    paths = dict.fromkeys(drop.path for drop in outputs(reader, DEDUP, "drops-"))  # many are slices of one file
    for path in paths:
        table = reader.table(Artifact(path, ""), ["document_id", "kept_id", "kept_source", "near"])
        for drop in rows_of(table, ids):
            drops.setdefault(drop["document_id"], []).append(drop)
    for document in documents.values():
        for drop in drops.get(bytes.fromhex(document.document_id), []):
            kept = drop["kept_source"], drop["kept_id"].hex()
            if document.status == "curated" and document.name != kept:
                kind = "a near-duplicate" if drop["near"] else "a duplicate"
                document.status = "dropped"
                document.note = f"{kind} of {kept[1]} in {kept[0]}, which was kept"


def note_contaminated(documents: Mapping[DocumentName, FoundDocument], ids: pa.Array, reader: RecordReader) -> None:
    """Say of documents that hold a piece of an evaluation set which item it is of."""
    for artifact in outputs(reader, DECONTAMINATE, "evidence-"):
        for row in rows_of(reader.table(artifact), ids):
            document = documents.get((row["source"], row["document_id"].hex()))
            if document is None or document.status != "curated" or document.note:
                continue
            text = row["text"] if len(row["text"]) <= SHOWN else row["text"][:SHOWN] + "…"
            document.note = f"contaminated by {row['set']} item {row['item_id'].hex()}: {text!r}"
            if row["done"] == "dropped":
                document.status = "dropped"
            elif row["done"] == "cut":
                document.note = f"a piece was cut out, {document.note}"


def note_excluded(documents: Mapping[DocumentName, FoundDocument], ids: pa.Array, reader: RecordReader) -> None:
    """Say of documents that the recipe's `exclude` took out that it did."""
    excluded: set[bytes] = set()
    for artifact in outputs(reader, EXCLUDE, "excluded"):
        excluded.update(row["document_id"] for row in rows_of(reader.table(artifact, ["document_id"]), ids))
    for document in documents.values():
        if bytes.fromhex(document.document_id) in excluded:
            document.status = "excluded"
            document.note = "by the recipe's `exclude`, by name or as a copy of what it names"


def outputs(reader: RecordReader, stage: Stage[Any], prefix: str) -> Iterator[Artifact]:
    """Yield all outputs of a stage whose name starts with `prefix`."""
    for record in reader.records(stage.name):
        yield from record.named(prefix)


def rows_of(table: pa.Table, ids: pa.Array) -> list[dict[str, Any]]:
    """Return the rows of a table whose `document_id` is among `ids`."""
    rows: list[dict[str, Any]] = table.filter(pc.is_in(table["document_id"], value_set=ids)).to_pylist()
    return rows
