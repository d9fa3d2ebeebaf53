"""Checkpoints: safetensors and JSON, no pickle; whole or not there.

    <run>/checkpoints/step_000120/model.safetensors       fp32 weights by parameter name
                                  optimizer.safetensors   momentum, moments and averages by parameter name
                                  state.json              step, data position, configuration, sha256 of all three
                                  score.json              its validation loss, once it is known
    <run>/checkpoints/latest                              the newest one's name
                      best                                the name of the one with the lowest validation loss
                      decay_start                         the name of the one where the learning rate began to fall

A checkpoint is written under a temporary name, flushed to the disk and renamed; `latest` and `best` are replaced after
that. A kill at any moment leaves the previous ones. Nothing in it depends on the number of ranks, so any number
continues it. Training does not wait for any of this: see train/checkpoint/background.py.

Randomness needs no stored state: weights, data order, dropout and samples are each drawn from (seed, step, rank) when
they are used (`rng` in state.json says so).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from train.config import TrainError
from train.files import fsync_path, sha256_file, write_atomic
from train.sealed import FORMAT, read_run_file, run_file_text

# What a resume reads of state.json, where it is there.
TYPES: dict[str, tuple[type, ...]] = {
    "identity": (dict,),
    "builds": (list,),
    "seconds": (int, float),
    "before": (dict, NoneType),
    "best": (dict, NoneType),
    "unscored": (dict, NoneType),
    "updates": (int,),
    "skipped": (int,),
    "averages": (dict,),
    "schedule": (dict,),
}
LATEST, BEST, DECAY_START = "latest", "best", "decay_start"  # files that name a checkpoint
STATE, SCORE = "state.json", "score.json"  # the second once the checkpoint was scored
TENSOR_FILES = ("model.safetensors", "optimizer.safetensors")
RNG_RULE = "stateless: weights from seed, order from (seed, epoch), dropout from (seed, step, rank)"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are as long as, and hash to, what state.json says."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Updates made."""
        return int(self.state["step"])

    def tensors(self, name: str) -> dict[str, Tensor]:
        """One of TENSOR_FILES, on CPU."""
        return load_file(self.folder / name)


def save_checkpoint(
    folder: Path,
    step: int,
    model: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    names: Sequence[str] = (),
) -> Path:
    """Write step `step` into `folder` (a run's checkpoints/), to be called `names` besides `latest`.

    Raises TrainError when the disk refuses.
    """
    final = folder / checkpoint_name(step)
    if final.exists():
        raise TrainError(f"{final} is there already, and checkpoints are never overwritten; choose another train.out")
    part = folder / f".part-{step:06d}-{os.getpid()}"
    try:
        part.mkdir(parents=True)
        if DECAY_START in names:  # first: a kill in between leaves a name that the next start fills
            write_atomic(folder / DECAY_START, final.name + "\n")
        files = {}
        for name, tensors in zip(TENSOR_FILES, (model, optimizer), strict=True):
            save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, part / name)
            files[name] = {"bytes": (part / name).stat().st_size, "sha256": sha256_file(part / name)}
        value = {"step": step, "rng": RNG_RULE, **state, "files": files}
        (part / STATE).write_text(run_file_text(value), encoding="utf-8")
        for path in (*part.iterdir(), part):
            fsync_path(path)
        part.rename(final)
        write_atomic(folder / LATEST, final.name + "\n")
        if BEST in names:  # a kill in between: the next start names the best again
            write_atomic(folder / BEST, final.name + "\n")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise TrainError(
            f"{final}: not written: {error}; earlier checkpoints are whole. Make room and resume"
        ) from None
    return final


def name_score(folder: Path, step: int, score: dict[str, Any], is_best: bool) -> None:
    """Write what step `step` in `folder` scored, `val_loss` over `tokens`, into its checkpoint; `best` may name it.

    Raises TrainError when the disk refuses.
    """
    path = folder / checkpoint_name(step) / SCORE
    try:
        write_atomic(path, run_file_text({"step": step, **score}))
        if is_best:
            write_atomic(folder / BEST, checkpoint_name(step) + "\n")
    except OSError as error:
        raise TrainError(f"{path}: not written: {error}; make room and resume") from None


def read_score(folder: Path) -> dict[str, Any] | None:
    """Return the step, val_loss and tokens that `name_score` wrote into a checkpoint; None where no whole one is."""
    try:
        score = read_run_file(folder / SCORE)
        return {"step": int(score["step"]), "val_loss": float(score["val_loss"]), "tokens": int(score["tokens"])}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_better(score: dict[str, Any], best: dict[str, Any] | None) -> bool:
    """Return whether a score takes the place of the best one: a lower loss over the same tokens, or over others."""
    if not math.isfinite(score["val_loss"]):
        return False
    return best is None or best["tokens"] != score["tokens"] or score["val_loss"] < best["val_loss"]


