"""Figures and events as text for people. Standard library only: the pipeline's progress display uses it too."""

from __future__ import annotations

from typing import Any


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
        return f"{name}: loss {event['loss']:.4f}, gradient norm {event['grad_norm']:.3f}{applied}"
    if "share" in event:
        return f"{name}: {event['share']:.0%} of the time"
    return f"{name}: {event['seconds']:.3f} s each, usually {event['usually']:.3f} s"
