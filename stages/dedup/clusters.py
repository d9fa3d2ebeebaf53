"""Which documents are the same: keys by part, equal keys by bucket, clusters by rounds, drops by part.

`sign` writes the keys of one part's documents, in order of key; two documents that share one belong together. `match`
reads one range of keys of all parts and writes, for each key that several documents have, a pair of each of them with
the first. `join` unites the pairs that touch one range of documents. With one range that is the end; with more, each
hands what it found to the next round, until a round changes nothing: then each document is paired with the first of
its whole cluster, as in Rastogi et al. 2013, "Finding connected components on map-reduce in logarithmic rounds".

A document is a 64-bit label whose order is the order of preference, so the first of a cluster is the one that is kept:
one bit (held out for validation before any other), 8 bits (rank of the source), the first 23 bits of the document id,
and 32 bits (its number in the corpus: parts in their order, rows in theirs).

All files are .npy arrays, sorted or in sorted runs, mapped, of which a task reads one stretch. A worker's memory is
bounded by RUN, ENTRIES and PAIRS, and by 50 bytes a row of a part: 500 MB where nine keys in ten are shared.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.hashing import distinct, id_words, is_validation, sample
from stages.schemas import ID, table_digest
from stages.task import Artifact, Task

ENTRIES = 1 << 22  # keys compared at a time
PAIRS = 1 << 22  # pairs united at a time
RUN = 1 << 22  # keys of a part sorted at a time
CHUNK = 1 << 18  # entries put together at a time
MOST_RANGES = 1024  # of keys, or of documents
RANKS = 1 << 8  # sources that can be told apart
SHOWN = 20  # pairs of a range that may be shown

# (hi, lo) is the hash of the normalised text; `first` the upper half of a label with rank 0; `row` that of the part.
EXACT = np.dtype([("lo", "<u8"), ("hi", "<u8"), ("first", "<u4"), ("row", "<u4")])
NEAR = np.dtype([("lo", "<u8"), ("first", "<u4"), ("row", "<u4")])
PAIR = np.dtype([("label", "<u8"), ("other", "<u8")])  # each pair both ways round, sorted by the number of `label`
DROPS = pa.schema(
    [
        ("row", pa.int64()),  # in the filtered part
        ("document_id", ID),
        ("kept_id", ID),
        ("kept_source", pa.string()),
        ("near", pa.bool_()),  # no document of the corpus has the same normalised text and comes before it
    ]
)
SAMPLE = pa.schema([("draw", pa.uint64()), *((n, pa.int64()) for n in ("part", "row", "kept_part", "kept_row"))])
Array = NDArray[Any]


def ranges_for(number: int, most: int) -> int:
    """Into how many ranges `number` is split so that each holds some `most`: a power of two."""
    needed = max(1, -(-number // most))
    return min(MOST_RANGES, 1 << (needed - 1).bit_length())


def sign(task: Task) -> None:
    """The keys of one filtered part. Params: near, None or {ngram, bands, rows}.

    Outputs: `exact` (EXACT), sorted by key, and, if asked for, `near` (see `save_near`); `ids`, 16 bytes a row.
    """
    near = task.params["near"]
    file = pq.ParquetFile(task.path(task.inputs[0]))
    total = file.metadata.num_rows
    exact, ids = np.empty(total, EXACT), np.empty((total, 16), np.uint8)
    at = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=["document_id", "text_hash"])
        rows = slice(at, at + table.num_rows)
        at += table.num_rows
        exact["lo"][rows], exact["hi"][rows] = id_words(table["text_hash"])
        ids[rows] = np.stack(id_words(table["document_id"]), axis=1).astype("<u8").view(np.uint8)
    exact["first"], exact["row"] = first_bits(ids), np.arange(total)
    save(task, "exact", exact[np.lexsort((exact["hi"], exact["lo"]))])
    if near:
        save_near(task, file, exact["first"], near)
    save(task, "ids", ids)


def first_bits(ids: Array) -> Array:
    """The upper half of the labels of documents of rank 0: (n, 16) uint8 -> (n,) uint32."""
    leading = ids[:, 0].astype(np.uint32) << 15 | ids[:, 1].astype(np.uint32) << 7 | ids[:, 2] >> 1
    return leading | (~is_validation(ids)).astype(np.uint32) << 31


def save_near(task: Task, file: pq.ParquetFile, first: Array, shape: dict[str, int]) -> None:
    """Write output `near` (NEAR): an entry a document and band, none for a text without words.

    A part of short texts has more entries than fit into memory, so they are sorted by key in runs of RUN or fewer;
    the output's meta `runs` says where each begins, and where the last ends.
    """
    path, runs = task.output("near.npy"), [0]
    with Path(path).open("wb") as out:
        header = npy_header((len(first) * shape["bands"],), NEAR)
        np.lib.format.write_array_header_1_0(out, header)  # as long as the final one: numpy leaves room to grow
        for row, keys in key_runs(file, shape):
            flat = keys.reshape(-1)
            order = np.argsort(flat, kind="stable")
            order = order[np.searchsorted(flat, 1, sorter=order) :]
            for at in range(0, len(order), CHUNK):
                chosen = order[at : at + CHUNK]
                entries = np.empty(len(chosen), NEAR)
                entries["lo"], entries["row"] = flat[chosen], row + chosen // shape["bands"]
                entries["first"] = first[entries["row"]]
                out.write(entries.tobytes())
            runs.append(runs[-1] + len(order))
        out.seek(0)
        np.lib.format.write_array_header_1_0(out, npy_header((runs[-1],), NEAR))
    task.add("near", path, rows=runs[-1], runs=runs)


def key_runs(file: pq.ParquetFile, shape: dict[str, int]) -> Iterator[tuple[int, Array]]:
    """(number of the first row, keys (rows, bands)) of a filtered part, at most RUN keys or one row at a time."""
    from stages.dedup.minhash import band_keys

    most = max(1, RUN // shape["bands"])
    found: list[Array] = []
    row = held = 0
    for group in range(file.num_row_groups):
        texts = file.read_row_group(group, columns=["text"])["text"].combine_chunks()
        at = 0
        while at < len(texts):
            found.append(band_keys(texts.slice(at, most - held), **shape))
            at, held = at + len(found[-1]), held + len(found[-1])
            if held == most:
                yield row, np.concatenate(found)
                row, held, found = row + held, 0, []
    if found:
        yield row, np.concatenate(found)


def npy_header(shape: tuple[int, ...], dtype: np.dtype) -> dict[str, Any]:
    """What an .npy file says of itself."""
    return {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}


def save(task: Task, name: str, array: Array) -> None:
    """Write output `name`, an .npy file."""
    path = task.output(f"{name}.npy")
    with Path(path).open("wb") as out:
        np.lib.format.write_array_header_1_0(out, npy_header(array.shape, array.dtype))
        out.write(np.ascontiguousarray(array).data)  # np.save's error on a full disk names no errno
    task.add(name, path, rows=len(array))


def stretch(task: Task, artifact: Artifact, low: int, high: int, key: Callable[[Any], int]) -> Array:
    """Of a file of one sorted run or several, the entries whose key lies in [low, high), run by run."""
    mapped = np.load(task.path(artifact), mmap_mode="r")
    pieces = []
    for start, end in pairwise(artifact.meta.get("runs", (0, len(mapped)))):
        a = bisect_left(mapped, low, start, end, key=key)
        pieces.append(mapped[a : bisect_left(mapped, high, a, end, key=key)])
    return np.concatenate(pieces) if pieces else np.array(mapped)


def match(task: Task) -> None:
    """Documents with the same key, of one range of keys. Inputs: a file of keys a part.

    Params: range, of, a power of two; rows of each part; sources, a list of [name, number of parts, rank].
    Output: `pairs` (PAIR).
    """
    width = (1 << 64) // task.params["of"]
    low = task.params["range"] * width
    ranks = [rank for _, parts, rank in task.params["sources"] for _ in range(parts)]
    pieces = []
    for artifact, start, rank in zip(task.inputs, begins(task.params["rows"]).tolist(), ranks, strict=False):
        piece = stretch(task, artifact, low, low + width, lambda entry: int(entry["lo"]))
        piece["first"] |= np.uint32(rank << 23)
        piece["row"] += np.uint32(start)
        pieces.append(piece)
    save(task, "pairs", both_ways(*equal_keys(np.concatenate(pieces))))


def begins(rows: Sequence[int]) -> Array:
    """The number of each part's first document, and of all documents."""
    return np.cumsum([0, *rows], dtype=np.int64)


