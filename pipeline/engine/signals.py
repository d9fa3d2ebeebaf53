"""Ending a run early without losing what a long unit did.

SIGTERM and SIGUSR1 are what schedulers send before they kill. A unit that can save what it did, training, is then asked
to: through a file, which reaches it on another machine as on this one. The driver waits for it and exits 75, "not
done": the same command goes on from there. With no such unit at work the run ends at once, as records lose nothing.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline.engine.executor import UnitSpec

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stops:
    """What a run was told, and whom it tells."""

    def __init__(self) -> None:
        self.asked = False
        self.files: set[Path] = set()

    @contextlib.contextmanager
    def told(self, spec: UnitSpec, folder: str) -> Iterator[None]:
        """While a unit that can be asked is at work: `places.stop` of its `spec` is the file it looks for."""
        file = Path(folder) / f"stop-{uuid.uuid4().hex}"
        spec["places"] = {**spec["places"], "stop": str(file)}
        self.files.add(file)
        try:
            yield
        finally:
            self.files.discard(file)
            file.unlink(missing_ok=True)

    def ask(self, number: int, frame: object = None) -> None:
        """A signal came; a handler, so it does little. Later ones change nothing: schedulers repeat themselves."""
        if not self.files and not self.asked:
            sys.exit(128 + number)
        self.asked = True
        for file in self.files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Signals are ours inside."""
        before = {number: signal.signal(number, self.ask) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextlib.contextmanager
def kept_handlers() -> Iterator[None]:
    """The handlers stay ours, whatever is set inside: ray.init takes SIGTERM for itself."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ignore() -> None:
    """For processes that the driver ends: what is sent to the whole group is the driver's to answer.

    Not SIG_IGN, which the programs they start would inherit.
    """
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
