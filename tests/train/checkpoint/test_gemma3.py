"""Gemma 3 goes to transformers and comes back: without code of its own, to the bit, to the same text."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from trainer_harness import BOS, PAD, VOCAB, metrics, sets

from train.checkpoint import gemma3
from train.checkpoint.checkpoint import save_checkpoint
from train.checkpoint.load_model import TrainedModel, open_trained_model
from train.config import ModelConfig, TrainError
from train.data.manifest import load_manifest
from train.export import export
from train.generate import generate
from train.main import main, run
from train.model.transformer import Model, build

transformers = pytest.importorskip("transformers")

WINDOW = 8
SHAPE = {
    "dim": 48,
    "n_layers": 6,
    "n_heads": 4,
    "n_kv_heads": 1,
    "head_dim": 16,  # 4 heads of 16 are wider than dim
    "qk_norm": "weighted",
    "mlp": "geglu",
    "mlp_hidden": 80,
    "max_seq_len": 96,
    "layer_kinds": ["sliding", "sliding", "global"] * 2,
    "sliding_window": WINDOW,
    "rope_base_global": 1e6,
    "norm": "one_plus",
    "norm_eps": 1e-6,
    "sandwich_norms": True,
    "embed_scale": "sqrt_dim_rounded",
    "lm_head_logit_cap": None,
    "z_loss_weight": 0,
}
TINY = ModelConfig(**SHAPE | {"layer_kinds": tuple(SHAPE["layer_kinds"]), "init_std": 0.1})
SHAPES = {
    "tied": TINY,
    "untied": dataclasses.replace(TINY, tie_embeddings=False, embed_scale="sqrt_dim"),
    "another Gemma": dataclasses.replace(
        TINY, layer_kinds=None, attention_pattern="gemma4", n_kv_heads=2, lm_head_logit_cap=20.0, rope_base_global=None
    ),
}


@pytest.fixture(scope="module")
def models(pretrain, tmp_path_factory) -> dict[str, TrainedModel]:
    """Shape -> a run's model with every weight, norms included, drawn at random."""
    folder = tmp_path_factory.mktemp("gemma3")
    run(pretrain, sets(out=str(folder / "run"), steps=1))
    point = open_trained_model(folder / "run").point
    made = {}
    for number, (shape, cfg) in enumerate(SHAPES.items()):
        model, generator = build(cfg, VOCAB, seed=number), torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.normal_(0, 0.3, generator=generator)
        state = json.loads(json.dumps(point.state))
        state["identity"]["model"] = json.loads(json.dumps(cfg.fixed_by_run() | {"vocab_size": VOCAB}))
        state = {key: value for key, value in state.items() if key not in ("format", "step", "rng", "files")}
        path = folder / shape.replace(" ", "_")
        save_checkpoint(path / "checkpoints", 1, model.state_dict(), {}, state)
        made[shape] = open_trained_model(path, pretrain)
    return made


