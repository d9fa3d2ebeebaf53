"""The seed's config.py (Shard-40m-v1) key by key: where each key lives here, its default, and what it forbids."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from train.config import ConfigError, ModelConfig, ScheduleConfig, TrainConfig
from train.model.transformer import check_parameters, count_parameters
from train.overrides import configs

SEED = Path(__file__).parents[2].parent / "shared/seeds/000_5c68f2a2a52c8164.txt"
MODEL = ModelConfig()
OURS = {  # the seed's key -> what ours says by default. vocab_size is the tokenizer's, asserted where it is given
    "dim": MODEL.dim,
    "n_layers": MODEL.n_layers,
    "n_heads": MODEL.n_heads,
    "head_dim": MODEL.head_size,
    "mlp_hidden": MODEL.hidden,
    "max_seq_len": MODEL.max_seq_len,
    "attention_pattern": MODEL.attention_pattern,
    "sliding_window": MODEL.sliding_window,
    "engram_enabled": MODEL.engram_enabled,
    "engram_slots": MODEL.engram_slots,
    "engram_inject_layer": MODEL.engram_inject_layer,
    "optimizer": TrainConfig().optimizer,
    "rope_base": MODEL.rope_base,
    "norm_eps": MODEL.norm_eps,
    "dropout": MODEL.dropout,
    "tie_embeddings": MODEL.tie_embeddings,
    "lm_head_logit_cap": MODEL.lm_head_logit_cap,
    "z_loss_weight": MODEL.z_loss_weight,
    "lr_schedule": ScheduleConfig().kind,
    "wsd_decay_frac": ScheduleConfig().decay_frac,
    "init_std": MODEL.init_std,
}


@pytest.mark.slow
@pytest.mark.skipif(not SEED.exists(), reason="../shared/seeds is not here")
def test_every_key_of_the_seed_has_its_default_here():
    found = re.findall(r"^(\w+): [^=\n]+ = ([^#\n]+)", SEED.read_text(), re.M)
    seed = {key: eval(value, {}) for key, value in found}
    assert seed.pop("vocab_size") == 8192
    assert len(seed) == 21 and seed == OURS


def test_parameters_of_the_seeds_model():
    assert check_parameters(ModelConfig(expect_params=54_538_752), 8192) == 54_538_752
    with_engram = ModelConfig(engram_enabled=True, expect_params=54_538_752 + 525_312)
    assert check_parameters(with_engram, 8192) == 55_064_064
    with pytest.raises(ConfigError, match=r"55,064,064 parameters, model\.expect_params says 54,538,752"):
        check_parameters(ModelConfig(engram_enabled=True, expect_params=54_538_752), 8192)
    assert count_parameters(ModelConfig(engram_slots=7), 8192) == 54_538_752  # off: its size is nothing


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ({"attention_pattern": "local"}, "attention_pattern"),
        ({"n_layers": 11}, "n_layers"),  # gemma4: even, so that the last layer is global
        ({"z_loss_weight": -1e-4}, "z_loss_weight"),
        ({"lm_head_logit_cap": 0}, "lm_head_logit_cap"),
        ({"engram_slots": 0}, "engram_slots"),
        ({"engram_enabled": True, "engram_inject_layer": 12}, "engram_inject_layer"),
        ({"engram_enabled": True, "engram_inject_layer": -1}, "engram_inject_layer"),
    ],
)
def test_what_the_seed_forbids_of_a_model(model, key):
    with pytest.raises(ConfigError, match=rf"model\.{key} ="):
        configs({"model": model, "train": {"p": {}}}, "p", [], "here")


@pytest.mark.parametrize(
    ("train", "key"),
    [
        ({"optimizer": "sgd"}, "optimizer"),
        ({"schedule": {"kind": "step"}}, "schedule.kind"),
        ({"schedule": {"decay_frac": 1.5}}, "schedule.decay_frac"),
    ],
)
def test_what_the_seed_forbids_of_a_training(train, key):
    with pytest.raises(ConfigError, match=rf"train\.{key} ="):
        configs({"model": {}, "train": {"p": train}}, "p", [], "here")


def test_what_the_seed_allows():
    for model in (
        {"n_layers": 11, "attention_pattern": "all_global"},
        {"lm_head_logit_cap": None, "z_loss_weight": 0},
        {"n_layers": 2},  # engram_inject_layer = 6 says nothing while the engram is off
        {"engram_enabled": True, "engram_inject_layer": 0},
    ):
        configs({"model": model, "train": {"p": {}}}, "p", [], "here")
    assert [MODEL.is_global(i) for i in range(12)] == [False, True] * 6
    assert all(ModelConfig(attention_pattern="all_global").is_global(i) for i in range(12))
