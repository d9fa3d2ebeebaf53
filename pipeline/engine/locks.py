"""Who uses a store: everybody together, or `clean` alone; and which runs are at work, for `status`.

Both are for a store in a local folder; an object store is not locked. The locks are flock's, which go with the process
that holds them, however it ends. The lock that filelock offers for many readers and one writer is a database of SQLite,
and needs to write where a reader may not.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from pipeline.engine.store import LOCK, RUNNING, Store
from pipeline.errors import UserError


class ActiveRun(TypedDict):
    """A run that is using a store now."""

    pid: int
    command: str


@contextlib.contextmanager
def suppress_read_only() -> Iterator[None]:
    """Pass over what cannot be written because the store may only be read: by its permissions, or as it is mounted."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise


@contextlib.contextmanager
def store_lock(store: Store, exclusive: bool = False) -> Iterator[None]:
    """Use a local store together with other runs, or alone, as `clean` must.

    Together: waits while somebody is alone. Alone: raises BlockingIOError while anybody else is there. A store that
    may only be read needs no lock.
    """
    path = Path(store.root) / LOCK
    with contextlib.ExitStack() as stack:
        if store.local:
            with suppress_read_only():
                path.parent.mkdir(parents=True, exist_ok=True)
                file = stack.enter_context(path.open("a"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def run_lock(store: Store, command: str) -> Iterator[None]:
    """Say which run works on a local store, for `status`. Several runs may share a store.

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


def active_runs(store: Store) -> list[ActiveRun]:
    """Return the runs that are using a local store now: those whose lock is held."""
    runs: list[ActiveRun] = []
    for path in sorted(Path(store.root).glob(f"{RUNNING}/*.json")) if store.local else []:
        try:
            with path.open(encoding="utf-8") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    runs.append(json.load(file))
        except (FileNotFoundError, ValueError):
            continue  # it has just ended, or just begun
    return runs
