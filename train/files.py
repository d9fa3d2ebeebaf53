"""Files on the local disk: their sha256, and writing that survives a kill or a power cut.

Standard library only: the trainer, the stages and the pipeline all use it.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path


def sha256_file(path: Path | str) -> str:
    """Return the sha256 of a file's bytes, as hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, text: str, sync_name: bool = True) -> None:
    """Replace a small file: readers find the old text or the new one, never a part.

    The text is on the disk when this returns; with `sync_name` so is the file's name in its folder.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if sync_name:
        fsync_path(path.parent)


def fsync_path(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
