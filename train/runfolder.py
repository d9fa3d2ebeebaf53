"""The run's folder: whether it may be used, what stands in it, and where a run's weights come from.

    metrics.jsonl   one object a logged step; each step stands once, also after a kill and a resume
    events.jsonl    spikes, slow steps, waiting for data: see train/sentinel.py
    run.json        all that replaying the data order needs, and every start the run had
    checkpoints/    see checkpoint.py
    summary.json    at the end: scores before and after, the unigram's, samples, speed
    summary.md      the same and more on one page, with plots/; made anew with each score: see train/page.py

Nothing here ever overwrites a folder that holds checkpoints. `resume` continues everything; `init_from` takes weights.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train import checkpoint
from train.checkpoint import Checkpoint
from train.config import ConfigError, ModelConfig, TrainConfig, TrainError
from train.manifest import Manifest
from train.schedule import Pace, decay_start, settled

# Keys that may differ between a run and its continuation: they change neither weights nor the order of the data.
# `steps`, and `seconds` of the schedule, change the learning rate from there on: `_same_past` allows it where the
# decay had not begun. That is how a run is made longer.
FREE = (
    *("steps", "epochs", "out", "resume", "eval_every", "eval_tokens", "eval_items", "checkpoint_every", "keep_last"),
    *("log_every", "prompts", "sample_tokens", "tensorboard", "wandb", "peak_tflops", "micro_batch", "compile"),
    *("attention", "mixture", "rank_loss"),
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
            found.append(f"{prefix}{key} ({_short(b)} there, {_short(a)} here)")
    return found


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 20 else text[:16] + "..."


# ---------------------------------------------------------------------------------------------------------------------
# Starting


@dataclass(frozen=True)
class Start:
    """What rank 0 decided: where to write, and the checkpoint to continue or to take weights from."""

    folder: Path
    resumed: Path | None = None
    weights: Path | None = None


def open_run(manifest: Manifest, cfg: TrainConfig, ours: dict[str, Any]) -> Start:
    """Decide and check where a run writes and what it starts from. Raises TrainError where the contract says no."""
    if cfg.resume == "auto" and cfg.out is None:
        raise ConfigError("train.resume=auto needs train.out=FOLDER, the run to continue")
    folder = _new_folder(manifest) if cfg.out is None else Path(cfg.out)
    if folder.exists() and not folder.is_dir():
        raise TrainError(f"train.out: {folder} is a file; name a folder")
    if cfg.resume == "auto":
        resumed = _continue(folder, ours, cfg)
    elif cfg.resume in ("refuse", "never"):
        _refuse_used(folder, ours, cfg.resume == "never")
        resumed = None
    else:
        resumed = _resume_path(folder, Path(cfg.resume), ours, cfg)
    weights = None if resumed else _initial_weights(manifest, cfg, ours)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    checkpoint.sweep(folder / "checkpoints")
    return Start(folder, resumed, weights)


def _new_folder(manifest: Manifest) -> Path:
    """runs/<name>-<phase>-001, or the next number that is free."""
    for number in range(1, 1_000_000):
        folder = Path("runs") / f"{manifest.name}-{manifest.phase}-{number:03d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise TrainError("runs/: a million runs are there; name a folder with --set train.out=FOLDER")


def _refuse_used(folder: Path, ours: dict[str, Any], never: bool) -> None:
    """Raises TrainError when `folder` holds checkpoints, or (unless `never`) a run that has none yet."""
    theirs = _identity_in(folder)
    held = checkpoint.steps(folder / "checkpoints")
    if not held and (theirs is None or never):
        return
    if theirs == ours:
        raise TrainError(
            f"{folder} holds this very run{f', saved at step {int(held[0].name[5:])}' if held else ''}\n"
            "continue it with --set train.resume=auto, or choose another train.out"
        )
    what = f"differs in {', '.join(differences(ours, theirs)[:4])}" if theirs else "it has checkpoints but no run.json"
    raise TrainError(f"{folder} holds another run ({what})\nit is never overwritten: choose another train.out")


def _continue(folder: Path, ours: dict[str, Any], cfg: TrainConfig) -> Path | None:
    """The checkpoint to continue in `folder`; None when nothing is there yet, or nothing was saved yet."""
    theirs = _identity_in(folder)
    held = checkpoint.steps(folder / "checkpoints")
    if theirs is None and not held:
        return None
    if theirs != ours:
        what = f"differs in {', '.join(differences(ours, theirs)[:4])}" if theirs else "there is no run.json"
        raise TrainError(
            f"train.resume=auto: {folder} holds another run ({what})\n"
            "give the same manifest and settings, or choose another train.out"
        )
    whole, broken = checkpoint.newest_intact(folder / "checkpoints")
    if broken and whole is None:
        raise TrainError(f"{broken[0]}\nno checkpoint in {folder} is whole; start again with another train.out")
    for message, path in zip(broken, held, strict=False):
        print(f"warning: {message}", file=sys.stderr)
        path.rename(path.with_name(f"{path.name}.broken"))
    if broken and whole:
        print(f"warning: continuing from the newest whole one, {whole.folder}", file=sys.stderr, flush=True)
    if whole:
        _same_run(whole, ours)
        _same_past(whole, cfg)
    return whole.folder if whole else None


def _resume_path(folder: Path, path: Path, ours: dict[str, Any], cfg: TrainConfig) -> Path:
    """A named checkpoint, continued in its own folder or a fresh one."""
    chosen = checkpoint.find(path, "train.resume")
    _same_run(chosen, ours)
    _same_past(chosen, cfg)
    theirs = _identity_in(folder)
    held = checkpoint.steps(folder / "checkpoints")
    if theirs not in (None, ours) or (held and theirs is None):
        raise TrainError(f"{folder} holds another run, never overwritten: choose another train.out")
    if held and int(held[0].name[5:]) > chosen.step:
        raise TrainError(f"{folder} holds {held[0].name}, later than {chosen.folder}: choose another train.out")
    return chosen.folder


def _same_run(chosen: Checkpoint, ours: dict[str, Any]) -> None:
    theirs = chosen.state.get("identity", {})
    if theirs != ours:
        raise TrainError(
            f"{chosen.folder} is of another run: {', '.join(differences(ours, theirs)[:4])}\n"
            "to take only its weights, say train.init_from instead of train.resume"
        )


def _same_past(chosen: Checkpoint, cfg: TrainConfig) -> None:
    """Raises TrainError where a run as long as `cfg` says would have had other learning rates up to `chosen`."""
    then = chosen.state.get("schedule")
    if then is None or (then["steps"], then["seconds"]) == (cfg.steps, cfg.schedule.seconds):
        return
    seconds = cfg.schedule.seconds
    total = cfg.steps if seconds is None else Pace(*then.get("pace", ())).total(cfg.steps, seconds)
    length = f"train.steps={cfg.steps}" + ("" if seconds is None else f" train.schedule.seconds={seconds:g}")
    if not settled(chosen.step, then["total"], cfg.schedule):
        kept = [p for p in checkpoint.steps(chosen.folder.parent) if settled(_step(p), then["total"], cfg.schedule)]
        hint = f"--set train.resume={kept[0]} train.out=NEW {length}" if kept else "no checkpoint from there was kept"
        raise TrainError(
            f"{chosen.folder}: its learning rate had begun to fall, to the end of {then['total']:g} steps; {length} is "
            f"another run\ncontinue from before the fall: {hint}; or take weights only: train.init_from"
        )
    start = decay_start(total, cfg.schedule)
    if not settled(chosen.step, total, cfg.schedule):
        raise TrainError(
            f"{length}: its learning rate falls after step {max(0, math.ceil(start))}, before {chosen.folder}\n"
            "name more steps, or an earlier checkpoint"
        )
    falls = "never" if math.isinf(start) or start >= total else f"after step {math.ceil(start)}"
    print(
        f"note: {total:g} steps instead of {then['total']:g}: all up to step {chosen.step} is the same in both; "
        f"the learning rate now falls {falls}",
        flush=True,
    )


def _step(path: Path) -> int:
    return int(path.name[5:])


def _identity_in(folder: Path) -> dict[str, Any] | None:
    """The identity in a folder's run.json; None when there is none; {} when it cannot be read."""
    path = folder / "run.json"
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        found: dict[str, Any] = value["identity"]
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return {}
    return found


