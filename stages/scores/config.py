"""The recipe's group `scores`: numbers that a model gives each document."""

from __future__ import annotations

from pydantic import Field, model_validator

from stages.config import Model
from stages.sources.registry import SourceConfig


class Score(Model):
    """A number between 0 and 1 for each document of every source: how much it is like good examples.

    The model is trained in the pipeline, on documents that are good and bad, or it is a fastText file.
    """

    good: SourceConfig | None = Field(
        None, description="Documents to be like, named as a source is. Give `good` and `bad`, or `fasttext`."
    )
    bad: SourceConfig | None = Field(None, description="Documents to be unlike, such as a sample of the source itself.")
    fasttext: str | None = Field(
        None, min_length=1, description="A fastText model (.bin, .ftz), local or a URI; needs the extra `fasttext`."
    )
    label: str | None = Field(
        None, min_length=1, description="The label of that model whose probability is the score, such as __label__hq."
    )

    @model_validator(mode="after")
    def _one_model(self) -> Score:
        trained = self.good is not None and self.bad is not None
        given = self.fasttext is not None and self.label is not None
        parts = [self.good, self.bad, self.fasttext, self.label]
        if trained == given or sum(part is not None for part in parts) != 2:
            raise ValueError("a score is trained from `good` and `bad` documents, or is `fasttext` with a `label`")
        return self
