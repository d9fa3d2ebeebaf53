"""A recipe at another size: proportions, tokens, and what the rule of rates is there for."""

from __future__ import annotations

import pytest
import torch

from pipeline.recipe import apply_overrides, load_recipe, parse_recipe
from stages.errors import DataError
from stages.ladder.scale import rung_of
from stages.recipe import Recipe
from train.model.flops import flops_per_token
from train.optim.muon import newton_schulz


def at(recipe: Recipe, settings: dict) -> Recipe:
    raw = recipe.to_dict()
    apply_overrides(raw, [f"{key}={'null' if value is None else value}" for key, value in settings.items()])
    return parse_recipe(raw, "test")


@pytest.mark.parametrize("name", ["quickstart", "shard_40m", "best_small"])
def test_the_base_is_its_own_rung_and_another_size_is_a_recipe(name):
    recipe = load_recipe(name)
    phase = next(iter(recipe.train))
    same = rung_of(recipe, phase, recipe.model.n_layers)
    assert at(recipe, same.settings | {"model.expect_params": recipe.model.expect_params}).to_dict() == recipe.to_dict()
    for layers in (recipe.model.n_layers // 2, 2 * recipe.model.n_layers):
        rung = rung_of(recipe, phase, layers)
        scaled = at(recipe, rung.settings)
        model, cfg = scaled.model, scaled.train[phase]
        assert model.n_layers == layers and model.dim * recipe.model.n_layers == recipe.model.dim * layers
        assert model.head_size == recipe.model.head_size and model.kv_heads * recipe.model.n_heads == (
            recipe.model.kv_heads * model.n_heads
        )
        assert cfg.steps * cfg.batch_size * cfg.seq_len == rung.tokens
        assert rung.tokens / rung.weights == pytest.approx(same.tokens / same.weights, rel=0.05)
        ids, length = recipe.tokenizer.vocab_size, cfg.seq_len
        flops = flops_per_token(model, ids, length)
        assert 6 * rung.weights < flops.causal < 6 * rung.weights * 2


def test_a_step_of_muon_keeps_its_largest_singular_value_as_the_width_grows():
    recipe = load_recipe("quickstart")
    torch.manual_seed(0)

    def largest(layers: int) -> float:
        rung = rung_of(recipe, "pretrain", layers)
        batch = (rung.batch_size / recipe.train["pretrain"].batch_size) ** 0.5
        shape = (rung.width, 3 * rung.width)
        update = newton_schulz(torch.randn(1, *shape), "dsv4")[0] * 0.18 * max(shape) ** 0.5
        return float(torch.linalg.matrix_norm(update, 2)) * rung.settings["train.pretrain.muon.lr"] / batch

    assert largest(16) == pytest.approx(largest(4), rel=0.1)


def test_what_has_no_larger_size_is_refused():
    with pytest.raises(DataError, match=r"model\.layer_kinds names each layer"):
        rung_of(load_recipe("gemma3_270m"), "pretrain", 12)
    with pytest.raises(DataError, match="goes on from pretrain"):
        rung_of(load_recipe("quickstart"), "anneal", 8)
    with pytest.raises(DataError, match="counts steps or seconds of its own"):
        rung_of(load_recipe("golf_int5_sp1024"), "pretrain", 8)
