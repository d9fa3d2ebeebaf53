"""A recipe as text for people: YAML, each line with the reason why it is so."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

import yaml

from stages.paths import escaped
from train.monitor.text import printable

PLAIN = re.compile(r"[A-Za-z0-9_./~][A-Za-z0-9_./~*@+%-]*")  # needs no quotes, if it is no number, date or yes
WIDTH = 118  # columns, beyond which a reason stands above its line


class Line(NamedTuple):
    """One line: how deep, what it says, and why. Without a key it is a remark, or empty."""

    depth: int
    key: str
    value: Any = None  # None: a group that begins
    reason: str = ""


def page(lines: Iterable[Line]) -> str:
    """Return the text of a recipe."""
    return "".join(f"{text}\n" for line in lines for text in written(line))


def written(line: Line) -> list[str]:
    """Return a line as it stands in the file, and the reason above it where both are too long."""
    indent = "  " * line.depth
    reason = printable(escaped(" ".join(line.reason.split())))
    if not line.key:
        return [f"{indent}# {reason}" if reason else ""]
    text = f"{indent}{scalar(line.key)}:" + ("" if line.value is None else f" {scalar(line.value)}")
    if not reason and len(text) <= WIDTH:
        return [text]
    if len(text) > WIDTH and line.value and isinstance(line.value, list):
        return [
            f"{indent}{scalar(line.key)}:{f'  # {reason}' if reason else ''}",
            *(f"{indent}  - {scalar(item)}" for item in line.value),
        ]
    whole = f"{text}  # {reason}" if reason else text
    return [whole] if len(whole) <= WIDTH or not reason else [f"{indent}# {reason}", text]


def scalar(value: Any) -> str:
    """Return a value on one line, as YAML reads it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(key)}: {scalar(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(scalar, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    if PLAIN.fullmatch(value) and yaml.safe_load(value) == value:
        return value
    return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=1 << 30).strip()
