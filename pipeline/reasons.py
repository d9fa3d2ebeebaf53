"""Why a unit has to run: what its key is made of, compared with the last build of the same name.

`units.json` keeps a few short digests a unit, and each distinct set of code and parameters once, so that
`plan` can name the module, the parameter or the library that changed.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pipeline import code


def fact_digest(value: Any) -> str:
    """A short digest of one part of a unit's key."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


class Facts:
    """What the keys of one stage's units were made of, small enough to keep for every unit."""

    def __init__(self, saved: dict[str, Any] | None = None):
        saved = saved or {}
        self.sets: dict[str, dict[str, str]] = dict(saved.get("sets", {}))  # digest -> name -> digest of the value
        self.units: dict[str, list[str]] = dict(saved.get("units", {}))  # label -> [code, versions, params, inputs]

    def add(self, label: str, facts: dict[str, Any]) -> None:
        """Note what the key of the unit called `label` is made of."""
        modules = code.modules_of(facts["work"].split(":")[0])
        parts = [modules, facts["versions"], {name: fact_digest(v) for name, v in facts["params"].items()}]
        row = []
        for values in parts:
            short = {name: value[:12] for name, value in values.items()}
            row.append(fact_digest(short)[:12])
            self.sets[row[-1]] = short
        self.units[label] = [*row, fact_digest(facts["inputs"])[:12]]

    def merged(self, later: Facts) -> Facts:
        """These and `later`, which wins."""
        return Facts({"sets": {**self.sets, **later.sets}, "units": {**self.units, **later.units}})

    def to_dict(self) -> dict[str, Any]:
        """JSON values; sets that no unit refers to any more are left out."""
        used = {digest for row in self.units.values() for digest in row[:3]}
        sets = {digest: values for digest, values in sorted(self.sets.items()) if digest in used}
        return {"sets": sets, "units": dict(sorted(self.units.items()))}

    def changed(self, label: str, before: Facts) -> list[str]:
        """What differs from `before` for the unit called `label`, in words."""
        now, then = self.units[label], before.units[label]
        words = []
        for (singular, plural), a, b in zip(PARTS, now, then, strict=False):
            if a != b:
                new, old = self.sets.get(a, {}), before.sets.get(b, {})
                names = sorted(n for n in {*new, *old} if new.get(n) != old.get(n))
                shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
                words.append(f"{plural if len(names) > 1 else singular} {shown} changed")
        return words + (["input changed"] if now[3] != then[3] else [])


PARTS = (("code", "code"), ("version of", "versions of"), ("parameter", "parameters"))


def reason(label: str, now: Facts, before: Facts, had_record: bool) -> str:
    """Why the unit called `label` is not in the store. `had_record`: a record of this very key is there."""
    if had_record:
        return "its output is missing or damaged"
    if label not in before.units:
        return "new"
    return ", ".join(now.changed(label, before)) or "not finished or no longer there"
