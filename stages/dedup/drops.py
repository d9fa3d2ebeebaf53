"""The drops of each part: its rows that leave, and which document stays instead."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages.dedup.arrays import READERS, Entries
from stages.dedup.clusters import document_numbers, first_numbers, read_pairs
from stages.hashing import sample
from stages.schemas import ID, table_digest
from stages.task import Artifact, Task

SHOWN = 20  # pairs of near-duplicates in the report
ROW_GROUP = 100_000
DROPS = pa.schema(
    [
        ("row", pa.int64()),  # in the filtered part
        ("document_id", ID),
        ("kept_id", ID),
        ("kept_source", pa.string()),
        ("near", pa.bool_()),  # no document of the corpus has the same normalized text and comes before it
    ]
)
SAMPLE = pa.schema([("draw", pa.uint64()), *((n, pa.int64()) for n in ("part", "row", "kept_part", "kept_row"))])


def list_drops(task: Task) -> None:
    """List the drops of a range of parts. Inputs: files of pairs of whole clusters, of equal texts, and of `ids`.

    Params: files, how many of the first two kinds; rows and sources, as `match_keys` has them; low, high: the parts.
    Outputs: `drops-00000`, ... : one slice of a table (DROPS) for each part of the range; `sample` (SAMPLE).
    """
    cluster_files, equal_files = task.params["files"]
    clusters = task.inputs[:cluster_files]
    equal_texts = task.inputs[cluster_files : cluster_files + equal_files]
    id_files = task.inputs[cluster_files + equal_files :]
    starts = first_numbers(task.params["rows"])
    low_part, high_part = task.params["low"], task.params["high"]
    low, high = int(starts[low_part]), int(starts[high_part])

    dropped, kept = toward_first(read_pairs(task, clusters, low, high, int(starts[-1])))
    order = np.argsort(dropped)
    dropped, kept = dropped[order], kept[order]
    has_equal, _ = toward_first(read_pairs(task, equal_texts, low, high, int(starts[-1])))
    near = ~np.isin(dropped, has_equal, kind="sort")
    part, kept_part = part_of(dropped, starts), part_of(kept, starts)
    row, kept_row = dropped - starts[part], kept - starts[kept_part]

    ids, kept_ids = ids_of(task, id_files, dropped), ids_of(task, id_files, kept)
    sources = pa.array([name for name, parts, _ in task.params["sources"] for _ in range(parts)], pa.string())
    columns = [pa.array(row), ids, kept_ids, sources.take(pa.array(kept_part)), pa.array(near)]
    write_slices(task, pa.table(columns, schema=DROPS), np.searchsorted(part, np.arange(low_part, high_part + 1)))
    task.count("duplicates", len(dropped))

    draws = sample(ids) if len(ids) else np.empty(0, np.uint64)
    chosen = np.flatnonzero(near)
    chosen = chosen[np.argsort(draws[chosen], kind="stable")][:SHOWN]
    sampled = [pa.array(values[chosen]) for values in (draws, part, row, kept_part, kept_row)]
    with task.table("sample", SAMPLE) as writer:
        writer.write(pa.table(sampled, schema=SAMPLE))


def toward_first(pairs: Entries) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the numbers of documents, and of the ones before them that they are paired with."""
    pairs = pairs[pairs["other"] < pairs["label"]]
    return document_numbers(pairs["label"]).astype(np.int64), document_numbers(pairs["other"]).astype(np.int64)


def part_of(numbers: npt.NDArray[np.int64], starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the part that each document lies in, by its number. starts: `first_numbers` of the parts."""
    return np.searchsorted(starts, numbers, "right") - 1


def write_slices(task: Task, table: pa.Table, edges: npt.NDArray[np.int64]) -> None:
    """Write the drops of several parts as one table, of which each output is a slice. edges: where each part begins."""
    path = task.output("drops.parquet")
    pq.write_table(table, path, compression="zstd", row_group_size=ROW_GROUP)
    for i, (start, stop) in enumerate(pairwise(edges.tolist())):
        rows = stop - start
        digest = table_digest(table.slice(start, rows))
        task.outputs.append(Artifact(path, digest, name=f"drops-{i:05d}", rows=rows, rows_from=start, rows_to=stop))


def ids_of(task: Task, id_files: Sequence[Artifact], numbers: npt.NDArray[np.int64]) -> pa.Array:
    """Return the ids of documents by their numbers, in any order. id_files: arrays of the ids of all documents."""
    ids = np.empty((len(numbers), 16), np.uint8)
    order = np.argsort(numbers)
    starts = first_numbers([file.rows for file in id_files])
    edges = np.searchsorted(numbers[order], starts).tolist()

    def fill(file: Artifact, start: int, places: npt.NDArray[np.int64]) -> None:
        rows = numbers[places] - start
        ids[places] = read_ids(task, file, int(rows[0]), int(rows[-1]) + 1)[rows - rows[0]]

    with ThreadPoolExecutor(1 if task.read_bytes is None else READERS) as pool:
        parts = zip(id_files, starts[:-1].tolist(), pairwise(edges), strict=True)
        filled = [pool.submit(fill, file, start, order[low:high]) for file, start, (low, high) in parts if high > low]
        for future in filled:
            future.result()
    return pa.Array.from_buffers(ID, len(ids), [None, pa.py_buffer(ids.tobytes())])


def read_ids(task: Task, file: Artifact, first: int, after: int) -> npt.NDArray[np.uint8]:
    """Return the ids of the documents [first, after) of a file, of shape (n, 16)."""
    if task.read_bytes is None:
        mapped: npt.NDArray[np.uint8] = np.load(task.path(file), mmap_mode="r")
        return mapped[first:after]
    header = file.bytes - 16 * file.rows
    return np.frombuffer(task.read_bytes(file, header + 16 * first, header + 16 * after), np.uint8).reshape(-1, 16)
