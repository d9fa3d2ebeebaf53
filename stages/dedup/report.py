"""The report on duplicates: how many, of which source in favour of which, and pairs for a person to look at."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from stages.task import Task

SHOWN = 20  # pairs
EXCERPT = 400  # characters of a text; none where the recipe takes documents down, whose text nothing may publish
KINDS = ("duplicate", "near_duplicate")


def work(task: Task) -> None:
    """Write the report. Inputs: filtered parts. Output: `report`.

    Params: near, None or {ngram, bands, rows}; rates, as `rates` gives them; pairs, a list of [number of the input,
    row] of the document dropped and the same of the one kept; sources, the name of each input's; excerpt, characters.
    """
    from stages.dedup import minhash

    params = task.params
    shape = params["near"]
    value: dict[str, Any] = {"by source": params["rates"]}
    if shape:
        value["near-duplicates"] = minhash.describe(**shape)
        value["pairs"] = [pair(task, one[:2], one[2:], shape["ngram"]) for one in params["pairs"]]
    path = task.output("report.json")
    Path(path).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    task.add("report", path)


def pair(task: Task, left: Sequence[int], right: Sequence[int], ngram: int) -> dict[str, Any]:
    """A document dropped and the one kept, [input, row] of each, with the similarity that they have.

    Where that is low they are not alike themselves, but both like others of their cluster.
    """
    from stages.dedup import minhash

    dropped, kept = document(task, *left), document(task, *right)
    similarity = minhash.jaccard(dropped["text"], kept["text"], ngram)
    shown = {
        what: {**one, "text": one["text"][: task.params["excerpt"]], "characters": len(one["text"])}
        for what, one in (("dropped", dropped), ("kept", kept))
    }
    return {"jaccard": round(similarity, 4), **shown}


def document(task: Task, part: int, row: int) -> dict[str, Any]:
    """One document of a filtered part."""
    file = pq.ParquetFile(task.path(task.inputs[part]))
    at = 0
    for group in range(file.num_row_groups):
        n = file.metadata.row_group(group).num_rows
        if row < at + n:
            columns = ["document_id", "source_file", "source_row", "url", "text"]
            found = file.read_row_group(group, columns=columns).slice(row - at, 1).to_pylist()[0]
            return {"source": task.params["sources"][part], **found, "document_id": found["document_id"].hex()}
        at += n
    raise IndexError(f"row {row} of {at}")


def rates(counts: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """By source, from its counts: documents in, kept, and dropped in favour of which source."""
    found: dict[str, Any] = {}
    for source, of in counts.items():
        entry: dict[str, Any] = {"documents": of.get("rows_in", 0), "kept": of.get("kept", 0)}
        for kind in KINDS:
            prefix = f"{kind}_of."
            entry[f"{kind}_of"] = {k.removeprefix(prefix): n for k, n in sorted(of.items()) if k.startswith(prefix)}
        found[source] = entry
    return found
