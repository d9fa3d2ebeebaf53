"""The report on duplicates: how many, of which source in favor of which, and pairs for a person to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.kept import kept_rows, read_rows
from stages.task import Task

EXCERPT = 400  # characters of a text; none where the recipe takes documents down, whose text nothing may publish
KINDS = ("duplicate", "near_duplicate")


def write_report(task: Task) -> None:
    """Write the report. Inputs: of each filtered part `kept`, then its documents. Output: `report`.

    Params: near, None or {ngram, bands, rows}; rates, as `duplicate_rates` gives them; pairs, a list of [number of the
    part, row of `kept`] of the document dropped and the same of the one kept; sources, the name of each part's;
    excerpt, characters.
    """
    from stages.dedup.minhash import describe_minhash

    shape = task.params["near"]
    value: dict[str, Any] = {"by source": task.params["rates"]}
    if shape:
        value["near-duplicates"] = describe_minhash(**shape)
        value["pairs"] = [describe_pair(task, *pair, ngram=shape["ngram"]) for pair in task.params["pairs"]]
    path = task.output("report.json")
    Path(path).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    task.add("report", path)


def describe_pair(task: Task, part: int, row: int, kept_part: int, kept_row: int, *, ngram: int) -> dict[str, Any]:
    """Return a document dropped and the one kept, for the report, with the similarity that they have.

    Where that is low they are not alike themselves, but both like others of their cluster.
    """
    from stages.dedup.minhash import jaccard

    dropped = read_document(task, part, row)
    kept = read_document(task, kept_part, kept_row)
    similarity = jaccard(dropped["text"], kept["text"], ngram)
    excerpt = task.params["excerpt"]
    return {
        "jaccard": round(similarity, 4),
        "dropped": shorten(dropped, excerpt),
        "kept": shorten(kept, excerpt),
    }


def shorten(document: Mapping[str, Any], excerpt: int) -> dict[str, Any]:
    """Return the document with at most `excerpt` characters of its text, and their number in all."""
    text = document["text"]
    return {**document, "text": text[:excerpt], "characters": len(text)}


def read_document(task: Task, part: int, row: int) -> dict[str, Any]:
    """Return one document of a filtered part, by its row of `kept`. Raises IndexError for one that is not there."""
    kept, docs = task.inputs[2 * part : 2 * part + 2]
    rows = kept_rows(task.path(kept))[row : row + 1]
    columns = ["document_id", "source_file", "source_row", "url", "text"]
    for _, table in read_rows(task.path(docs), rows, columns):
        document = table.to_pylist()[0]
        document["document_id"] = document["document_id"].hex()
        return {"source": task.params["sources"][part], **document}
    raise IndexError(f"row {row} of {kept.rows}")


def duplicate_rates(counts: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """Return by source, from its counts: documents in, kept, and dropped in favor of which source."""
    rates: dict[str, Any] = {}
    for source, counters in counts.items():
        entry: dict[str, Any] = {"documents": counters.get("rows_in", 0), "kept": counters.get("kept", 0)}
        for kind in KINDS:
            prefix = f"{kind}_of."
            of_kind = {name: n for name, n in sorted(counters.items()) if name.startswith(prefix)}
            entry[f"{kind}_of"] = {name.removeprefix(prefix): n for name, n in of_kind.items()}
        rates[source] = entry
    return rates
