"""`quarantined`: the rows that could not be read, by reason, as the records of the last build have them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from pipeline.commands.report import TextConsole, grid
from pipeline.commands.status import build_states
from pipeline.engine.changes import KeyHistory
from pipeline.engine.store import Store
from pipeline.errors import UserError
from stages.registry import STAGES
from train.monitor.text import printable

SHOWN = 5  # rows of each reason, unless --full


def bad_rows(store: Store, recipe: str, options: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (source, row of `stages.schemas.QUARANTINE`), unit by unit. Raises UserError where nothing is built."""
    states = dict(build_states(store, recipe))
    if not states:
        raise UserError(
            f"{recipe}: nothing is built in {store.out}; build it with `python -m pipeline run STAGE{options}`"
        )
    for stage, state in states.items():
        if not STAGES[stage].may_lose_units:
            continue
        units = KeyHistory(state)
        for label in units.rows:
            record = store.find(stage, units.key(label))
            if record is None or not record.counts.get("quarantined"):
                continue
            file = pq.ParquetFile(store.fetch(record.output("quarantine")))
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    yield label.partition(" ")[0], row


def print_quarantined(store: Store, recipe: str, source: str | None, full: bool, options: str) -> None:
    """Print how many rows each reason took of each source, then where they are and how they begin."""
    console = TextConsole()
    counts: dict[tuple[str, str], int] = {}
    lines: dict[tuple[str, str], list[str]] = {}
    for name, row in bad_rows(store, recipe, options):
        if source not in (None, name):
            continue
        reason = (name, row["reason"])
        counts[reason] = counts.get(reason, 0) + 1
        if full or counts[reason] <= SHOWN:
            lines.setdefault(reason, []).append(f"  {row['source_file']} row {row['source_row']}: {beginning(row)}")
    if not counts:
        console.print(f"{recipe}: no row{f' of {source}' if source else ''} is in quarantine", markup=False)
        return
    most_first = sorted(counts, key=lambda key: (key[0], -counts[key], key[1]))
    rows = [(*key, counts[key]) for key in most_first]
    header = ("source", "reason", "rows")
    table = grid("Rows in quarantine", header, [(name, one_line(why), n) for name, why, n in rows], left=header[:2])
    console.print(table)
    for name, why, n in rows:
        console.print(f"\n{name}: {one_line(why)}", style="bold", markup=False)
        console.print("\n".join(one_line(line) for line in lines[name, why]), markup=False)
        if n > len(lines[name, why]):
            console.print(f"  and {n - len(lines[name, why]):,} more; --full shows them all", markup=False)


def beginning(row: dict[str, Any]) -> str:
    """Return how the row begins, on one line."""
    return " ".join(row["excerpt"].split()) or "(empty)"


def one_line(text: str) -> str:
    """Return text in one line, with what a terminal would obey written as escapes."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")
