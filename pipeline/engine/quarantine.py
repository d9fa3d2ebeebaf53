"""The quarantine: bad rows, each with its reason, where people look for them, and the tolerance for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.engine.changes import short_digest
from pipeline.errors import UserError
from stages.registry import STAGES

if TYPE_CHECKING:
    from pipeline.engine.context import Context


def check(context: Context) -> None:
    """Publish the bad rows; stop when there are more than the recipe tolerates. Raises UserError."""
    publish(context)
    counts = [context.counts(stage) for stage in STAGES.values() if stage.may_lose_units]
    bad, rows = (sum(count.get(name, 0) for count in counts) for name in ("quarantined", "rows_in"))
    allowed = context.recipe.quarantine.tolerate
    if bad > allowed * rows:
        raise UserError(
            f"{bad:,} of {rows:,} rows are in quarantine, more than quarantine.tolerate={allowed:.3%} allows; "
            f"look at {context.folder('quarantine')}/, mend the source or raise the tolerance"
        )


def publish(context: Context) -> None:
    """Put the tables of bad rows into `<out>/<recipe>/quarantine/`."""
    stages = [stage.name for stage in STAGES.values() if stage.may_lose_units]
    records = [record for stage in stages for record in context.state(stage).quarantined]
    files = {f"{short_digest(record.label)[:16]}.parquet": record.output("quarantine") for record in records}
    if files and not context.dry and "quarantine" not in context.folders:
        context.publish("quarantine", files)
