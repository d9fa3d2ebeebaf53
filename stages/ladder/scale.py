"""A recipe at another size: width and depth together, and with them tokens, batch, steps, rates and decay.

width     in proportion to the layers, by whole heads; MLP in proportion to the width
tokens    as many a weight as the base has, of the weights that multiply once a token
batch     (tokens / the base's) ^ .383 (nanochat's, after Power Lines, arXiv:2505.13738)
rates     sqrt(batch / the base's) * sqrt(the base's width / width): with Muon's updates of .18 sqrt(max(rows, cols))
          a step's largest singular value grows as sqrt(width), and this undoes it, so `muon.scale: aspect`, of
          which it does not grow, goes without; AdamW's rate goes along, as nanochat's does
decay     sqrt(batch / the base's) * (the base's tokens / tokens) * sqrt(width / the base's), which keeps
          batch / (rate * decay * tokens), the time scale of the decay in passes over the data
warm-up   its share of the steps
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from stages.errors import DataError
from stages.recipe import Recipe
from train.config import TrainConfig
from train.model.config import ModelConfig
from train.model.flops import multiplying_weights
from train.model.transformer import on_meta_device

BATCH_POWER = 0.383
MLP_STEP = 16  # its width is a multiple


@dataclass(frozen=True)
class Rung:
    """One size of a ladder."""

    layers: int
    width: int
    weights: int  # that multiply once a token
    tokens: int  # to train on
    batch_size: int
    steps: int
    settings: dict[str, Any] = field(hash=False)  # dotted keys over the base's

    @property
    def compute(self) -> float:
        """Operations of the products of the whole training: 6 N D."""
        return 6.0 * self.weights * self.tokens


def rung_of(recipe: Recipe, phase: str, layers: int, tokens_per_weight: float | None = None) -> Rung:
    """Return the recipe's phase at another number of layers. tokens_per_weight: None for as many as the base has.

    Raises DataError where the recipe's shape or schedule does not say what a larger one would be.
    """
    base, cfg = recipe.model, recipe.train[phase]
    check(recipe, phase)
    ids = recipe.tokenizer.vocab_size or 8192
    model = scaled_model(base, layers)
    weights, base_weights = (multiplying_weights(on_meta_device(each, ids)) for each in (model, base))
    base_tokens = cfg.steps * cfg.batch_size * cfg.seq_len
    wanted = weights * (tokens_per_weight or base_tokens / base_weights)
    whole = math.gcd(cfg.batch_size, 8)
    batch_size = max(whole, whole * round(cfg.batch_size * (wanted / base_tokens) ** BATCH_POWER / whole))
    steps = max(1, round(wanted / (batch_size * cfg.seq_len)))
    tokens = steps * batch_size * cfg.seq_len
    factors = Factors(batch_size / cfg.batch_size, model.dim / base.dim, tokens / base_tokens)
    settings = {f"model.{key}": getattr(model, key) for key in model_keys(base, model)}
    trained = train_keys(cfg, batch_size, steps) | rates(cfg, factors)
    settings |= {f"train.{phase}.{key}": value for key, value in trained.items()}
    return Rung(layers, model.dim, weights, tokens, batch_size, steps, settings)


@dataclass(frozen=True)
class Factors:
    """What a size is, by the base."""

    batch: float
    width: float
    tokens: float

    @property
    def rate(self) -> float:
        """Of learning rates."""
        return math.sqrt(self.batch / self.width)

    @property
    def decay(self) -> float:
        """Of weight decays."""
        return math.sqrt(self.batch * self.width) / self.tokens


def check(recipe: Recipe, phase: str) -> None:
    """Raise DataError for a recipe that cannot be scaled."""
    model, schedule = recipe.model, recipe.train[phase].schedule
    if model.layer_kinds is not None:
        raise DataError("model.layer_kinds names each layer, and a ladder has others; say attention_pattern instead")
    if schedule.kind == "warmdown" or schedule.seconds is not None:
        raise DataError(f"train.{phase}.schedule counts steps or seconds of its own; a ladder needs kind wsd or cosine")
    if recipe.train[phase].init_from != "none":
        raise DataError(f"train.{phase} goes on from {recipe.train[phase].init_from}; name a phase that starts anew")


def scaled_model(base: ModelConfig, layers: int) -> ModelConfig:
    """Return a model of so many layers with the base's proportions. Raises ConfigError where its keys cannot be."""
    groups = base.n_heads // base.kv_heads
    heads = max(groups, groups * round(base.n_heads * layers / base.n_layers / groups))
    width = base.dim * heads // base.n_heads
    changes: dict[str, Any] = {"n_layers": layers, "n_heads": heads, "dim": width, "expect_params": None}
    changes["mlp_hidden"] = max(MLP_STEP, MLP_STEP * round(base.hidden * width / base.dim / MLP_STEP))
    if base.n_kv_heads is not None:
        changes["n_kv_heads"] = heads // groups
    if base.engram_enabled:
        changes["engram_inject_layer"] = base.engram_inject_layer * layers // base.n_layers
    return dataclasses.replace(base, **changes)


def model_keys(base: ModelConfig, model: ModelConfig) -> list[str]:
    """Return the keys in which a model differs from the base."""
    names = [field.name for field in dataclasses.fields(base)]
    return [name for name in names if getattr(base, name) != getattr(model, name)]


def train_keys(cfg: TrainConfig, batch_size: int, steps: int) -> dict[str, Any]:
    """Return the keys of training that follow from the batch and the steps."""
    keys: dict[str, Any] = {"batch_size": batch_size, "steps": steps}
    if cfg.micro_batch is not None and batch_size % cfg.micro_batch:
        keys["micro_batch"] = math.gcd(batch_size, cfg.micro_batch)
    if cfg.schedule.warmup:
        keys["schedule.warmup"] = max(1, round(cfg.schedule.warmup * steps / cfg.steps))
    return keys


def rates(cfg: TrainConfig, factors: Factors) -> dict[str, float]:
    """Return the keys of learning rates and weight decays that are not 0, times their factors, in four digits."""
    aspect = math.sqrt(factors.width) if cfg.muon.scale == "aspect" else 1.0
    groups: dict[str, Any] = {"muon": cfg.muon, "adamw": cfg.adamw}
    groups |= {f"groups.{field.name}": getattr(cfg.groups, field.name) for field in dataclasses.fields(cfg.groups)}
    keys: dict[str, float] = {}
    for name, group in groups.items():
        own = aspect if name == "muon" else 1.0
        if group.lr:
            keys[f"{name}.lr"] = group.lr * factors.rate * own
        if group.weight_decay:
            keys[f"{name}.weight_decay"] = group.weight_decay * factors.decay / own
    return {key: float(f"{value:.4g}") for key, value in keys.items()}
