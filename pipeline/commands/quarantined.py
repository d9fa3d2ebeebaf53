"""`quarantined`: the rows that could not be read, by reason, as the records of the last build have them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from pipeline.commands.report import TextConsole, grid
from pipeline.commands.status import build_states
from pipeline.engine.store import Store
from pipeline.errors import UserError
from stages.registry import STAGES
from stages.stage import Record
from train.monitor.text import printable

SHOWN = 5  # rows of each reason, unless --full


def records_by_unit(store: Store, recipe: str, options: str) -> Iterator[tuple[str, Record | None]]:
    """Yield (source, record or None where it is gone) of each unit that reads rows. Raises UserError, not built."""
    states = dict(build_states(store, recipe))
    if not states:
        raise UserError(
            f"{recipe}: nothing is built in {store.out}; build it with `python -m pipeline run STAGE{options}`"
        )
    for stage, state in states.items():
        if STAGES[stage].may_lose_units:
            store.list_outputs(stage)
        for label in state.units.rows if STAGES[stage].may_lose_units else ():
            yield label.partition(" ")[0], store.find(stage, state.units.key(label))


def bad_rows(store: Store, record: Record) -> Iterator[dict[str, Any]]:
    """Yield the rows of `stages.schemas.QUARANTINE` of one unit."""
    if record.counts.get("quarantined"):
        for batch in pq.ParquetFile(store.fetch(record.output("quarantine"))).iter_batches():
            yield from batch.to_pylist()


def print_quarantined(store: Store, recipe: str, source: str | None, full: bool, options: str) -> None:
    """Print how many rows each reason took of each source, then where they are and how they begin."""
    console = TextConsole()
    counts: dict[tuple[str, str], int] = {}
    lines: dict[tuple[str, str], list[str]] = {}
    gone = 0
    for name, record in records_by_unit(store, recipe, options):
        if source not in (None, name):
            continue
        gone += record is None
        for row in bad_rows(store, record) if record else ():
            reason = (name, row["reason"])
            counts[reason] = counts.get(reason, 0) + 1
            if full or counts[reason] <= SHOWN:
                lines.setdefault(reason, []).append(f"  {row['source_file']} row {row['source_row']}: {beginning(row)}")
    if gone:
        again = f"`python -m pipeline run download{options}` reads them again"
        console.print(f"{gone:,} units are missing or damaged, so their rows are not shown; {again}")
    if not counts and not gone:
        console.print(f"{recipe}: no row{f' of {source}' if source else ''} is in quarantine")
        return
    most_first = sorted(counts, key=lambda key: (key[0], -counts[key], key[1]))
    rows = [(*key, counts[key]) for key in most_first]
    header = ("source", "reason", "rows")
    table = grid("Rows in quarantine", header, [(name, one_line(why), n) for name, why, n in rows], left=header[:2])
    console.print(table)
    for name, why, n in rows:
        console.print(f"\n{name}: {one_line(why)}", style="bold")
        console.print("\n".join(one_line(line) for line in lines[name, why]))
        if n > len(lines[name, why]):
            console.print(f"  and {n - len(lines[name, why]):,} more; --full shows them all")


def beginning(row: dict[str, Any]) -> str:
    """Return how the row begins, on one line."""
    return " ".join(row["excerpt"].split()) or "(empty)"


def one_line(text: str) -> str:
    """Return text in one line, with what a terminal would obey written as escapes."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")
