"""What befell the runs on a cluster, for `status`: nodes that came and went, and how each run ended.

<out>/store/events/<time>-<run>.json    one a run, written anew at each event, so that a killed run leaves it
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from pipeline.engine.store import EVENTS, Store, StoredFile, StoredFolder
from train.bucket import UnavailableError
from train.sealed import parse_sealed, sealed_text

NEWEST = 20  # runs of which `status` tells, and which `clean` does not forget


@dataclass(frozen=True)
class RunEvents:
    """One run, and what befell it."""

    pid: int
    host: str
    command: str
    events: list[tuple[float, str]]  # seconds since 1970, and what it was
    ended: bool  # by itself; else it was killed, or is still at work


class Journal:
    """The events of one run. Without any it leaves nothing."""

    def __init__(self, store: Store, command: str):
        self._store = store
        self._path = f"{store.root}/{EVENTS}/{time.time_ns()}-{uuid.uuid4().hex[:8]}.json"
        self._facts = {"pid": os.getpid(), "host": socket.gethostname(), "command": command}
        self._events: list[tuple[float, str]] = []
        self._writer = ThreadPoolExecutor(1)  # a bucket may be slow to answer, and the driver has other things to do

    def note(self, what: str, ended: bool = False) -> None:
        """Add an event."""
        self._events.append((time.time(), what))
        self._writer.submit(self._write, sealed_text({**self._facts, "events": self._events, "ended": ended}))

    def close(self, how: str) -> None:
        """Add how the run ended, if there were events, and wait until all is written."""
        if self._events:
            self.note(how, ended=True)
        self._writer.shutdown()

    def _write(self, text: str) -> None:
        with contextlib.suppress(UnavailableError):  # the next event writes this one too
            self._store.write(self._path, text)


def read_run_events(store: Store) -> list[RunEvents]:
    """Return the newest runs that anything befell, the oldest of them first; damaged files are left out."""
    found = []
    for name in sorted(store.names(f"{store.root}/{EVENTS}"))[-NEWEST:]:
        with contextlib.suppress(FileNotFoundError, LookupError, TypeError, ValueError):
            value = parse_sealed(store.read(f"{store.root}/{EVENTS}/{name}"))
            events = [(float(at), str(what)) for at, what in value["events"]]
            pid, host, command = int(value["pid"]), str(value["host"]), str(value["command"])
            found.append(RunEvents(pid, host, command, events, bool(value["ended"])))
    return found


def forget_old_events(store: Store) -> None:
    """Delete the events of all but the newest runs."""
    for name in sorted(store.names(f"{store.root}/{EVENTS}"))[:-NEWEST]:
        path = f"{store.root}/{EVENTS}/{name}"
        store.remove(StoredFolder(path, [StoredFile(path, 0, datetime.now(UTC))]))
