"""The recipe's group `exclude`: documents that are taken down."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stages.config import Model


class Exclude(Model):
    """Take-downs: documents that leave the corpus, and their duplicates in every source with them.

    The tokenizer stays trained on the text before, unless retrain_tokenizer says otherwise.
    """

    ids: list[Annotated[str, Field(pattern="^[0-9a-f]{32}$")]] = Field(
        default_factory=list, description="Document ids, 32 hex digits each, as `find` and `trace` print them."
    )
    urls: list[str] = Field(
        default_factory=list,
        description="Whole addresses; scheme, fragment, a slash at the end and capitals of the host do not count.",
    )
    domains: list[Annotated[str, Field(pattern=r"^[^/\s:]+$")]] = Field(
        default_factory=list, description="Domains such as example.org, which means its subdomains too."
    )
    retrain_tokenizer: bool = Field(
        default=False, description="Train the tokenizer without them too, which changes every token of the corpus."
    )

    @property
    def asked(self) -> bool:
        """Whether anything is taken down."""
        return bool(self.ids or self.urls or self.domains)

    def selectors(self) -> dict[str, list[str]]:
        """Return what is taken down, sorted, by the kind of its name."""
        return {"ids": sorted(self.ids), "urls": sorted(self.urls), "domains": sorted(self.domains)}
