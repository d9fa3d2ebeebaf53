"""How a run starts: whether its folder may be used, and where its weights come from.

`resume` continues everything, `init_from` takes weights. A run continues on the manifest and with the settings that it
began with, but for those that change neither its past nor its order (`fixed_by=None` in train/config.py).
`allow_new_manifest` lifts the first: another build of the same data, under the same tokenizer and the same rule for
validation. The step then counts on, and what it reads is a function of the new build: rows that were read may come
again, and others never. Which build a step read stands in run.json (`builds`), and `pipeline trace` asks for that one.
Nothing here overwrites a folder that holds checkpoints.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from train.checkpoint import checkpoint, gemma3
from train.checkpoint.checkpoint import (
    Checkpoint,
    checkpoint_name,
    find_checkpoint,
    is_better,
    list_checkpoints,
    newest_intact_checkpoint,
    pointer_target,
    read_checkpoint,
    read_score,
    step_of,
)
from train.checkpoint.fetched_run import fetch_run
from train.checkpoint.mirror import Mirror
from train.checkpoint.run_folder import differences, read_run, short
from train.config import ConfigError, ModelConfig, TrainConfig, TrainError
from train.data.manifest import Manifest
from train.data.remote import is_address
from train.files import write_atomic
from train.keys import keys_fixed_by_weights
from train.optim.schedule import StepTimer, decay_start, settled


@dataclass(frozen=True)
class RunStart:
    """What rank 0 decided: where a run writes, and which checkpoint it starts from."""

    folder: Path
    builds: list[dict[str, Any]]  # {build_id, from_step}: the build that was read after so many updates
    checkpoint: Path | None = None  # or a folder of transformers, whose weights are taken
    resumes: bool = False  # whether all of the checkpoint is continued, and not its weights alone taken
    best: dict[str, Any] | None = None  # the best score so far: step, val_loss, tokens
    address: str = ""  # of the checkpoint in a bucket, for machines that do not see its folder


def open_run(
    manifest: Manifest, model: ModelConfig, cfg: TrainConfig, ours: dict[str, Any], mirror: Mirror | None = None
) -> RunStart:
    """Decide and check where a run writes and what it starts from. Raises TrainError where the contract says no.

    mirror: of the run's folder, where that is in a bucket.
    """
    if mirror is None:
        return _open_folder(manifest, model, cfg, ours, None)
    try:
        start = _open_folder(manifest, model, cfg, ours, mirror.folder)
    except TrainError as error:
        raise mirror.explain(error) from None
    mirror.own()
    if start.resumes and start.checkpoint and not start.address:
        start = replace(start, address=f"{mirror.address}/checkpoints/{start.checkpoint.name}")
    return start


def on_this_machine(start: RunStart, cfg: TrainConfig) -> RunStart:
    """Return `start` with its checkpoint where this process can read it: on another machine than rank 0's a copy."""
    if start.checkpoint is None or start.checkpoint.exists() or not start.address:
        return start
    (copy,) = list_checkpoints(fetch_run(start.address, root=cfg.cache) / "checkpoints")
    return replace(start, checkpoint=copy)


def _open_folder(
    manifest: Manifest, model: ModelConfig, cfg: TrainConfig, ours: dict[str, Any], copy: Path | None
) -> RunStart:
    """Open the run. copy: the folder here of one in a bucket."""
    if cfg.resume == "auto" and cfg.out is None:
        raise ConfigError("train.resume=auto needs train.out=FOLDER, the run to continue")
    folder = copy or (_new_folder(manifest) if cfg.out is None else Path(cfg.out))
    address = ""
    if folder.exists() and not folder.is_dir():
        raise TrainError(f"train.out: {folder} is a file; name a folder")
    point = None
    if cfg.resume == "auto":
        point = _continue(folder, ours, cfg)
    elif cfg.resume in ("refuse", "never"):
        _refuse_used(folder, ours, cfg.resume == "never")
    else:
        address = cfg.resume if is_address(cfg.resume) else ""
        point = _resume_path(folder, _local(cfg.resume, cfg), ours, cfg)
    weights = None if point else _initial_weights(manifest, model, cfg, ours)
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainError(f"train.out: {folder} cannot be made: {error.strerror}; name another folder") from None
    builds = builds_after(point, manifest.build_id)
    if point is None:
        return RunStart(folder, builds, weights, address=_weights_address(manifest, cfg))
    best = _best_so_far(folder / "checkpoints", point, manifest.build_id)
    return RunStart(folder, builds, point.folder, resumes=True, best=best, address=address)


