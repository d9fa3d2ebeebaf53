"""Units as Prometheus sees them: counters of Ray's own, which each node serves at its metrics port.

Ray puts `ray_` before the names, and labels of its own, such as the node's, beside ours. A node serves them where it
has `ray[default]`; elsewhere they are counted for nobody.
"""

from __future__ import annotations

import functools
from typing import Any

from pipeline.engine.executor import Reply


@functools.cache
def _counters() -> tuple[Any, Any, Any]:
    """Return the counters of units, of bytes and of seconds. In a worker of Ray."""
    from ray.util.metrics import Counter

    return (
        Counter("shardmill_units", "Units that ended: done, or the kind of their fault.", ("stage", "outcome")),
        Counter("shardmill_output_bytes", "Bytes of outputs of units that are done.", ("stage",)),
        Counter("shardmill_unit_seconds", "Seconds that units which are done took.", ("stage",)),
    )


def count(stage: str, reply: Reply) -> None:
    """Count a unit that ended on this node."""
    units, output_bytes, seconds = _counters()
    if "error" in reply:
        units.inc(1, {"stage": stage, "outcome": reply["error"]["kind"]})
        return
    record = reply["record"]
    sizes = {output["path"]: output["bytes"] for output in record["outputs"]}  # slices of one file share it
    units.inc(1, {"stage": stage, "outcome": "done"})
    output_bytes.inc(sum(sizes.values()), {"stage": stage})
    seconds.inc(record["seconds"], {"stage": stage})
