"""Recipes: one YAML file from raw text to checkpoint, validated before anything runs.

Every key has a default, a unit and a line of documentation here, in `train/config.py` or beside its source;
`python -m pipeline schema recipe` prints them all as JSON Schema. Errors name the file, the key and the
allowed values.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from pipeline.engine.fingerprint import ROOT
from pipeline.errors import UsageError
from stages.decontaminate.config import Decontaminate
from stages.pack.config import Count, Mixture, Model, Share, check_mixtures
from stages.sources.questions import EvalConfig
from stages.sources.registry import SourceConfig
from stages.tokenizer.spec import SPECIALS
from train.config import ModelConfig, TrainConfig

MIXTURES = ("pretrain", "anneal")  # stages pack_pretrain and pack_anneal_mix
NAME = re.compile(r"\w[\w.-]{0,59}")  # of a source or a phase: begins the names of files, and of units up to a space


class Dedup(Model):
    """Duplicates leave the corpus before the tokenizer sees it."""

    exact: bool = Field(True, description="Drop documents whose normalised text is the same, across sources.")
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
        """What near-duplicates are found with; None where nobody looks for them."""
        return {"ngram": self.ngram, "bands": self.bands, "rows": self.rows} if self.near else None


class Exclude(Model):
    """Take-downs: documents that leave the corpus, and their duplicates in every source with them.

    The tokenizer stays trained on the text before, or a take-down would change every token of the corpus.
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


class TokenizerConfig(Model):
    """The byte-level BPE that the pipeline trains, or takes as it is (`from`)."""

    source: str | None = Field(
        None,
        alias="from",
        description="A tokenizer to take as it is: tokenizer.json, its folder, or owner/name[@revision] of the hub.",
    )
    bos: str | None = Field(None, description="With `from`: the special token between documents, if not a known name.")
    vocab_size: Count | None = Field(
        None, description="Ids in all: specials, 256 bytes and merges. Default 8192, or what `from` has. At most 65536."
    )
    split: Literal["gpt4", "gpt2"] = Field("gpt4", description="How text is cut before merging, as GPT-4 or GPT-2 do.")
    digits: Annotated[int, Field(ge=1, le=9)] | None = Field(
        None, description="Most digits in a token; gpt4 has 3, gpt2 no limit. Others but gpt4 with 1 encode slower."
    )
    reserved: Annotated[int, Field(ge=0, le=4096)] | list[str] = Field(
        0, description="Special tokens after the 8 that are always there: how many, or their names as <|name|>."
    )
    sample: Count = Field(20_000_000, description="Bytes of text to train on and report on, stratified by source.")

    def reserved_names(self) -> list[str]:
        """Special tokens asked for, in the order of their ids, which follow the 8 that are always there."""
        if isinstance(self.reserved, int):
            return [f"<|reserved_{n}|>" for n in range(1, self.reserved + 1)]
        return list(self.reserved)

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("from", value.get("source")) is None:
            return {**value, "vocab_size": 8192 if value.get("vocab_size") is None else value["vocab_size"]}
        return value

    @model_validator(mode="after")
    def _fits(self) -> TokenizerConfig:
        names = [*SPECIALS, *self.reserved_names()]
        if self.source is None and self.bos is not None:
            raise ValueError(f"bos goes with `from`; a tokenizer that is trained here has {SPECIALS[0]}")
        fields = type(self).model_fields
        given = [key for key in ("split", "digits", "reserved") if getattr(self, key) != fields[key].default]
        if self.source is not None and given:
            raise ValueError(f"{', '.join(given)} cannot be set with `from`: that tokenizer is taken as it is")
        for name in names[len(SPECIALS) :]:
            if not re.fullmatch(r"<\|[A-Za-z][A-Za-z0-9_.-]*\|>", name) or names.count(name) > 1:
                raise ValueError(
                    f"reserved names {name!r}; write each once, as <|name|>, and none that is always there"
                )
        least = len(names) + 256
        size = self.vocab_size or least
        if size > 65_536:
            raise ValueError(f"vocab_size is {size:,}: ids are stored as uint16, so at most 65,536; lower it")
        if size < least:
            raise ValueError(f"vocab_size is {size}: special tokens and the 256 bytes alone take {least}")
        return self


class Quarantine(Model):
    """How much bad input a run may leave behind and still be built upon."""

    tolerate: Share = Field(0.001, description="Share of rows that may be bad before the run stops.")
    files: int = Field(0, ge=0, description="Files that may be unreadable before the run stops.")


