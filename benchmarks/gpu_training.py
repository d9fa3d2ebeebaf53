"""Training for real, by the command that people use: train/main.py, killed in the middle and gone on from there.

The run is stopped by SIGTERM behind its first checkpoint, and continued by the same command with train.resume=auto:
with document masks, evaluations, checkpoints and the whole trunk compiled. Its figures are those of its metrics.jsonl.
"""

from __future__ import annotations

import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import ROOT

WAIT = 400  # seconds for the first checkpoint


def command(manifest: Path, out: Path, settings: dict[str, Any], resume: str) -> list[str]:
    """Return the command of a run."""
    sets = {**settings, "out": str(out), "resume": resume}
    values = [f"train.{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in sets.items()]
    return [sys.executable, str(ROOT / "train" / "main.py"), "--manifest", str(manifest), "--set", *values]


def trained(manifest: Path, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train, stop behind the first checkpoint, go on to the end. Raises RuntimeError with what a run that failed said.

    Returns exit statuses, tokens a second (the middle line of each start), losses, scores, and steps that compiled.
    """
    log = out.parent / f"{out.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    statuses: list[int] = []
    for resume in ("refuse", "auto"):
        with log.open("a") as file:
            process = subprocess.Popen(command(manifest, out, settings, resume), stdout=file, stderr=file, cwd=ROOT)
            deadline = time.monotonic() + WAIT
            try:
                while resume == "refuse" and process.poll() is None and time.monotonic() < deadline:
                    if any((out / "checkpoints").glob("step_*")):
                        process.send_signal(signal.SIGTERM)
                        break
                    time.sleep(0.1)
                statuses.append(process.wait(WAIT))
            finally:
                process.kill()
        if statuses[-1] not in (0, 75):
            raise RuntimeError(f"exit status {statuses[-1]}:\n{log.read_text()[-4000:]}")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    speeds = [line["tokens_per_second"] for line in steps[1:]]
    summary = json.loads((out / "summary.json").read_text())
    return {
        "exit_statuses": statuses,
        "steps": len({line["step"] for line in steps}),
        "tokens_per_second": statistics.median(speeds),
        "mfu_causal": steps[-1].get("mfu_causal"),
        "memory_gb": steps[-1]["memory_gb"],
        "loss_from_to": [steps[0]["loss"], steps[-1]["loss"]],
        "val_loss_from_to": [summary["before"]["nats"], summary["after"]["nats"]],
        "steps_that_compiled": summary["dead_parts"]["compiled"],
    }
