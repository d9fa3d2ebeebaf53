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
from typing import Any, NamedTuple, TypedDict

from pipeline.engine import fingerprint

KEY_BYTES = 20
DIGEST_BYTES = 6
ROW_BYTES = KEY_BYTES + 4 * DIGEST_BYTES


class Facts(TypedDict):
    """What a unit's key is the hash of."""

    stage: str
    work: str
    code: str
    versions: dict[str, str]
    params: dict[str, Any]
    inputs: list[str]  # digests


class Digests(NamedTuple):
    """Short digests of the four things that a unit's key is made of, beside its stage."""

    code: str
    versions: str
    params: str
    inputs: str


def short_digest(value: Any) -> str:
    """Return 32 hex digits that stand for a value of JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def named_set(items: tuple[tuple[str, str], ...]) -> tuple[str, dict[str, str]]:
    """Return a digest of names and values, and name -> value, each cut to 12 characters."""
    values = {name: value[:12] for name, value in items}
    return short_digest(values)[: 2 * DIGEST_BYTES], values


shared_set = functools.cache(named_set)  # for code and versions, which many units have in common


class KeyHistory:
    """The units of one stage in one build, by label: their keys, and what those were made of."""

    def __init__(self, saved: Mapping[str, Any] | None = None):
        """Start empty, or from what `to_dict` gave. Raises ValueError where it cannot have given that."""
        saved = {"sets": {}, "units": {}} if saved is None else saved
        try:
            # Digest -> name -> short value.
            self.sets: dict[str, dict[str, str]] = {key: dict(values) for key, values in saved.get("sets", {}).items()}
            # Label -> its key and its Digests, as bytes.
            self.rows = {label: bytes.fromhex(row) for label, row in saved["units"].items()}
        except (TypeError, AttributeError, KeyError, ValueError) as error:
            raise ValueError(f"it names no units ({type(error).__name__}: {error})") from error
        if any(len(row) != ROW_BYTES for row in self.rows.values()):
            raise ValueError("it names units by keys of another length")

    def __len__(self) -> int:
        return len(self.rows)

    def unit_keys(self) -> Iterator[str]:
        """Yield the key of each unit."""
        return (row[:KEY_BYTES].hex() for row in self.rows.values())

    def key(self, label: str) -> str:
        """Return the key of the unit called `label`, or an empty text."""
        return self.rows.get(label, b"")[:KEY_BYTES].hex()

    def add(self, label: str, key: str, facts: Facts) -> None:
        """Note the unit called `label` and what its key is made of."""
        modules = fingerprint.modules_of(facts["work"].split(":")[0])
        params = tuple((name, short_digest(value)) for name, value in facts["params"].items())
        row = key
        for digest, values in (
            shared_set(tuple(modules.items())),
            shared_set(tuple(facts["versions"].items())),
            named_set(params),
        ):
            self.sets[digest] = values
            row += digest
        self.rows[label] = bytes.fromhex(row + short_digest(facts["inputs"])[: 2 * DIGEST_BYTES])

    def digests(self, label: str) -> Digests:
        """Return the digests of what the key of the unit called `label` was made of. Raises KeyError."""
        row = self.rows[label].hex()
        width = 2 * DIGEST_BYTES
        return Digests(*(row[start : start + width] for start in range(2 * KEY_BYTES, len(row), width)))

    def merged(self, later: KeyHistory) -> KeyHistory:
        """Return the units of both; those of `later` win."""
        both = KeyHistory()
        both.sets, both.rows = {**self.sets, **later.sets}, {**self.rows, **later.rows}
        return both

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values; sets that no unit refers to any more are left out."""
        used = {digest for label in self.rows for digest in self.digests(label)[:3]}
        sets = {digest: values for digest, values in self.sets.items() if digest in used}
        return {"sets": sets, "units": {label: row.hex() for label, row in self.rows.items()}}

    def changed(self, label: str, before: KeyHistory) -> list[str]:
        """Say in words what differs from `before` for the unit called `label`."""
        new, old = self.digests(label), before.digests(label)
        words = []
        for singular, plural, new_digest, old_digest in (
            ("code", "code", new.code, old.code),
            ("version of", "versions of", new.versions, old.versions),
            ("parameter", "parameters", new.params, old.params),
        ):
            if new_digest != old_digest:
                names = different_names(self.sets.get(new_digest, {}), before.sets.get(old_digest, {}))
                shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
                words.append(f"{plural if len(names) > 1 else singular} {shown} changed")
        return words + (["input changed"] if new.inputs != old.inputs else [])


def different_names(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    """Return the names that have different values in `a` and `b`, or are in one of them only."""
    return sorted(name for name in {*a, *b} if a.get(name) != b.get(name))


def reason_to_run(label: str, now: KeyHistory, before: KeyHistory, had_record: bool) -> str:
    """Say why the unit called `label` is not in the store. `had_record`: a record of this very key is there."""
    if had_record:
        return "its output is missing or damaged"
    if label not in before.rows:
        return "new"
    return ", ".join(now.changed(label, before)) or "not finished or no longer there"
