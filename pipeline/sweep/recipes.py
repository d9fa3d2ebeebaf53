"""The recipes that a sweep runs: its base, its points at a small size, and what all of them are scored on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from pipeline.recipe import apply_overrides, parse_recipe
from pipeline.sweep.config import Range, Sweep, phase_of
from stages.errors import DataError
from stages.filter.parse import default_thresholds
from stages.filter.rules import RULES
from stages.recipe import Recipe
from stages.sweep.space import Key, Point
from stages.tokenizer.spec import SPECIALS
from train.model.flops import flops_per_token
from train.model.transformer import count_parameters

# A proxy is scored by a unit of its own on what all share, so its own evaluations are left out where they can be.
QUIET = {"eval_every": 0, "eval_tokens": 1, "eval_items": None, "sample_tokens": 0, "keep_best": False}
HELD_OUT_TOKENS = 1024  # of each source, that the recipe of what is held out packs beside
CONFIRM_SEED = 1000  # of the first run that confirms; those of the proxies are from 0
TIMES = 3  # the proxy's steps, where `confirm` says nothing


@dataclass(frozen=True)
class Size:
    """A small model: keys over the base's, and how much it trains on."""

    settings: dict[str, Any]
    steps: int
    trained: int  # tokens
    packed: int  # tokens of its mixture, those behind the last whole window of a shard included
    subsample: Fraction  # of each source that its mixture draws on, so that its epochs are the target's
    parameters: int
    operations: float  # of a whole training

    def __str__(self) -> str:
        return f"{self.parameters / 1e6:.2f} M parameters, {self.steps:,} steps, {self.trained:,} tokens"


@dataclass(frozen=True)
class Trial:
    """One training run of a sweep."""

    point: Point
    seed: int
    name: str  # of its recipe, and so of its folder of results
    recipe: Recipe

    @property
    def sources(self) -> list[str]:
        """The sources that it trains on."""
        return next(iter(self.recipe.mixtures.values())).sources


def mixture_of(sweep: Sweep, base: Recipe) -> str:
    """Return the name of the mixture that varies."""
    phase = phase_of(sweep, base)
    return base.train[phase].mixture or phase


def scored_sources(sweep: Sweep, base: Recipe) -> dict[str, float]:
    """Return the weight of each source that is scored; they sum to 1."""
    given = sweep.weights or dict.fromkeys(base.mixtures[mixture_of(sweep, base)].sources, 1.0)
    total = sum(given.values())
    return {name: weight / total for name, weight in given.items()}


def changed(base: Recipe, name: str, settings: Mapping[str, Any], where: str) -> Recipe:
    """Return the base with other values of dotted keys, under another name. Raises UsageError."""
    raw = base.to_dict() | {"name": name}
    apply_overrides(raw, [f"{key}={json.dumps(value)}" for key, value in settings.items()])
    return parse_recipe(raw, where)


