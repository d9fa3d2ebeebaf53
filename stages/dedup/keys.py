"""The keys of one part's documents: of equal texts, and of nearly the same ones. Two that share one belong together."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from stages.dedup.arrays import Entries, save_array, save_runs
from stages.hashing import id_words, is_validation
from stages.kept import kept_rows, read_rows
from stages.task import Task

RUN = 1 << 22  # keys of a part sorted at a time
CHUNK = 1 << 18  # entries put together at a time

# (hi, lo) is the hash of the normalized text, or lo the key of a band; `first` is the upper half of the document's
# label with rank 0 (see `stages.dedup.clusters`); `row` its row in the part.
EXACT = np.dtype([("lo", "<u8"), ("hi", "<u8"), ("first", "<u4"), ("row", "<u4")])
NEAR = np.dtype([("lo", "<u8"), ("first", "<u4"), ("row", "<u4")])


def write_keys(task: Task) -> None:
    """Write the keys of one filtered part. Inputs: `kept`, and its documents where near is asked for.

    Params: near, None or {ngram, bands, rows}.

    Outputs: `exact` (EXACT), sorted by key, and, if asked for, `near` (see `write_near_keys`); `ids`, 16 bytes a row.
    """
    file = pq.ParquetFile(task.path(task.inputs[0]))
    documents = file.metadata.num_rows
    exact = np.empty(documents, EXACT)
    ids = np.empty((documents, 16), np.uint8)
    first_row = 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=["document_id", "text_hash"])
        rows = slice(first_row, first_row + table.num_rows)
        exact["lo"][rows], exact["hi"][rows] = id_words(table["text_hash"])
        ids[rows] = np.stack(id_words(table["document_id"]), axis=1).astype("<u8").view(np.uint8)
        first_row += table.num_rows
    exact["first"] = first_bits(ids)
    exact["row"] = np.arange(documents)
    save_array(task, "exact", exact[np.lexsort((exact["hi"], exact["lo"]))])
    if task.params["near"]:
        write_near_keys(task, exact["first"], task.params["near"])
    save_array(task, "ids", ids)


def first_bits(ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Return the upper half of the labels of documents, as if their source had rank 0. ids: (n, 16)."""
    first, second, third = (ids[:, i].astype(np.uint32) for i in range(3))
    id_bits = first << np.uint32(15) | second << np.uint32(7) | third >> np.uint32(1)
    is_training = (~is_validation(ids)).astype(np.uint32)
    return is_training << np.uint32(31) | id_bits


def write_near_keys(task: Task, first: npt.NDArray[np.uint32], shape: dict[str, int]) -> None:
    """Write output `near` (NEAR): an entry a document and band, none for a text without words.

    first: `first_bits` of each row. shape: ngram, bands, rows. A part of short texts has more entries than fit into
    memory, so they are sorted by key in runs of RUN or fewer (see `stages.dedup.arrays.save_runs`).
    """
    bands = shape["bands"]

    def pieces(first_row: int, keys: npt.NDArray[np.uint64]) -> Iterator[Entries]:
        flat = keys.reshape(-1)
        order = np.argsort(flat, kind="stable")
        without_words = np.searchsorted(flat, 1, sorter=order)  # their key is 0
        order = order[without_words:]
        for start in range(0, len(order), CHUNK):
            chosen = order[start : start + CHUNK]
            entries = np.empty(len(chosen), NEAR)
            entries["lo"] = flat[chosen]
            entries["row"] = first_row + chosen // bands
            entries["first"] = first[entries["row"]]
            yield entries

    kept, docs = map(task.path, task.inputs)
    save_runs(task, "near", NEAR, len(first) * bands, (pieces(*run) for run in key_runs(kept, docs, shape)))


def key_runs(kept: str, docs: str, shape: dict[str, int]) -> Iterator[tuple[int, npt.NDArray[np.uint64]]]:
    """Yield the band keys of a filtered part, at most RUN of them or one document's at a time.

    kept, docs: paths of its tables. Each with the number of its first row, and of shape (rows, bands).
    """
    from stages.dedup.minhash import band_keys

    rows_in_run = max(1, RUN // shape["bands"])
    pieces: list[npt.NDArray[np.uint64]] = []
    first_row = held = 0
    for _, table in read_rows(docs, kept_rows(kept), ["text"]):
        texts = table["text"].combine_chunks()
        done = 0
        while done < len(texts):
            keys = band_keys(texts.slice(done, rows_in_run - held), **shape)
            pieces.append(keys)
            done += len(keys)
            held += len(keys)
            if held == rows_in_run:
                yield first_row, np.concatenate(pieces)
                first_row += held
                held, pieces = 0, []
    if pieces:
        yield first_row, np.concatenate(pieces)
