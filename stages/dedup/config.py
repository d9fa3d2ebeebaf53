"""The recipe's group `dedup`: which duplicates leave the corpus, and whose copy is kept."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from stages.config import Model


class Dedup(Model):
    """Duplicates leave the corpus before the tokenizer sees it."""

    exact: bool = Field(True, description="Drop documents whose normalized text is the same, across sources.")
    near: bool = Field(
        True, description="Drop documents whose word n-grams are nearly the same (MinHash) too. Default: as `exact`."
    )
    ngram: int = Field(5, ge=1, le=64, description="Words of an n-gram.")
    bands: int = Field(14, ge=1, le=1024, description="A pair is found that agrees in all rows of any band.")
    rows: int = Field(
        8, ge=1, le=64, description="Hashes of a band: half of all pairs are found at (1/bands)^(1/rows)."
    )
    priority: list[str] = Field(
        default_factory=list, description="Whose copy of a duplicate is kept, first to last; the others by name."
    )

    lines: int | None = Field(
        None,
        ge=1,
        description="Cut lines that more documents than this have, such as menus and notices: those of 32 bytes and "
        "more, white space and the case of ASCII aside. By default none is cut.",
    )

    @model_validator(mode="before")
    @classmethod
    def _as_exact(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("near") is None:
            return {**value, "near": value.get("exact", True)}
        return value

    @model_validator(mode="after")
    def _exact(self) -> Dedup:
        if self.near and not self.exact:
            raise ValueError("near: true drops equal texts too; set exact: true")
        return self

    def minhash(self) -> dict[str, int] | None:
        """Return what near-duplicates are found with; None where nobody looks for them."""
        return {"ngram": self.ngram, "bands": self.bands, "rows": self.rows} if self.near else None
