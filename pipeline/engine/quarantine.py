"""The quarantine: bad rows, each with its reason, where people look for them, and the tolerance for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.engine.changes import short_digest
from pipeline.errors import UnitFailed, UserError
from stages.errors import NotBuilt
from stages.registry import STAGES

if TYPE_CHECKING:
    from pipeline.engine.context import Context


def may_be_lost(error: NotBuilt | UnitFailed) -> bool:
    """Whether `quarantine.files` may allow for a unit that failed."""
    return isinstance(error, UnitFailed) and STAGES[error.stage].may_lose_units and not error.fatal


def lost_units(context: Context) -> list[UnitFailed]:
    """Return the failures that the recipe's `quarantine.files` may allow for."""
    return [error for stage in STAGES.values() if stage.may_lose_units for error in context.state(stage.name).failed]


def check(context: Context) -> None:
    """Publish the bad rows; stop when there are more than the recipe tolerates. Raises UserError."""
    publish(context)
    counts = [context.counts(stage) for stage in STAGES.values() if stage.may_lose_units]
    bad, rows = (sum(count.get(name, 0) for count in counts) for name in ("quarantined", "rows_in"))
    allowed = context.recipe.quarantine.tolerate
    if bad > allowed * rows:
        raise UserError(
            f"{bad:,} of {rows:,} rows are in quarantine, more than quarantine.tolerate={allowed:.3%} allows; "
            f"`{context.command('quarantined')}` shows them; mend the source or raise the tolerance"
        )


def summary(context: Context) -> list[str]:
    """Return a line that says how many rows are in quarantine and which command shows them, if there are any."""
    bad = sum(record.counts["quarantined"] for state in context.states.values() for record in state.quarantined)
    rows = "row is" if bad == 1 else "rows are"
    return [f"{bad:,} {rows} in quarantine: `{context.command('quarantined')}` shows them"] if bad else []


def publish(context: Context) -> None:
    """Put the tables of bad rows into `<out>/<recipe>/quarantine/`."""
    stages = [stage.name for stage in STAGES.values() if stage.may_lose_units]
    records = [record for stage in stages for record in context.state(stage).quarantined]
    files = {f"{short_digest(record.label)[:16]}.parquet": record.output("quarantine") for record in records}
    if files and not context.dry and "quarantine" not in context.folders:
        context.publish("quarantine", files)
