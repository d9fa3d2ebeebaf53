"""The last line of a run on Ray is ours: Ray's own code ends a driver whose node or head is gone, without a word to it.

So the driver is a child of the process that the user started, which waits for it and says what has happened.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shlex
import signal
import sys
import threading
from typing import NoReturn

from pipeline.engine.signals import SIGNALS
from train.redact import without_secrets

_parent = -1  # of a driver: the descriptor that tells its parent


def typed_command() -> str:
    """Return the command of this process as a shell reads it."""
    return without_secrets(shlex.join(["python", "-m", "pipeline", *sys.argv[1:]]))


def fork_driver() -> None:
    """Go on in a child; the parent waits for it, and never returns.

    Where this process has threads, which a child would lack, it stays one: then it is a program that calls a command.
    """
    global _parent
    if threading.active_count() > 1:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child:
        os.close(writer)
        _wait(child, reader)
    os.close(reader)
    os.setpgid(0, 0)  # what a terminal sends to the group comes once, through the parent
    _die_with(parent)
    _parent = writer


def say_goodbye() -> None:
    """Tell the parent, if there is one, that the driver has come to its own end and said what there is to say."""
    if _parent >= 0:
        with contextlib.suppress(OSError):
            os.write(_parent, b".")


def _die_with(parent: int) -> None:
    """Have the kernel (Linux) kill this process when its parent is killed, so that no driver outlives its command."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL("libc.so.6", use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _wait(child: int, reader: int) -> NoReturn:
    """Wait for the driver, pass on signals, stop and go on with it, and end as it did."""

    def pass_on(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    def pause(*_: object) -> None:
        os.killpg(child, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        os.killpg(child, signal.SIGCONT)  # once we go on ourselves

    with contextlib.suppress(PermissionError, ProcessLookupError):  # it may be quicker, and even gone
        os.setpgid(child, child)
    for number in SIGNALS:
        signal.signal(number, pass_on)
    signal.signal(signal.SIGTSTP, pause)  # Ctrl-Z
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if not os.read(reader, 1):
        how = f"by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"by Ray, with status {code}"
        line = (
            f"error: the driver was ended {how}, as happens when its node or the head of the cluster is gone; what is "
            f"done is kept, and once there is a cluster this goes on: {typed_command()}\n"
        )
        os.write(2, line.encode())
    os._exit(code if code >= 0 else 128 - code)
