"""The units that write the ids of held-out documents, and the manifest of a packed mixture.

They are two, as training depends on the ids and not on the manifest, which tells of sources outside the mixture too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.task import Task
from train.data.manifest import manifest_text


def write_val_ids(task: Task) -> None:
    """Write `val_ids.bin`. Inputs: the sorted ids of held-out documents, in any number of files.

    That no training document is among them, each shard has proved of its own documents, by the rule.
    """
    ids = distinct_ids([np.fromfile(task.path(artifact), ">u8") for artifact in task.inputs])
    path = task.output("val_ids.bin")
    Path(path).write_bytes(ids.tobytes())
    task.add("val_ids", path, rows=len(ids))


def write_manifest(task: Task) -> None:
    """Write `manifest.json`. Params: manifest, its values."""
    path = task.output("manifest.json")
    Path(path).write_text(manifest_text(task.params["manifest"]), encoding="utf-8")
    task.add("manifest", path)


def distinct_ids(files: list[npt.NDArray[np.uint64]]) -> npt.NDArray[np.uint64]:
    """Return the 16-byte ids of all files, sorted and each once, as two big-endian words (n, 2).

    A text that several sources hold has the same id in each.
    """
    ids = np.concatenate([np.zeros(0, ">u8"), *files]).reshape(-1, 2)
    ids = ids[np.lexsort((ids[:, 1], ids[:, 0]))]
    first = np.ones(len(ids), bool)
    first[1:] = (ids[1:] != ids[:-1]).any(axis=1)
    return ids[first].astype(">u8")
