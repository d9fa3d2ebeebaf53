"""Whole commands that messages and pages of a run suggest: to be typed as they are."""

from __future__ import annotations

import shlex
from typing import Any


def continue_command(run: dict[str, Any], *settings: str) -> str:
    """Return the command that goes on with a run, from where it was started; `settings` are set beside those it had.

    `run` has, as run.json has, `world_size` and `command`: manifest, folder and set (a list of key=value).
    """
    given, world = run["command"], run["world_size"]
    launcher = "python" if world == 1 else f"torchrun --nproc-per-node {world}"
    changed = {"train.out", "train.resume", *(text.partition("=")[0] for text in settings)}
    kept = [text for text in given["set"] if text.partition("=")[0] not in changed]
    words = shlex.join([*kept, f"train.out={given['folder']}", "train.resume=auto", *settings])
    return f"{launcher} train/main.py --manifest {shlex.quote(given['manifest'])} --set {words}"


def trace_command(manifest: str, folder: str, step: int) -> str:
    """Return the command that shows the documents of a step of the run in `folder`."""
    return f"python -m pipeline trace {shlex.quote(manifest)} --run {shlex.quote(folder)} --step {step}"