def equal_keys(entries: Array) -> tuple[Array, Array]:
    """(label, the least label with the same key) for each entry that is not itself the least."""
    entries = entries[np.argsort(entries["lo"])]
    entries = entries[in_runs(entries["lo"])]
    if "hi" in (entries.dtype.names or ()):  # the same 64 bits are not yet the same text
        entries = entries[np.lexsort((entries["hi"], entries["lo"]))]
        again = (np.diff(entries["lo"]) == 0) & (np.diff(entries["hi"]) == 0)
    else:
        again = np.diff(entries["lo"]) == 0
    labels = entries["first"].astype(np.uint64) << np.uint64(32) | entries["row"]
    if not len(labels):
        return labels, labels
    heads = np.flatnonzero(np.concatenate([[True], ~again]))
    least = np.repeat(np.minimum.reduceat(labels, heads), np.diff([*heads, len(labels)]))
    later = labels != least
    return labels[later], least[later]


def in_runs(values: Array) -> NDArray[np.bool_]:
    """Which of the sorted values stand beside their equal."""
    again = np.concatenate([[False], values[1:] == values[:-1], [False]])
    return again[1:] | again[:-1]


def both_ways(label: Array, other: Array) -> Array:
    """Pairs, each once in either direction, sorted by the number of the document that comes first."""
    pairs = np.empty(2 * len(label), PAIR)
    pairs["label"], pairs["other"] = np.concatenate([label, other]), np.concatenate([other, label])
    pairs = pairs[np.lexsort((pairs["other"], number(pairs["label"])))]
    fresh = np.ones(len(pairs), bool)
    fresh[1:] = pairs[1:] != pairs[:-1]
    return pairs[fresh]


