"""Models that are a Llama, a Qwen2 or a Qwen3 leave as one: others' own code computes their logits."""

from __future__ import annotations

import dataclasses
import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from random_models import random_model
from rounding import assert_near
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from trainer_harness import sets

from stages.tokenizer.split import GPT4_SPLIT
from train.config import ModelConfig, TrainError
from train.export import export, main
from train.export_llama import ARCHITECTURES, CUTS, add_tokenizer, name_of_cut, unlike
from train.main import run

pytestmark = pytest.mark.slow
PLAIN = ModelConfig(
    dim=32, n_layers=4, n_heads=4, max_seq_len=64, sliding_window=8, init_std=0.2,
    attention_pattern="all_global", lm_head_logit_cap=None,
)  # fmt: skip
MODELS = {
    "plain": PLAIN,
    "shared heads": dataclasses.replace(PLAIN, n_kv_heads=2, rope_base=500.0, mlp_hidden=48, norm_eps=1e-3),
    "untied, wide heads": dataclasses.replace(PLAIN, head_dim=16, tie_embeddings=False),
    "windows": dataclasses.replace(PLAIN, attention_pattern="gemma4"),
    # 128 is what transformers takes heads of a Qwen3 in a GGUF file to be
    "normed, wide heads": dataclasses.replace(PLAIN, qk_norm="weighted", head_dim=128, n_kv_heads=1),
    "normed, windows": dataclasses.replace(
        PLAIN, qk_norm="weighted", layer_kinds=("sliding", "sliding", "sliding", "global")
    ),
}
IS = {
    "plain": {"llama", "qwen2", "gguf"},
    "shared heads": {"llama", "qwen2", "gguf"},
    "untied, wide heads": {"llama", "gguf"},
    "windows": {"qwen2"},
    "normed, wide heads": {"qwen3", "gguf"},
    "normed, windows": {"qwen3"},
}


@pytest.fixture(scope="module")
def made(pretrain, tmp_path_factory):
    """Name -> its TrainedModel, with random weights."""
    like = tmp_path_factory.mktemp("llama") / "run"
    run(pretrain, sets(out=str(like), steps=1))
    return {
        name: random_model(cfg, number, like, pretrain, tmp_path_factory.mktemp("model") / "run")
        for number, (name, cfg) in enumerate(MODELS.items())
    }


def some_ids():
    return torch.randint(0, 256, (2, 40), generator=torch.Generator().manual_seed(0))


def our_logits(trained):
    model = trained.model(torch.device("cpu"), torch.float32)
    with torch.no_grad():
        return model.logits(model.trunk(some_ids()))


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in MODELS for kind in sorted(IS[name] - {"gguf"})])
def test_transformers_computes_it_without_our_code(made, name, kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    export(made[name], kind, tmp_path / "out")
    theirs, told = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(theirs).__name__ == ARCHITECTURES[kind].name
    assert not told["missing_keys"] and not told["unexpected_keys"] and not list((tmp_path / "out").glob("*.py"))
    with torch.no_grad():
        assert_near(theirs(some_ids()).logits, our_logits(made[name]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", [name for name in MODELS if "gguf" in IS[name]])
def test_a_gguf_file_is_read_back_and_computed(made, name, dtype, tmp_path):
    """By the package's reader, every tensor; by transformers, which turns q and k back, the logits."""
    transformers = pytest.importorskip("transformers")
    export(made[name], "gguf", tmp_path / "out", dtype)
    reader = gguf.GGUFReader(tmp_path / "out/model.gguf")
    kind = "qwen3" if made[name].cfg.qk_norm == "weighted" else "llama"
    assert reader.fields["general.architecture"].contents() == kind
    assert reader.fields[f"{kind}.attention.head_count_kv"].contents() == made[name].cfg.kv_heads
    assert reader.fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    assert reader.fields["tokenizer.ggml.tokens"].contents()[256:258] == ["<|bos|>", "<|pad|>"]
    weights = made[name].weights()
    assert sum(int(np.prod(tensor.shape)) for tensor in reader.tensors) == sum(w.numel() for w in weights.values())
    if dtype == "float32":
        (down,) = (tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight")
        assert np.array_equal(down.data, weights["blocks.1.mlp.down.weight"].numpy())
        shutil.copyfile(made[name].tokenizer, tmp_path / "out/tokenizer.json")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", gguf_file="model.gguf")
        with torch.no_grad():
            assert_near(theirs(some_ids()).logits, our_logits(made[name]))
    else:
        assert {tensor.tensor_type.name for tensor in reader.tensors} == {"BF16", "F32"}


@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_is_not_is_refused_by_its_keys(made, name, tmp_path, capsys):
    for kind in {*ARCHITECTURES, "gguf"} - IS[name]:
        with pytest.raises(TrainError, match=r"choose --format (hf|llama|qwen2|qwen3)$"):
            export(made[name], kind, tmp_path / "out")
    assert {kind for kind in ARCHITECTURES if not unlike(made[name].cfg, kind)} == IS[name] - {"gguf"}
    capped = dataclasses.replace(made[name].cfg, lm_head_logit_cap=30.0, engram_enabled=True, engram_inject_layer=1)
    assert {"lm_head_logit_cap", "engram_enabled"} <= set(unlike(capped, "llama"))
    assert not list(tmp_path.iterdir())


def test_the_command_names_the_cap(pretrain, tmp_path, capsys):
    run(pretrain, sets(out=str(tmp_path / "run"), steps=1))
    assert main([str(tmp_path / "run"), "--format", "llama", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "LlamaForCausalLM has no model.lm_head_logit_cap = 30.0, model.attention_pattern = gemma4; choose" in said


@pytest.mark.parametrize("cut", CUTS)
def test_our_tokenizers_cut_as_llama_cpp_calls_it(cut, manifest):
    assert {GPT4_SPLIT, GPT4_SPLIT.replace("{1,3}", "")} == set(CUTS)  # what the recipe's keys make
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(cut), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        ["a few words, 1234 of them"] * 9, trainers.BpeTrainer(vocab_size=300, show_progress=False)
    )
    definition = json.loads(tokenizer.to_str())
    assert name_of_cut(definition["pre_tokenizer"]) == CUTS[cut]
    with pytest.raises(TrainError, match="cuts text"):
        add_tokenizer(None, manifest.tokenizer, definition | {"pre_tokenizer": {"type": "Whitespace"}})
