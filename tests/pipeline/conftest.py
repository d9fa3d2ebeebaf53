"""Fixtures of the engine's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_harness import Work, new_work


@pytest.fixture
def work(tmp_path: Path) -> Work:
    """A corpus, a recipe and an empty store."""
    return new_work(tmp_path)


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Both mixtures packed once on the pool of processes; tests only read it."""
    work = new_work(tmp_path_factory.mktemp("reference"))
    work.run("pack_pretrain")
    work.run("pack_anneal_mix")
    return work
