"""Configuration: what is accepted, and how a refusal reads."""

from __future__ import annotations

import dataclasses
import re

import pytest

from train.config import (
    AdamWConfig,
    ArtefactConfig,
    ConfigError,
    ModelConfig,
    MuonConfig,
    QATConfig,
    ScheduleConfig,
    TrainConfig,
)
from train.keys import Keys, keys_fixed_by_weights
from train.overrides import apply_overrides, configs, from_dict


def test_defaults_are_the_shard():
    cfg = ModelConfig()
    assert (cfg.head_size, cfg.hidden, cfg.sliding_window, cfg.lm_head_logit_cap) == (64, 2048, 1024, 30.0)
    assert [cfg.is_global(i) for i in range(4)] == [False, True, False, True]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("stepz", 3, "train.stepz: no such key; did you mean steps"),
        ("steps", 0, "train.steps = 0"),
        ("steps", "ten", "train.steps = 'ten': expected a whole number"),
        ("steps", 1.5, "train.steps = 1.5: expected a whole number"),
        ("steps", True, "train.steps = True"),
        ("optimizer", "sgd", "train.optimizer = 'sgd': must be one of muon, adamw"),
        ("compile", "maybe", "train.compile"),
        ("muon", {"ls": 1}, "train.muon.ls: no such key; did you mean"),
        ("muon", 3, "train.muon: expected keys and values"),
        ("adamw", {"betas": [0.9]}, "train.adamw.betas"),
        ("schedule", {"kind": "step"}, "train.schedule.kind = 'step': must be one of wsd, cosine, constant"),
    ],
)
def test_refusals_name_the_key_and_what_is_allowed(key, value, message):
    with pytest.raises(ConfigError) as error:
        from_dict(TrainConfig, {key: value}, "train")
    assert message in str(error.value)


def test_model_refusals():
    for value, message in (
        ({"n_layers": 3}, "gemma4 needs an even number"),
        ({"dim": 100}, "n_heads"),
        ({"attention_pattern": "none"}, "all_global, gemma4"),
        ({"lm_head_logit_cap": 0}, "must be above 0, or null"),
    ):
        with pytest.raises(ConfigError, match=message):
            from_dict(ModelConfig, value, "model")


def test_figures_written_as_text_and_nulls_are_read():
    cfg = from_dict(
        TrainConfig, {"steps": "20", "micro_batch": "none", "muon": {"lr": "1e-3"}, "seed": str(2**63 - 1)}, "train"
    )
    assert (cfg.steps, cfg.micro_batch, cfg.muon.lr, cfg.seed) == (20, None, 1e-3, 2**63 - 1)
    assert from_dict(ModelConfig, {"lm_head_logit_cap": "null"}, "model").lm_head_logit_cap is None
    assert from_dict(TrainConfig, {"compile": "false"}, "train").compile is False
    assert from_dict(TrainConfig, {"init_from": "none", "out": None}, "train").init_from == "none"


def test_overrides():
    value = {"model": {"dim": 8}, "train": {"schedule": {"kind": "wsd"}}}
    got = apply_overrides(
        value, ["train.steps=20", "train.schedule.warmup=2", "model.dim=64", "train.out=a=b", 'train.prompts=["x"]']
    )
    assert got == {
        "model": {"dim": 64},
        "train": {"steps": 20, "schedule": {"kind": "wsd", "warmup": 2}, "out": "a=b", "prompts": ["x"]},
    }
    assert value["model"] == {"dim": 8}
    for wrong in ("train.steps", "steps=3", "lr.x=1", "train.=1", "model.dim.x=1"):
        with pytest.raises(ConfigError, match="--set"):
            apply_overrides(value, [wrong])


def test_train_means_the_manifests_phase():
    recipe = {"model": {"dim": 64, "n_heads": 4}, "train": {"pretrain": {"steps": 5}, "anneal": {"steps": 7}}}
    model, train = configs(recipe, "anneal", ["train.batch_size=4", "model.max_seq_len=512"], "m.json")
    assert (model.dim, model.max_seq_len, train.steps, train.batch_size) == (64, 512, 7, 4)
    with pytest.raises(ConfigError, match=r"no train.sft"):
        configs(recipe, "sft", [], "m.json")
    with pytest.raises(ConfigError, match="max_seq_len"):
        configs(recipe, "anneal", ["train.seq_len=9999"], "m.json")


def test_pydantic_takes_the_classes_as_they_are():
    pydantic = pytest.importorskip("pydantic")

    class Recipe(pydantic.BaseModel):
        model: ModelConfig = ModelConfig()
        train: dict[str, TrainConfig] = pydantic.Field(default_factory=dict)

    recipe = Recipe(model={"dim": 64, "n_heads": 4}, train={"a": {"muon": {"lr": 1}, "compile": False}})
    assert recipe.train["a"].muon.lr == 1.0 and recipe.model.head_size == 16
    for wrong in ({"model": {"dims": 3}}, {"train": {"a": {"muon": {"x": 1}}}}, {"model": {"n_layers": 3}}):
        with pytest.raises(pydantic.ValidationError):
            Recipe(**wrong)


