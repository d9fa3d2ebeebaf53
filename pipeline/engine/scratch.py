"""Scratch space for copies of remote files and samples: a folder of this process that goes with it, however it ends.

A killed process cannot delete its folder, so whoever makes one deletes those whose owner is gone: a lock on a file in
the folder, which the system lets go of with the process, says which.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

PREFIX = "shardmill-"
LOCK = "lock"


class Scratch:
    """A temporary folder, made when it is first needed."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._lock: IO[bytes] | None = None
        self._making = threading.Lock()

    def folder(self) -> Path:
        """Return the folder."""
        with self._making:
            while self._folder is None:
                delete_abandoned()
                folder = Path(tempfile.mkdtemp(prefix=PREFIX))
                lock = (folder / LOCK).open("wb")
                fcntl.flock(lock, fcntl.LOCK_EX)
                if (folder / LOCK).exists():  # nobody took it for abandoned before it was locked
                    self._folder, self._lock = folder, lock
                    atexit.register(self.drop)
            return self._folder

    def new_folder(self) -> Path:
        """Return a new folder in it."""
        return Path(tempfile.mkdtemp(dir=self.folder()))

    @contextlib.contextmanager
    def temporary_folder(self) -> Iterator[Path]:
        """Give a new folder in it, which is deleted at the end, though threads may still write there."""
        with tempfile.TemporaryDirectory(dir=self.folder(), ignore_cleanup_errors=True) as folder:
            yield Path(folder)

    def copy(self, address: str, fetch: Callable[[Path], object]) -> str:
        """Return the path of a copy of `address`, made once by `fetch`: a hash of the address, and its suffixes."""
        suffix = "".join(Path(address).suffixes[-2:])
        target = self.folder() / (hashlib.sha256(address.encode()).hexdigest()[:24] + suffix)
        if not target.exists():
            partial = Path(f"{target}.{threading.get_ident()}.part")
            fetch(partial)
            partial.replace(target)
        return str(target)

    def drop(self) -> None:
        """Delete the folder and all copies in it."""
        if self._folder is not None and self._lock is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._lock.close()
            self._folder = None
            atexit.unregister(self.drop)


def delete_abandoned() -> None:
    """Delete the scratch folders of processes that are no more."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{LOCK}"):
        with contextlib.suppress(OSError), lock.open("rb") as file:
            if os.fstat(file.fileno()).st_uid == os.getuid():
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
