"""What a sweep keeps beside the store: its tokenizer, the points it chose, and what each run was trained on.

Results are units of the store and found there. These notes say which points to look for, and why one must run again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from stages.sweep.space import Point, Space
from train.files import write_atomic

FILE = "notes.json"


@dataclass
class Notes:
    """The notes of one sweep. They grow while it runs, and are written after each run."""

    file: Path
    tokenizer: dict[str, Any] = field(default_factory=dict)  # the recipe's keys that the kept one was made by
    points: list[dict[str, Any]] = field(default_factory=list)  # shares and values, by name
    runs: dict[str, dict[str, str]] = field(default_factory=dict)  # name -> digests of its sources' text

    def write(self) -> None:
        """Write the notes."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        value = {"tokenizer": self.tokenizer, "points": self.points, "runs": self.runs}
        write_atomic(self.file, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_notes(folder: Path) -> Notes:
    """Return the notes in a sweep's folder; empty ones where it has none. Raises UserError where they are damaged."""
    file = folder / FILE
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        return Notes(file, dict(value["tokenizer"]), list(value["points"]), dict(value["runs"]))
    except FileNotFoundError:
        return Notes(file)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file}: damaged ({error}); move it away, and the sweep chooses its points anew") from None


def describe_point(space: Space, point: Point) -> dict[str, Any]:
    """Return a point by the names of its sources and keys."""
    shares = {name: share for name, share in zip(space.sources, point.shares, strict=True) if share}
    values = {key.name: key.values[level] for key, level in zip(space.keys, point.levels, strict=True)}
    return {"shares": shares, "values": values}


def point_text(space: Space, point: Point) -> str:
    """Return a point as a line has it."""
    described = describe_point(space, point)
    shares = " ".join(f"{name} {share:g}" for name, share in described["shares"].items())
    return ", ".join([shares] * bool(shares) + [f"{key} {value}" for key, value in described["values"].items()])


def known_points(space: Space, described: Sequence[Mapping[str, Any]]) -> list[Point]:
    """Return the points of earlier runs that this space has: a source they do not know has no share in them."""
    found = []
    for entry in described:
        shares, values = entry["shares"], entry["values"]
        levels = []
        for key, level in zip(space.keys, space.base_levels, strict=True):
            value = values.get(key.name, key.values[level])
            levels += [key.values.index(value)] if value in key.values else []
        point = Point(tuple(float(shares.get(name, 0.0)) for name in space.sources), tuple(levels))
        legal = all(share <= cap + 1e-9 for share, cap in zip(point.shares, space.caps, strict=True))
        whole = not space.sources or abs(sum(point.shares) - 1) < 1e-9
        if len(levels) == len(space.keys) and set(values) <= {key.name for key in space.keys} and legal and whole:
            found.append(point)
    return found
