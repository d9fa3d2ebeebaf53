"""Whether the files that are mapped are still those that were checked.

Reading a map beyond the end of a file that was cut ends the process (SIGBUS), and what is written over a mapped file is
read as if it were tokens. So size, inode and time of change of each file are taken before it is checked, and compared
whenever a batch is read from it, before and after: a microsecond and a half a file, beside the milliseconds of a step.
A file that looks changed is hashed, and is taken for whole where its contents are the manifest's: copied back, or
touched.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from train.data.manifest import ManifestError
from train.files import sha256_file

Stamp = tuple[int, int, int]  # bytes, inode, nanoseconds of the last change of its contents

REMEDY = "put the file back or pack again; the same command with train.resume=auto goes on from the last checkpoint"


class FileWatch:
    """The files that were mapped, and what they were then."""

    def __init__(self, restore: Callable[[str], None] = lambda path: None) -> None:
        """restore: brings a file back that is gone, by its path, where it was a copy."""
        self.files: dict[str, tuple[Stamp, str]] = {}  # the stamp and the sha256 by path
        self.restore = restore

    def add(self, path: Path, sha256: str) -> None:
        """Watch a file, from before it is first checked. One that is missing is left to that check."""
        if str(path) not in self.files and path.exists():
            self.files[str(path)] = (stamp_of(str(path)), sha256)

    def check(self, paths: Iterable[str] | None = None) -> None:
        """Compare files that are watched, by default all. Raises ManifestError naming the first that has changed."""
        for path in self.files if paths is None else paths:
            if path in self.files and self._stamp(path) != self.files[path][0]:
                self._check_contents(path)

    def _stamp(self, path: str) -> Stamp:
        try:
            return stamp_of(path)
        except ManifestError:
            self.restore(path)
            return stamp_of(path)

    def _check_contents(self, path: str) -> None:
        before, sha256 = self.files[path]
        stamp = stamp_of(path)
        if stamp[0] != before[0]:
            raise ManifestError(f"{path}: had {before[0]:,} bytes, has {stamp[0]:,}: cut or overwritten; {REMEDY}")
        try:
            same = sha256_file(path) == sha256
        except OSError as error:
            raise ManifestError(f"{path}: changed while it was read, and cannot be read again ({error})") from None
        if not same:
            raise ManifestError(f"{path}: overwritten while it was read: its sha256 is not the manifest's; {REMEDY}")
        self.files[path] = (stamp, sha256)


def stamp_of(path: str) -> Stamp:
    """Return what tells whether a file has changed. Raises ManifestError when it is gone or cannot be asked for."""
    try:
        stat = os.stat(path)  # noqa: PTH116  a Path would cost more than the call
    except OSError as error:
        gone = "deleted or moved away" if isinstance(error, FileNotFoundError) else error.strerror
        raise ManifestError(f"{path}: {gone}; {REMEDY}") from None
    return stat.st_size, stat.st_ino, stat.st_mtime_ns
