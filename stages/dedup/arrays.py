"""Arrays as outputs: .npy files, sorted or in sorted runs, of which a unit reads one range of keys.

A local file is mapped. Of one in a bucket the bytes of the range are asked for: where it lies is estimated from an even
spread of the keys, as in interpolation search, and read once more where that was wrong.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.task import Artifact, Task

READERS = 16  # requests at a time
Entries = npt.NDArray[np.void]


def npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> dict[str, Any]:
    """Return what an .npy file says of itself."""
    return {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}


def save_array(task: Task, name: str, array: npt.NDArray[Any]) -> None:
    """Write output `name`, an .npy file."""
    path = task.output(f"{name}.npy")
    with Path(path).open("wb") as out:
        np.lib.format.write_array_header_1_0(out, npy_header(array.shape, array.dtype))
        out.write(np.ascontiguousarray(array).data)  # np.save's error on a full disk names no errno
    task.add(name, path, rows=len(array))


def save_runs(task: Task, name: str, dtype: np.dtype[Any], most: int, runs: Iterable[Iterable[Entries]]) -> None:
    """Write output `name`, an .npy file of sorted runs, each of which comes in pieces; of `most` entries at most.

    The output's meta `runs` says where each run begins, and where the last ends.
    """
    path = task.output(f"{name}.npy")
    ends = [0]
    with Path(path).open("wb") as out:
        # As long as the header written at the end: numpy leaves room to grow.
        np.lib.format.write_array_header_1_0(out, npy_header((most,), dtype))
        for run in runs:
            length = 0
            for piece in run:
                out.write(piece.tobytes())
                length += len(piece)
            ends.append(ends[-1] + length)
        out.seek(0)
        np.lib.format.write_array_header_1_0(out, npy_header((ends[-1],), dtype))
    task.add(name, path, rows=ends[-1], runs=ends)


@dataclass(frozen=True)
class Range:
    """The entries of `dtype` whose key lies in [low, high), where all keys lie in [0, space)."""

    low: int
    high: int
    space: int
    key: Callable[[np.void], int]
    dtype: np.dtype[Any]


def read_ranges(task: Task, artifacts: Sequence[Artifact], wanted: Range) -> list[Entries]:
    """Return the entries of each file that are `wanted`; of one with several runs they come run by run."""
    if task.read_bytes is None:
        return [_mapped_range(task, artifact, wanted) for artifact in artifacts]
    read_bytes = task.read_bytes
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(lambda artifact: _fetched_range(read_bytes, artifact, wanted), artifacts))


def _runs(artifact: Artifact, entries: int) -> Iterable[tuple[int, int]]:
    return pairwise(artifact.meta.get("runs", (0, entries)))


def _mapped_range(task: Task, artifact: Artifact, wanted: Range) -> Entries:
    mapped = np.load(task.path(artifact), mmap_mode="r")
    pieces = []
    for start, end in _runs(artifact, len(mapped)):
        first = bisect_left(mapped, wanted.low, start, end, key=wanted.key)
        after = bisect_left(mapped, wanted.high, first, end, key=wanted.key)
        pieces.append(mapped[first:after])
    return np.concatenate([np.empty(0, wanted.dtype), *pieces])


def _fetched_range(read_bytes: Callable[[Artifact, int, int], bytes], artifact: Artifact, wanted: Range) -> Entries:
    size = wanted.dtype.itemsize
    header = artifact.bytes - artifact.rows * size

    def read(start: int, end: int) -> Entries:
        return np.frombuffer(read_bytes(artifact, header + start * size, header + end * size), wanted.dtype)

    pieces = [_search(read, start, end, wanted) for start, end in _runs(artifact, artifact.rows) if end > start]
    return np.concatenate([np.empty(0, wanted.dtype), *pieces])


def _search(read: Callable[[int, int], Entries], first: int, after: int, wanted: Range) -> Entries:
    """Return the entries `wanted` of the sorted entries numbered [first, after), of which `read` gives any."""
    count = after - first
    margin = 2 * isqrt(count) + 1  # four standard deviations of where an even spread has a border
    start = max(first, first + count * wanted.low // wanted.space - margin)
    end = min(after, first + count * wanted.high // wanted.space + margin)
    entries = read(start, end)
    while start > first and wanted.key(entries[0]) >= wanted.low:
        before = max(first, start - max(len(entries), margin))
        entries, start = np.concatenate([read(before, start), entries]), before
    while end < after and wanted.key(entries[-1]) < wanted.high:
        behind = min(after, end + max(len(entries), margin))
        entries, end = np.concatenate([entries, read(end, behind)]), behind
    low = bisect_left(entries, wanted.low, key=wanted.key)
    return entries[low : bisect_left(entries, wanted.high, low, key=wanted.key)]
