"""The recipe: every key from raw text to checkpoint, composed of the stages' groups of keys and checked as a whole.

Each key has a default, a unit and a line of documentation here, in the `config.py` of its stage, beside its source, or
in `train/config.py`. `pipeline.recipe` reads recipes from files.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, model_validator

from stages.config import Count, Model, Share
from stages.decontaminate.config import Decontaminate
from stages.dedup.config import Dedup
from stages.exclude.config import Exclude
from stages.filter import fasttext
from stages.filter.parse import parse_rules
from stages.filter.verdict import COLUMNS
from stages.filter.where import RULE_OF, asks_language, check_columns
from stages.pack.config import Mixture, check_mixtures
from stages.scores.config import Score
from stages.sources.questions import EvalConfig
from stages.sources.registry import SourceConfig
from stages.tokenizer.config import TokenizerConfig
from train.config import ModelConfig, TrainConfig

MIXTURES = ("pretrain", "anneal")  # stages pack_pretrain and pack_anneal_mix
NAME = re.compile(r"\w[\w.-]{0,59}")  # of a source or a phase: begins the names of files, and of units up to a space
SCORE = re.compile(r"[A-Za-z]\w{0,59}", re.ASCII)  # a column of measures

ExecutorName = Literal["auto", "ray", "local", "inline"]  # chosen in pipeline/executors/choose.py


class Quarantine(Model):
    """How much bad input a run may leave behind and still be built upon."""

    tolerate: Share = Field(0.001, description="Share of rows that may be bad before the run stops.")
    files: int = Field(0, ge=0, description="Files that may be unreadable before the run stops.")


class Recipe(Model):
    """One small language model, from raw text to checkpoint."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="Names the folder of the results.")
    variant: str | None = Field(
        None, description="Which of `variants` to take; null: the recipe as it stands without them."
    )
    variants: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        exclude=True,
        description="Other forms of the recipe, by name: the keys that differ, laid over those that stand outside.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Decides every shuffle; nothing else is random.")
    executor: ExecutorName = Field("auto", description="Where units run; see --executor.")
    sources: dict[str, SourceConfig] = Field(min_length=1, description="Where text comes from, by name.")
    scores: dict[str, Score] = Field(
        default_factory=dict, description="Numbers that a model gives each document, by name, for rules to ask for."
    )
    evals: dict[str, EvalConfig] = Field(
        default_factory=dict, description="Questions with choices that training is scored on, by name."
    )
    dedup: Dedup = Field(default_factory=Dedup)
    decontaminate: Decontaminate = Field(default_factory=Decontaminate)
    exclude: Exclude = Field(default_factory=Exclude)
    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    shard_tokens: Count = Field(100_000_000, le=500_000_000, description="Tokens per training shard.")
    mixtures: dict[str, Mixture] = Field(default_factory=dict, description="`pretrain`, `anneal` or both.")
    quarantine: Quarantine = Field(default_factory=Quarantine)
    model: ModelConfig = Field(default_factory=ModelConfig)
    ranks: int = Field(1, ge=1, description="Processes that the stage `train` starts, one a GPU.")
    train: dict[str, TrainConfig] = Field(default_factory=dict, description="Phases, trained in this order.")

    @model_validator(mode="after")
    def _names(self) -> Recipe:
        if self.name == "store":
            raise ValueError("name is 'store', the folder in --out that holds all results; choose another")
        known, against = ", ".join(self.sources), self.decontaminate.against
        groups: dict[str, Any] = {"sources": self.sources, "evals": self.evals, "decontaminate.against": against}
        for group, members in (groups | {"train": self.train}).items():
            for name in members:
                if not NAME.fullmatch(name):
                    raise ValueError(
                        f"{group} has the name {name[:80]!r}, which files are called by; write at most 60 letters, "
                        "digits, _, - and dots, a letter, digit or _ first"
                    )
        if both := sorted({*self.sources} & {*self.evals}):
            raise ValueError(f"evals.{both[0]} has the name of a source; give it another")
        if both := sorted({*self.sources, *self.evals} & {*against}):
            raise ValueError(f"decontaminate.against.{both[0]} has the name of a source or of evals; give it another")
        for name, mixture in self.mixtures.items():
            if name not in MIXTURES:
                raise ValueError(f"mixtures.{name}: no stage packs it; allowed are {', '.join(MIXTURES)}")
            if (mixture.window or 0) > self.shard_tokens:
                raise ValueError(
                    f"mixtures.{name}.window is {mixture.window:,}, longer than shard_tokens, {self.shard_tokens:,}: "
                    "a shard holds whole windows; lower the one or raise the other"
                )
        check_mixtures(self.mixtures, list(self.sources))
        for source in self.dedup.priority:
            if source not in self.sources:
                raise ValueError(f"dedup.priority names source {source!r}; the sources are {known}")
        policy = self.decontaminate.policy
        for source in policy if isinstance(policy, dict) else ():
            if source not in self.sources:
                raise ValueError(f"decontaminate.policy names source {source!r}; the sources are {known}")
        trained: dict[str, str] = {}
        for phase, config in self.train.items():
            mixture_name = config.mixture or phase
            if mixture_name in trained:
                raise ValueError(f"train.{phase} and train.{trained[mixture_name]} use the same mixture")
            trained[mixture_name] = phase
            if mixture_name not in self.mixtures:
                have = ", ".join(self.mixtures) or "none"
                raise ValueError(f"train.{phase}.mixture is {mixture_name!r}; the mixtures are {have}")
        return self

    @model_validator(mode="after")
    def _scores(self) -> Recipe:
        for name in self.scores:
            if not SCORE.fullmatch(name) or name in {*RULE_OF, *COLUMNS}:
                raise ValueError(
                    f"scores has the name {name[:80]!r}; write letters, digits and _, a letter first, no measure's name"
                )
        if any(score.fasttext for score in self.scores.values()):
            fasttext.library_versions()
        for name, source in self.sources.items():
            try:
                rules = parse_rules(source.rules)
                check_columns(rules, self.scores)
                if asks_language(rules):
                    fasttext.library_versions()
            except ValueError as error:
                raise ValueError(f"sources.{name}: {error}") from None
        return self

    def phase_of(self, mixture: str) -> str:
        """The training phase a mixture is for: the one of its name, else the first that trains on it."""
        phases = [p for p, c in self.train.items() if (c.mixture or p) == mixture]
        return mixture if mixture in phases or not phases else phases[0]

    def window_of(self, mixture: str) -> int | None:
        """Tokens that a model sees at once when it trains on a mixture; None where nothing says."""
        phase = self.train.get(self.phase_of(mixture))
        return self.mixtures[mixture].window or (phase.seq_len if phase else None)

    def to_dict(self) -> dict[str, Any]:
        """The whole recipe, resolved, as JSON values."""
        value: dict[str, Any] = self.model_dump(mode="json", by_alias=True)
        if not self.scores:
            del value["scores"]
        if not self.evals:  # what asks for nothing leaves no mark on a manifest
            del value["evals"]
        if self.decontaminate == Decontaminate():
            del value["decontaminate"]
        if self.variant is None:
            del value["variant"]
        return value