def builds_after(point: Checkpoint | None, build_id: str) -> list[dict[str, Any]]:
    """Return which build each step of a run read, or will read, when checkpoint `point` is continued on `build_id`."""
    if point is None:
        return [{"build_id": build_id, "from_step": 0}]
    past = point.state.get("builds") or [{"build_id": point.state["identity"]["build_id"], "from_step": 0}]
    kept = [build for build in past if build["from_step"] < point.step]
    if kept[-1]["build_id"] == build_id:
        return kept
    print(
        f"note: on build {build_id[:16]} from step {point.step + 1} on, {kept[-1]['build_id'][:16]} before: "
        "which of its rows were read already is not known",
        flush=True,
    )
    return [*kept, {"build_id": build_id, "from_step": point.step}]


def _best_so_far(folder: Path, point: Checkpoint, build_id: str) -> dict[str, Any] | None:
    """Return the best score that checkpoint `point` knows of; None where the best is gone or of other documents.

    `best` is made to name it again: a kill may have come between a checkpoint and its name.
    """
    best: dict[str, Any] | None = point.state.get("best")
    own = read_score(point.folder)  # later than the state beside it
    if own is not None and is_better(own, best):
        best = own
    name = checkpoint_name(best["step"]) if best else ""
    if best is None or not (folder / name).is_dir():
        if not (folder / pointer_target(folder, checkpoint.BEST)).is_dir():
            (folder / checkpoint.BEST).unlink(missing_ok=True)
        return None
    if pointer_target(folder, checkpoint.BEST) != name:
        write_atomic(folder / checkpoint.BEST, name + "\n")
    return best if point.state["identity"]["build_id"] == build_id else None


