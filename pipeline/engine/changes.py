"""Why a unit has to run: what its key is made of, compared with the last build of the same name.

`<out>/<recipe>/units/<stage>.json` keeps the key and a few short digests of each unit, and each distinct set of code
and parameters once, so that `plan` can name the module, the parameter or the library that changed. A unit is one
short text: there may be a million.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from pipeline.engine import fingerprint


def fact_digest(value: Any) -> str:
    """A short digest of one part of a unit's key."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def brief(values: tuple[tuple[str, str], ...]) -> tuple[str, dict[str, str]]:
    """(digest, name -> short value) of names and values."""
    short = {name: value[:12] for name, value in values}
    return fact_digest(short)[:12], short


noted = functools.cache(brief)  # for sets that many units share


class Units:
    """The units of one stage by label: key, and digests of code, versions, parameters and inputs."""

    def __init__(self, saved: dict[str, Any] | None = None):
        saved = saved or {}
        self.sets: dict[str, dict[str, str]] = dict(saved.get("sets", {}))  # digest -> name -> digest of the value
        # label -> key (20 bytes), digests of code, versions, params and inputs (6 bytes each)
        self.rows = {label: bytes.fromhex(row) for label, row in saved.get("units", {}).items()}

    def __len__(self) -> int:
        return len(self.rows)

    def unit_keys(self) -> Iterator[str]:
        """The key of each unit."""
        return (row[:20].hex() for row in self.rows.values())

    def key(self, label: str) -> str:
        """The key of the unit called `label`, or an empty text."""
        return self.rows.get(label, b"")[:20].hex()

    def add(self, label: str, key: str, facts: Mapping[str, Any]) -> None:
        """Note the unit called `label` and what its key is made of."""
        modules = fingerprint.modules_of(facts["work"].split(":")[0])
        params = tuple((name, fact_digest(value)) for name, value in facts["params"].items())
        row = key
        for digest, short in (noted(tuple(modules.items())), noted(tuple(facts["versions"].items())), brief(params)):
            self.sets[digest] = short
            row += digest
        self.rows[label] = bytes.fromhex(row + fact_digest(facts["inputs"])[:12])

    def merged(self, later: Units) -> Units:
        """These and `later`, which wins."""
        both = Units()
        both.sets, both.rows = {**self.sets, **later.sets}, {**self.rows, **later.rows}
        return both

    def to_dict(self) -> dict[str, Any]:
        """JSON values; sets that no unit refers to any more are left out."""
        used = {digest for row in self.rows.values() for digest in digests(row)[:3]}
        sets = {digest: values for digest, values in self.sets.items() if digest in used}
        return {"sets": sets, "units": {label: row.hex() for label, row in self.rows.items()}}

    def changed(self, label: str, before: Units) -> list[str]:
        """What differs from `before` for the unit called `label`, in words."""
        now, then = digests(self.rows[label]), digests(before.rows[label])
        words = []
        for (singular, plural), a, b in zip(PARTS, now, then, strict=False):
            if a != b:
                new, old = self.sets.get(a, {}), before.sets.get(b, {})
                names = sorted(n for n in {*new, *old} if new.get(n) != old.get(n))
                shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
                words.append(f"{plural if len(names) > 1 else singular} {shown} changed")
        return words + (["input changed"] if now[3] != then[3] else [])


def digests(row: bytes) -> list[str]:
    """Those of code, versions, params and inputs."""
    return [row[i : i + 6].hex() for i in range(20, 44, 6)]


PARTS = (("code", "code"), ("version of", "versions of"), ("parameter", "parameters"))


def reason(label: str, now: Units, before: Units, had_record: bool) -> str:
    """Why the unit called `label` is not in the store. `had_record`: a record of this very key is there."""
    if had_record:
        return "its output is missing or damaged"
    if label not in before.rows:
        return "new"
    return ", ".join(now.changed(label, before)) or "not finished or no longer there"
