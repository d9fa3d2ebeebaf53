"""The stages by name, in an order in which they can be built. A stage is known by being `after` another, or `TRAIN`."""

from __future__ import annotations

from typing import Any

from stages.stage import Stage
from stages.train.stage import TRAIN

STAGES: dict[str, Stage[Any]] = {stage.name: stage for stage in TRAIN.upstream()}
