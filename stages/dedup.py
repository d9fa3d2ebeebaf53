"""Exact deduplication across sources: of all documents with the same normalised text, one is kept.

`find` sees only ids and hashes of the whole corpus and writes the list of rows to drop, sorted by part; each
part then gets its slice of the list. A slice has a digest of its own, so a change in one input file re-runs
only the parts whose own drops changed.

Which one is kept: a validation document before any other (so that no training copy of it survives), then the
source that comes first in `dedup.priority` and behind those by name, then the smallest document id, then the first part
and row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages.base import Artifact, Stage, Task
from stages.ids import id_words, is_validation
from stages.tables import CURATED, ID, table_digest

BUCKET_ROWS = 20_000_000  # rows compared at a time: about 1.5 GB; more are split by the first byte of their hash
DROPS = pa.schema(
    [
        ("row", pa.int64()),  # in the filtered part
        ("document_id", ID),
        ("kept_id", ID),
        ("kept_source", pa.string()),
    ]
)
Words = npt.NDArray[np.uint64]


def buckets_for(rows: int) -> int:
    """Into how many buckets `find` splits: a power of two up to 256, from the number of rows alone."""
    needed = max(1, -(-rows // BUCKET_ROWS))
    return min(256, 1 << (needed - 1).bit_length())


def find(task: Task) -> None:
    """List the duplicates of one bucket. Inputs: all filtered parts, source by source.

    Params: sources, a list of [name, number of parts, rank in priority]; bucket, of, a power of two.
    Outputs: `drops-00000`, ... : one slice of the same table for each input.
    """
    names = [name for name, parts, _ in task.params["sources"] for _ in range(parts)]
    ranks = [rank for _, parts, rank in task.params["sources"] for _ in range(parts)]
    hashes, ids, parts, rows = load(task)
    rank = np.asarray([*ranks, 0], np.int32)[parts]
    first, later = clusters(hashes, ids, parts, rows, rank)
    by_part = np.lexsort((rows[later], parts[later]))
    later, first = later[by_part], first[by_part]
    table = pa.table(
        [
            pa.array(rows[later]),
            id_array(ids[0][later], ids[1][later]),
            id_array(ids[0][first], ids[1][first]),
            pa.array([names[p] for p in parts[first]], pa.string()),
        ],
        schema=DROPS,
    )
    path = task.output("drops.parquet")
    pq.write_table(table, path, compression="zstd", row_group_size=100_000)
    edges = np.searchsorted(parts[later], np.arange(len(names) + 1))
    for i in range(len(names)):
        a, b = int(edges[i]), int(edges[i + 1])
        digest = table_digest(table.slice(a, b - a))
        task.outputs.append(Artifact(path, digest, name=f"drops-{i:05d}", rows=b - a, rows_from=a, rows_to=b))
    task.count("rows_in", len(rows))
    task.count("duplicates", len(later))


def load(task: Task) -> tuple[tuple[Words, Words], tuple[Words, Words], npt.NDArray, npt.NDArray]:
    """(hashes, ids, part, row) of the bucket's documents, in input order."""
    bucket, of = task.params["bucket"], task.params["of"]
    pieces: list[tuple[npt.NDArray, ...]] = []
    for part, artifact in enumerate(task.inputs):
        at = 0
        file = pq.ParquetFile(task.path(artifact))
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["document_id", "text_hash"])
            words = (*id_words(table["text_hash"]), *id_words(table["document_id"]))
            rows = np.arange(at, at + table.num_rows, dtype=np.int64)
            at += table.num_rows
            mine = (words[0] & np.uint64(of - 1)) == bucket
            pieces.append((*(w[mine] for w in words), np.full(mine.sum(), part, np.int32), rows[mine]))
    types = [np.uint64] * 4 + [np.int32, np.int64]
    columns = [np.concatenate([np.empty(0, t), *(p[i] for p in pieces)], dtype=t) for i, t in enumerate(types)]
    return (columns[0], columns[1]), (columns[2], columns[3]), columns[4], columns[5]


def clusters(
    hashes: tuple[Words, Words],
    ids: tuple[Words, Words],
    parts: npt.NDArray,
    rows: npt.NDArray,
    rank: npt.NDArray,
) -> tuple[npt.NDArray, npt.NDArray]:
    """(index of the document kept, index of one that is dropped), a pair for each that is dropped."""
    training = ~is_validation(np.stack(ids, axis=1).astype("<u8").view(np.uint8).reshape(-1, 16))
    # Ids compare as the bytes they are, so the words are swapped to big-endian order.
    order = np.lexsort((rows, parts, ids[1].byteswap(), ids[0].byteswap(), rank, training, *hashes))
    fresh = np.ones(len(order), bool)
    fresh[1:] = (np.diff(hashes[0][order]) != 0) | (np.diff(hashes[1][order]) != 0)
    head = order[np.maximum.accumulate(np.where(fresh, np.arange(len(order)), 0))] if len(order) else order
    return head[~fresh], order[~fresh]


