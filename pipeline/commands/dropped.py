"""`dropped`: the documents that rules dropped, a sample for each reason, as `<out>/<recipe>/dropped/` has them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commands.report import TextConsole, grid
from pipeline.engine.store import Store
from pipeline.errors import UserError
from stages.filter.samples import DROPPED
from stages.sources.parquet import first_line

NONE = "run `python -m pipeline run filter{options}` first, or it dropped none"
EXCERPT = 400  # characters of a text, unless --full


def samples(store: Store, recipe: str, source: str | None, options: str) -> list[tuple[str, pa.Table]]:
    """Return (source, its sample) of each source that has one. Raises UserError where there is none."""
    files = {name.removesuffix(".parquet"): path for name, path in sorted(store.published(recipe, "dropped").items())}
    chosen = [name for name in files if source in (None, name)]
    if not chosen:
        have = f"sources with a sample are {', '.join(files)}" if files else NONE.format(options=options)
        raise UserError(f"no sample of dropped documents{f' of {source}' if source else ''}: {have}")
    return [(name, read_sample(store, files[name], options)) for name in chosen]


def read_sample(store: Store, file: str, options: str) -> pa.Table:
    """Return the table in a file of `dropped/`. Raises UserError at a damaged one."""
    try:
        table = pq.read_table(store.local_copy(file), partitioning=None, page_checksum_verification=True)
        table = table.select(DROPPED.names).cast(DROPPED)
        table.validate(full=True)
        return table
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(
            f"{file} is damaged ({first_line(error)}); `python -m pipeline run filter{options}` writes it anew"
        ) from error


def print_dropped(store: Store, recipe: str, source: str | None, reason: str | None, full: bool, options: str) -> None:
    """Print which reasons have a sample; with `reason`, the documents and their text. Raises UserError."""
    console = TextConsole()
    tables = samples(store, recipe, source, options)
    by_source = {name: Counter(table["reason"].to_pylist()) for name, table in tables}
    if reason is None:
        rows = [(name, why, n) for name, counts in by_source.items() for why, n in sorted(counts.items())]
        header = ("source", "reason", "documents")
        console.print(grid("Dropped documents kept to read", header, rows, left=header[:2]))
        how = f"`python -m pipeline dropped{options} --reason NAME`"
        console.print(f"\nRead them with {how}; whole texts with --full.")
        return
    known = sorted({why for counts in by_source.values() for why in counts})
    if reason not in known:
        raise UserError(f"--reason {reason}: there are {', '.join(known)}")
    for name, table in tables:
        for row in table.to_pylist():
            if row["reason"] == reason:
                print_document(console, name, row, full)


def print_document(console: TextConsole, source: str, row: dict[str, Any], full: bool) -> None:
    """Print one document: where it is from, and its text."""
    where = f"{source}: {row['source_file']} row {row['source_row']}"
    value = "" if row["value"] is None else f" ({row['value']:.4g})"
    console.print(
        f"{row['reason']}{value}  {where}  id {row['document_id'].hex()}  {row['url'] or ''}",
        style="bold",
    )
    text = row["text"] if full else row["text"][:EXCERPT]
    more = f"\n[... {row['chars'] - len(text):,} characters more]" if len(text) < row["chars"] else ""
    console.print(text + more + "\n")
