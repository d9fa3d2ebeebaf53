"""Files on the local disk: their sha256, and writing that survives a kill or a power cut.

Standard library only: the trainer, the stages and the pipeline all use it.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

SEALED = 2  # the first `format` of state.json and run.json that holds its own sha256


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


def sealed_json(value: dict[str, Any]) -> str:
    """Return `value` as JSON text with its own sha256 under "sha256", so that a reader can tell whether it is whole."""
    value = {**value, "format": SEALED}
    return json.dumps({**value, "sha256": _seal(value)}, indent=1, sort_keys=True) + "\n"


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Return the object in a file that `sealed_json` made, without its sha256; one of an earlier format has none.

    Raises OSError, and ValueError with what is wrong: no JSON, no object, or a changed one.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} where an object of JSON should be")
    seal = value.pop("sha256", None)
    if (seal is not None or value.get("format") == SEALED) and seal != _seal(value):
        raise ValueError("damaged: its sha256 is not the one written in it")
    return value


def _seal(value: dict[str, Any]) -> str:
    # As it is read again: a key that is no text is written as one, a tuple as a list.
    again = json.loads(json.dumps(value))
    return hashlib.sha256(json.dumps(again, sort_keys=True).encode()).hexdigest()


def fsync_path(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
