"""For every test: what the processes that it starts may keep, the order of the files, and a server of buckets."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import pytest
from hypothesis import settings
from s3_server import S3Server

from train import bucket

# Some hundred processes are started. Where the environment forbids them to keep compiled modules, compiling the project
# is a third of what each does.
# So is rewriting the assertions of all tests here.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# Threads of torch wait for each other at full speed: on a busy machine, five times what a tiny model takes. What
# `run train` starts has all threads of the machine nevertheless; those are to wait without a processor.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Nothing that is imported is garbage, yet the collector goes through all of it, again and again.
gc.disable()
# A shell's `&` makes what it starts ignore Ctrl-C, and a process that ignores a signal hands that on.
signal.signal(signal.SIGINT, signal.default_int_handler)
# How long an example takes is the machine's affair: a busy one would fail a test that is right.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by file, the one with most slow tests first; tests of one file stay in their order.

    Workers who get a file each (`-n 2 --dist loadfile --no-loadscope-reorder`) then end together.
    """
    slow_tests = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow_tests[item.path])


def pytest_collection_finish() -> None:
    """Look for garbage from now on, but not in what was imported."""
    gc.freeze()
    gc.enable()


def pytest_runtest_logfinish() -> None:
    """Have the next test look for garbage in its own objects alone: a run of the trainer collects at each save, and
    with what earlier tests imported and compiled that took a quarter of the suite's time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Server]:
    """A server of buckets for the tests of a file; moto is in requirements.lock."""
    pytest.importorskip("moto", reason="moto, of the extra dev, is not installed")
    pytest.importorskip("obstore", reason="obstore, of the extra s3, is not installed")
    server = S3Server()
    yield server
    server.close()


@pytest.fixture
def s3(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, with nothing counted and no faults, and its address in the environment."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket, "_user", 0)  # and again at the end: later tests may fork
    # Pauses for a server that is busy; this one fails because it is told to.
    monkeypatch.setattr(bucket, "BACKOFF", (timedelta(milliseconds=10), timedelta(milliseconds=200)))
    s3_server.reset()
    yield s3_server
    s3_server.reset()
