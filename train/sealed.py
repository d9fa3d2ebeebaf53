"""JSON that ends with its own sha256, so that a reader can tell whether it is whole.

Records of units, notes of builds, and the trainer's run.json, state.json and score.json are such texts.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

MARK = ', "seal": "'  # stands in no string of JSON, where a quote is escaped
FORMAT = 3  # of a run's files; 1 had no seal, 2 one of another kind, which is not looked at any more


def sealed_text(value: dict[str, Any], indent: int | None = None) -> str:
    """Return an object as JSON text whose last key is `seal`, the sha256 of all the text before it."""
    body = json.dumps(value, sort_keys=True, indent=indent)[:-1].rstrip()
    return f'{body}{MARK}{hashlib.sha256(body.encode()).hexdigest()}"}}'


def is_sealed(raw: bytes) -> bool:
    """Return whether a text has a seal; those of earlier versions have none."""
    return MARK.encode() in raw


def parse_sealed(raw: bytes) -> dict[str, Any]:
    """Return the object in a text that `sealed_text` made, without its seal; one of an earlier version has none.

    Raises ValueError with what is wrong: no JSON, no object, or a changed one.
    """
    body, mark, seal = raw.rpartition(MARK.encode())
    if mark and seal != f'{hashlib.sha256(body).hexdigest()}"}}'.encode():
        raise ValueError("its sha256 is not the one written in it")
    try:
        value = json.loads(body + b"}" if mark else raw)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a {type(value).__name__} where an object of JSON should be")
    return value


def run_file_text(value: dict[str, Any]) -> str:
    """Return what a JSON file in a run's folder holds: `value`, its format, and the seal."""
    return sealed_text({**value, "format": FORMAT}, indent=1)


def read_run_file(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file of a run's folder, of whatever format.

    Raises OSError, and ValueError with what is wrong: no JSON, no object, a changed one, or one without its seal.
    """
    raw = path.read_bytes()
    value = parse_sealed(raw)
    if value.get("format") == FORMAT and not is_sealed(raw):
        raise ValueError("its sha256 is missing")
    return value