def _other_build(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Return whether two identities differ in the build of the data, and in nothing else."""
    return ours != theirs and {**theirs, "build_id": ours["build_id"]} == ours


def _build_refused(where: object, ours: dict[str, Any], theirs: dict[str, Any]) -> TrainError:
    return TrainError(
        f"{where} was trained on build {theirs['build_id'][:16]} of its data, this manifest is of "
        f"{ours['build_id'][:16]}\nto go on with this one say --set train.allow_new_manifest=true: the step counts on, "
        "but its order is another, and which rows were read before is not known"
    )


def _new_folder(manifest: Manifest) -> Path:
    """Make and return runs/<name>-<phase>-001, or the next number that is free."""
    for number in range(1, 1_000_000):
        folder = Path("runs") / f"{manifest.name}-{manifest.phase}-{number:03d}"
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise TrainError("runs/: a million runs are there; name a folder with --set train.out=FOLDER")


def _refuse_used(folder: Path, ours: dict[str, Any], never: bool) -> None:
    """Raise TrainError when `folder` holds checkpoints, or (unless `never`) a run that has none yet."""
    theirs = _identity_in(folder)
    held = list_checkpoints(folder / "checkpoints")
    if not held and (theirs is None or never):
        return
    if theirs == ours:
        raise TrainError(
            f"{folder} holds this very run{f', saved at step {step_of(held[0].name)}' if held else ''}\n"
            "continue it with --set train.resume=auto, or choose another train.out"
        )
    what = f"differs in {', '.join(differences(ours, theirs)[:4])}" if theirs else "it has checkpoints but no run.json"
    raise TrainError(f"{folder} holds another run ({what})\nit is never overwritten: choose another train.out")


def _continue(folder: Path, ours: dict[str, Any], cfg: TrainConfig) -> Checkpoint | None:
    """Return the checkpoint to continue in `folder`; None when nothing is there, or nothing was saved yet."""
    theirs = _identity_in(folder)
    held = list_checkpoints(folder / "checkpoints")
    if theirs is None and not held:
        return None
    other = _other_build(ours, theirs or {})
    if other and not cfg.allow_new_manifest:
        raise _build_refused(folder, ours, theirs or {})
    if theirs != ours and not other:
        what = f"differs in {', '.join(differences(ours, theirs)[:4])}" if theirs else "there is no run.json"
        raise TrainError(
            f"train.resume=auto: {folder} holds another run ({what})\n"
            "give the same manifest and settings, or choose another train.out"
        )
    whole, broken = newest_intact_checkpoint(folder / "checkpoints")
    if broken and whole is None:
        raise TrainError(f"{broken[0]}\nno checkpoint in {folder} is whole; start again with another train.out")
    for message, path in zip(broken, held, strict=False):
        print(f"warning: {message}", file=sys.stderr)
        path.rename(path.with_name(f"{path.name}.broken"))
    if broken and whole:
        print(f"warning: continuing from the newest whole one, {whole.folder}", file=sys.stderr, flush=True)
    if whole:
        _same_run(whole, ours, cfg)
        _same_past(whole, cfg)
    return whole


def _resume_path(folder: Path, path: Path, ours: dict[str, Any], cfg: TrainConfig) -> Checkpoint:
    """Return the checkpoint that `path` names, to be continued in its own folder or a fresh one."""
    chosen = find_checkpoint(path, "train.resume")
    _same_run(chosen, ours, cfg)
    _same_past(chosen, cfg)
    theirs = _identity_in(folder)
    held = list_checkpoints(folder / "checkpoints")
    same = theirs in (None, ours) or (cfg.allow_new_manifest and _other_build(ours, theirs or {}))
    if not same or (held and theirs is None):
        raise TrainError(f"{folder} holds another run, never overwritten: choose another train.out")
    if held and (step_of(held[0].name) or 0) > chosen.step:
        raise TrainError(f"{folder} holds {held[0].name}, later than {chosen.folder}: choose another train.out")
    return chosen


def _same_run(chosen: Checkpoint, ours: dict[str, Any], cfg: TrainConfig) -> None:
    """Raise TrainError when checkpoint `chosen` is of another run, or of another build that is not allowed for."""
    theirs = chosen.state.get("identity", {})
    if _other_build(ours, theirs):
        if not cfg.allow_new_manifest:
            raise _build_refused(chosen.folder, ours, theirs)
    elif theirs != ours:
        raise TrainError(
            f"{chosen.folder} is of another run: {', '.join(differences(ours, theirs)[:4])}\n"
            "to take only its weights, say train.init_from instead of train.resume"
        )


def _same_past(chosen: Checkpoint, cfg: TrainConfig) -> None:
    """Raise TrainError where a run as long as `cfg` says would have had other learning rates up to `chosen`."""
    then = chosen.state.get("schedule")
    if then is None or (then["steps"], then["seconds"]) == (cfg.steps, cfg.schedule.seconds):
        return
    seconds = cfg.schedule.seconds
    total = cfg.steps if seconds is None else StepTimer(*then.get("pace", ())).total(cfg.steps, seconds)
    length = f"train.steps={cfg.steps}" + ("" if seconds is None else f" train.schedule.seconds={seconds:g}")
    if not settled(chosen.step, then["total"], cfg.schedule):
        kept = [p for p in list_checkpoints(chosen.folder.parent) if _settled(p, cfg)]
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


def _settled(path: Path, cfg: TrainConfig) -> bool:
    """Return whether the checkpoint at `path` is from before the learning rate's fall, by the run's length then."""
    try:
        point = read_checkpoint(path)
    except TrainError:
        return False
    return settled(point.step, point.state["schedule"]["total"], cfg.schedule)


def _identity_in(folder: Path) -> dict[str, Any] | None:
    """Return the identity in a folder's run.json; None when there is none; {} when nothing there is whole.

    Where run.json is damaged, the newest whole checkpoint says whose run it is.
    """
    if not (folder / "run.json").exists():
        return None
    try:
        identity = read_run(folder).get("identity")
    except TrainError as error:
        print(f"warning: {error}", file=sys.stderr)
        whole, _ = newest_intact_checkpoint(folder / "checkpoints")
        identity = whole.state.get("identity") if whole else None
    return identity if isinstance(identity, dict) else {}


def _initial_weights(manifest: Manifest, model: ModelConfig, cfg: TrainConfig, ours: dict[str, Any]) -> Path | None:
    """Return the folder whose weights train.init_from names, checked to fit: a checkpoint's, or one of transformers.

    A word without "/" is a phase of the same recipe.
    """
    name = cfg.init_from
    if name == "none":
        return None
    address = _weights_address(manifest, cfg)
    path = _local(address or name, cfg)
    if not address and _is_phase(manifest, name):
        # beside the link that the manifest was reached through, not beside what it points to
        path = Path(manifest.folder).parent / "train" / name
        if not list_checkpoints(path / "checkpoints"):
            raise TrainError(
                f"train.init_from={name}: no checkpoint in {path / 'checkpoints'}\n"
                f"train that phase first, or name one with --set train.init_from=PATH, or start afresh with "
                "--set train.init_from=none"
            )
    if gemma3.is_hf_folder(path):
        _check_gemma3(path, manifest, model)
        return path
    chosen = find_checkpoint(path, "train.init_from")
    theirs = chosen.state["identity"]
    for key, what in (("val_rule", "validation documents were chosen"), ("tokenizer_sha256", "tokenizer was made")):
        if theirs.get(key) != ours[key]:
            raise TrainError(
                f"train.init_from={name}: {chosen.folder} is from a run whose {what} differently "
                f"({key} {short(theirs.get(key))} there, {short(ours[key])} here)\n"
                "its scores would mean nothing here: train that phase again, or --set train.init_from=none"
            )
    keys = keys_fixed_by_weights(ModelConfig)
    wrong = differences({k: ours["model"].get(k) for k in keys}, {k: theirs["model"].get(k) for k in keys}, "model.")
    if wrong:
        raise TrainError(f"train.init_from={name}: {chosen.folder} holds another model: {', '.join(wrong[:4])}")
    return chosen.folder


def _is_phase(manifest: Manifest, name: str) -> bool:
    """Return whether train.init_from names a phase: one of the recipe, or a word that is no path."""
    return name in (manifest.recipe.get("train") or {}) or not (Path(name).exists() or "/" in name)


def _weights_address(manifest: Manifest, cfg: TrainConfig) -> str:
    """Return the address in a bucket of the run that train.init_from names; "" where it is on this machine."""
    if is_address(cfg.init_from):
        return cfg.init_from
    if cfg.init_from == "none" or not is_address(manifest.folder) or not _is_phase(manifest, cfg.init_from):
        return ""
    return f"{manifest.folder.rpartition('/')[0].removesuffix('/builds')}/train/{cfg.init_from}"


def _local(path: str, cfg: TrainConfig) -> Path:
    """Return a path of this machine for that of a run or a checkpoint, which is copied here from a bucket."""
    return fetch_run(path, root=cfg.cache) if is_address(path) else Path(path)


def _check_gemma3(folder: Path, manifest: Manifest, model: ModelConfig) -> None:
    """Raise TrainError where the Gemma 3 in a folder of transformers is another model, or read other ids."""
    wrong = gemma3.differing_keys(model, manifest.tokenizer.vocab_size, gemma3.read_config(folder))
    if wrong:
        raise TrainError(f"train.init_from={folder} holds another model: {', '.join(wrong[:6])}")
    tokenizer = manifest.file(manifest.tokenizer.path)
    if not gemma3.same_ids(folder, tokenizer):
        raise TrainError(
            f"train.init_from={folder}: its {tokenizer.name} is missing, or gives other ids than the manifest's\n"
            f"pack the data with it: tokenizer: {{from: {folder / tokenizer.name}}}"
        )
