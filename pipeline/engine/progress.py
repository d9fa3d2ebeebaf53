"""Progress for people: a line a stage with units, rate and time left; plain lines when there is no terminal."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table

from stages.stage import Record
from train.monitor.text import clock_text, printable

PLAIN_EVERY = 10.0  # seconds between lines when output is a file or a pipe


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
    started: float = 0.0  # when the first unit did, on the monotonic clock
    ended: float = 0.0  # when the last unit so far did
    per_source: Counter[str] = field(default_factory=Counter)  # rows out

    def elapsed(self) -> float:
        """Return the seconds from the first unit's start to now, or to the last one's end where none runs; or 0."""
        until = time.monotonic() if self.running.total() or not self.ended else self.ended
        return until - self.started if self.started else 0.0

    def seconds_left(self) -> float | None:
        """Estimate the seconds left, by bytes where they are known, else by units; None where nothing is known."""
        if self.done_bytes and self.known_bytes > self.done_bytes:
            return self.elapsed() * (self.known_bytes - self.done_bytes) / self.done_bytes
        units_left = self.known - self.done - self.failed
        units_run = self.done - self.cached
        return self.elapsed() * units_left / units_run if units_left > 0 and units_run and self.started else None


class Progress:
    """Collects what the engine reports and shows it."""

    def __init__(self, quiet: bool = False, plain: bool | None = None):
        self.console = Console(stderr=True, highlight=False)
        self.quiet = quiet
        self.plain = not self.console.is_terminal if plain is None else plain
        self.rows: dict[str, Row] = {}
        self.live: Live | None = None
        self.last_plain = time.monotonic()

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
        row = self.row(stage)
        row.started = row.started or time.monotonic()
        row.running[label] += 1
        if not self.quiet and not self.plain and self.live is None:
            self.live = Live(console=self.console, refresh_per_second=4, get_renderable=self._table, transient=True)
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
            row.running.pop(record.label, None)
            row.ended = time.monotonic()
        source = record.label.split(" ")[0]
        row.per_source[source] += record.counts.get("kept", record.counts.get("rows_out", 0))
        self._plain_line(stage, row)

    def failed(self, stage: str, label: str, message: str) -> None:
        """Note that a unit failed for good, and say so where there is a `message`."""
        row = self.row(stage)
        row.failed += 1
        row.running.pop(label, None)
        if message:
            self.line(f"failed: {stage} {label}: {message}")

    def line(self, text: str) -> None:
        """Print one line, above the live display."""
        if not self.quiet:
            self.console.print(printable(text), markup=False, soft_wrap=True)

    def _plain_line(self, stage: str, row: Row) -> None:
        now = time.monotonic()
        ended = row.done + row.failed == row.known and row.done > row.cached
        if self.quiet or not self.plain or not (ended or now - self.last_plain > PLAIN_EVERY):
            return
        self.last_plain = now
        self.line(f"{stage:<16} {self._status(row)}")

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
        sources = [f"{name} {n:,}" for name, n in sorted(row.per_source.items()) if n]
        if sources:
            parts.append("documents " + ", ".join(sources[:6]) + (" …" if len(sources) > 6 else ""))
        return "  ".join(parts)

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for stage, row in self.rows.items():
            running = next(iter(row.running), "")
            table.add_row(stage, self._status(row), f"[dim]{running}[/]" if running else "")
        return table

    def close(self, seconds: float) -> None:
        """Take the live display down and leave one line a stage that ran."""
        if self.live is not None:
            self.live.stop()
            self.live = None
            for stage, row in self.rows.items():
                if row.done > row.cached or row.failed:
                    self.line(f"{stage:<16} {self._status(row)}")
        if not self.quiet and self.rows:
            done = sum(row.done for row in self.rows.values())
            cached = sum(row.cached for row in self.rows.values())
            self.line(f"{done} units, {cached} cached, {clock_text(seconds)}")
        sys.stderr.flush()
