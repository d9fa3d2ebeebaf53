"""Who uses a store: everybody together, or `clean` alone; and which runs are at work, for `status`.

In a local folder the locks are flock's, which go with the process that holds them, however it ends; a store in a bucket
has leases instead (pipeline/engine/leases.py). The lock that filelock offers for many readers and one writer is a
database of SQLite, and needs to write where a reader may not.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NotRequired, TypedDict

from pipeline.engine import leases
from pipeline.engine.object_store import ObjectStore
from pipeline.engine.store import LOCK, RUNNING, Store
from pipeline.errors import UserError
from train.redact import without_secrets


class ActiveRun(TypedDict):
    """A run that is using a store now."""

    pid: int
    command: str
    host: NotRequired[str]  # of a store in a bucket


@contextlib.contextmanager
def suppress_read_only() -> Iterator[None]:
    """Pass over what cannot be written because the store may only be read: by its permissions, or as it is mounted."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise


@contextlib.contextmanager
def store_lock(store: Store, exclusive: bool = False) -> Iterator[Callable[[], bool]]:
    """Use a store together with other runs, or alone, as `clean` must. Gives whether the lock is still held.

    Together: waits while somebody is alone. Alone: raises BlockingIOError while anybody else is there. A local store
    that may only be read needs no lock.
    """
    path = Path(store.root) / LOCK
    with contextlib.ExitStack() as stack:
        held: Callable[[], bool] = lambda: True  # noqa: E731 - a lock of flock's does not run out
        if isinstance(store, ObjectStore):
            command = without_secrets(" ".join(sys.argv))
            held = stack.enter_context(leases.lease(store, "clean" if exclusive else "run", command))
        else:
            with suppress_read_only():
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.open("a"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
        yield held


@contextlib.contextmanager
def run_lock(store: Store, command: str) -> Iterator[None]:
    """Say which run works on a local store, for `status`; in a bucket its lease does. Several runs may share a store.

    Raises UserError when the store may only be read.
    """
    if not store.local:
        yield
        return
    path = Path(store.root) / RUNNING / f"{uuid.uuid4().hex}.json"
    writable = False
    with suppress_read_only():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        writable = True
    if not writable:
        raise UserError(f"{store.out} may only be read, and not all is there: units have to run; name another --out")
    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps({"pid": os.getpid(), "command": command}))
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def noted_runs(store: Store) -> Iterator[tuple[ActiveRun, bool]]:
    """Yield each run that said it is at work, and whether it is: its lock is held, or its lease is alive.

    One that is not was killed; `clean` forgets it.
    """
    if isinstance(store, ObjectStore):
        found = leases.all_leases(store)
        alive = set(leases.alive(found, datetime.now(UTC)))
        for lease in sorted(found):
            with contextlib.suppress(FileNotFoundError, ValueError):
                yield json.loads(store.read(lease)), lease in alive
        return
    for path in sorted(Path(store.root).glob(f"{RUNNING}/*.json")):
        with contextlib.suppress(FileNotFoundError, ValueError), path.open(encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                killed = path.exists()  # else it has just ended
            except BlockingIOError:
                killed = False
                yield json.load(file), True
            if killed:
                yield json.load(file), False


def active_runs(store: Store) -> list[ActiveRun]:
    """Return the runs that are using a store now."""
    return [run for run, alive in noted_runs(store) if alive]


def forget_ended_runs(store: Store) -> None:
    """Delete what killed runs left to say that they are at work. The store is locked by `clean`."""
    if isinstance(store, ObjectStore):
        found = leases.all_leases(store)
        store.bucket.delete(sorted(found.keys() - leases.alive(found, max(found.values()))))
    else:
        for stale in Path(store.root).glob(f"{RUNNING}/*"):
            stale.unlink(missing_ok=True)


def named(run: ActiveRun) -> str:
    """Return a run as people find it: its process, and of a store in a bucket its machine."""
    return f"process {run['pid']}" + (f" on {run['host']}" if "host" in run else "")
