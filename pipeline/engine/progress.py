"""Progress for people: a line a stage with units, rate and time left; plain lines when there is no terminal."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.constrain import Constrain
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stages.stage import Record
from train.monitor.text import clock_text, printable

PLAIN_EVERY = 10.0  # seconds between lines when output is a file or a pipe
ECHO = 8  # columns free at the right: a `^C` that the terminal writes there must not start a line that nobody clears


@dataclass
class Row:
    """One stage's progress, in units and in bytes of their input."""

    known: int = 0
    done: int = 0  # cached ones too
    cached: int = 0
    failed: int = 0
    running: Counter[str] = field(default_factory=Counter)  # labels
    known_bytes: int = 0
    done_bytes: int = 0
    per_source: Counter[str] = field(default_factory=Counter)  # rows out
    busy: float = 0.0  # seconds in which units ran, up to `since`
    since: float = 0.0  # when the first of those that run now did, on the monotonic clock
    at_last: float = 0.0  # seconds in which units ran, until the last one that ended

    def start(self, label: str) -> None:
        """Note that a unit runs."""
        if not self.running:
            self.since = time.monotonic()
        self.running[label] += 1

    def end(self, label: str) -> None:
        """Note that a unit runs no more."""
        self.at_last = self.elapsed()
        if self.running.pop(label, None) and not self.running:
            self.busy = self.at_last

    def elapsed(self) -> float:
        """Return the seconds in which units of the stage ran: not those in which it waited for other stages."""
        return self.busy + (time.monotonic() - self.since if self.running else 0.0)

    def seconds_left(self) -> float | None:
        """Estimate the seconds left, by bytes where they are known, else by units; None where nothing is known.

        The rate is that of units that have ended, so that a long one does not lengthen the estimate as it runs.
        """
        units_left = self.known - self.done - self.failed
        units_run = self.done - self.cached
        if self.done_bytes and self.known_bytes > self.done_bytes:
            whole = self.at_last * self.known_bytes / self.done_bytes
        elif units_left > 0 and units_run and self.at_last:
            whole = self.at_last * (1 + units_left / units_run)
        else:
            return None
        left = whole - self.elapsed()
        return left if left >= 1 else None


class Progress:
    """Collects what the engine reports and shows it."""

    def __init__(self, quiet: bool = False, plain: bool | None = None):
        self.console = Console(stderr=True, highlight=False)
        self.quiet = quiet
        self.plain = not self.console.is_terminal if plain is None else plain
        self.rows: dict[str, Row] = {}
        self.live: Live | None = None
        self.last_plain = time.monotonic()
        self.ended = ""  # a stage that has ended so far, which no plain line has said

    def row(self, stage: str) -> Row:
        """Return the row of `stage`, made when it is first seen."""
        return self.rows.setdefault(stage, Row())

    def known_bytes(self) -> int:
        """Return the bytes of input of all units planned so far."""
        return sum(row.known_bytes for row in self.rows.values())

    def planned(self, stage: str, label: str, weight: int) -> None:
        """Note that a unit has to run."""
        row = self.row(stage)
        row.known += 1
        row.known_bytes += weight

    def started(self, stage: str, label: str) -> None:
        """Note that a unit was handed to a worker."""
        if self.ended != stage:
            self._show_ended()
        self.row(stage).start(label)
        if not self.quiet and not self.plain and self.live is None:
            self.live = Live(
                console=self.console,
                refresh_per_second=4,
                get_renderable=lambda: self._table(self.rows),
                transient=True,
            )
            self.live.start()

    def finished(self, stage: str, record: Record, weight: int) -> None:
        """Note that a unit's record is there, found or made."""
        row = self.row(stage)
        row.done += 1
        if record.cached:
            row.cached += 1
            row.known += 1
        else:
            row.done_bytes += weight
            row.end(record.label)
        source = record.label.split(" ")[0]
        row.per_source[source] += record.counts.get("kept", record.counts.get("rows_out", 0))
        self._plain_line(stage, row)

    def failed(self, stage: str, label: str, message: str) -> None:
        """Note that a unit failed for good, and say so where there is a `message`."""
        row = self.row(stage)
        row.failed += 1
        row.end(label)
        if message:
            self.line(f"failed: {stage} {label}: {message}")

    def line(self, text: str) -> None:
        """Print one line, above the live display."""
        self._show_ended()
        if not self.quiet:
            # Not `soft_wrap=True`, which would hold for the live display below the line too; and a Text by itself would
            # be joined to others, and wrapped.
            self.console.print(Group(Text(printable(text), no_wrap=True, overflow="ignore")), crop=False)

    def _plain_line(self, stage: str, row: Row) -> None:
        now = time.monotonic()
        if self.quiet or not self.plain:
            return
        if self.ended != stage:
            self._show_ended()
        self.ended = ""
        if row.done + row.failed == row.known and row.done > row.cached:
            self.ended = stage  # so far: more of its units may follow, as in dedup
        elif now - self.last_plain > PLAIN_EVERY:
            self.last_plain = now
            self.line(f"{stage:<16} {self._status(row)}")

    def _show_ended(self) -> None:
        """Print the line of the stage whose last known unit has ended, where lines are plain."""
        if stage := self.ended:
            self.ended = ""
            self.last_plain = time.monotonic()
            self.line(f"{stage:<16} {self._status(self.rows[stage])}")

    def _status(self, row: Row) -> str:
        parts = [f"{row.done}/{row.known} units"]
        if row.cached:
            parts.append(f"{row.cached} cached")
        if row.failed:
            parts.append(f"{row.failed} failed")
        elapsed = row.elapsed()
        if row.done_bytes and elapsed > 0:
            parts.append(f"{row.done_bytes / elapsed / 1e6:.1f} MB/s")
        left = row.seconds_left()
        if left is not None:
            parts.append(f"{clock_text(left)} left")
        elif row.running and elapsed >= 1:
            parts.append(clock_text(elapsed))
        sources = [f"{name} {n:,}" for name, n in sorted(row.per_source.items()) if n]
        if sources:
            parts.append("documents " + ", ".join(sources[:6]) + (" …" if len(sources) > 6 else ""))
        return "  ".join(parts)

    def _table(self, rows: dict[str, Row]) -> Constrain:
        """Lay out a line a stage, with the label of one of its units that run."""
        table = Table.grid(padding=(0, 2))
        for stage, row in rows.items():
            running = Text(printable(next(iter(row.running), "")), style="dim")  # a label is no markup
            table.add_row(Text(stage), Text(printable(self._status(row))), running)
        return Constrain(table, self.console.width - ECHO)

    def close(self, seconds: float) -> None:
        """Take the live display down and leave one line a stage that ran."""
        if self.live is not None:
            self.live.stop()
            self.live = None
            ran = {stage: row for stage, row in self.rows.items() if row.done > row.cached or row.failed}
            self.console.print(self._table(ran))
        if not self.quiet and self.rows:
            done = sum(row.done for row in self.rows.values())
            cached = sum(row.cached for row in self.rows.values())
            self.line(f"{done} units, {cached} cached, {clock_text(seconds)}")
        sys.stderr.flush()
