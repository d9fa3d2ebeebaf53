"""What a run says when it ends, on standard output."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from rich import table as rich_table
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from pipeline.engine import quarantine
from pipeline.engine.context import Context
from stages.report import report
from stages.stage import Table
from train.monitor.text import printable

PIPED_WIDTH = 100  # of tables, where the output is no terminal and COLUMNS does not say
LEAST_TEXT = 12  # columns that a column of text keeps, if it has as many, when a table is too wide


class TextConsole(Console):
    """Standard output for text of others: what stands in it is shown, and neither obeyed nor read as markup."""

    def __init__(self) -> None:
        super().__init__(highlight=False, soft_wrap=True, markup=False, emoji=False)
        if not sys.stdout.isatty() and "COLUMNS" not in os.environ:
            self.width = PIPED_WIDTH

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as `Console.print` does, strings with their control characters written out."""
        super().print(*(printable(item) if isinstance(item, str) else item for item in objects), **options)


class Grid(rich_table.Table):
    """A plain table. Where it is too wide, headers break between words, and then text wraps, but no figure."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Fit the table to the width of the console."""
        if self.__rich_measure__(console, options.update_width(sys.maxsize)).maximum > options.max_width:
            self._narrow(options.max_width)
        yield from super().__rich_console__(console, options)

    def _narrow(self, width: int) -> None:
        least = -2  # none behind the last
        for column in self.columns:
            cells = max((cell_len(str(cell)) for cell in column._cells), default=0)
            column.header = break_words(str(column.header), cells)
            whole = max(cells, *map(cell_len, column.header.split("\n")))
            least += 2 + (min(whole, LEAST_TEXT) if column.justify == "left" else whole)
        for column in self.columns if least <= width else ():
            column.no_wrap = column.justify != "left"


def break_words(header: str, width: int) -> str:
    """Break a header after blanks and slashes into lines of `width` columns, or of its longest word."""
    words = re.findall("[^ /]*[ /]?", header)[:-1]
    width = max([width, *(cell_len(word.rstrip()) for word in words)])
    lines = [""]
    for word in words:
        if lines[-1] and cell_len((lines[-1] + word).rstrip()) > width:
            lines.append("")
        lines[-1] += word
    return "\n".join(line.rstrip() for line in lines)


def grid(title: str, header: Sequence[str], rows: Sequence[Sequence[Any]], left: Sequence[str] = ()) -> Grid:
    """Lay out a plain table; columns that are not in `left`, by default the first alone, are right-aligned."""
    table = Grid(
        title=printable(title),
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
        pad_edge=False,
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
                console.print(entry)
        console.print()
    for line in (*quarantine.summary(context), *context.warnings):
        console.print(line)
        console.print()
    console.print("Where everything lies", style="bold")
    for folder in context.folders:
        console.print(f"  {context.folder(folder)}")