def size_of(sweep: Sweep, base: Recipe, settings: Mapping[str, Any], where: str) -> Size:
    """Return the size of a small model with these keys over the base's. Raises UsageError and DataError."""
    phase, mixture = phase_of(sweep, base), mixture_of(sweep, base)
    small = changed(base, base.name, settings, where)
    config, shard_tokens = small.train[phase], small.shard_tokens
    trained = config.steps * config.batch_size * config.seq_len
    packed = trained + (trained // shard_tokens + 2) * (config.seq_len + 1)
    target = base.mixtures[mixture].tokens
    if packed > target:
        raise DataError(
            f"{where}: {config.steps:,} steps of {config.batch_size} x {config.seq_len} tokens take a mixture of "
            f"{packed:,}, and the base's mixtures.{mixture}.tokens is {target:,}: proxies are smaller than the target; "
            "lower the steps, or raise the tokens"
        )
    ids = base.tokenizer.vocab_size or 8192  # a tokenizer that is given may not say
    return Size(
        settings=dict(settings),
        steps=config.steps,
        trained=trained,
        packed=packed,
        subsample=Fraction(packed * 10**6 // target + 1, 10**6),
        parameters=count_parameters(small.model, ids),
        operations=flops_per_token(small.model, ids, config.seq_len).causal * trained,
    )


def sizes_of(sweep: Sweep, base: Recipe) -> tuple[Size, Size]:
    """Return the size of the proxies, and of the runs that confirm: TIMES the steps, where the sweep says nothing."""
    proxy = size_of(sweep, base, sweep.proxy, "proxy")
    steps = {f"train.{phase_of(sweep, base)}.steps": TIMES * proxy.steps}
    return proxy, size_of(sweep, base, {**sweep.proxy, **(sweep.confirm.set or steps)}, "confirm")


def base_value(base: Recipe, key: str) -> Any:
    """Return what the base has at a dotted key, of a rule's threshold its default where it says nothing."""
    value: Any = base.to_dict()
    for part in key.split("."):
        if isinstance(value, list):
            said: Any = next((rule[part] for rule in value if isinstance(rule, dict) and part in rule), {})
            value = {**default_thresholds(RULES[part]), **said} if part in RULES else said
        else:
            value = value.get(part) if isinstance(value, dict) else None
    return value


def keys_of(sweep: Sweep, base: Recipe) -> tuple[tuple[Key, ...], tuple[int, ...]]:
    """Return the keys that vary, the base's own value always among theirs, and the place of that."""
    keys, places = [], []
    for name, given in sweep.keys.items():
        own = base_value(base, name)
        values = list(dict.fromkeys([own, *(given.values() if isinstance(given, Range) else given)]))
        if Key(name, tuple(values)).scaled() is not None:
            values.sort()
        keys.append(Key(name, tuple(values)))
        places.append(values.index(own))
    return tuple(keys), tuple(places)


def values_at(sweep: Sweep, base: Recipe, point: Point) -> dict[str, Any]:
    """Return the value of each key that varies, at a point."""
    keys, _ = keys_of(sweep, base)
    return {key.name: key.values[level] for key, level in zip(keys, point.levels, strict=True)}


def with_tokenizer(base: Recipe, file: str | None) -> Recipe:
    """Return the base with a tokenizer that is taken as it is, so that no change of a source makes another."""
    if file is None:
        return base
    raw = base.to_dict()
    bos = SPECIALS[0] if base.tokenizer.kind == "byte_level" else None
    raw["tokenizer"] = {"from": file, "bos": bos, "sample": raw["tokenizer"]["sample"]}
    return parse_recipe(raw, "sweep")


def mixed(raw: dict[str, Any], name: str, shares: Mapping[str, float], **keys: Any) -> None:
    """Make the mixture `name` of a raw recipe one of these shares; sources without a share have no part in it."""
    caps = raw["mixtures"][name]["max_epochs"]
    named = {source: share for source, share in shares.items() if share > 0}
    if isinstance(caps, dict):
        caps = {source: cap for source, cap in caps.items() if source in named}
    how = {"ratios": named, "temperature": None, "counts": {}, "sources": [], "max_epochs": caps}
    raw["mixtures"] = {name: {**raw["mixtures"][name], **how, **keys}}


def trial(sweep: Sweep, base: Recipe, size: Size, point: Point, shares: Mapping[str, float], seed: int) -> Trial:
    """Return one run: a point of the space with `shares` by source, at a size.

    Its name is by what decides it, and not by the other sources of the base or their contents.
    """
    phase, mixture = phase_of(sweep, base), mixture_of(sweep, base)
    varied = values_at(sweep, base, point)
    raw = changed(base, base.name, {**varied, **size.settings}, "sweep").to_dict()
    mixed(raw, mixture, shares, tokens=size.packed, subsample=float(size.subsample), val_tokens=HELD_OUT_TOKENS)
    raw["train"] = {phase: {**raw["train"][phase], **QUIET, "seed": seed}}
    said = [raw["mixtures"], raw["model"], raw["train"], varied]
    raw["name"] = f"{sweep.name}-{hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:10]}"
    return Trial(point, seed, raw["name"], parse_recipe(raw, f"sweep {sweep.name}"))


def held_out_recipe(sweep: Sweep, base: Recipe) -> Recipe:
    """Return the recipe of what all runs are scored on: the held-out text of each scored source."""
    phase, mixture = phase_of(sweep, base), mixture_of(sweep, base)
    raw = base.to_dict() | {"name": f"{sweep.name}-held-out"}
    sources = scored_sources(sweep, base)
    shares = dict.fromkeys(sources, 1 / len(sources))
    mixed(raw, mixture, shares, tokens=HELD_OUT_TOKENS * len(sources), val_tokens=sweep.held_out)
    raw["train"] = {phase: raw["train"][phase]}
    return parse_recipe(raw, f"sweep {sweep.name}")


def next_recipe(sweep: Sweep, base: Recipe, point: Point, shares: Mapping[str, float]) -> dict[str, Any]:
    """Return the base, at its full size, with a point's mix and keys, as plain values."""
    raw = changed(base, base.name, values_at(sweep, base, point), "sweep").to_dict()
    every = raw["mixtures"]
    mixed(raw, mixture_of(sweep, base), shares)
    raw["mixtures"] = every | raw["mixtures"]
    return raw
