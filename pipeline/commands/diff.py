"""`diff`: what two manifests do not share, for people."""

from __future__ import annotations

import json
from typing import Any

from pipeline.commands.report import TextConsole, grid
from stages.lineage.diff import Change, Difference, Moved, diff
from train.data.manifest import Manifest

LISTED = 40  # changes of one kind that are shown
WIDTH = 60  # characters of a value


def print_diff(a: Manifest, b: Manifest, as_json: bool) -> None:
    """Print what differs, or one line that nothing does."""
    difference = diff(a, b)
    if as_json:
        print(json.dumps(difference.to_dict(), sort_keys=True))
        return
    console = TextConsole()
    tables = {
        "Recipe": difference.recipe,
        "Build": difference.build,
        "Sources": difference.sources,
        "Files": difference.files,
        "Tokenizer": difference.tokenizer,
        "Versions": difference.versions,
        "Code": [(name, short(x), short(y)) for name, x, y in difference.code],
    }
    for title, changed in tables.items():
        print_changes(console, title, changed)
    for title, moved in (("Training documents", difference.training), ("Held-out documents", difference.held_out)):
        print_moved(console, title, moved)
    for manifest in (a, b):
        if manifest.adopted:
            console.print(f"{manifest.folder} was adopted: its documents are not known, and not compared")
    if not any(tables.values()) and not documents_differ(difference):
        console.print("no difference")


def documents_differ(difference: Difference) -> bool:
    """Tell whether any document is on one side only, or has other tokens there."""
    return any(
        m.documents_a or m.documents_b or m.tokens_both_a != m.tokens_both_b
        for side in (difference.training, difference.held_out)
        for m in side.values()
    )


def short(value: Any) -> str:
    """Return a value as one cell has it."""
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 1]}…"


def print_changes(console: TextConsole, title: str, changed: list[Change]) -> None:
    """Print a table of changes, if there are any."""
    if changed:
        rows = [(name, short(x), short(y)) for name, x, y in changed[:LISTED]]
        console.print(grid(title, ("", "A", "B"), rows))
        if len(changed) > LISTED:
            console.print(f"and {len(changed) - LISTED:,} more; --json has all")
        console.print()


def print_moved(console: TextConsole, title: str, moved: dict[str, Moved]) -> None:
    """Print how many documents and tokens moved, by source."""
    if moved:
        rows = []
        for name, m in moved.items():
            both = f"{m.tokens_both_a:,}"
            if m.tokens_both_a != m.tokens_both_b:
                both += f" / {m.tokens_both_b:,}"
            rows.append((name, m.documents_a, m.tokens_a, m.documents_b, m.tokens_b, m.documents_both, both))
        header = ("source", "only in A", "tokens", "only in B", "tokens", "in both", "tokens (A / B)")
        console.print(grid(title, header, rows))
        console.print()
