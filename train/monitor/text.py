"""Figures and events as text for people. Standard library only: the pipeline's progress display uses it too."""

from __future__ import annotations

from typing import Any

# What a terminal or a page obeys instead of showing it: controls but for line feed and tab, marks of the direction of
# writing, separators of lines, tags, and what is no character at all.
OBEYED = (
    *(set(range(0x20)) - {0x09, 0x0A}),
    *range(0x7F, 0xA0),
    0x061C,
    *range(0x200E, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2066, 0x206A),
    0xFEFF,
    *range(0xE0000, 0xE0080),
    *range(0xD800, 0xE000),
)
SHOWN = {code: chr(code).encode("unicode_escape").decode() for code in OBEYED}


def printable(text: str) -> str:
    """Return text of documents, names or manifests with all that a terminal would obey written out: `\\x1b[2J`."""
    return text.translate(SHOWN)


def clock_text(seconds: float) -> str:
    """Write a duration as a clock does: 75 -> "1:15", 3675 -> "1:01:15"."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def counted_processes(count: int) -> str:
    """Write how many processes there are: "1 process", "2 processes"."""
    return f"{count} process{'es' if count > 1 else ''}"


def event_text(event: dict[str, Any]) -> str:
    """Write an event of events.jsonl in one line."""
    name = event["event"]
    if "matrix" in event:
        return f"{name}: {event['matrix']} has singular values from {event['smin']:.1e} to {event['smax']:.1e}"
    if "batch" in event:
        applied = "" if event["applied"] else ", not applied"
        of = ""
        if "source" in event:
            usual = event["source_usual"]
            than = "" if usual is None else f", usually {usual:.4f}"
            of = f", most of it in {event['source']} ({event['source_loss']:.4f}{than})"
        return f"{name}: loss {event['loss']:.4f}, gradient norm {event['grad_norm']:.3f}{of}{applied}"
    if "share" in event:
        return f"{name}: {event['share']:.0%} of the time"
    return f"{name}: {event['seconds']:.3f} s each, usually {event['usually']:.3f} s"


def dead_part_rows(dead: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the table of `dead_parts` in summary.json: what, and what is wrong with it; no row where all is well."""
    rows = list(dead["parameters"].items())
    rows += [(name, "its output is zero, or its input") for name in dead["outputs"]]
    if dead["compiled"]:
        steps = ", ".join(map(str, dead["compiled"][:8])) + (", ..." if len(dead["compiled"]) > 8 else "")
        text = f"in {len(dead['compiled'])} step(s): {steps}; see train.kernel_warmup"
        rows.append(("compiled inside the clock", text))
    return rows
