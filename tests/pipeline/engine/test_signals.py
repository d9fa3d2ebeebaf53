"""A scheduler's signals: training under `pipeline run` saves, the driver says 75, and the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
from engine_harness import LIMIT, Work, gone, wait_for

from pipeline.engine.signals import StopSignals

SETTINGS = ("train.pretrain.steps=300", "train.pretrain.epochs=100", "train.pretrain.log_every=1", "ranks=2")
LONG = tuple(word for setting in SETTINGS for word in ("--set", setting))


def training(work: Work, lines: int) -> Path:
    """The run folder, once its metrics have so many lines."""

    def found() -> list[Path]:
        files = list(work.out.glob("store/train/??/*/run/metrics.jsonl"))
        return [f.parent for f in files if f.read_text().count('"loss"') >= lines]

    folder: Path = wait_for(found, f"{lines} lines of metrics")[0]
    return folder


def stopped(work: Work, driver: subprocess.Popen[str], to: Any, number: int) -> int:
    """Send a signal; the step that was saved. Checks status, message and time."""
    began = time.monotonic()
    to(driver.pid, number)
    assert driver.wait(LIMIT) == 75, (work.folder / "stderr").read_text()
    assert time.monotonic() - began < 25
    said = (work.folder / "stderr").read_text()
    assert "stopped: train pretrain: stopped by a signal, saved: step_" in said and "Traceback" not in said
    folder = training(work, 1)
    step = int((folder / "checkpoints/latest").read_text().strip()[5:])
    assert f"saved: step_{step:06d}; the same command continues" in said
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    assert last == step  # nothing that was computed is lost
    assert not list(folder.parent.glob("stop-*"))
    return step


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", pytest.param("ray", marks=pytest.mark.soak)])
def test_a_signal_to_the_driver_saves_and_the_same_command_goes_on(packed: Work, executor: str) -> None:
    work = packed
    mark = uuid.uuid4().hex
    command = ("run", "train", "--executor", executor, *LONG)
    driver = work.start(*command, SHARDMILL_TEST=mark)
    training(work, 3)
    first = stopped(work, driver, os.kill, signal.SIGTERM)
    driver = work.start(*command, SHARDMILL_TEST=mark)
    training(work, first + 3)
    # to every process, as a scheduler may: the workers and the ranks too. Ray's own processes end at SIGTERM
    to = os.killpg if executor == "local" else os.kill
    second = stopped(work, driver, to, signal.SIGUSR1)
    assert first < second < 300
    assert gone(mark, 15) == {}
    folder = training(work, 1)
    assert [s["step"] for s in json.loads((folder / "run.json").read_text())["starts"]] == [0, first]


def test_a_signal_while_nothing_trains_ends_the_run(tmp_path: Path) -> None:
    stops = StopSignals()
    with pytest.raises(SystemExit) as end:
        stops.handle(signal.SIGTERM)
    assert end.value.code == 143 and not stops.received
    spec = {"places": {"manifest": "m"}}
    with stops.stop_file(spec, str(tmp_path / "unit")):
        stops.handle(signal.SIGUSR1)
        assert spec["places"]["manifest"] == "m" and Path(spec["places"]["stop"]).exists()
        stops.handle(signal.SIGTERM)  # again: nothing new
    assert stops.received and not list((tmp_path / "unit").iterdir())
