"""Units in the driver's own process, one at a time: breakpoints work, and a fault shows its own trace."""

from __future__ import annotations

from pipeline.engine.executor import Reply, UnitSpec
from pipeline.executors.worker import run_unit


class InlineExecutor:
    """An executor without processes."""

    name = "inline"
    slots = 1

    async def submit(self, spec: UnitSpec) -> Reply:
        """Run the unit here and now."""
        return run_unit(spec)

    def close(self) -> None:
        """Do nothing: nothing was started."""
