"""Looking stages up by the names that people give."""

from __future__ import annotations

from typing import Any

from pipeline.errors import UsageError
from stages.registry import STAGES
from stages.stage import Stage


def find_stage(name: str) -> Stage[Any]:
    """Return the stage called `name`. Raises UsageError that lists them."""
    if name not in STAGES:
        raise UsageError(f"no stage {name!r}; the stages are {', '.join(STAGES)}")
    return STAGES[name]
