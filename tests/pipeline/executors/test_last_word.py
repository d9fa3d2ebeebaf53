"""How a command ends: what it says last, and who says it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
from stage_harness import REPO

from pipeline.executors.last_word import fork_driver


def test_a_program_with_threads_stays_one_process(monkeypatch):
    def fork() -> int:
        raise AssertionError("a child would lack the other thread")

    monkeypatch.setattr(os, "fork", fork)
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    other.start()
    try:
        fork_driver()
    finally:
        done.set()
        other.join()


DRIVER = """
import os, signal, sys
from pipeline import cli
from pipeline.executors.last_word import fork_driver

def work(*arguments, **options):
    fork_driver()
    os.kill(os.getpid(), signal.{name})

cli.app = work
sys.argv = ["python -m pipeline", "run", "filter"]
cli.main()
"""


@pytest.mark.parametrize(
    ("name", "status", "said"),
    [
        ("SIGTERM", 143, "terminated; the same command continues where it stopped\n"),
        ("SIGKILL", 137, "error: the driver was ended by signal 9 (SIGKILL)"),
        ("SIGABRT", 134, "this goes on: python -m pipeline run filter\n"),
    ],
)
def test_the_last_line_says_that_the_command_goes_on(name, status, said):
    done = subprocess.run(
        [sys.executable, "-c", DRIVER.format(name=name)],
        cwd=REPO,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    assert said in done.stderr and done.stderr.count("\n") == 1
