"""Arrays as outputs: .npy files, sorted or in sorted runs, of which a unit maps and reads one range of keys."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.task import Artifact, Task


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


def read_range(
    task: Task, artifact: Artifact, low: int, high: int, key: Callable[[np.void], int]
) -> npt.NDArray[np.void]:
    """Return the entries of a file whose key lies in [low, high).

    The file is one sorted run, or several, which its meta `runs` separates; the entries come run by run.
    """
    mapped = np.load(task.path(artifact), mmap_mode="r")
    pieces = []
    for start, end in pairwise(artifact.meta.get("runs", (0, len(mapped)))):
        first = bisect_left(mapped, low, start, end, key=key)
        after = bisect_left(mapped, high, first, end, key=key)
        pieces.append(mapped[first:after])
    return np.concatenate(pieces) if pieces else np.array(mapped)
