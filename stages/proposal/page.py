"""A recipe as text for people: YAML, each line with the reason why it is so."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import yaml

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
    reason = " ".join(line.reason.split())
    if not line.key:
        return [f"{indent}# {reason}" if reason else ""]
    text = f"{indent}{scalar(line.key)}:" + ("" if line.value is None else f" {scalar(line.value)}")
    if not reason:
        return [text]
    whole = f"{text}  # {reason}"
    return [whole] if len(whole) <= WIDTH else [f"{indent}# {reason}", text]


def scalar(value: Any) -> str:
    """Return a value on one line, as YAML reads it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(key)}: {scalar(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(scalar, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        plain = yaml.safe_load(f"[{value}]") == [value] and yaml.safe_load(f"a: {value} # b") == {"a": value}
    except yaml.YAMLError:
        plain = False
    return value if plain else json.dumps(value, ensure_ascii=not value.isprintable())
