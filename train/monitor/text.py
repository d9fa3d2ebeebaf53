"""Figures as text for people. Standard library only: the pipeline's progress display uses it too."""

from __future__ import annotations


def clock_text(seconds: float) -> str:
    """Write a duration as a clock does: 75 -> "1:15", 3675 -> "1:01:15"."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"
