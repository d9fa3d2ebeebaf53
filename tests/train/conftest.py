"""Fixtures of the trainer's tests: the mixture, made once, and processes that end with their test."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from trainer_harness import MODEL, TRAIN, Forked, make_mixture, start

from train.data.manifest import Manifest, load_manifest


@pytest.fixture(scope="session")
def pretrain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of phase `pretrain`. Tests that damage files copy its folder."""
    folder = tmp_path_factory.mktemp("mixture") / "tiny" / "pretrain"
    return make_mixture(folder, MODEL, {"pretrain": TRAIN, "anneal": {**TRAIN, "init_from": "pretrain"}}, "pretrain")


@pytest.fixture(scope="session")
def manifest(pretrain: Path) -> Manifest:
    return load_manifest(pretrain)


@pytest.fixture
def launch() -> Any:
    """`start`, or `how`, whose processes are ended with the test, however it ends."""
    running: list[subprocess.Popen[str] | Forked] = []

    def call(*args: Any, how: Any = start, **kwargs: Any) -> subprocess.Popen[str] | Forked:
        running.append(how(*args, **kwargs))
        return running[-1]

    yield call
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()
