"""The mixtures of a recipe: how the mix is said, how often text may repeat, how documents are packed.

`stages.pack.mixture` solves them; the checks here are those that need no token count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from stages.config import Count, Model, Ratio


class Mixture(Model):
    """What one phase trains on, solved exactly before it is built.

    The mix is said in one of three ways: `tokens` and `ratios`; `tokens` and `temperature`; or `counts`.
    """

    tokens: Count = Field(0, description="Training tokens in all; with `counts` their sum, which need not be said.")
    ratios: dict[str, Ratio] = Field(
        default_factory=dict, description="Share of the tokens per source; they sum to 100%."
    )
    temperature: float | None = Field(
        None,
        ge=1,
        allow_inf_nan=False,
        description="Shares proportional to n ** (1 / temperature), n the training tokens that a source has: 1 is in "
        "proportion, larger is flatter (temperature-scaled mixing: T5, arXiv:1910.10683, section 3.5.2).",
    )
    counts: dict[str, Count] = Field(default_factory=dict, description="Training tokens per source.")
    sources: list[str] = Field(
        default_factory=list,
        description="For `temperature`: the sources that take part, all by default. Elsewhere those that are named. "
        "A token that two sources tie for goes to the first.",
    )
    max_epochs: float | dict[str, float] = Field(
        1.0, description="How often a source may be repeated; one cap, or one per source (default 1)."
    )
    subsample: Ratio = Field(
        1.0,
        exclude_if=lambda share: share == 1,
        description="Share of each source's training tokens that the mixture draws on, the same documents for every "
        "mix: a small model's mixture then repeats its sources as often as that of a larger one, as `sweep` has it.",
    )
    val_tokens: Count = Field(2_000_000, description="At most so many held-out tokens go to validation shards.")
    packing: Literal["stream", "best_fit"] = Field(
        "stream", description="`stream`: documents run on; `best_fit`: whole documents in windows of `window` tokens."
    )
    window: Count | None = Field(None, description="Tokens in a window of `packing: best_fit`.")
    seen: dict[str, Literal["any", "prefer", "exclude"]] = Field(
        default_factory=dict,
        description="For `anneal`, per source: which documents to take in view of those that `pretrain` takes. "
        "`any` (default): an independent draw; `prefer`: those first; `exclude`: only others.",
    )

    def cap(self, source: str) -> float:
        """Return the cap on repeats of `source`."""
        if isinstance(self.max_epochs, dict):
            return self.max_epochs.get(source, 1.0)
        return self.max_epochs

    @model_validator(mode="after")
    def _said_once(self) -> Mixture:
        ways = [way for way in ("ratios", "temperature", "counts") if getattr(self, way)]
        if len(ways) != 1:
            have = " and ".join(ways) or "none of them"
            raise ValueError(f"say the mix in one way, by ratios, temperature or counts; here is {have}")
        if self.temperature is None:
            named = list(self.ratios or self.counts)
            if self.sources and sorted(self.sources) != sorted(named):
                raise ValueError(f"sources is {self.sources}, but {ways[0]} names {named}; sources may be left out")
            object.__setattr__(self, "sources", self.sources or named)
        total = sum(self.counts.values())
        if total and self.tokens not in (0, total):
            raise ValueError(f"tokens is {self.tokens:,}, but counts sum to {total:,}; leave tokens out")
        object.__setattr__(self, "tokens", self.tokens or total)
        if not self.tokens:
            raise ValueError("tokens is required and missing: the training tokens in all")
        return self

    @model_validator(mode="after")
    def _fits(self) -> Mixture:
        total = sum(self.ratios.values())
        if self.ratios and abs(total - 1) > 1e-6:
            raise ValueError(f"ratios sum to {total:.4%}, not 100%; write shares that add up")
        caps = self.max_epochs if isinstance(self.max_epochs, dict) else {"": self.max_epochs}
        if not all(0 < cap < math.inf for cap in caps.values()):
            raise ValueError("max_epochs must be a finite number above 0")
        if len(set(self.sources)) < len(self.sources):
            raise ValueError(f"sources is {self.sources}; name each once")
        if (self.packing == "best_fit") != (self.window is not None):
            raise ValueError("packing: best_fit and window: TOKENS belong together; give both or neither")
        if self.sources:
            self.check_names()
        return self

    def check_names(self) -> None:
        """Raise ValueError when a key names a source that is not in this mixture."""
        for key, named in (("max_epochs", self.max_epochs), ("seen", self.seen)):
            unknown = sorted(set(named) - set(self.sources)) if isinstance(named, dict) else []
            if unknown:
                raise ValueError(f"{key} names {unknown}, which has no share here")


def check_mixtures(mixtures: Mapping[str, Mixture], known: list[str]) -> None:
    """Fill in the sources of a temperature over all of them, and check every name against the `known` sources.

    Raises ValueError that names the key.
    """
    for name, mixture in mixtures.items():
        if not mixture.sources:
            object.__setattr__(mixture, "sources", known)
        for source in mixture.sources:
            if source not in known:
                way = "ratios" if mixture.ratios else "counts" if mixture.counts else "sources"
                raise ValueError(f"mixtures.{name}.{way} names source {source!r}; the sources are {', '.join(known)}")
        try:
            mixture.check_names()
        except ValueError as error:
            raise ValueError(f"mixtures.{name}: {error}") from None
    pretrain = mixtures.get("pretrain")
    for name, mixture in mixtures.items():
        for source, choice in mixture.seen.items():
            if name != "anneal" or pretrain is None:
                raise ValueError(
                    f"mixtures.{name}.seen.{source} is {choice}, in view of what mixtures.pretrain takes: it is for "
                    "mixtures.anneal of a recipe that has both"
                )
            if choice != "any" and source not in pretrain.sources:
                raise ValueError(
                    f"mixtures.{name}.seen.{source} is {choice}, but mixtures.pretrain takes nothing of {source}; "
                    f"it takes {', '.join(pretrain.sources)}"
                )
