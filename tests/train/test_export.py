"""Exported models give the run's logits: each form, every shape of model."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from random_models import random_model
from rounding import assert_near
from safetensors.torch import load_file
from trainer_harness import BOS, PAD, sets

from train.checkpoint.load_model import open_trained_model
from train.config import ModelConfig, TrainError
from train.data.manifest import Source
from train.export import export, hf_name, main, seed_config
from train.export_readme import readme
from train.export_seed_card import Config, ToyLM
from train.generate import generate
from train.main import run
from train.model.transformer import Model
from train.overrides import from_dict

try:
    import transformers
except ImportError:
    transformers = None
needs_transformers = pytest.mark.skipif(transformers is None, reason="transformers is not installed (extra dev)")

CFG = ModelConfig(dim=32, n_layers=4, n_heads=2, max_seq_len=64, sliding_window=8, init_std=0.2)
SHAPES = {
    "gemma4": CFG,
    "all_global": dataclasses.replace(CFG, attention_pattern="all_global", n_layers=3, mlp_hidden=48),
    "window above the context": dataclasses.replace(CFG, sliding_window=100, norm_eps=1e-3),
    "engram": dataclasses.replace(CFG, engram_enabled=True, engram_slots=5, engram_inject_layer=2),
    "untied, no cap": dataclasses.replace(CFG, tie_embeddings=False, lm_head_logit_cap=None, rope_base=500.0),
}
# What the safetensors form holds, and the others refuse; hf has Gemma 3: tests/train/checkpoint/test_gemma3.py
FURTHER = {
    "golf": dataclasses.replace(
        CFG,
        n_kv_heads=1,
        qk_norm="rms",
        q_gain=1.5,
        mlp="relu2",
        norm="plain",
        embed_norm=True,
        smear=True,
        smear_bos_mask=True,
        bigram_buckets=16,
        bigram_dim=8,
        memory_tokens=3,
        mtp_heads=2,
        residual_mix=True,
        branch_scales=True,
        unet_skips=True,
    ),
    "gemma": dataclasses.replace(
        CFG,
        n_kv_heads=1,
        head_dim=24,
        qk_norm="weighted",
        mlp="geglu",
        norm="one_plus",
        sandwich_norms=True,
        layer_kinds=("sliding", "sliding", "sliding", "global"),
        rope_base_global=1e6,
        embed_scale="sqrt_dim",
    ),
}


@pytest.fixture(scope="module")
def trained_run(pretrain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "run"
    run(pretrain, sets(out=str(folder), steps=3))
    return folder


@pytest.fixture(scope="module")
def shapes(pretrain, trained_run, tmp_path_factory):
    """Shape -> its TrainedModel: random weights behind the run's manifest."""
    return {
        shape: random_model(cfg, number, trained_run, pretrain, tmp_path_factory.mktemp("shape") / "run")
        for number, (shape, cfg) in enumerate((SHAPES | FURTHER).items())
    }


def ours(trained):
    return trained.model(torch.device("cpu"), torch.float32)


def some_ids(*size):
    return torch.randint(0, 256, size, generator=torch.Generator().manual_seed(0))


def logits(model, ids):
    with torch.no_grad():
        return model.logits(model.trunk(ids))