def number(labels: Any) -> Any:
    """The number of the document in the corpus."""
    return labels & np.uint64(0xFFFFFFFF)


def pairs_of(task: Task, artifact: Artifact, low: int, high: int) -> Array:
    """Pairs of the documents numbered [low, high)."""
    return stretch(task, artifact, low, high, lambda pair: int(pair["label"]) & 0xFFFFFFFF)


def join(task: Task) -> None:
    """Unite the pairs of one range of documents. Inputs: files of pairs. Params: low, high. Output: `pairs` (PAIR)."""
    from stages.kernels.union_find import unite

    low, high = task.params["low"], task.params["high"]
    pairs = np.concatenate([pairs_of(task, artifact, low, high) for artifact in task.inputs])
    labels = distinct(np.concatenate([pairs["label"], pairs["other"]]))
    parent = np.arange(len(labels))
    unite(parent, *(np.searchsorted(labels, pairs[name]) for name in ("label", "other")))
    later = parent != np.arange(len(labels))
    save(task, "pairs", both_ways(labels[later], labels[parent[later]]))


def slices(task: Task) -> None:
    """The drops of a range of parts. Inputs: files of pairs of whole clusters, then of equal texts; `ids` of each part.

    Params: files, how many of the first two kinds; rows and sources, as `match` has them; low, high: the parts.
    Outputs: `drops-00000`, ... : one slice of a table (DROPS) for each part of the range; `sample` (SAMPLE).
    """
    whole, same = task.params["files"]
    starts = begins(task.params["rows"])
    low, high = int(starts[task.params["low"]]), int(starts[task.params["high"]])
    pairs = np.concatenate([pairs_of(task, a, low, high) for a in task.inputs[:whole]])
    pairs = pairs[pairs["other"] < pairs["label"]]
    equal = np.concatenate([pairs_of(task, a, low, high) for a in task.inputs[whole : whole + same]])
    equal = number(equal["label"][equal["other"] < equal["label"]])
    dropped, kept = number(pairs["label"]).astype(np.int64), number(pairs["other"]).astype(np.int64)
    order = np.argsort(dropped)
    dropped, kept = dropped[order], kept[order]
    near = ~np.isin(dropped, equal, kind="sort")
    files = task.inputs[whole + same :]
    ids, kept_ids = (identities(task, files, starts, numbers) for numbers in (dropped, kept))
    part, kept_part = (np.searchsorted(starts, numbers, "right") - 1 for numbers in (dropped, kept))
    names = pa.array([name for name, parts, _ in task.params["sources"] for _ in range(parts)], pa.string())
    columns = [pa.array(dropped - starts[part]), ids, kept_ids, names.take(pa.array(kept_part)), pa.array(near)]
    table = pa.table(columns, schema=DROPS)
    path = task.output("drops.parquet")
    pq.write_table(table, path, compression="zstd", row_group_size=100_000)
    edges = np.searchsorted(part, np.arange(task.params["low"], task.params["high"] + 1)).tolist()
    for i, (a, b) in enumerate(pairwise(edges)):
        digest = table_digest(table.slice(a, b - a))
        task.outputs.append(Artifact(path, digest, name=f"drops-{i:05d}", rows=b - a, rows_from=a, rows_to=b))
    task.count("duplicates", len(dropped))
    draws = sample(ids) if len(ids) else np.empty(0, np.uint64)
    chosen = np.flatnonzero(near)
    chosen = chosen[np.argsort(draws[chosen], kind="stable")][:SHOWN]
    where = (part, dropped - starts[part], kept_part, kept - starts[kept_part])
    with task.table("sample", SAMPLE) as writer:
        writer.write(pa.table([pa.array(values[chosen]) for values in (draws, *where)], schema=SAMPLE))


def identities(task: Task, files: Sequence[Artifact], starts: Array, numbers: Array) -> pa.Array:
    """The ids of documents by their numbers, from a file a part, in any order."""
    found = np.empty((len(numbers), 16), np.uint8)
    order = np.argsort(numbers)
    edges = np.searchsorted(numbers[order], starts)
    for file, start, (a, b) in zip(files, starts.tolist(), pairwise(edges), strict=False):
        if b > a:
            mine = order[a:b]
            found[mine] = np.load(task.path(file), mmap_mode="r")[numbers[mine] - start]
    return pa.Array.from_buffers(ID, len(found), [None, pa.py_buffer(found.tobytes())])
