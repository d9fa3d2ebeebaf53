"""What the groups of keys of a recipe have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from stages.quantities import quantity, ratio

Count = Annotated[int, BeforeValidator(quantity), Field(ge=1)]
Ratio = Annotated[float, BeforeValidator(ratio), Field(gt=0, le=1)]
Share = Annotated[float, BeforeValidator(ratio), Field(ge=0, le=1)]


class Model(BaseModel):
    """Unknown keys are errors, and a recipe never changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