def _initial_weights(manifest: Manifest, cfg: TrainConfig, ours: dict[str, Any]) -> Path | None:
    """The checkpoint train.init_from names, checked to fit. A word without "/" is a phase of the same recipe."""
    name = cfg.init_from
    if name == "none":
        return None
    path = Path(name)
    phases = manifest.recipe.get("train") or {}
    if name in phases or not (path.exists() or "/" in name):
        # beside the link that the manifest was reached through, not beside what it points to
        path = Path(manifest.folder).parent / "train" / name
        if not checkpoint.steps(path / "checkpoints"):
            raise TrainError(
                f"train.init_from={name}: no checkpoint in {path / 'checkpoints'}\n"
                f"train that phase first, or name one with --set train.init_from=PATH, or start afresh with "
                "--set train.init_from=none"
            )
    chosen = checkpoint.find(path, "train.init_from")
    theirs = chosen.state["identity"]
    for key, what in (("val_rule", "validation documents were chosen"), ("tokenizer_sha256", "tokenizer was made")):
        if theirs.get(key) != ours[key]:
            raise TrainError(
                f"train.init_from={name}: {chosen.folder} is from a run whose {what} differently "
                f"({key} {_short(theirs.get(key))} there, {_short(ours[key])} here)\n"
                "its scores would mean nothing here: train that phase again, or --set train.init_from=none"
            )
    wrong = differences({k: ours["model"].get(k) for k in SHAPE}, {k: theirs["model"].get(k) for k in SHAPE}, "model.")
    if wrong:
        raise TrainError(f"train.init_from={name}: {chosen.folder} holds another model: {', '.join(wrong[:4])}")
    return chosen.folder


# ---------------------------------------------------------------------------------------------------------------------
# Writing


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
