"""How a command ends: what it says last, and who says it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from engine_harness import wait_for
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


STOPPED_DRIVER = """
import time
from pipeline.executors.last_word import fork_driver, say_goodbye

fork_driver()
print("goes", flush=True)
input()
say_goodbye()
"""


def test_ctrl_z_stops_the_driver_too_and_fg_lets_it_go_on():
    """A terminal sends the signal to the group of the process that the user started, where the driver is not."""

    def states() -> str:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        return "".join(
            Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in (parent.pid, *children)
        )

    parent = subprocess.Popen(
        [sys.executable, "-c", STOPPED_DRIVER],
        cwd=REPO,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert parent.stdin and parent.stdout
    assert parent.stdout.readline() == "goes\n"
    os.killpg(parent.pid, signal.SIGTSTP)
    wait_for(lambda: states() == "TT", "both to stop", 60)
    os.killpg(parent.pid, signal.SIGCONT)
    wait_for(lambda: "T" not in states(), "both to go on", 60)
    assert parent.communicate("\n", timeout=60) == ("", None) and parent.returncode == 0
