"""What the driver keeps in memory of the units it has seen: little enough for a million of them."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.engine.changes import Units
from pipeline.errors import UnitFailed
from stages.stage import Record

NOTHING: dict[str, Any] = {}  # shared by records that have nothing to say
NO_INPUTS: list[str] = []


@dataclass
class StageState:
    """What the driver has seen of one stage in this run, small enough for a million units; records hold the truth."""

    units: Units = field(default_factory=Units)
    reasons: Counter[str] = field(default_factory=Counter)  # why units run (or would) -> how many
    done: int = 0  # records found or made
    counts: dict[str, Counter[str]] = field(default_factory=dict)  # first word of the label, its source -> counters
    text_seconds: float = 0.0  # spent in units that count text_bytes
    quarantined: list[Record] = field(default_factory=list)  # records with bad rows
    failed: list[UnitFailed] = field(default_factory=list)

    def finished(self, record: Record) -> None:
        """Add a record to the sums."""
        self.done += 1
        self.counts.setdefault(record.label.partition(" ")[0], Counter()).update(record.counts)
        if record.counts.get("text_bytes"):
            self.text_seconds += record.seconds
        if record.counts.get("quarantined"):
            self.quarantined.append(record)


def slim(record: Record, label: str, cached: bool = False) -> Record:
    """A record as the driver keeps it, without what only the store needs: there may be a million."""
    outputs = []
    for output in record.outputs:
        meta = {sys.intern(name): value for name, value in output.meta.items() if name != "stamp"}
        sha256 = output.digest if output.sha256 == output.digest else output.sha256
        outputs.append(replace(output, sha256=sha256, meta=meta or NOTHING))
    stage = sys.intern(record.stage)
    return replace(
        record, stage=stage, label=label, cached=cached, inputs=NO_INPUTS, versions=NOTHING, attempt="", outputs=outputs
    )
