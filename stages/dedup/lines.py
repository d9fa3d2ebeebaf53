"""Lines that many documents have, such as menus and notices, counted over all parts and cut from each."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages.comparable import put_texts
from stages.dedup.arrays import Range, read_ranges, save_array
from stages.schemas import CURATED, utf8_bytes
from stages.task import Artifact, Task

LEAST = 32  # bytes of a line that is counted; a brace, a heading or a rule belongs to its text
LINE = np.dtype([("key", "<u8"), ("documents", "<u4")])


def count_lines(task: Task) -> None:
    """Count the documents of one part that have each line. Output: `lines` (LINE), sorted by key."""
    from stages.kernels.lines import line_keys

    file = pq.ParquetFile(task.path(task.inputs[0]))
    found = []
    for group in range(file.num_row_groups):
        rows, _, keys = line_keys(file.read_row_group(group, columns=["text"])["text"].combine_chunks(), LEAST)
        order = np.lexsort((rows, keys))
        rows, keys = rows[order], keys[order]
        is_first = np.ones(len(keys), bool)  # of a document's copies of a line
        is_first[1:] = (keys[1:] != keys[:-1]) | (rows[1:] != rows[:-1])
        found.append(summed(keys[is_first], np.ones(np.count_nonzero(is_first), np.int64)))
    lines = np.concatenate([np.empty(0, LINE), *found])
    save_array(task, "lines", summed(lines["key"], lines["documents"]))


def summed(keys: npt.NDArray[np.uint64], documents: npt.NDArray[np.integer]) -> npt.NDArray[np.void]:
    """Return the sum of `documents` for each key (LINE), sorted by key."""
    order = np.argsort(keys, kind="stable")
    keys, documents = keys[order], documents[order]
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])[: len(keys)])
    lines = np.empty(len(starts), LINE)
    lines["key"] = keys[starts]
    lines["documents"] = np.add.reduceat(documents, starts) if len(starts) else 0
    return lines


def find_frequent(task: Task) -> None:
    """Find the lines that more than `most` documents have. Inputs: `lines` of all parts.

    Params: most; range and of, which keys. Output: `frequent`, their keys, sorted.
    """
    width = (1 << 64) // task.params["of"]
    low = task.params["range"] * width
    wanted = Range(low, low + width, 1 << 64, lambda entry: int(entry["key"]), LINE)
    lines = np.concatenate(read_ranges(task, task.inputs, wanted))
    lines = summed(lines["key"], lines["documents"])
    save_array(task, "frequent", lines["key"][lines["documents"] > task.params["most"]])


def cut_lines(task: Task) -> None:
    """Write one part without the lines that many documents have. Inputs: the part, then the files of frequent lines.

    Output: `docs` (CURATED). Counts lines_cut, and against what `work` counted: kept, text_bytes, and
    dropped.repeated_lines of documents that had nothing else.
    """
    file = pq.ParquetFile(task.path(task.inputs[0]))
    frequent = frequent_keys(task, task.inputs[1:])
    kept_bytes = 0
    with task.table("docs", CURATED) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=CURATED.names)
            before = utf8_bytes(table["text"])
            texts, is_left, lines_cut = without_lines(table["text"].combine_chunks(), frequent)
            place = CURATED.get_field_index("text")
            table = table.set_column(place, CURATED.field(place), texts).filter(pa.array(is_left))
            if table.num_rows:
                writer.write(table)
            after = utf8_bytes(table["text"])
            kept_bytes += after
            task.count("text_bytes", after - before)
            task.count("lines_cut", lines_cut)
            if lost := len(texts) - table.num_rows:
                task.count("kept", -lost)
                task.count("dropped.repeated_lines", lost)
        writer.meta["text_bytes"] = kept_bytes


def frequent_keys(task: Task, artifacts: Sequence[Artifact]) -> npt.NDArray[np.uint64]:
    """Return the keys of the lines that are cut, sorted: the files are those of ascending ranges."""
    return np.concatenate([np.empty(0, np.uint64), *(np.load(task.path(artifact)) for artifact in artifacts)])


def without_lines(texts: pa.Array, frequent: npt.NDArray[np.uint64]) -> tuple[pa.Array, npt.NDArray[np.bool_], int]:
    """Return the texts without the lines that have a key of `frequent`, which have any left, and how many were cut."""
    from stages.kernels.lines import line_keys

    rows, lines, keys = line_keys(texts, LEAST)
    places = np.searchsorted(frequent, keys)
    is_cut = np.zeros(len(keys), bool)
    inside = places < len(frequent)
    is_cut[inside] = frequent[places[inside]] == keys[inside]
    rows, lines = rows[is_cut], lines[is_cut]
    is_left = np.ones(len(texts), bool)
    shorter = []
    for row, cut in groupby(zip(rows.tolist(), lines.tolist(), strict=True), itemgetter(0)):
        gone = {line for _, line in cut}
        whole = texts[row].as_py().split("\n")
        shorter.append("\n".join(line for number, line in enumerate(whole) if number not in gone))
        is_left[row] = shorter[-1].strip() != ""
    return put_texts(texts, np.unique(rows), pa.array(shorter, pa.string())), is_left, len(rows)
