"""The run's folder: what makes a run the same run, and what stands in its folder.

    metrics.jsonl   one object a logged step; each step stands once, also after a kill and a resume
    events.jsonl    spikes, slow steps, waiting for data: see train/monitor/anomalies.py
    run.json        all that replaying the data order needs, and every start the run had
    checkpoints/    see train/checkpoint/checkpoint.py
    summary.json    at the end: scores before and after, the unigram's, samples, speed
    evaluation.npz  the last score, a row a document and a row a question: see train/eval/rows.py
    summary.md      the same and more on one page, with plots/; made anew with each score: see train/page.py

How a run starts in it, or goes on, is in train/checkpoint/resume.py.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.checkpoint.checkpoint import delete_partial_checkpoints
from train.config import ModelConfig, TrainConfig, TrainError
from train.data.manifest import Manifest
from train.distributed.runtime import Runtime
from train.files import write_atomic
from train.sealed import read_run_file, run_file_text


def run_identity(manifest: Manifest, model: ModelConfig, train: TrainConfig) -> dict[str, Any]:
    """What makes a run the same run, in JSON's types: stored in run.json and in each checkpoint."""
    value = {
        "build_id": manifest.build_id,
        "phase": manifest.phase,
        "tokenizer_sha256": manifest.tokenizer.sha256,
        "val_rule": manifest.val_ids.rule,
        "model": model.fixed_by_run() | {"vocab_size": manifest.tokenizer.vocab_size},
        "train": train.fixed_by_run(),
    }
    result: dict[str, Any] = json.loads(json.dumps(value))
    return result


def differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of the leaves in which two identities differ, with both values: "model.dim (64 there, 128 here)"."""
    found = []
    for key in sorted({*ours, *theirs}):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} ({short(b)} there, {short(a)} here)")
    return found


def short(value: object) -> str:
    """At most 20 characters of a value."""
    text = str(value)
    return text if len(text) <= 20 else text[:16] + "..."


# ---------------------------------------------------------------------------------------------------------------------
# Writing


@contextlib.contextmanager
def claim_folder(rt: Runtime, folder: Path) -> Iterator[None]:
    """The folder for this run alone, and without what a kill left half written.

    The lock is the kernel's: it ends with the process, however that ends. Raises TrainError, on all ranks, where
    another process trains there.
    """
    with contextlib.ExitStack() as held:
        rt.broadcast_from_rank0(lambda: _claim(folder, held))
        yield


def _claim(folder: Path, held: contextlib.ExitStack) -> None:
    file = held.enter_context((folder / ".lock").open("a"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TrainError(f"{folder}: another process trains there; end it first, or choose another train.out") from None
    except OSError as error:
        print(f"warning: {folder} cannot be locked ({error.strerror}): see that nobody else trains there", flush=True)
    delete_partial_checkpoints(folder / "checkpoints")


def read_run(folder: Path) -> dict[str, Any]:
    """Read run.json in a run's folder. Raises TrainError when it is missing, damaged or no object of JSON."""
    path = folder / "run.json"
    try:
        return read_run_file(path)
    except (OSError, ValueError) as error:
        raise TrainError(f"{path}: {error}; name the folder of a run") from None


def write_run(folder: Path, ours: dict[str, Any], facts: dict[str, Any], start: dict[str, Any]) -> None:
    """run.json. `facts` are of this start; `start` ({step, world_size}) joins the list of all starts."""
    path = folder / "run.json"
    try:
        starts = read_run(folder).get("starts", [])
    except TrainError:  # there is none, or it is damaged
        starts = []
    value = {**facts, "identity": ours, "starts": [*starts, start], "versions": versions()}
    write_atomic(path, run_file_text(value))


def code_digest() -> str:
    """Return a hash of the trainer's code, every module of `train`."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of what computes."""
    names = ("torch", "numpy", "safetensors")
    return {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in names}
