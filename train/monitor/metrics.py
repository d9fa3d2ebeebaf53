"""Where a run's figures go: metrics.jsonl and events.jsonl, and when asked for TensorBoard and Weights & Biases.

All of them are told the same records. The JSON lines are the truth: a start drops those after the checkpoint it goes on
from. What TensorBoard and wandb already hold of such steps stays or is purged by their own rules; a run that is the
same to the bit would only say it again, so wandb, whose steps must not go back, is not told twice.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TextIO

from train.checkpoint.run_folder import read_run
from train.config import TrainConfig, TrainError
from train.files import write_atomic

PROJECT = "shardmill"  # in wandb, where train.wandb says only `true`


class Metrics:
    """The writers of one start, on the first rank. As a context, it closes them all, however the run ends."""

    def __init__(
        self, folder: Path, step: int, cfg: TrainConfig, facts: dict[str, Any], writes_step: bool = False
    ) -> None:
        """Drops the lines after `step`, the checkpoint continued from, and a line that a kill cut.

        facts: of run.json. writes_step: the line of `step` itself is written again, with its score. `wandb` is for
        run.json too: the id of the run there, also of an earlier start; "" for none.
        Raises TrainError when wandb refuses.
        """
        self.file = _opened(folder / "metrics.jsonl", step, writes_step)
        self.events = _opened(folder / "events.jsonl", step)
        self.board = _tensorboard(folder, step) if cfg.tensorboard else None
        self.wandb = _earlier_id(folder)
        self.online = _wandb(folder, cfg.wandb, self.wandb, facts) if cfg.wandb else None
        if self.online is not None:
            self.wandb = self.online.id
            self.told = self.online.step  # steps below it are there

    def write(self, record: dict[str, Any]) -> None:
        """One line, at once."""
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()
        step, values = record["step"], {key: value for key, value in record.items() if key != "step"}
        if self.board is not None:
            for key, value in values.items():
                self.board.add_scalar(key, value, step)
        if self.online is not None and step >= self.told:
            self.online.log(values, step=step)

    def event(self, event: dict[str, Any]) -> None:
        """A line of events.jsonl, at once."""
        self.events.write(json.dumps(event) + "\n")
        self.events.flush()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.file.close()
        self.events.close()
        if self.board is not None:
            self.board.close()
        if self.online is not None:
            self.online.finish(exit_code=0 if kind is None else 1)


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines that have a step. Others, as one that a kill cut, are left out."""
    found = []
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            value = json.loads(line)
            found += [value] if isinstance(value["step"], int) else []
        except (json.JSONDecodeError, KeyError, TypeError):
            continue
    return found


def _opened(path: Path, step: int, writes_step: bool = False) -> TextIO:
    """A file of JSON lines to append to, without those after `step`, or from it on."""
    # step 0 is scored before the first step: a start from 0 scores it again
    kept = [value for value in read_json_lines(path) if value["step"] <= step - writes_step] if step else []
    write_atomic(path, "".join(json.dumps(value) + "\n" for value in kept))
    return path.open("a", encoding="utf-8")


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("warning: no TensorBoard files: the package tensorboard is not installed", file=sys.stderr, flush=True)
        return None
    return SummaryWriter(str(folder), purge_step=step + 1 if step else None)


def _earlier_id(folder: Path) -> str:
    """The wandb run that an earlier start of this run made."""
    try:
        return str(read_run(folder).get("wandb", ""))
    except TrainError:
        return ""


def _wandb(folder: Path, project: bool | str, earlier: str, facts: dict[str, Any]) -> Any:
    """A wandb run, the earlier start's where there was one. Log-in, server and offline mode are wandb's own to find."""
    try:
        import wandb
    except ImportError:
        print("warning: nothing goes to wandb: the package wandb is not installed", file=sys.stderr, flush=True)
        return None
    try:
        return wandb.init(
            project=PROJECT if project is True else str(project),
            id=earlier or None,
            resume="allow",
            name=folder.absolute().name,
            group=f"{facts['name']}/{facts['phase']}",
            dir=str(folder),
            config=facts,
        )
    except wandb.Error as error:
        raise TrainError(
            f"train.wandb: {str(error).splitlines()[0] if str(error) else type(error).__name__}\n"
            "log in with `wandb login`, or write to the disk alone with WANDB_MODE=offline, or set train.wandb=false"
        ) from None
