"""The quarantine: bad rows, each with its reason, where people look for them, and the tolerance for them."""

from __future__ import annotations

from typing import Any

from pipeline.engine.changes import fact_digest
from pipeline.errors import UserError


def check(context: Any) -> None:
    """Publish the bad rows; stop when there are more than the recipe tolerates. Raises UserError."""
    publish(context)
    counts = context.counts("download")
    bad, rows = counts.get("quarantined", 0), counts.get("rows_in", 0)
    allowed = context.recipe.quarantine.tolerate
    if bad > allowed * rows:
        raise UserError(
            f"{bad:,} of {rows:,} rows are in quarantine, more than quarantine.tolerate={allowed:.3%} allows; "
            f"look at {context.folder('quarantine')}/, mend the source or raise the tolerance"
        )


def publish(context: Any) -> None:
    """Put the tables of bad rows into `<out>/<recipe>/quarantine/`."""
    records = context.state("download").quarantined
    files = {f"{fact_digest(r.label)[:16]}.parquet": r.output("quarantine") for r in records}
    if files and not context.dry and "quarantine" not in context.folders:
        context.folders.append("quarantine")
        if context.store.publish(context.recipe.name, "quarantine", files):
            context.published.append("quarantine")
