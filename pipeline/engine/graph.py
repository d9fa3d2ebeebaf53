"""The graph of stages."""

from __future__ import annotations

from pipeline.errors import UsageError
from stages.base import Stage
from stages.registry import STAGES


def order(target: str) -> list[Stage]:
    """`target` and every stage it needs, upstream first. Raises UsageError."""
    if target not in STAGES:
        raise UsageError(f"no stage {target!r}; the stages are {', '.join(STAGES)}")
    found: dict[str, Stage] = {}

    def visit(name: str) -> None:
        if name not in found:
            for upstream in STAGES[name].after:
                visit(upstream)
            found[name] = STAGES[name]

    visit(target)
    return list(found.values())
