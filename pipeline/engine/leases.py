"""Who uses a store in a bucket, where no lock goes with a process: each run, and each `clean`, has an object there.

Everybody writes its own lease first and looks at the others then, so of two that come at once at least one sees the
other: a run waits for a `clean`, and a `clean` gives up. A lease is alive while it is renewed. Its age is the
difference of two times of the store's own clock, which all share.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Literal

from pipeline.engine.object_store import ObjectStore
from pipeline.engine.store import RUNNING
from pipeline.errors import UserError
from train.bucket import UnavailableError

RENEWED = 15.0  # seconds between two renewals
ALIVE = timedelta(seconds=90)  # since the last one
LAST_RENEWAL = 5.0  # seconds that the end of a run waits for a renewal on its way
LOOK_AGAIN = 2.0  # seconds, while a `clean` is at work

Kind = Literal["run", "clean"]


@contextlib.contextmanager
def lease(store: ObjectStore, kind: Kind, command: str) -> Iterator[Callable[[], bool]]:
    """Use a store in a bucket together with other runs, or alone as `clean` must. Gives whether it is still ours.

    Raises BlockingIOError for a `clean` that is not alone, and UserError for a second run in a store that ignores
    conditional writes: there both might commit the same unit.
    """
    path = f"{store.root}/{RUNNING}/{kind}-{uuid.uuid4().hex}.json"
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "command": command}
    written = 0.0

    def renew() -> None:
        nonlocal written
        began = time.monotonic()
        store.write(path, json.dumps({**facts, "nonce": uuid.uuid4().hex}))
        written = began

    def keep() -> None:
        while not ended.wait(RENEWED):
            with contextlib.suppress(UnavailableError):
                renew()

    ended = threading.Event()
    keeper = threading.Thread(target=keep, daemon=True)
    renew()
    try:
        _wait_for_turn(store, kind, path, renew)
        keeper.start()
        yield lambda: time.monotonic() - written < ALIVE.total_seconds() / 2
    finally:
        ended.set()
        if keeper.ident:
            keeper.join(LAST_RENEWAL)
        if not keeper.is_alive():  # else the store does not answer, and the lease ends by itself
            with contextlib.suppress(UnavailableError):
                store.bucket.delete([path])


def _wait_for_turn(store: ObjectStore, kind: Kind, path: str, renew: Callable[[], None]) -> None:
    """Return when nobody is there that `kind` does not go with. Raises BlockingIOError and UserError."""
    while True:
        leases = all_leases(store)
        others = [other for other in alive(leases, leases[path]) if other != path]
        if kind == "clean":
            if others:
                raise BlockingIOError
            return
        if not any(is_clean(other) for other in others):
            break
        time.sleep(LOOK_AGAIN)
        renew()
    if others and not has_conditional_writes(store, path):
        raise UserError(
            f"{store.out} ignores conditional writes (If-None-Match), so it takes one run at a time, and another is "
            "there; run this when it has ended"
        )


def has_conditional_writes(store: ObjectStore, path: str) -> bool:
    """Whether an object that is there cannot be made anew. `path` is one, of our own."""
    try:
        store.bucket.put(path, b"{}", create=True)
    except FileExistsError:
        return True
    except NotImplementedError:
        pass
    return False


def is_clean(path: str) -> bool:
    """Whether a lease is that of a `clean`."""
    return path.rpartition("/")[2].startswith("clean-")


def all_leases(store: ObjectStore) -> dict[str, datetime]:
    """Return path -> the time by the store's clock when it was written, of each lease."""
    return {found.path: found.modified for found in store.bucket.objects(f"{store.root}/{RUNNING}")}


def alive(leases: dict[str, datetime], now: datetime) -> list[str]:
    """Return the paths of the leases that were renewed in time."""
    return [path for path, renewed in sorted(leases.items()) if now - renewed < ALIVE]
