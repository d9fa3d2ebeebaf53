"""The unit that writes the manifest of a packed mixture, and the ids of held-out documents beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from stages import hashing
from stages.task import Task
from train.data.manifest import manifest_text


def manifest(task: Task) -> None:
    """Write `val_ids.bin` and `manifest.json`.

    params: manifest (all but val_ids). inputs: the sorted ids of held-out documents, in any number of files. That no
    training document is among them, each shard has proved of its own documents, by the rule.
    """
    words = [np.fromfile(task.path(a), ">u8").reshape(-1, 2) for a in task.inputs]
    held = np.concatenate([np.zeros((0, 2), ">u8"), *words])
    order = np.lexsort((held[:, 1], held[:, 0]))
    held = held[order]
    fresh = np.ones(len(held), bool)
    fresh[1:] = (held[1:] != held[:-1]).any(axis=1)  # a text that several sources hold
    raw = held[fresh].astype(">u8").tobytes()
    path = task.output("val_ids.bin")
    Path(path).write_bytes(raw)
    task.add("val_ids", path, rows=len(raw) // 16)
    value = task.params["manifest"]
    value["val_ids"] = {
        "path": "val_ids.bin",
        "sha256": hashlib.sha256(raw).hexdigest(),
        "count": len(raw) // 16,
        "rule": hashing.VALIDATION_RULE,
    }
    path = task.output("manifest.json")
    Path(path).write_text(manifest_text(value), encoding="utf-8")
    task.add("manifest", path)
