"""The text a tokenizer is trained and measured on: every source by its share, in the order of a hash of the id.

So the sample does not depend on how the corpus is cut into units, and validation documents never enter it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import DataError
from stages.hashing import is_validation, sample
from stages.schemas import ID
from stages.task import Artifact, Task

SAMPLE_IDS = pa.schema([("document_id", ID), ("source", pa.string()), ("text_bytes", pa.int64())])


class SampledDocument(NamedTuple):
    """A document of the sample."""

    document_id: bytes
    text: str


Sample: TypeAlias = dict[str, list[SampledDocument]]  # by source


def draw_sample(task: Task, inputs: Sequence[Artifact]) -> Sample:
    """Draw the sample of the curated parts `inputs`, and record it as output `sample`.

    Params: sample (bytes in all), sources ([name, number of parts]). A source's share of the sample is its share of
    the curated bytes. Raises DataError when nothing can be sampled.
    """
    remaining = iter(inputs)
    parts = {name: [next(remaining) for _ in range(n)] for name, n in task.params["sources"]}
    sizes = {name: sum(int(part.meta["text_bytes"]) for part in parts[name]) for name in parts}
    total = max(1, sum(sizes.values()))
    chosen: Sample = {}
    for name, size in sizes.items():
        quota = min(size, task.params["sample"] * size // total)
        chosen[name] = list(source_documents(task, parts[name], quota))
    if not any(chosen.values()):
        raise DataError("the tokenizer's sample is empty: no document outside validation; add text")
    with task.table("sample", SAMPLE_IDS) as writer:
        for name, documents in chosen.items():
            ids = pa.array([document.document_id for document in documents], ID)
            names = pa.array([name] * len(documents), pa.string())
            lengths = pa.array([len(document.text.encode()) for document in documents], pa.int64())
            writer.write(pa.table([ids, names, lengths], schema=SAMPLE_IDS))
    task.count("documents", sum(len(documents) for documents in chosen.values()))
    return chosen


def sampled_texts(chosen: Sample, per_source: int | None = None) -> list[str]:
    """Return the texts of a sample, or the first `per_source` of each source."""
    return [document.text for documents in chosen.values() for document in documents[:per_source]]


def source_documents(task: Task, parts: Sequence[Artifact], quota: int) -> Iterator[SampledDocument]:
    """Yield training documents in hash order until `quota` bytes; reads only the row groups it needs.

    The document that would pass the quota is left out, and the sample of the source ends there.
    """
    locations = training_locations(task, parts)
    mean_bytes = max(1, sum(int(part.meta["text_bytes"]) for part in parts) // max(1, len(locations)))
    taken_bytes = first = 0
    while first < len(locations) and taken_bytes < quota:
        enough = (quota - taken_bytes) * 5 // (4 * mean_bytes) + 16  # a quarter more than the mean asks for
        batch = locations[first : first + enough]
        documents = read_documents(task, parts, batch)
        for part, group, row in batch.tolist():
            document = documents[part, group, row]
            taken_bytes += len(document.text.encode())
            if taken_bytes > quota:
                return
            yield document
        first += len(batch)


def training_locations(task: Task, parts: Sequence[Artifact]) -> npt.NDArray[np.int64]:
    """Return [part, row group, row in it] of each training document, (n, 3), in the order of the hash of its id."""
    locations, keys = [np.empty((0, 3), np.int64)], [np.empty(0, np.uint64)]
    for part, artifact in enumerate(parts):
        file = pq.ParquetFile(task.path(artifact))
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=["document_id"])["document_id"]
            rows = np.flatnonzero(~is_validation(ids))
            locations.append(np.stack([np.full_like(rows, part), np.full_like(rows, group), rows], axis=1))
            keys.append(sample(ids)[rows])
    location, key = np.concatenate(locations), np.concatenate(keys)
    return location[np.lexsort((*location.T[::-1], key))]


def read_documents(
    task: Task, parts: Sequence[Artifact], locations: npt.NDArray[np.int64]
) -> dict[tuple[int, int, int], SampledDocument]:
    """Read the documents at `locations` (n, 3), by location."""
    documents: dict[tuple[int, int, int], SampledDocument] = {}
    for part, group in sorted({(part, group) for part, group, _ in locations.tolist()}):
        in_group = (locations[:, 0] == part) & (locations[:, 1] == group)
        rows = locations[in_group, 2]
        file = pq.ParquetFile(task.path(parts[part]))
        table = file.read_row_group(group, columns=["document_id", "text"]).take(pa.array(rows))
        texts = zip(table["document_id"].to_pylist(), table["text"].to_pylist(), strict=True)
        for row, (document_id, text) in zip(rows.tolist(), texts, strict=True):
            documents[part, group, row] = SampledDocument(document_id, text)
    return documents