def id_array(lo: Words, hi: Words) -> pa.Array:
    """Ids from their two words."""
    raw = np.stack([lo, hi], axis=1).astype("<u8").tobytes()
    return pa.Array.from_buffers(ID, len(lo), [None, pa.py_buffer(raw)])


def work(task: Task) -> None:
    """Apply to one part. Inputs: the filtered part, then its slice of drops from each bucket. Params: source.

    Output: `docs` (CURATED). Counts rows_in, kept, text_bytes, dropped.duplicate and duplicate_of.<source>.
    """
    file = pq.ParquetFile(task.path(task.inputs[0]))
    dropped = np.zeros(file.metadata.num_rows, bool)
    for artifact in task.inputs[1:]:
        table = pq.read_table(task.path(artifact), columns=["row", "kept_source"])
        table = table.slice(artifact.rows_from, artifact.rows_to - artifact.rows_from)
        dropped[table["row"].to_numpy()] = True
        if table.num_rows:  # a reason that dropped nothing is not listed
            task.count("dropped.duplicate", table.num_rows)
        for entry in table["kept_source"].value_counts().to_pylist():
            task.count(f"duplicate_of.{entry['values']}", entry["counts"])
    at = 0
    with task.table("docs", CURATED) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=[n for n in CURATED.names if n != "source"])
            keep = ~dropped[at : at + table.num_rows]
            at += table.num_rows
            table = table.filter(pa.array(keep))
            source = pa.array([task.params["source"]] * table.num_rows, pa.string())
            if table.num_rows:
                writer.write(table.append_column("source", source))
                task.count("text_bytes", text_bytes(table["text"]))
        writer.meta["text_bytes"] = task.counts["text_bytes"]
    task.count("rows_in", at)
    task.count("kept", int(at - dropped.sum()))


def text_bytes(column: pa.ChunkedArray) -> int:
    """UTF-8 bytes in a string column."""
    total = 0
    for chunk in column.chunks:
        if len(chunk):
            offsets = np.frombuffer(chunk.buffers()[1], np.int32)
            total += int(offsets[chunk.offset + len(chunk)] - offsets[chunk.offset])
    return total


async def build(context: Any) -> dict[str, list[Artifact]]:
    """Curated documents by source, one table a part."""
    filtered: dict[str, list[Artifact]] = await context.stage("filter")
    pairs = [(name, part) for name, parts in filtered.items() for part in parts]
    slices: list[list[Artifact]] = [[] for _ in pairs]
    if context.recipe.dedup.exact:
        # the others by name: a manifest does not keep its recipe's order, and a rebuild has to rank as the build did
        ranked = [*context.recipe.dedup.priority, *sorted(filtered)]
        sources = [[name, len(parts), ranked.index(name)] for name, parts in filtered.items()]
        of = buckets_for(sum(part.rows for _, part in pairs))
        inputs = [part for _, part in pairs]
        found = await context.gather(
            context.run(
                "dedup",
                find,
                {"sources": sources, "bucket": bucket, "of": of},
                inputs,
                label=f"find {bucket + 1} of {of}",
                weight=32 * sum(part.rows for _, part in pairs),
            )
            for bucket in range(of)
        )
        slices = [list(drops) for drops in zip(*(r.named("drops-") for r in found), strict=True)]

    async def one(name: str, part: Artifact, drops: list[Artifact], number: int) -> Artifact:
        record = await context.run(
            "dedup", work, {"source": name}, [part, *drops], f"{number:05d}", name, weight=part.bytes
        )
        docs: Artifact = record.output("docs")
        return docs

    jobs = zip(pairs, slices, numbers(filtered), strict=True)
    done = await context.gather(one(*pair, drops, number) for pair, drops, number in jobs)
    curated: dict[str, list[Artifact]] = {name: [] for name in filtered}
    for (name, _), docs in zip(pairs, done, strict=True):
        curated[name].append(docs)
    return curated


def numbers(parts: dict[str, list[Artifact]]) -> list[int]:
    """The number of each part in its source, source by source."""
    return [i for artifacts in parts.values() for i in range(len(artifacts))]


STAGE = Stage(
    name="dedup",
    reads="filter",
    writes="curated documents: every text once, in the source that has priority",
    build=build,
    after=("filter",),
    libraries=("pyarrow", "numpy"),
)
