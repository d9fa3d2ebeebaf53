"""`run train --out s3://...`: from data to trained models in a bucket, stopped and gone on with on another machine."""

from __future__ import annotations

import json
import signal
import time
from typing import Any

import pytest
from engine_harness import Work, wait_for
from s3_server import S3Server

from train.bucket import Bucket

pytestmark = pytest.mark.slow
PHASE = {"batch_size": 4, "seq_len": 32, "log_every": 1, "eval_tokens": 256, "sample_tokens": 0, "epochs": 9}
TRAIN = {
    "pretrain": {"mixture": "pretrain", "steps": 200, "checkpoint_every": 20, "eval_every": 0, **PHASE},
    "anneal": {"mixture": "anneal", "init_from": "pretrain", "steps": 3, **PHASE},
}


def losses(text: str) -> dict[int, float]:
    lines = [json.loads(line) for line in text.splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def test_a_recipe_is_trained_in_a_bucket(packed: Work, s3: S3Server, monkeypatch: Any) -> None:
    packed.write(train=TRAIN)
    packed.run("train", "--workers", "2")
    out = f"{s3.new_bucket()}/out"
    options = ("run", "train", "--executor", "local", "--workers", "2", "--out", out)
    monkeypatch.setenv("XDG_CACHE_HOME", str(packed.folder / "one"))
    driver = packed.start(*options)
    bucket = Bucket(out)

    def some_steps() -> bool:
        time.sleep(0.5)  # the server is a thread of this process
        paths = [found.path for found in bucket.objects(f"{out}/store/train")]
        return any("/step_" in path and path.endswith("/state.json") for path in paths)

    wait_for(some_steps, "a checkpoint", 120)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(60) == 75, (packed.folder / "stderr").read_text()
    assert not [found.path for found in bucket.objects(out) if "/stop-" in found.path]
    monkeypatch.setenv("XDG_CACHE_HOME", str(packed.folder / "two"))
    done = packed.cli(*options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "continuing s3://" in done.stderr
    for phase in TRAIN:
        assert f"{out}/small/train/{phase}" in done.stdout
        run = json.loads(bucket.get(f"{out}/small/train/{phase}.json"))["run"]
        local = (packed.out / "small/train" / phase / "metrics.jsonl").read_text()
        assert losses(bucket.get(f"{run}/metrics.jsonl").decode()) == losses(local)
    again = packed.cli(*options)
    assert "executor local" not in again.stderr, "all is there"
    assert not list(packed.folder.glob("*:*"))
