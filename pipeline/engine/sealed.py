"""JSON that ends with its own sha256, so that a reader can tell whether it is whole: records, notes of builds."""

from __future__ import annotations

import hashlib
import json
from typing import Any

MARK = ', "seal": "'  # stands in no string of JSON, where a quote is escaped


def sealed_text(value: dict[str, Any]) -> str:
    """Return an object as JSON text whose last key is `seal`, the sha256 of all the text before it."""
    body = json.dumps(value, sort_keys=True)[:-1]
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
