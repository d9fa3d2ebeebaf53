"""The run's folder: what makes a run the same run, and what stands in its folder.

    metrics.jsonl   one object a logged step; each step stands once, also after a kill and a resume
    events.jsonl    spikes, slow steps, waiting for data: see train/monitor/anomalies.py
    run.json        all that replaying the data order needs, and every start the run had
    checkpoints/    see checkpoint.py
    summary.json    at the end: scores before and after, the unigram's, samples, speed
    summary.md      the same and more on one page, with plots/; made anew with each score: see train/page.py

How a run starts in it, or goes on, is in start.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.checkpoint import checkpoint
from train.config import ModelConfig, TrainConfig, TrainError
from train.data.manifest import Manifest
from train.distributed.runtime import Runtime

# Keys that may differ between a run and its continuation: they change neither weights nor the order of the data.
# `on_spike` says what is done about the next one: who could not change it would meet the same batch again.
# `steps`, and `seconds` of the schedule, change the learning rate from there on: start.py allows it where the
# decay had not begun. That is how a run is made longer.
FREE = (
    *("steps", "epochs", "out", "resume", "eval_every", "eval_tokens", "eval_items", "checkpoint_every", "keep_last"),
    *("log_every", "prompts", "sample_tokens", "tensorboard", "wandb", "peak_tflops", "micro_batch", "compile"),
    "deterministic",
    *("attention", "mixture", "on_spike", "rank_loss", "keep_best", "allow_new_manifest"),
)
# Keys of the model that its weights depend on
SHAPE = (
    *("dim", "n_layers", "n_heads", "head_dim", "mlp_hidden", "attention_pattern", "sliding_window", "rope_base"),
    *("norm_eps", "tie_embeddings", "vocab_size", "engram_enabled", "engram_slots", "engram_inject_layer"),
)


def identity(manifest: Manifest, model: ModelConfig, train: TrainConfig) -> dict[str, Any]:
    """What makes a run the same run, in JSON's types: stored in run.json and in each checkpoint."""
    shape = dataclasses.asdict(model) | {"head_dim": model.head_size, "mlp_hidden": model.hidden}
    shape |= {"vocab_size": manifest.tokenizer.vocab_size}
    if not model.engram_enabled:  # a bank that is not there has no size
        shape = {k: v for k, v in shape.items() if not k.startswith("engram_")}
    kept = {k: v for k, v in dataclasses.asdict(train).items() if k not in FREE}
    kept["schedule"] = {k: v for k, v in kept["schedule"].items() if k != "seconds"}
    value = {
        "build_id": manifest.build_id,
        "phase": manifest.phase,
        "tokenizer_sha256": manifest.tokenizer.sha256,
        "val_rule": manifest.val_ids.rule,
        "model": shape,
        "train": kept,
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
def claimed(rt: Runtime, folder: Path) -> Iterator[None]:
    """The folder for this run alone, and without what a kill left half written.

    The lock is the kernel's: it ends with the process, however that ends. Raises TrainError, on all ranks, where
    another process trains there.
    """
    with contextlib.ExitStack() as held:
        rt.agreed(lambda: _claim(folder, held))
        yield


def _claim(folder: Path, held: contextlib.ExitStack) -> None:
    file = held.enter_context((folder / ".lock").open("a"))
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TrainError(f"{folder}: another process trains there; end it first, or choose another train.out") from None
    except OSError as error:
        print(f"warning: {folder} cannot be locked ({error.strerror}): see that nobody else trains there", flush=True)
    checkpoint.sweep(folder / "checkpoints")


def write_run(folder: Path, ours: dict[str, Any], facts: dict[str, Any], start: dict[str, Any]) -> None:
    """run.json. `facts` are of this start; `start` ({step, world_size}) joins the list of all starts."""
    path = folder / "run.json"
    starts = []
    if path.exists():
        starts = json.loads(path.read_text(encoding="utf-8")).get("starts", [])
    value = {**facts, "identity": ours, "starts": [*starts, start], "versions": versions()}
    checkpoint.write_atomic(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def versions() -> dict[str, str]:
    """Of what computes."""
    names = ("torch", "numpy", "safetensors")
    return {"python": platform.python_version()} | {n: importlib.metadata.version(n) for n in names}
