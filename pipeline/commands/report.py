"""What a run says when it ends, on standard output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import table as rich_table
from rich.console import Console
from rich.text import Text

from pipeline.engine import quarantine
from pipeline.engine.context import Context
from stages.report import report
from stages.stage import Table
from train.monitor.text import printable


class TextConsole(Console):
    """Standard output for text of others: what stands in it is shown, and neither obeyed nor read as markup."""

    def __init__(self) -> None:
        super().__init__(highlight=False, soft_wrap=True, markup=False, emoji=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as `Console.print` does, strings with their control characters written out."""
        super().print(*(printable(item) if isinstance(item, str) else item for item in objects), **options)


def grid(
    title: str, header: Sequence[str], rows: Sequence[Sequence[Any]], left: Sequence[str] = ()
) -> rich_table.Table:
    """Lay out a plain table; columns that are not in `left`, by default the first alone, are right-aligned."""
    table = rich_table.Table(
        title=printable(title), title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0)
    )
    for name in header:
        table.add_column(name, justify="left" if name in (left or header[:1]) else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else printable(str(cell))) for cell in row))
    return table


def print_report(context: Context) -> None:
    """Print everything worth knowing after a run."""
    console = TextConsole()
    for group in report(context):
        for entry in group:
            if isinstance(entry, Table):
                console.print(grid(entry.title, entry.header, entry.rows, entry.left))
            else:
                console.print(entry, markup=False)
        console.print()
    for line in (*quarantine.summary(context), *context.warnings):
        console.print(line, markup=False)
        console.print()
    console.print("Where everything lies", style="bold")
    for folder in context.folders:
        console.print(f"  {context.folder(folder)}", markup=False)
