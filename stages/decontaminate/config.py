"""The recipe's group `decontaminate`: which evaluation sets the corpus is searched for, and what is done about it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stages.config import Model
from stages.evals.passages import AgainstConfig

Policy = Literal["drop", "cut"]


class Decontaminate(Model):
    """Documents that hold a piece of an evaluation set leave the corpus, or the piece does
    (stages/decontaminate/ngrams.py).

    The sets are all of `evals`, and `against`. Without any, nothing is done. 13 words, 10 documents and what `cut`
    does are those of GPT-3 (Brown et al. 2020, appendix C); that copies of a passage make nothing common is ours.
    """

    against: dict[str, AgainstConfig] = Field(
        default_factory=dict, description="Further sets, by name: test splits, and files of one's own."
    )
    evals: bool = Field(True, description="Whether the corpus is searched for the sets of `evals` too.")
    ngram: int = Field(13, ge=6, le=100, description="Words in a row that show a passage of twice as many or more.")
    short: int = Field(
        8, ge=6, le=100, description="Words in a row that show a shorter one, one more or other allowed."
    )
    common: int = Field(
        10,
        ge=1,
        description="An n-gram that more items share is no evidence, nor one that more documents of the corpus hold "
        "without the rest of its passage. A copy of a passage of `ngram` words or more always is.",
    )
    policy: Policy | dict[str, Policy] = Field(
        "drop",
        description="Of all sources, or by source (drop for the others): drop the document, or cut 200 characters on "
        "each side of what was found, pieces under 200 too; more than 10 cuts drop it.",
    )

    def policy_of(self, source: str) -> str:
        """Return what is done with a contaminated document of a source."""
        return self.policy if isinstance(self.policy, str) else self.policy.get(source, "drop")

    @model_validator(mode="after")
    def _fits(self) -> Decontaminate:
        if self.short > self.ngram:
            raise ValueError(f"short is {self.short}, more than ngram, {self.ngram}: short passages need fewer words")
        return self