@pytest.mark.parametrize("shape", [*SHAPES, *FURTHER])
def test_safetensors_come_back(shapes, shape, tmp_path):
    export(shapes[shape], "safetensors", tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    model = Model(from_dict(ModelConfig, config["model"], "config.json"), config["model"]["vocab_size"], BOS)
    model.load_state_dict(load_file(tmp_path / "out/model.safetensors"))
    ids = some_ids(2, 40)
    assert torch.equal(logits(model.eval(), ids), logits(ours(shapes[shape]), ids))
    assert (config["eos_token_id"], config["pad_token_id"]) == (BOS, PAD)
    assert config["trained"]["step"] == 3
    assert config["model"]["mtp_heads"] == 0  # trained, and not exported


@pytest.mark.parametrize(("shape", "form"), [("golf", "card"), ("golf", "hf"), ("gemma", "card")])
def test_forms_that_have_no_such_part_say_so(shapes, shape, form, tmp_path):
    with pytest.raises(TrainError, match=r"has no model\.n_kv_heads.*choose --format"):
        export(shapes[shape], form, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_card_loads_with_weights_only(shapes, shape, tmp_path):
    export(shapes[shape], "card", tmp_path / "out")
    ck = torch.load(tmp_path / "out/models/model.pt", weights_only=True)
    assert dataclasses.asdict(Config(**ck["cfg"])) == ck["cfg"]  # all keys of the seed and no others
    model = ToyLM(Config(**ck["cfg"]))
    model.load_state_dict(ck["model"])
    ids = some_ids(2, 40)
    want = logits(ours(shapes[shape]), ids)
    with torch.no_grad():
        assert torch.equal(model.eval()(ids)[0], want)
        half = model.to(torch.bfloat16)
        assert torch.equal(half(ids)[0], logits(shapes[shape].model(torch.device("cpu"), torch.bfloat16), ids))
        assert not torch.equal(half(ids)[0], want)
    assert (tmp_path / "out/models/tokenizer.json").read_bytes() == shapes[shape].tokenizer.read_bytes()


@pytest.mark.parametrize(
    ("schedule", "want"),
    [
        ({"kind": "wsd", "decay_frac": 0.3}, ("wsd", 0.3)),
        ({"kind": "cosine", "decay_frac": 0.2}, ("cosine", 0.2)),
        ({"kind": "constant", "decay_frac": 0.2}, ("wsd", 0.0)),
        ({"kind": "warmdown", "decay_frac": 0.2, "warmdown": 1, "warmup": 1}, ("wsd", 0.5)),
    ],
)
def test_schedules_the_seed_has_not_are_said_in_its_words(shapes, schedule, want):
    trained = shapes["gemma4"]
    identity = trained.point.state["identity"]
    state = trained.point.state | {"identity": identity | {"train": identity["train"] | {"schedule": schedule}}}
    cfg = seed_config(dataclasses.replace(trained, point=dataclasses.replace(trained.point, state=state)))
    assert (cfg["lr_schedule"], cfg["wsd_decay_frac"]) == want


# The card's "How to load", on a CPU in fp32; the last line is ours
CARD_LINES = r"""
import sys, torch
sys.path.insert(0, 'code')
from config import Config
from model import ToyLM
from tokenizer import load_tokenizer
ck = torch.load('models/model.pt', map_location='cpu', weights_only=True)
cfg = Config(**ck['cfg']) if isinstance(ck['cfg'], dict) else ck['cfg']
model = ToyLM(cfg)
model.load_state_dict(ck['model'])
model.eval()
tok = load_tokenizer('models/tokenizer.json')
ids = torch.tensor([tok.encode('The capital of France is').ids])
with torch.no_grad():
    for _ in range(10):
        logits, _ = model(ids)
        nxt = logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat([ids, nxt], 1)
print(ids[0].tolist())
print(*sorted(m.__file__ for name, m in sys.modules.items() if name.startswith('train.')), sep='\n')
"""


@pytest.mark.slow
def test_the_cards_lines_load_it(shapes, tmp_path):
    trained = shapes["engram"]
    export(trained, "card", tmp_path / "out")
    done = subprocess.run(
        [sys.executable, "-c", CARD_LINES], cwd=tmp_path / "out", capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    prompt = list(b"The capital of France is")
    new = generate(ours(trained), [prompt], 10, temperature=0).ids[0]
    ids, *files = done.stdout.splitlines()
    assert json.loads(ids) == prompt + new
    code = tmp_path / "out/code/train"
    assert str(code / "model/transformer.py") in files and all(Path(file).is_relative_to(code) for file in files)


@pytest.fixture
def load_hf(tmp_path, monkeypatch):
    """TrainedModel -> (model, tokenizer) as transformers loads its export, with the hub out of reach."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))

    def load(trained, dtype="float32"):
        out = tmp_path / "out"
        export(trained, "hf", out, dtype)
        model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype="auto", trust_remote_code=True)
        return model, transformers.AutoTokenizer.from_pretrained(out, trust_remote_code=True)

    return load


@pytest.mark.slow
@needs_transformers
@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_gives_the_same_logits(shapes, shape, load_hf):
    trained = shapes[shape]
    theirs, _ = load_hf(trained)
    model = ours(trained)
    assert theirs.dtype == torch.float32 and not theirs.training
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in model.parameters())
    ids = some_ids(2, 40)
    want = logits(model, ids)
    with torch.no_grad():
        assert_near(theirs(ids).logits, want)
        assert_near(theirs(ids, use_cache=False).logits, want)
        # in pieces, through transformers' cache
        first = theirs(ids[:, :21])
        second = theirs(ids[:, 21:22], past_key_values=first.past_key_values)
        third = theirs(ids[:, 22:], past_key_values=second.past_key_values)
        pieces = torch.cat([first.logits, second.logits, third.logits], 1)
        assert_near(pieces, want)
        # the loss is the reported one: no z
        got = theirs(ids, labels=ids).loss
        assert_near(got, model.score(ids[:, :-1], ids[:, 1:]).mean())


@pytest.mark.slow
@needs_transformers
@pytest.mark.parametrize("shape", ["gemma4", "engram"])
def test_transformers_writes_the_same_text(shapes, shape, load_hf):
    trained = shapes[shape]
    theirs, tokenizer = load_hf(trained)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (BOS, BOS, PAD)
    config = theirs.generation_config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (BOS, BOS, PAD)
    assert (config.temperature, config.top_p) == (0.7, 0.9)
    prompts = ["the small", "a", "reads every token once"]  # of different lengths: padded on the left
    batch = tokenizer(prompts, return_tensors="pt", padding=True)
    ids = [[BOS, *p.encode()] for p in prompts]
    assert [row[mask.bool()].tolist() for row, mask in zip(*batch.values(), strict=True)] == ids
    out = theirs.generate(**batch, max_new_tokens=20, do_sample=False, temperature=None, top_p=None, top_k=None)
    static = theirs.generate(
        **batch,
        max_new_tokens=20,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        cache_implementation="static",
    )
    assert torch.equal(static, out)
    made = generate(ours(trained), ids, 20, stop=BOS, temperature=0)
    width = batch["input_ids"].shape[1]
    for row, want in zip(out[:, width:].tolist(), made.ids, strict=True):
        assert row[: len(want)] == want and set(row[len(want) :]) <= {BOS, PAD}


@pytest.mark.slow
@needs_transformers
@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable.:FutureWarning")  # its new name is not in 5.0
def test_the_hf_model_trains_and_saves_again(shapes, load_hf, tmp_path):
    theirs, tokenizer = load_hf(shapes["engram"])
    ids = some_ids(2, 20)
    theirs.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            theirs.gradient_checkpointing_enable()
        theirs.zero_grad()
        theirs(ids, labels=ids).loss.backward()
        gradients.append([p.grad.clone() for p in theirs.parameters()])
    assert all(g.abs().sum() > 0 for g in gradients[0])
    for a, b in zip(*gradients, strict=True):
        assert_near(a, b)
    theirs.eval().save_pretrained(tmp_path / "again")
    tokenizer.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, theirs(ids).logits)


@pytest.mark.slow
@needs_transformers
def test_the_hf_model_runs_past_its_longest_text(shapes, load_hf):
    trained = shapes["gemma4"]
    theirs, _ = load_hf(trained)
    ids = some_ids(2, 3 * CFG.max_seq_len)
    longer = Model(dataclasses.replace(CFG, max_seq_len=ids.shape[1]), len(theirs.model.embed_tokens.weight), BOS)
    longer.load_state_dict(trained.weights(), strict=False)
    with torch.no_grad():
        want = logits(longer.eval(), ids)
        assert_near(theirs(ids).logits, want)
        first = theirs(ids[:, :-1])
        assert_near(theirs(ids[:, -1:], past_key_values=first.past_key_values).logits, want[:, -1:])
    made = theirs.generate(ids[:1, :60], max_new_tokens=20, min_new_tokens=20, do_sample=False)
    assert made.shape == (1, 80)


@pytest.mark.slow
@needs_transformers
@pytest.mark.parametrize("shape", ["gemma4", "engram"])
def test_the_hf_model_compiles_as_one_graph(shapes, shape, load_hf):
    theirs, _ = load_hf(shapes[shape])
    compiled = torch.compile(theirs, fullgraph=True, backend="eager", dynamic=False)  # it raises at a break
    ids = some_ids(2, 40)
    with torch.no_grad():
        want = theirs(ids).logits
        assert torch.equal(compiled(ids, use_cache=False).logits, want)
        first = compiled(ids[:, :39])
        assert_near(compiled(ids[:, 39:], past_key_values=first.past_key_values).logits, want[:, 39:])


@needs_transformers
def test_the_readme_says_what_the_tokenizer_does(shapes, load_hf):
    _, tokenizer = load_hf(shapes["gemma4"])
    text = readme(shapes["gemma4"])
    bos = tokenizer.bos_token
    for said in (f"begins with `{bos}`", "add_special_tokens=False", "split_special_tokens=True", "4.57", "`, 64, run"):
        assert said in text, said
    assert tokenizer("a").input_ids == [BOS, *b"a"]
    assert tokenizer("a", add_special_tokens=False).input_ids == [*b"a"]
    assert tokenizer(f"a{bos}").input_ids == [BOS, *b"a", BOS]
    assert tokenizer(f"a{bos}", split_special_tokens=True).input_ids == [BOS, *f"a{bos}".encode()]


def test_the_model_card_names_what_was_read_and_its_lines_run(shapes):
    source = Source("web", "jsonl", "/private", "", "CC0", 9, 9, {}, 0, 900, 900, 9, 1.0, 1.0, 0.5, 1.0, 10, 1)
    trained = shapes["gemma4"]
    trained = dataclasses.replace(trained, manifest=dataclasses.replace(trained.manifest, sources=[source]))
    text = readme(trained)
    assert "| web | 900 | CC0 |" in text and "/private" not in text
    assert f"{sum(p.numel() for p in ours(trained).parameters()):,} parameters" in text
    compile(text.split("```python")[1].split("```")[0], "README.md", "exec")
    other = dataclasses.replace(trained, manifest=dataclasses.replace(trained.manifest, build_id="f" * 64))
    assert "CC0" not in readme(other)  # another mixture's sources are not this model's


@needs_transformers
def test_bfloat16_is_half_as_large_and_close(shapes, load_hf, tmp_path):
    theirs, _ = load_hf(shapes["gemma4"], "bfloat16")
    assert theirs.dtype == torch.bfloat16
    ids = some_ids(1, 30)
    with torch.no_grad():
        got = theirs(ids).logits
    want = logits(shapes["gemma4"].model(torch.device("cpu"), torch.bfloat16), ids)
    assert_near(got, want, units=4, eps=torch.finfo(torch.bfloat16).eps)
    weights = load_file(tmp_path / "out/model.safetensors")
    assert {w.dtype for w in weights.values()} == {torch.bfloat16}
    code = json.loads((tmp_path / "out/config.json").read_text())["auto_map"]["AutoConfig"]
    assert code == "modeling_shard.ShardConfig" and (tmp_path / "out/modeling_shard.py").exists()


def test_the_command_writes_once_and_whole(trained_run, tmp_path, capsys, monkeypatch):
    for form in ("safetensors", "card", "hf"):
        out = tmp_path / form
        assert main([str(trained_run), "--format", form, "--out", str(out)]) == 0
        said = capsys.readouterr().out
        assert f"step_000003 as {form}, float32" in said
        assert all(str(p) in said for p in out.rglob("*") if p.is_file())
        before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
        assert main([str(trained_run), "--format", form, "--out", str(out)]) == 1
        assert "never overwritten" in capsys.readouterr().err
        # the same bytes again
        assert main([str(trained_run / "checkpoints/step_000003"), "--format", form, "--out", str(out) + "2"]) == 0
        for path, data in before.items():
            if path.suffix != ".pt":
                assert (tmp_path / f"{form}2" / path.relative_to(out)).read_bytes() == data
        capsys.readouterr()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("train.export.save_file", full)
    assert main([str(trained_run), "--format", "hf", "--out", str(tmp_path / "cut")]) == 1
    assert "No space left" in capsys.readouterr().err
    assert not [p for p in tmp_path.iterdir() if "cut" in p.name]


def test_an_average_is_exported_when_the_run_held_one(pretrain, trained_run, tmp_path, capsys):
    run(pretrain, sets(out=str(tmp_path / "r"), steps=4, ema__decay=0.5, ema__every=1))
    command = [str(tmp_path / "r"), "--format", "safetensors"]
    assert main([*command, "--out", str(tmp_path / "raw")]) == 0
    assert main([*command, "--out", str(tmp_path / "ema"), "--average", "ema"]) == 0
    raw, ema = (load_file(tmp_path / name / "model.safetensors") for name in ("raw", "ema"))
    assert raw.keys() == ema.keys() and not torch.equal(raw["embed.weight"], ema["embed.weight"])
    held = open_trained_model(tmp_path / "r").point.tensors("optimizer.safetensors")
    assert all(torch.equal(ema[name], held[f"ema.{name}"]) for name in ema)
    assert json.loads((tmp_path / "ema/config.json").read_text())["trained"]["average"] == "ema"
    assert main([str(trained_run), "--format", "hf", "--out", str(tmp_path / "no"), "--average", "ema"]) == 1
    assert "no ema in it (averages: none)" in capsys.readouterr().err and not (tmp_path / "no").exists()


def test_a_parameter_that_the_modelling_file_has_not_is_refused():
    with pytest.raises(TrainError, match=r"parameter blocks\.0\.attn\.new\.weight has no place"):
        hf_name("blocks.0.attn.new.weight")
