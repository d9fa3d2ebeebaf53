"""What is known of the units of a stage: those the driver has seen in this run, and those the last build noted.

The driver keeps little enough in memory for a million of them.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pipeline.engine.changes import KeyHistory
from pipeline.engine.store import STAMP, UNITS, Store
from pipeline.errors import UnitFailed, UserError
from stages.stage import Record

NO_VALUES: dict[str, Any] = {}  # shared by all compact records
NO_INPUTS: list[str] = []
NO_TRIES: list[str] = []


class LastBuild(NamedTuple):
    """What the last build of a recipe noted of one stage."""

    units: KeyHistory
    failed: dict[str, str]  # label -> message


def read_last_build(store: Store, recipe: str, stage: str) -> LastBuild | None:
    """Return what `<out>/<recipe>/units/<stage>.json` has, None where there is none. Raises UserError, damaged."""
    name = f"{UNITS}/{stage}.json"
    try:
        value = store.read_state(recipe, name)
        if value is None:
            return None
        units, failed = KeyHistory(value), value.get("failed", {})
        if not isinstance(failed, dict) or not all(isinstance(message, str) for message in failed.values()):
            raise ValueError("it has no messages of units that failed")
    except ValueError as error:
        raise UserError(
            f"{store.out}/{recipe}/{name} is damaged ({error}); `python -m pipeline run STAGE`, with the recipe and "
            f"--out of that build, writes it anew"
        ) from error
    return LastBuild(units, failed)


@dataclass
class StageState:
    """What the driver has seen of one stage in this run: sums and keys, as the records hold the truth."""

    units: KeyHistory = field(default_factory=KeyHistory)
    reasons: Counter[str] = field(default_factory=Counter)  # why units run (or would) -> how many
    done: int = 0  # records found or made
    counts: dict[str, Counter[str]] = field(default_factory=dict)  # first word of the label, its source -> counters
    text_rates: array[float] = field(default_factory=lambda: array("d"))  # seconds a byte, of units that count text
    quarantined: list[Record] = field(default_factory=list)  # records with bad rows
    failed: list[UnitFailed] = field(default_factory=list)

    def add_record(self, record: Record) -> None:
        """Add the record of a finished unit to the sums."""
        self.done += 1
        self.counts.setdefault(record.label.partition(" ")[0], Counter()).update(record.counts)
        if record.counts.get("text_bytes"):
            self.text_rates.append(record.seconds / record.counts["text_bytes"])
        if record.counts.get("quarantined"):
            self.quarantined.append(record)


def compact_record(record: Record, label: str, cached: bool = False) -> Record:
    """Return a record without what only the store needs, and with names that repeat kept once in memory."""
    outputs = []
    for output in record.outputs:
        meta = {sys.intern(name): value for name, value in output.meta.items() if name != STAMP}
        sha256 = output.digest if output.sha256 == output.digest else output.sha256
        outputs.append(replace(output, sha256=sha256, meta=meta or NO_VALUES))
    return replace(
        record,
        stage=sys.intern(record.stage),
        label=label,
        cached=cached,
        inputs=NO_INPUTS,
        versions=NO_VALUES,
        attempt="",
        node="",
        tries=NO_TRIES,
        outputs=outputs,
    )
