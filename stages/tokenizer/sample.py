"""The text a tokenizer is trained and measured on: every source by its share, in the order of a hash of the id.

So the sample does not depend on how the corpus is cut into units, and validation documents never enter it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import DataError
from stages.hashing import is_validation, sample
from stages.schemas import ID
from stages.task import Artifact, Task

SAMPLE_IDS = pa.schema([("document_id", ID), ("source", pa.string()), ("text_bytes", pa.int64())])
Sample = list[tuple[str, list[tuple[bytes, str]]]]  # (source, its (id, text) pairs)


def draw(task: Task, inputs: list[Artifact]) -> Sample:
    """The sample of curated parts `inputs`, recorded as output `sample`.

    Params: sample (bytes in all), sources ([name, number of parts]). A source's share of the sample is its share of
    the curated bytes. Raises DataError when nothing can be sampled.
    """
    rest = iter(inputs)
    parts = [(name, [next(rest) for _ in range(n)]) for name, n in task.params["sources"]]
    sizes = [sum(int(a.meta["text_bytes"]) for a in one) for _, one in parts]
    quotas = [min(size, task.params["sample"] * size // max(1, sum(sizes))) for size in sizes]
    chosen = [(name, list(of_source(task, one, q))) for (name, one), q in zip(parts, quotas, strict=True)]
    if not any(documents for _, documents in chosen):
        raise DataError("the tokenizer's sample is empty: no document outside validation; add text")
    with task.table("sample", SAMPLE_IDS) as writer:
        for name, documents in chosen:
            ids = pa.array([i for i, _ in documents], ID)
            lengths = pa.array([len(text.encode()) for _, text in documents], pa.int64())
            writer.write(pa.table([ids, pa.array([name] * len(ids), pa.string()), lengths], schema=SAMPLE_IDS))
    task.count("documents", sum(len(documents) for _, documents in chosen))
    return chosen


def of_source(task: Task, inputs: list[Artifact], quota: int) -> Iterator[tuple[bytes, str]]:
    """(id, text) of training documents in hash order until `quota` bytes; reads only the row groups it needs.

    The document that would pass the quota is left out, and the sample of the source ends there.
    """
    where = candidates(task, inputs)
    mean = max(1, sum(int(a.meta["text_bytes"]) for a in inputs) // max(1, len(where)))
    taken = at = 0
    while at < len(where) and taken < quota:
        batch = where[at : at + (quota - taken) * 5 // (4 * mean) + 16]
        texts = read_texts(task, inputs, batch)
        for part, group, row in batch:
            identity, text = texts[int(part), int(group), int(row)]
            taken += len(text.encode())
            if taken > quota:
                return
            yield identity, text
        at += len(batch)


def candidates(task: Task, inputs: list[Artifact]) -> np.ndarray:
    """[part, row group, row in it] of each training document, in the order of the hash of its id."""
    places, keys = [np.empty((0, 3), np.int64)], [np.empty(0, np.uint64)]
    for part, artifact in enumerate(inputs):
        file = pq.ParquetFile(task.path(artifact))
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=["document_id"])["document_id"]
            rows = np.flatnonzero(~is_validation(ids))
            places.append(np.stack([np.full_like(rows, part), np.full_like(rows, group), rows], axis=1))
            keys.append(sample(ids)[rows])
    place, key = np.concatenate(places), np.concatenate(keys)
    return place[np.lexsort((*place.T[::-1], key))]


def read_texts(task: Task, inputs: list[Artifact], places: np.ndarray) -> dict[tuple[int, int, int], tuple[bytes, str]]:
    """(id, text) at each place."""
    found: dict[tuple[int, int, int], tuple[bytes, str]] = {}
    for part, group in sorted({(int(p), int(g)) for p, g, _ in places}):
        file = pq.ParquetFile(task.path(inputs[part]))
        table = file.read_row_group(group, columns=["document_id", "text"])
        rows = places[(places[:, 0] == part) & (places[:, 1] == group), 2]
        picked = table.take(pa.array(rows))
        pairs = zip(picked["document_id"].to_pylist(), picked["text"].to_pylist(), strict=True)
        found.update(((part, group, int(row)), pair) for row, pair in zip(rows, pairs, strict=True))
    return found
