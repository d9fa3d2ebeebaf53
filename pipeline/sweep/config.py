"""The sweep file: which keys of a recipe vary, the small models that try them, and how the winner is confirmed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import yaml
from pydantic import Field, ValidationError, model_validator

from pipeline.errors import UsageError
from pipeline.recipe import explain, find_recipe, load_recipe
from pipeline.recipe_yaml import read_yaml
from stages.config import Count, Model
from stages.recipe import Recipe

Setting = str | int | float | bool | None


class Range(Model):
    """Values of a key from `low` to `high`: `count` of them, in equal ratios."""

    low: float = Field(gt=0, description="The least value.")
    high: float = Field(gt=0, description="The largest value.")
    count: int = Field(3, ge=2, le=20, description="How many values, both ends included.")

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low:g} and high {self.high:g}; low must be less")
        return self

    def values(self) -> list[float]:
        """Return the values, in four digits; whole numbers as such, for keys that are."""
        values = [float(f"{value:.4g}") for value in np.geomspace(self.low, self.high, self.count)]
        return [int(value) if value.is_integer() else value for value in values]


class Confirm(Model):
    """The runs that decide: the base and the winner with fresh seeds, compared as `compare` does."""

    set: dict[str, Any] = Field(
        default_factory=dict,
        description="Keys of the recipe, over those of `proxy`; nothing: three times the proxy's steps.",
    )
    seeds: int = Field(3, ge=2, le=100, description="Runs of each side.")


class Sweep(Model):
    """A sweep: a recipe, what varies of it, and the small models that are trained to see what that does."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$", description="Names the folders of the results.")
    recipe: str = Field(
        description="The base, which says what the large model will be: a YAML file, from the sweep file's folder, or "
        "a recipe that ships."
    )
    phase: str | None = Field(None, description="The phase whose mixture and training vary; null: the recipe's first.")
    ratios: bool = Field(True, description="Vary the shares of the mixture's sources, under its max_epochs.")
    keys: dict[str, Range | Annotated[list[Setting], Field(min_length=2, max_length=20)]] = Field(
        default_factory=dict,
        description="Other dotted keys of the recipe that vary: a list of values, or low, high and count. A rule's "
        "threshold is sources.NAME.rules.RULE.THRESHOLD.",
    )
    proxy: dict[str, Any] = Field(
        min_length=1,
        description="Dotted keys of the recipe that make the small model, such as model.dim and train.pretrain.steps.",
    )
    points: int | None = Field(
        None,
        ge=4,
        le=1000,
        description="Recipes that are tried; null: 3 for each source and 2 for each key, 10 at least.",
    )
    seeds: int = Field(
        3, ge=2, le=100, description="Runs of the base, which say what a seed alone does; each other point has one."
    )
    held_out: Count = Field(100_000, description="Tokens of each source that runs are scored on, at most.")
    weights: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict,
        description="Sources that are scored, and what the bits per byte of each count for in the figure that is made "
        "small; nothing: all of the mixture's, equally.",
    )
    interest: float = Field(0.005, gt=0, description="Smallest difference that matters, bits per byte.")
    confirm: Confirm = Field(default_factory=Confirm)
    seed: int = Field(0, ge=0, lt=2**32, description="Decides which points are tried.")

    def number_of_points(self, sources: int) -> int:
        """Return how many recipes are tried where so many sources' shares vary."""
        return self.points or max(10, 3 * sources + 2 * len(self.keys))


def load_sweep(file: Path) -> tuple[Sweep, Recipe]:
    """Read a sweep file and its base. Raises UsageError that names file, key and what is allowed."""
    try:
        raw = read_yaml(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror}); name a sweep file, see docs/sweep.md") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"{file}: a sweep is a mapping of keys; see docs/sweep.md")
    try:
        sweep = Sweep.model_validate(raw)
    except ValidationError as error:
        raise UsageError(explain(str(file), error, raw, Sweep)) from None
    beside = file.parent / sweep.recipe
    base = load_recipe(str(beside if beside.is_file() else find_recipe(sweep.recipe)))
    check(sweep, base, str(file))
    return sweep, base


def check(sweep: Sweep, base: Recipe, where: str) -> None:
    """Raise UsageError where a sweep cannot be of its base."""
    if not base.train:
        raise UsageError(f"{where}: recipe: {base.name} has no train: phases; a sweep trains small models of one")
    phase = phase_of(sweep, base)
    if phase not in base.train:
        raise UsageError(f"{where}: phase: {base.name} has no train.{phase}; its phases are {', '.join(base.train)}")
    if base.train[phase].init_from != "none":
        raise UsageError(f"{where}: phase: train.{phase} is no fresh start; name another phase")
    mixture = base.mixtures[base.train[phase].mixture or phase]
    if mixture.seen:
        raise UsageError(f"{where}: phase: its mixture has `seen`, which is in view of another; name another phase")
    if not (sweep.ratios or sweep.keys):
        raise UsageError(f"{where}: nothing varies; say ratios: true, or name keys")
    if sweep.ratios and len(mixture.sources) < 2:
        raise UsageError(f"{where}: ratios: the mixture has one source, {mixture.sources[0]}; say ratios: false")
    for key in sweep.keys.keys() & (sweep.proxy.keys() | sweep.confirm.set.keys()):
        raise UsageError(f"{where}: keys.{key} varies, and proxy or confirm sets it; say it in one place")
    for name in sweep.weights:
        if name not in mixture.sources:
            raise UsageError(f"{where}: weights: no source {name!r}; the mixture has {', '.join(mixture.sources)}")


def phase_of(sweep: Sweep, base: Recipe) -> str:
    """Return the phase that a sweep trains."""
    return sweep.phase or next(iter(base.train))
