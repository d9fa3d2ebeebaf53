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
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

PREFIX = "shardmill-"
LOCK = "lock"
MOMENT = 10.0  # seconds that a new folder may be without its lock


class Scratch:
    """A temporary folder, made when it is first needed."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._lock: IO[bytes] | None = None
        self._making = threading.Lock()
        self._swept = False  # whether abandoned ones were looked for, which takes a look at all that lies there

    def folder(self) -> Path:
        """Return the folder."""
        with self._making:
            while self._folder is None:
                if not self._swept:
                    delete_abandoned()
                    self._swept = True
                folder = Path(tempfile.mkdtemp(prefix=PREFIX))
                with contextlib.suppress(FileNotFoundError):  # somebody took it for abandoned before it was locked
                    lock = (folder / LOCK).open("wb")
                    fcntl.flock(lock, fcntl.LOCK_EX)
                    (folder / LOCK).stat()
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
            delete_folder(self._folder)
            self._lock.close()
            self._folder = None
            atexit.unregister(self.drop)


def delete_abandoned() -> None:
    """Delete the scratch folders of processes that are no more."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            facts = folder.stat()
            if facts.st_uid != os.getuid():
                continue
            try:
                with (folder / LOCK).open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    delete_folder(folder)
            except FileNotFoundError:  # killed between the two; other people's folders are not empty, or not as private
                if stat.S_IMODE(facts.st_mode) == 0o700 and time.time() > facts.st_mtime + MOMENT:
                    folder.rmdir()


def delete_folder(folder: Path) -> None:
    """Delete a scratch folder, its lock last, so that one which is left half deleted is found again."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