@pytest.fixture
def exported(models, tmp_path, monkeypatch):
    """(shape, dtype) -> the folder of its export; the hub is out of reach."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def make(shape: str = "tied", dtype: str = "float32") -> Path:
        folder = tmp_path / "exported"
        export(models[shape], "hf", folder, dtype)
        return folder

    return make


def ours(trained: TrainedModel) -> Model:
    return trained.model(torch.device("cpu"), torch.float32)


def some_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 256, (rows, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_transformers_own_class_gives_the_same_logits_and_text(models, exported, shape):
    folder = exported(shape)
    assert not list(folder.glob("*.py")) and "trust_remote_code" not in (folder / "README.md").read_text()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert type(theirs) is transformers.Gemma3ForCausalLM and not theirs.training
    model = ours(models[shape])
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in model.parameters())
    for length in (1, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW):
        ids = some_ids(2, length)
        want = model.logits(model.trunk(ids))
        assert length == 1 or want.std() > 0.5
        assert torch.allclose(theirs(ids, use_cache=False).logits, want, atol=1e-4)
        cut = length // 2
        if cut:
            first = theirs(ids[:, :cut])
            pieces = [first.logits]
            for at in range(cut, length):
                step = theirs(ids[:, at : at + 1], past_key_values=first.past_key_values)
                pieces.append(step.logits)
            assert torch.allclose(torch.cat(pieces, 1), want, atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (BOS, BOS, PAD)
    prompts = ["the small", "a", "reads every token once"]
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "eos_token_id": None}
    texts = theirs.generate(**batch, max_new_tokens=50, **greedy)[:, batch["input_ids"].shape[1] :]
    made = generate(model, [[BOS, *prompt.encode()] for prompt in prompts], 50, temperature=0)
    assert texts.tolist() == [list(ids) for ids in made.ids]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("by", ["us", "transformers", "transformers, in many files"])
def test_weights_come_back_to_the_bit(models, exported, tmp_path, shape, by):
    folder = exported(shape)
    if by != "us":
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder)
        folder = tmp_path / "theirs"
        theirs.save_pretrained(folder, max_shard_size="40KB" if "many" in by else "5GB")
        assert (len(list(folder.glob("*.safetensors"))) > 3) == ("many" in by)
    config = gemma3.read_config(folder)
    assert gemma3.differing_keys(models[shape].cfg, VOCAB, config) == []
    weights, held = gemma3.read_weights(folder, models[shape].cfg, VOCAB), models[shape].weights()
    assert weights.keys() == held.keys()
    assert all(torch.equal(weights[name], held[name]) for name in held)


@pytest.mark.slow
def test_training_begins_with_the_weights_of_a_transformers_folder(models, exported, pretrain, tmp_path):
    folder = exported("tied")
    settings = [f"model.{name}={json.dumps(value)}" for name, value in SHAPE.items()]
    common = sets(steps=2, seq_len=24, eval_every=0)
    run(pretrain, [*settings, *common, *sets(out=str(tmp_path / "run"), init_from=str(folder))])
    manifest = load_manifest(pretrain)
    begun = open_trained_model(tmp_path / "run")
    assert begun.manifest.build_id == manifest.build_id
    before = metrics(tmp_path / "run")[0]["val_loss"]
    # its own checkpoint is the same start
    run(pretrain, [*settings, *common, *sets(out=str(tmp_path / "own"), init_from=str(models["tied"].point.folder))])
    assert before == metrics(tmp_path / "own")[0]["val_loss"]
    again, own = (open_trained_model(tmp_path / name).weights() for name in ("run", "own"))
    assert all(torch.equal(again[name], own[name]) for name in own)
    # it continues as any run does, though the folder is gone
    shutil.rmtree(folder)
    longer = sets(steps=2, seq_len=24, eval_every=0, out=str(tmp_path / "run"), init_from=str(folder), resume="auto")
    assert run(pretrain, [*settings, *longer])["status"] == "done"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("hidden_size", 64, r"model\.dim \(64 there, 48 here\)"),
        ("final_logit_softcapping", 30.0, r"model\.lm_head_logit_cap \(30\.0 there, None here\)"),
        ("vocab_size", VOCAB + 8, rf"model\.vocab_size \({VOCAB + 8} there, {VOCAB} here\)"),
        ("layer_types", ["full_attention"] * 6, r"model\.layer_kinds"),
        ("attention_bias", True, "attention_bias = True; our model has False"),
        ("query_pre_attn_scalar", 256, "query_pre_attn_scalar = 256; our model has 16"),
        ("rope_scaling", {"rope_type": "linear", "factor": 8.0}, "rotary positions are scaled"),
        ("model_type", "llama", "model_type 'llama'; of transformers' folders only gemma3_text"),
    ],
)
def test_another_model_is_refused_by_name(exported, pretrain, tmp_path, capsys, key, value, said):
    folder = exported()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(TrainError, match=said):
        start(pretrain, folder, tmp_path)


def start(pretrain: Path, folder: Path, tmp_path: Path) -> None:
    settings = [f"model.{name}={json.dumps(value)}" for name, value in SHAPE.items()]
    run(pretrain, [*settings, *sets(steps=1, seq_len=24, out=str(tmp_path / "run"), init_from=str(folder))])


@pytest.mark.parametrize("harm", ["missing", "too many", "shape", "no file"])
def test_weights_that_do_not_fit_are_refused_by_name(exported, pretrain, tmp_path, harm):
    folder = exported()
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.3.mlp.up_proj.weight"
    said = f"{name} is missing"
    if harm == "missing":
        del tensors[name]
    elif harm == "too many":
        tensors["model.layers.6.mlp.up_proj.weight"] = tensors[name].clone()
        said = r"layers\.6\.mlp\.up_proj\.weight has no place"
    else:
        tensors[name] = tensors[name][1:].clone()
        said = rf"{name} is \(79, 48\); it should be \(80, 48\)"
    save_file(tensors, path)
    if harm == "no file":
        path.unlink()
        said = "cannot be read"
    with pytest.raises(TrainError, match=said):
        start(pretrain, folder, tmp_path)


def test_another_tokenizer_is_refused(exported, pretrain, tmp_path):
    folder = exported()
    value = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = value["model"]["vocab"]
    first, second = list(vocabulary)[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(TrainError, match="other ids than the manifest's"):
        start(pretrain, folder, tmp_path)


def test_the_published_configuration_is_read(tmp_path):
    """As the hub has gemma-3-270m's, written by transformers 4."""
    published = {
        "_sliding_window_pattern": 6,
        "architectures": ["Gemma3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 640,
        "intermediate_size": 2048,
        "layer_types": [*["sliding_attention"] * 5, "full_attention"] * 3,
        "max_position_embeddings": 32768,
        "model_type": "gemma3_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 18,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "sliding_window": 512,
        "vocab_size": 262144,
    }
    (tmp_path / "config.json").write_text(json.dumps(published))
    theirs = gemma3.read_config(tmp_path)
    cfg = dataclasses.replace(
        TINY,
        **{name: theirs[name] for name in theirs if name not in ("vocab_size", "layer_kinds")},
        layer_kinds=tuple(theirs["layer_kinds"]),
        max_seq_len=32768,
        init_std=0.02,
    )
    assert gemma3.differing_keys(cfg, 262_144, theirs) == []
    own = gemma3.hf_config(cfg, 262_144, "bfloat16")
    loaded, made = (transformers.Gemma3TextConfig(**config) for config in (published, own))
    bases = ("rope_theta", "rope_local_base_freq")  # transformers 4 has them so, 5 as rope_parameters
    assert [own[name] for name in bases] == [published[name] for name in bases]
    skipped = {"dtype", *bases} if hasattr(loaded, "rope_parameters") else {"dtype", "rope_parameters"}
    for name in own.keys() - skipped:
        assert getattr(made, name) == getattr(loaded, name), name


def test_what_gemma3_has_not_is_named_when_it_is_exported(models, tmp_path):
    cfg = dataclasses.replace(TINY, smear=True, q_gain=1.0, mlp="relu2")
    other = dataclasses.replace(models["tied"], cfg=cfg)
    with pytest.raises(TrainError, match=r"Gemma 3 is another model by model\.mlp, model\.q_gain, model\.smear; "):
        export(other, "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(TrainError, match=r"model\.embed_scale = sqrt_dim.*choose --dtype float32"):
        export(models["untied"], "hf", tmp_path / "out", "bfloat16")
    export(models["tied"], "hf", tmp_path / "out", "bfloat16")
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


def test_the_command_says_what_does_not_fit(exported, pretrain, tmp_path, capsys):
    folder = exported()
    settings = sets(steps=1, out=str(tmp_path / "run"), init_from=str(folder))
    assert main(["--manifest", str(pretrain), "--set", *settings]) == 1
    assert "holds another model: model.qk_norm (none here)" in capsys.readouterr().err
