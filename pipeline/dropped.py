"""`dropped`: the documents that rules dropped, a sample for each reason, as `<out>/<recipe>/dropped/` has them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from pipeline.errors import UserError
from pipeline.report import grid
from pipeline.storage import Store

EXCERPT = 400  # characters of a text, unless --full


def samples(store: Store, recipe: str, source: str | None) -> list[tuple[str, pa.Table]]:
    """(source, its sample) of each source that has one. Raises UserError where there is none."""
    folder = store.published(recipe, "dropped")
    files = sorted(folder.glob("*.parquet")) if folder else []
    found = [(f.stem, pq.read_table(f, partitioning=None)) for f in files if source in (None, f.stem)]
    if not found:
        have = ", ".join(f.stem for f in files) or "none"
        raise UserError(f"no document was dropped, or `filter` did not run yet: sources with a sample are {have}")
    return found


def print_dropped(store: Store, recipe: str, source: str | None, reason: str | None, full: bool) -> None:
    """Which reasons have a sample; with `reason`, the documents and their text. Raises UserError."""
    console = Console(highlight=False, soft_wrap=True)
    tables = samples(store, recipe, source)
    reasons = sorted({(name, said) for name, table in tables for said in table["reason"].to_pylist()})
    if reason is None:
        counted = [
            (name, said, sum(r == said for r in table["reason"].to_pylist()))
            for name, table in tables
            for said in sorted(set(table["reason"].to_pylist()))
        ]
        shown = grid("Dropped documents kept to read", ("source", "reason", "documents"), counted)
        shown.columns[1].justify = "left"
        console.print(shown)
        console.print("\nRead them with --reason NAME; whole texts with --full.", markup=False)
        return
    if reason not in {said for _, said in reasons}:
        raise UserError(f"--reason {reason}: there are {', '.join(sorted({said for _, said in reasons}))}")
    for name, table in tables:
        for row in table.to_pylist():
            if row["reason"] == reason:
                print_document(console, name, row, full)


def print_document(console: Console, source: str, row: dict[str, Any], full: bool) -> None:
    """One document: where it is from, and its text."""
    where = f"{source}: {row['source_file']} row {row['source_row']}"
    console.print(f"{row['reason']}  {where}  id {row['document_id'].hex()}  {row['url'] or ''}", style="bold", markup=False)
    text = row["text"] if full else row["text"][:EXCERPT]
    more = f"\n[... {row['chars'] - len(text):,} characters more]" if len(text) < row["chars"] else ""
    console.print(text + more + "\n", markup=False)
