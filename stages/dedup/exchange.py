"""Keys of many parts put together, so that what reads one range of keys asks few files for it.

With P parts and R ranges of keys, P x R pieces are read without it; with groups of G parts P + P / G x R.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from stages.dedup.arrays import Entries, save_array, save_runs
from stages.dedup.clusters import first_numbers
from stages.dedup.keys import EXACT, NEAR, RUN
from stages.task import Artifact, Task

KEYS = {"exact": EXACT, "near": NEAR}


def merge_keys(task: Task) -> None:
    """Put the keys of consecutive parts of a source together. Inputs: outputs of `write_keys`, part by part.

    Params: rows of each part. Outputs: those of `write_keys`, as if the parts were one; `exact` has runs as well.
    """
    starts = first_numbers(task.params["rows"])[:-1].tolist()
    for name, dtype in KEYS.items():
        files = [artifact for artifact in task.inputs if artifact.name == name]
        if files:
            runs = ([run] for run in sorted_runs(task, files, starts))
            save_runs(task, name, dtype, sum(artifact.rows for artifact in files), runs)
    ids = [np.load(task.path(artifact)) for artifact in task.inputs if artifact.name == "ids"]
    save_array(task, "ids", np.concatenate(ids))


def sorted_runs(task: Task, files: Sequence[Artifact], starts: Sequence[int]) -> Iterator[Entries]:
    """Yield the entries of all files, sorted by key in runs of RUN to twice as many. starts: the first row of each."""
    held: list[Entries] = []
    for artifact, start in zip(files, starts, strict=True):
        mapped = np.load(task.path(artifact), mmap_mode="r")
        for first in range(0, len(mapped), RUN):
            piece = np.array(mapped[first : first + RUN])
            piece["row"] += np.uint32(start)
            held.append(piece)
            if sum(map(len, held)) >= RUN:
                yield sort_keys(np.concatenate(held))
                held = []
    if held:
        yield sort_keys(np.concatenate(held))


def sort_keys(entries: Entries) -> Entries:
    """Return entries (EXACT or NEAR) sorted by their keys."""
    fields = ("hi", "lo") if entries.dtype == EXACT else ("lo",)
    return entries[np.lexsort([entries[field] for field in fields])]
