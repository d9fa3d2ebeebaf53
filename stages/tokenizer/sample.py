"""The text a tokenizer is trained and measured on: every source by its share, in the order of a hash of the id.

So the sample does not depend on how the corpus is cut into units, and validation documents never enter it. First each
part lists the documents that may be in it (`list_candidates`), then one unit takes them in order (`choose`). Of each
part the sample has the first documents in that order, so that their number is all that later units have to know.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.hashing import is_validation, sample
from stages.schemas import ID
from stages.task import Artifact, Task

CANDIDATES = pa.schema([("document_id", ID), ("part", pa.int32()), ("text_bytes", pa.int64())])
SAMPLE_IDS = pa.schema([("document_id", ID), ("source", pa.string()), ("text_bytes", pa.int64())])

Int64s = npt.NDArray[np.int64]


def list_candidates(task: Task) -> None:
    """List training documents of parts. Inputs: the parts. Params: highest (the draw up to which a document counts).

    Output: `candidates` (CANDIDATES; the part by its place among the inputs), by part, and in it in the sample's order.
    """
    with task.table("candidates", CANDIDATES) as writer:
        for number, part in enumerate(task.inputs):
            with pq.ParquetFile(task.path(part)) as file:
                groups = [read_candidates(file, group, task.params["highest"]) for group in range(file.num_row_groups)]
            table = pa.concat_tables([pa.schema([CANDIDATES.field(name) for name in (0, 2)]).empty_table(), *groups])
            table = table.take(np.argsort(sample(table["document_id"]), kind="stable"))
            writer.write(table.add_column(1, "part", pa.array(np.full(len(table), number, np.int32))))


def read_candidates(file: pq.ParquetFile, group: int, highest: int) -> pa.Table:
    """Return id and size of the documents of a row group that may be in the sample. Reads text only where one is."""
    ids = file.read_row_group(group, columns=["document_id"])["document_id"].combine_chunks()
    rows = np.flatnonzero(~is_validation(ids) & (sample(ids) <= np.uint64(highest)))
    sizes = np.zeros(0, np.int64)
    if len(rows):
        texts = file.read_row_group(group, columns=["text"])["text"]
        sizes = pc.binary_length(texts).fill_null(0).to_numpy()[rows].astype(np.int64)
    return pa.table({"document_id": ids.take(pa.array(rows)), "text_bytes": sizes})


def choose(task: Task) -> None:
    """Take the sample. Inputs: `candidates` of all units. Params: sources ([name, bytes of its share, units, parts]).

    The first document that would pass a source's share is left out, and its sample ends there. Output: `sample`, whose
    meta says how many documents and bytes of each part are in it (`taken` and `bytes`, by source), and which sources
    have candidates for less than their share (`short`).
    """
    remaining = iter(task.inputs)
    taken: dict[str, list[int]] = {}
    sizes: dict[str, list[int]] = {}
    short: list[str] = []
    chosen: list[pa.Table] = []
    for name, share, parts_of_units in task.params["sources"]:
        tables, first_part = [CANDIDATES.empty_table()], 0
        for parts in parts_of_units:
            table = pq.read_table(task.path(next(remaining)), partitioning=None)
            number = pc.add(table["part"], pa.scalar(first_part, pa.int32()))
            tables.append(table.set_column(1, "part", number))
            first_part += parts
        table = pa.concat_tables(tables)
        table = table.take(np.argsort(sample(table["document_id"]), kind="stable"))
        ends = np.cumsum(table["text_bytes"].to_numpy())
        table = table[: int(np.searchsorted(ends, share, "right"))]
        if len(table) == len(ends) and int(ends[-1] if len(ends) else 0) < share:
            short.append(name)
        part, text_bytes = table["part"].to_numpy(), table["text_bytes"].to_numpy()
        taken[name] = np.bincount(part, minlength=first_part).tolist()
        sizes[name] = np.bincount(part, text_bytes, first_part).astype(np.int64).tolist()  # exact below 2^53
        names = pa.array([name] * len(table), pa.string())
        chosen.append(pa.table([table["document_id"], names, table["text_bytes"]], schema=SAMPLE_IDS))
    with task.table("sample", SAMPLE_IDS, taken=taken, bytes=sizes, short=short) as writer:
        for table in chosen:
            writer.write(table)


def sampled_tables(task: Task, parts: Sequence[Artifact], taken: Sequence[int]) -> Iterator[pa.Table]:
    """Yield id and text of the sampled documents of `parts`, `taken` of each, a row group at a time."""
    for part, number in zip(parts, taken, strict=True):
        with pq.ParquetFile(task.path(part)) as file:
            for group, rows in enumerate(sampled_rows(file, number)):
                if len(rows):
                    table = file.read_row_group(group, columns=["document_id", "text"], use_threads=False)
                    yield table.take(pa.array(rows))


def sampled_rows(file: pq.ParquetFile, number: int) -> list[Int64s]:
    """Return the rows in each row group of the first `number` training documents in the sample's order."""
    groups, rows, draws = [], [], []
    for group in range(file.num_row_groups):
        ids = file.read_row_group(group, columns=["document_id"])["document_id"]
        training = np.flatnonzero(~is_validation(ids))
        groups.append(np.full(len(training), group))
        rows.append(training)
        draws.append(sample(ids)[training])
    first = np.argsort(np.concatenate([np.zeros(0, np.uint64), *draws]), kind="stable")[:number]
    chosen = np.zeros(sum(map(len, rows)), bool)
    chosen[first] = True
    ends = np.cumsum([len(some) for some in rows])
    return [some[mask] for some, mask in zip(rows, np.split(chosen, ends[:-1]), strict=True)] if rows else []


def sampled_texts(task: Task, parts: Sequence[Artifact], taken: Sequence[int]) -> Iterator[str]:
    """Yield the text of the sampled documents of `parts`, `taken` of each, in the order of the parts."""
    for table in sampled_tables(task, parts, taken):
        yield from table["text"].to_pylist()


def ordered_texts(task: Task, parts: Sequence[Artifact], taken: Sequence[int]) -> list[str]:
    """Return the texts of a source's sample, in its order."""
    tables = list(sampled_tables(task, parts, taken))
    if not tables:
        return []
    table = pa.concat_tables(tables)
    texts: list[str] = table["text"].take(np.argsort(sample(table["document_id"]), kind="stable")).to_pylist()
    return texts