class Recipe(Model):
    """One small language model, from raw text to checkpoint."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="Names the folder of the results.")
    seed: int = Field(0, ge=0, lt=2**63, description="Decides every shuffle; nothing else is random.")
    executor: Literal["auto", "ray", "local"] = Field("auto", description="Where units run; see --executor.")
    sources: dict[str, SourceConfig] = Field(min_length=1, description="Where text comes from, by name.")
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
        if not self.evals:  # what asks for nothing leaves no mark on a manifest
            del value["evals"]
        if self.decontaminate == Decontaminate():
            del value["decontaminate"]
        return value


def _nested(hint: Any) -> list[type]:
    """The model classes inside a type hint such as dict[str, A | B]."""
    if isinstance(hint, typing.TypeAliasType if hasattr(typing, "TypeAliasType") else ()):
        hint = hint.__value__
    if isinstance(hint, type) and (issubclass(hint, BaseModel) or dataclasses.is_dataclass(hint)):
        return [hint]
    origin = typing.get_origin(hint)
    if origin in (Annotated, dict, list, typing.Union, types.UnionType):
        return [cls for part in typing.get_args(hint) for cls in _nested(part)]
    return []


def _fields(cls: type) -> dict[str, Any]:
    """Key as written in YAML -> type hint, for a pydantic model or a dataclass."""
    if issubclass(cls, BaseModel):
        return {(f.alias or name): f.annotation for name, f in cls.model_fields.items()}
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}  # type: ignore[arg-type]


def _allowed_at(location: tuple[Any, ...]) -> list[str]:
    """The keys allowed where an unknown one was found."""
    classes: list[type] = [Recipe]
    for part in location[:-1]:
        step: list[type] = []
        for cls in classes:
            hint = _fields(cls).get(str(part))
            step += _nested(hint) if hint is not None else []
        # a name inside a dict (a source, a phase) or a union tag: stay among the same classes
        tagged = [c for c in classes if _kind(c) == part]
        classes = step or tagged or classes
    return sorted({key for cls in classes for key in _fields(cls)})


def _kind(cls: type) -> str | None:
    """The value of `from` that selects a source class."""
    if issubclass(cls, BaseModel):
        for field in cls.model_fields.values():
            if field.alias == "from" and typing.get_origin(field.annotation) is Literal:
                return str(typing.get_args(field.annotation)[0])
    return None


WRONG_TYPE = {
    "bool": "must be true or false",
    "dict": "must be a group of keys",
    "float": "must be a number",
    "int": "must be a whole number",
    "list": "must be a list",
    "model": "must be a group of keys",
    "dataclass": "must be a group of keys",
    "string": "must be text",
}
SHOWN = 2  # problems told at a time


def _explain(where: str, error: ValidationError) -> str:
    """One line a problem: file, key, what is wrong, what is allowed."""
    lines = []
    for problem in error.errors():
        # The members of a union are pydantic's words, not keys of the recipe.
        location = tuple(part for part in problem["loc"] if not re.search(r"[\[\]]|^(str|int|float)$", str(part)))
        # So is the tag of a source's kind.
        written = location[:2] + location[3:] if location[0:1] == ("sources",) else location
        key = ".".join(str(part) for part in written) or "recipe"
        lines.append(f"{where}: {key}{_message(problem, location)}")
    told = list(dict.fromkeys(lines))
    return "\n".join(told[:SHOWN]) + (f" (and {len(told) - SHOWN} more)" if len(told) > SHOWN else "")


def _message(problem: Any, location: tuple[Any, ...]) -> str:
    """What is wrong with the key at `location`, and what is allowed there."""
    kind, given = problem["type"], problem["input"]
    expected = WRONG_TYPE.get(kind.partition("_")[0])
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        allowed = _allowed_at(location)
        near = difflib.get_close_matches(str(location[-1]), allowed, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f": unknown key; {hint}allowed: {', '.join(allowed)}"
    if kind == "missing":
        return ": is required and missing"
    if kind == "union_tag_invalid":
        return f".from: no kind of source {problem['ctx']['tag']!r}; allowed: {problem['ctx']['expected_tags']}"
    if kind == "union_tag_not_found":
        return ": is a group of keys with `from`, the kind of source"
    if expected and kind.endswith(("_type", "_parsing", "_from_float")):
        return f": {expected}, not {str(given)[:80]!r}"
    message = problem["msg"].removeprefix("Value error, ")
    told = kind == "value_error" or not isinstance(given, str | int | float)
    return f": {message}" if told else f": {message} (got {given!r})"


def apply_overrides(raw: dict[str, Any], overrides: list[str]) -> None:
    """Set `a.b=c` in the raw recipe; c is read as YAML. Raises UsageError."""
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {override}: write --set a.b=value")
        node: Any = raw
        *parents, last = key.split(".")
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise UsageError(f"--set {override}: {part} is not a group of keys")
        try:
            node[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UsageError(f"--set {override}: {str(error).splitlines()[0]}") from None


def shipped() -> list[str]:
    """Names of the recipes that ship in manifests/."""
    return sorted(file.stem for file in (ROOT / "manifests").glob("*.yaml"))


def find_recipe(name: str) -> Path:
    """A file, or the name of a recipe that ships. Raises UsageError."""
    for candidate in (Path(name), ROOT / "manifests" / f"{name}.yaml"):
        if candidate.is_file():
            return candidate
    raise UsageError(f"--recipe {name}: no such file, and the recipes that ship are {', '.join(shipped())}")


class Loader(yaml.SafeLoader):
    """YAML where a key written twice is an error: the second would silently replace the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are all different."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1} - {"<<"})
        if twice:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: key {twice[0]!r} is there twice")
        return super().construct_mapping(node, deep)


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """Read and validate a recipe. Raises UsageError that names file, key and allowed values."""
    file = find_recipe(name)
    try:
        raw = yaml.load(file.read_text(encoding="utf-8"), Loader=Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{file}: a recipe is a mapping of keys; see manifests/quickstart.yaml")
    apply_overrides(raw, overrides or [])
    return parse_recipe(raw, str(file))


def parse_recipe(raw: dict[str, Any], where: str) -> Recipe:
    """Validate a recipe given as plain values. Raises UsageError."""
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise UsageError(_explain(where, error)) from None
