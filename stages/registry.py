"""The stages by name, in an order in which they can be built. A stage is known by being `after` another, or `TRAIN`."""

from __future__ import annotations

from typing import Any

from stages.pack.stage import PACK
from stages.stage import Stage
from stages.train.stage import TRAIN

STAGES: dict[str, Stage[Any]] = {stage.name: stage for stage in TRAIN.upstream()}


def packing_stage(mixture: str) -> str:
    """Return the name of the stage that packs `mixture`."""
    return PACK[mixture].name
