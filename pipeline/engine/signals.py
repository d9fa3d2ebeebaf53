"""Ending a run early without losing what a long unit did.

SIGTERM and SIGUSR1 are what schedulers send before they kill, SIGINT is a person's Ctrl-C. A unit that can save what it
did, training, is then asked to: through a file, which reaches it on another machine as on this one. The driver waits
for it and exits 75, "not done": the same command goes on from there. With no such unit at work the run ends at once, as
records lose nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.engine.executor import UnitSpec
from stages.paths import is_remote
from train.bucket import Bucket

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignals:
    """Whether a signal has asked this run to stop, and the units that are to be asked in turn."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        """say: prints a line above the live display."""
        self.say = say
        self.received = False
        self.last = ""  # its name
        self.interrupted = False  # by Ctrl-C, and waiting for what is saved
        self.stop_files: set[str] = set()  # a file, or an object in a bucket, for each unit at work that can be asked

    @contextlib.contextmanager
    def stop_file(self, spec: UnitSpec, folder: str) -> Iterator[None]:
        """Ask the unit of `spec` to stop when a signal comes inside: `places.stop` names the file it looks for."""
        file = f"{folder}/stop-{uuid.uuid4().hex}"
        spec["places"] = {**spec["places"], "stop": file}
        self.stop_files.add(file)
        try:
            yield
        finally:
            self.stop_files.discard(file)
            if not is_remote(file):
                Path(file).unlink(missing_ok=True)
            elif self.received:
                with contextlib.suppress(OSError):  # an empty object that means nothing to the next run
                    Bucket(file).delete([file])

    def handle(self, number: int, frame: object = None) -> None:
        """Answer a signal: ask the units at work to stop, or exit if none can be asked.

        Later ones change nothing, for schedulers repeat themselves; but Ctrl-C a second time ends at once.
        """
        self.last = signal.Signals(number).name
        if number == signal.SIGINT and (self.interrupted or not self.stop_files):
            raise KeyboardInterrupt
        if not self.stop_files and not self.received:
            sys.exit(128 + number)
        if number == signal.SIGINT:
            self.interrupted = True
            self._say_later("stopping: training ends its step and saves; Ctrl-C again ends at once")
        self.received = True
        for file in self.stop_files:
            if is_remote(file):  # a request may take long, and a handler must not
                threading.Thread(target=Bucket(file).put, args=(file, b""), daemon=True).start()
            else:
                Path(file).parent.mkdir(parents=True, exist_ok=True)
                Path(file).touch()

    def _say_later(self, line: str) -> None:
        """Print a line once the handler has returned: the signal may have come inside another write."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is None or self.say is None:
            os.write(2, f"{line}\n".encode())
        else:
            loop.call_soon_threadsafe(self.say, line)

    @contextlib.contextmanager
    def handled(self) -> Iterator[None]:
        """Answer signals inside; the handlers of before come back at the end."""
        with kept_handlers():
            for number in SIGNALS:
                signal.signal(number, self.handle)
            yield


@contextlib.contextmanager
def kept_handlers() -> Iterator[None]:
    """Bring the handlers back at the end, whatever was set inside: ray.init takes SIGTERM for itself."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore_signals() -> None:
    """Ignore, in a process that the driver ends, what is sent to the whole group: the driver answers it.

    Not by SIG_IGN, which the programs that the process starts would inherit.
    """
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