def checkpoint_name(step: int) -> str:
    """The folder's name of a checkpoint."""
    return f"step_{step:06d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint by its folder's name; None for any other name."""
    return int(name[5:]) if name.startswith("step_") and name[5:].isdigit() else None


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints (0: none), the best one, and the one where the decay began.

    Each is renamed first, so that no half one is ever seen.
    """
    spared = {pointer_target(folder, BEST), pointer_target(folder, DECAY_START)}
    for old in [p for p in list_checkpoints(folder)[keep:] if p.name not in spared] if keep else []:
        trash = old.with_name(f".old-{old.name}")
        old.rename(trash)
        shutil.rmtree(trash, ignore_errors=True)


def pointer_target(folder: Path, pointer: str) -> str:
    """The name in one of the files LATEST, BEST and DECAY_START of a checkpoints/; empty when it is not there."""
    path = folder / pointer
    return first_word(path.read_bytes()) if path.is_file() else ""


def first_word(pointer: bytes) -> str:
    """The name in the contents of LATEST, BEST or DECAY_START; in a bucket LATEST has more words."""
    return next(iter(pointer.decode(errors="replace").split()), "")


def delete_partial_checkpoints(folder: Path) -> None:
    """Delete what a kill left half written. Only for the process that owns the run."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith((".part-", ".old-")):
                shutil.rmtree(path, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in a run's checkpoints/, newest first, intact or not."""
    steps = {step_of(path.name): path for path in folder.glob("step_*") if path.is_dir()} if folder.is_dir() else {}
    return [path for step, path in sorted((s, p) for s, p in steps.items() if s is not None)][::-1]


def read_checkpoint(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`. Raises TrainError, in one line, when it is missing, cut or damaged."""
    try:
        state = read_run_file(folder / STATE)
        check_state(folder, state)
        files = state["files"]
        for name in TENSOR_FILES:
            size = (folder / name).stat().st_size
            if size != files[name]["bytes"]:
                raise TrainError(f"{folder / name}: cut: {size:,} bytes, {files[name]['bytes']:,} were written")
            if sha256_file(folder / name) != files[name]["sha256"]:
                raise TrainError(f"{folder / name}: damaged: its sha256 is not the one written beside it")
        return Checkpoint(folder, state)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainError(f"{folder}: not a whole checkpoint ({error})") from None


def check_state(folder: Path, state: dict[str, Any]) -> None:
    """Raise TrainError or ValueError when a state.json is of another format, of another step or of wrong types."""
    if state["format"] not in range(1, FORMAT + 1):
        raise TrainError(f"{folder}: checkpoint format {state['format']}, this program reads 1 to {FORMAT}")
    step = state["step"]
    if type(step) is not int or (folder.name.startswith("step_") and folder.name != checkpoint_name(step)):
        raise ValueError(f"state.json says step {step}")
    for key, types in TYPES.items():
        if key in state and not isinstance(state[key], types):
            raise ValueError(f"state.json has a {type(state[key]).__name__} as its {key!r}")


def newest_intact_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint of a run's checkpoints/ that is whole, and what is wrong with each newer one."""
    broken: list[str] = []
    for path in list_checkpoints(folder):
        try:
            return read_checkpoint(path), broken
        except TrainError as error:
            broken.append(str(error))
    return None, broken


def locate_checkpoint(path: Path, name: str, advice: str) -> Path:
    """Return the checkpoint's folder that `path` names: a step's own, or of a run or its checkpoints/ the one `name`d.

    name: `latest`, which is the newest, `best`, `decay_start` or a step's, as step_000120. A `path` that is one of the
    files that name a checkpoint, as checkpoints/best, stands for what it names.
    Raises TrainError, ended by `advice`, when there is none.
    """
    if path.is_file():
        path, name = path.parent, path.name
    inside = path / "checkpoints" if list_checkpoints(path / "checkpoints") else path
    by_name = {folder.name: folder for folder in list_checkpoints(inside)}
    if not by_name:
        if name == LATEST and (path / STATE).exists():
            return path
        raise TrainError(f"{path}: no checkpoint there; {advice}")
    wanted = next(iter(by_name)) if name == LATEST else pointer_target(inside, name) or name
    if wanted not in by_name:
        raise TrainError(f"{inside}: no checkpoint {name!r} there; there are {', '.join([LATEST, *by_name])}")
    return by_name[wanted]


def find_checkpoint(path: Path, key: str) -> Checkpoint:
    """Read the checkpoint that `path`, the value of the recipe's `key`, names: of a run the newest.

    Raises TrainError when there is none, and when it is damaged: then naming the newest whole one, not taking it.
    """
    other = "none" if key == "train.init_from" else "auto"
    chosen = locate_checkpoint(path, LATEST, f"name one with --set {key}=PATH, or --set {key}={other}")
    try:
        return read_checkpoint(chosen)
    except TrainError as error:
        whole, _ = newest_intact_checkpoint(chosen.parent)
        hint = f"the newest whole one is {whole.folder}" if whole else "and there is no whole one beside it"
        raise TrainError(f"{error}\n{hint}; name one with --set {key}=PATH") from None
