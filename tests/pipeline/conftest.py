"""Fixtures of the engine's tests."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

import pytest
from engine_harness import Work, new_work


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """A corpus, a recipe and an empty store."""
    return new_work(tmp_path)


def copy_of(built: Work, folder: Path) -> Work:
    """A store and a recipe in `folder` as `built` has them, over the same corpus."""
    work = new_work(folder, corpus=built.corpus)
    # times and hard links stay: they are how a store knows its own
    subprocess.run(["cp", "-a", built.out, work.out], check=True)
    return work


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Both mixtures packed on the pool of processes; tests only read it. Built once for all workers of pytest-xdist."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "reference"
    folder.mkdir(exist_ok=True)
    work = Work(folder)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "built").exists():
            work = new_work(folder)
            work.run("pack_pretrain")
            work.run("pack_anneal_mix")
            (folder / "built").touch()
    return copy_of(work, tmp_path_factory.mktemp("reference"))


@pytest.fixture
def packed(reference: Work, tmp_path: Path) -> Work:
    """A copy of `reference`, which a test may change; its corpus stays as it is."""
    return copy_of(reference, tmp_path)