@pytest.mark.parametrize(
    "group", [ModelConfig, TrainConfig, *(type(v) for v in vars(TrainConfig()).values() if isinstance(v, Keys))]
)
def test_the_schema_has_every_keys_documentation_and_bounds(group):
    pydantic = pytest.importorskip("pydantic")
    properties = pydantic.TypeAdapter(group).json_schema()["properties"]
    for field in dataclasses.fields(group):
        assert field.metadata["description"].endswith(".")
        wanted = {"description": field.metadata["description"], **field.metadata["bounds"]}
        assert wanted.items() <= properties[field.name].items()


def test_bounds_are_told_as_they_are_checked():
    for group, key, wrong, message in (
        (MuonConfig, "momentum", 1, "train.muon.momentum = 1: must be in [0, 1)"),
        (ScheduleConfig, "min_ratio", -0.5, "train.schedule.min_ratio = -0.5: must be at least 0"),
        (AdamWConfig, "betas", (0.9, 1), "train.adamw.betas = (0.9, 1): must be in [0, 1)"),
        (TrainConfig, "keep_last", -1, "train.keep_last = -1: must be at least 0"),
        (TrainConfig, "micro_batch", 0, "train.micro_batch = 0: must be above 0, or null"),
        (ScheduleConfig, "decay_shape", "step", "train.schedule.decay_shape = 'step': must be one of sqrt, linear"),
        (TrainConfig, "seed", 2**63, "must be in [0, 2**63)"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            group(**{key: wrong})


def test_what_a_run_is_fixed_by():
    """All keys of the model but those of a part that is off; of training, what changes its past."""
    cfg = ModelConfig(dim=64, n_heads=4)
    fixed = cfg.fixed_by_run()
    assert fixed["head_dim"] == 16 and fixed["mlp_hidden"] == 256 and fixed["dropout"] == 0
    engram = {"engram_enabled", "engram_slots", "engram_inject_layer"}
    assert {*vars(cfg)} - {*fixed} == {f.name for f in dataclasses.fields(cfg) if f.metadata["switch"]} > engram
    assert "n_kv_heads" not in dataclasses.replace(cfg, n_kv_heads=4).fixed_by_run()  # as many as there are heads
    assert dataclasses.replace(cfg, n_kv_heads=2).fixed_by_run()["n_kv_heads"] == 2
    assert engram <= {*dataclasses.replace(cfg, engram_enabled=True).fixed_by_run()}
    assert engram | {"dim", "vocab_size"} <= {*keys_fixed_by_weights(ModelConfig)} <= {*vars(cfg)} - {"dropout"}
    train = TrainConfig().fixed_by_run()
    assert {"seed", "batch_size", "muon"} <= {*train} and not {"steps", "rank_loss", "out"} & {*train}
    assert "kind" in train["schedule"] and "seconds" not in train["schedule"]


def test_what_the_artefact_rounds_is_fixed_where_training_rounds_so():
    rules = ArtefactConfig(rules=("int6 *",), limit=7)
    assert "artefact" not in TrainConfig(artefact=rules).fixed_by_run()
    assert "artefact" not in TrainConfig(artefact=rules, qat=QATConfig(0.1, "int6")).fixed_by_run()
    fixed = TrainConfig(artefact=rules, qat=QATConfig(0.1)).fixed_by_run()
    assert fixed["artefact"] == {"rules": ("int6 *",), "keep_numel": 65536, "int8_floor": 0.0}


def test_with_every_part_off_checkpoints_say_what_they_said():
    """Keys that are younger have a `switch`, be it their own: else a run of before could not go on."""
    assert ModelConfig().fixed_by_run() == {
        "attention_pattern": "gemma4",
        "dim": 512,
        "dropout": 0.0,
        "expect_params": None,
        "head_dim": 64,
        "init_std": 0.02,
        "lm_head_logit_cap": 30.0,
        "max_seq_len": 8192,
        "mlp_hidden": 2048,
        "n_heads": 8,
        "n_layers": 12,
        "norm_eps": 1e-05,
        "rope_base": 10000.0,
        "sliding_window": 1024,
        "tie_embeddings": True,
        "vocab_size": None,
        "z_loss_weight": 0.0001,
    }
    assert TrainConfig().fixed_by_run() == {
        "adamw": {"betas": (0.9, 0.95), "eps": 1e-10, "lr": 0.002, "weight_decay": 0.0},
        "batch_size": 16,
        "document_mask": False,
        "dtype": "auto",
        "ema": {"decay": 0.0, "every": 10},
        "grad_clip": 1.0,
        "init_from": "none",
        "muon": {"lr": 0.002, "momentum": 0.95, "ns": "dsv4", "ns_dtype": "auto", "weight_decay": 0.1},
        "optimizer": "muon",
        "schedule": {
            "decay_frac": 0.2,
            "decay_shape": None,
            "kind": "wsd",
            "min_ratio": 0.0,
            "warmdown": 0,
            "warmup": 0,
        },
        "seed": 0,
        "seq_len": 256,
        "spike_sigma": 6.0,
        "swa": {"every": 50, "start_frac": 0.0},
    }
