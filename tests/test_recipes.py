"""The recipes that ship: they load, and the seed's model trains on packed text."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from commands import python

from pipeline.commands.plan_rows import parameters
from pipeline.recipe import load_recipe, parse_recipe, shipped
from train.artefact import code_files, size_of
from train.artefact_file import pack
from train.checkpoint.gemma3 import unlike_gemma3
from train.data.loader import rows_of_rank
from train.model.transformer import build, count_parameters
from train.optim.optimizer import Optimizer

ROOT = Path(__file__).resolve().parent.parent
SHARD_PARAMETERS = 54_538_752  # the card's figure


VARIANTS = [
    (name, variant)
    for name in shipped()
    for variant in (None, *yaml.safe_load((ROOT / "manifests" / f"{name}.yaml").read_text()).get("variants", {}))
]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_shipped_recipe_loads_and_names_itself(name, variant):
    recipe = load_recipe(name, [f"variant={variant}"] if variant else [])
    assert recipe.name == (f"{name}_{variant}" if variant else name)
    assert recipe.executor == "ray"
    for phase, config in recipe.train.items():
        tokens = config.steps * config.batch_size * config.seq_len
        assert tokens <= config.epochs * recipe.mixtures[config.mixture or phase].tokens, phase


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_phase_of_a_shipped_recipe_is_shared_by_up_to_eight_processes(name, variant, ranks):
    recipe = load_recipe(name, [f"variant={variant}"] if variant else [])
    for phase, config in recipe.train.items():
        share, micro_batch = rows_of_rank(config, ranks)
        assert share * ranks == config.batch_size and micro_batch == share, phase


def test_shard_40m_is_the_seeds_model():
    recipe = load_recipe("shard_40m")
    assert f"{SHARD_PARAMETERS:,}" in parameters(recipe)
    assert recipe.model.expect_params == SHARD_PARAMETERS
    assert len(recipe.mixtures["anneal"].ratios) == 7
    assert recipe.train["anneal"].steps == 20_000
    assert recipe.train["pretrain"].steps == 48_220


@pytest.mark.parametrize(("name", "parameters_"), [("gemma3_270m", 268_098_176), ("gemma3_270m_seed", 164_654_976)])
def test_gemma3_is_the_published_shape(name, parameters_):
    recipe = load_recipe(name)
    assert f"{parameters_:,} parameters (expect_params agrees)" in parameters(recipe)
    is_seed = name.endswith("seed")
    assert unlike_gemma3(recipe.model) == []
    assert [i for i in range(18) if recipe.model.is_global(i)] == [5, 11, 17]
    tied = dataclasses.replace(recipe.model, tie_embeddings=True, expect_params=None)
    assert count_parameters(tied, 50_257) == 132_490_496
    warnings = recipe.train["pretrain"].warnings()
    assert ["the learning rate rises to 5 times its value" in text for text in warnings] == [True] * is_seed
    assert not is_seed or recipe.train["pretrain"].seq_len < recipe.model.sliding_window


def leaves(value: object, key: str = "") -> dict[str, object]:
    """Return dotted key -> value of a resolved recipe."""
    if not isinstance(value, dict):
        return {key: value}
    return {k: v for name, inner in value.items() for k, v in leaves(inner, f"{key}.{name}" if key else name).items()}


BOTH_RECORDS = {"name", "variant", "ranks", "model.rope_table"}
BOTH_RECORDS |= {f"train.pretrain.{key}" for key in ("groups.tokens.bfloat16", "schedule.overrun", "eval_tokens")}
BOTH_RECORDS |= {f"train.pretrain.{key}" for key in ("artefact.int8_floor", "eval_counting")}
OWN_TO_PR352 = {"model.bigram_init", "model.mtp_decay"}
OWN_TO_PR352 |= {f"train.pretrain.{key}" for key in ("groups.memory.bfloat16", "qat.rule")}
OWN_TO_PR352 |= {f"train.pretrain.artefact.{key}" for key in ("rules", "int8_first")}


@pytest.mark.parametrize(
    ("name", "trained", "exported", "own"),
    [
        ("golf_int5_sp1024", 24_730_705, 24_730_705, {"model.norm_eps"}),  # golf.md 2.2; 6
        ("golf_memory_tokens", 26_598_481, 25_549_905, OWN_TO_PR352),  # golf.md 3.4; 6
    ],
)
def test_golf_recipes_are_the_records_and_mended(name, trained, exported, own):
    fixed, record = load_recipe(name), load_recipe(name, ["variant=record"])
    for recipe in (fixed, record):
        assert f"{trained:,} parameters (expect_params agrees)" in parameters(recipe)
        assert count_parameters(recipe.model.without_training_parts(), 1024) == exported
    a, b = leaves(fixed.to_dict()), leaves(record.to_dict())
    assert {key for key in a | b if a.get(key) != b.get(key)} == BOTH_RECORDS | own


@pytest.fixture(scope="module", params=["golf_int5_sp1024", "golf_memory_tokens"])
def golf(request):
    """A golf recipe and its model at full size, as it is drawn."""
    recipe = load_recipe(request.param)
    return recipe, build(recipe.model, 1024, seed=1337)


def artefact_bytes(recipe, weights) -> int:
    """Return the size of the artefact and of the code that is counted."""
    exported = {name: w for name, w in weights.items() if not name.startswith("mtp.")}
    header = {"model": recipe.model.fixed_by_run(), "vocab_size": 1024, "bos_id": 1, "provenance": {}}
    packed = pack(exported, recipe.train["pretrain"].artefact)
    return size_of(packed, header, "bytes") + sum(file.stat().st_size for file in code_files())


HEADROOM = 140_000  # bytes: what the code may grow by


@pytest.mark.slow
@pytest.mark.parametrize("start", ["as drawn", "normal"])
def test_a_golf_artefact_is_below_its_limit_on_random_weights(golf, start):
    """As drawn, zeros aside: uniform values have the most entropy. Normal: what many updates of Muon add up to."""
    recipe, model = golf
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, w in model.named_parameters():
        drawn = w.ndim < 2 or (start == "as drawn" and w.any())
        weights[name] = w.detach() if drawn else torch.randn(w.shape, generator=generator) * 0.02
    assert artefact_bytes(recipe, weights) < recipe.train["pretrain"].artefact.limit - HEADROOM


@pytest.mark.slow
def test_a_golf_artefact_is_below_its_limit_after_a_step_of_its_optimizer(golf):
    """At the recipe's rates, with random gradients, which move every row of every table."""
    recipe, model = golf[0], copy.deepcopy(golf[1])
    optimizer = Optimizer(model, recipe.train["pretrain"])
    optimizer.grads.normal_(generator=torch.Generator().manual_seed(0))
    optimizer.step(1.0)
    assert not any(model.get_parameter(name).eq(0).all() for name in optimizer.muon_names)
    weights = {name: w.detach() for name, w in model.named_parameters()}
    assert artefact_bytes(recipe, weights) < recipe.train["pretrain"].artefact.limit - HEADROOM


def run(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return python(words, cwd, seconds=300)


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """A store for all recipes of this file: what one has made of the same text, the next one finds."""
    return tmp_path_factory.mktemp("recipes") / "out"


@pytest.mark.slow
def test_plan_of_shard_40m_needs_neither_network_nor_data(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    done = run("-m", "pipeline", "plan", "pack_anneal_mix", "--recipe", "shard_40m", "--out", str(tmp_path), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert f"{SHARD_PARAMETERS:,} parameters (expect_params agrees)" in done.stdout
    for source in load_recipe("shard_40m").sources:
        assert source in done.stdout
    assert "cannot be listed" in done.stdout
    assert "1,320,000,000 tokens" in done.stdout
    assert "cannot be solved yet" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_plan_of_a_rate_that_rises_warns(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    done = run("-m", "pipeline", "plan", "train", "--recipe", "gemma3_270m_seed", "--out", str(tmp_path), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "164,654,976 parameters (expect_params agrees)" in done.stdout
    assert "4,687     614,334,464" in done.stdout
    said = " ".join(done.stdout.split())
    assert said.count("warning: pretrain: train.schedule.min_ratio = 5: the learning rate rises to 5 times") == 1


GEMMA_SHRUNK = {
    "model": {"dim": 64, "n_layers": 6, "head_dim": 32, "mlp_hidden": 96, "max_seq_len": 128, "sliding_window": 16},
    "train.pretrain": {"steps": 4, "batch_size": 4, "log_every": 1, "eval_every": 0, "eval_tokens": 1000},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3_270m", "gemma3_270m_seed"])
def test_gemma3_trains_in_small_from_raw_text_to_an_export(name, out, tmp_path):
    """The shipped recipe by --set alone, but for where its text comes from."""
    raw = yaml.safe_load((ROOT / "manifests" / f"{name}.yaml").read_text())
    sources = {
        source: {"from": "installed_docs", "packages": [package]}
        for source, package in zip(raw["sources"], ("numpy", "stdlib"), strict=False)
    }
    recipe = tmp_path / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(raw | {"sources": sources, "evals": {}}))
    words = ["tokenizer={vocab_size: 600, sample: 2MB}", "mixtures.pretrain.tokens=20k", "shard_tokens=10k"]
    words += ["mixtures.pretrain.val_tokens=2000", "model.vocab_size=600", "model.expect_params=null"]
    words += ["model.layer_kinds=[sliding, sliding, global, sliding, sliding, global]", "train.pretrain.epochs=1"]
    words += ["train.pretrain.seq_len=64", "train.pretrain.sample_tokens=0"]
    words += [f"{group}.{key}={value}" for group, keys in GEMMA_SHRUNK.items() for key, value in keys.items()]
    command = ["-m", "pipeline", "run", "train", "--recipe", str(recipe), "--executor", "local", "--set", *words]
    done = run(*command, "--out", str(out), cwd=ROOT)
    assert done.returncode == 0, done.stderr + done.stdout
    assert ("the learning rate rises to 5 times" in " ".join((done.stdout + done.stderr).split())) == ("seed" in name)
    folder = out / name / "train" / "pretrain"
    losses = [json.loads(line).get("loss") for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert len([loss for loss in losses if loss is not None]) == 4
    done = run("-m", "train.export", str(folder), "--format", "hf", "--out", str(tmp_path / "hf"), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"] == ["Gemma3ForCausalLM"]


GOLF_SHRUNK = ["mixtures.pretrain.tokens=40k", "mixtures.pretrain.val_tokens=2000", "shard_tokens=20k"]
GOLF_SHRUNK += ["tokenizer.sample=1MB", "ranks=1", "model.expect_params=null", "model.dim=64", "model.n_heads=2"]
GOLF_SHRUNK += ["model.n_kv_heads=1", "model.mlp_hidden=96", "model.bigram_dim=16", "model.n_layers=4"]
GOLF_STEPS = ["steps=5", "batch_size=8", "seq_len=128", "kernel_warmup=1", "schedule.seconds=null", "log_every=1"]
GOLF_STEPS += ["schedule.overrun=false", "schedule.warmdown=4", "eval_every=0", "eval_tokens=1000", "sample_tokens=0"]
GOLF_STEPS += ["swa.every=1", "ema.every=1", "eval_seq_len=128", "artefact.keep_numel=1000"]


GOLF = [(name, variant) for name, variant in VARIANTS if name.startswith("golf")]
LONG = [*GOLF[:2], ("golf_memory_tokens", None)]  # the largest is tried by make test


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant"), [pytest.param(*each, marks=pytest.mark.soak if each in LONG else ()) for each in GOLF]
)
def test_golf_recipes_run_in_small_from_raw_text_to_an_artefact(name, variant, out, tmp_path):
    """The shipped recipe by --set alone, but for where its text comes from; then on its shards, adopted."""
    pytest.importorskip("sentencepiece")
    raw = yaml.safe_load((ROOT / "manifests" / f"{name}.yaml").read_text())
    recipe = tmp_path / "golf.yaml"
    sources = {"fineweb": {"from": "installed_docs", "packages": ["stdlib"]}}
    recipe.write_text(yaml.safe_dump(raw | {"sources": sources}))
    steps = [*GOLF_STEPS, "qat.start_frac=0.6"] if name == "golf_memory_tokens" else GOLF_STEPS
    chosen = [*([f"variant={variant}"] if variant else []), *GOLF_SHRUNK, *(f"train.pretrain.{step}" for step in steps)]
    given = ["--recipe", str(recipe), "--set", *chosen]
    done = run("-m", "pipeline", "run", "train", "--executor", "local", *given, "--out", str(out), cwd=ROOT)
    assert done.returncode == 0, done.stderr + done.stdout
    results = out / (f"{name}_{variant}" if variant else name)
    summary = json.loads((results / "train" / "pretrain" / "summary.json").read_text())
    is_dead = "bigram.embed.weight" in json.dumps(summary["dead_parts"])
    assert is_dead == (name == "golf_memory_tokens" and variant == "record"), summary["dead_parts"]
    done = run("-m", "train.artefact", str(results / "train" / "pretrain"), "--tokens", "500", cwd=ROOT)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "16,000,000" in done.stdout
    shards = tmp_path / "shards"
    shards.mkdir()
    for file in (results / "pretrain").glob("*.bin"):
        if "_train_" in file.name or "_val_" in file.name:
            (shards / file.name).write_bytes(file.read_bytes())
    tokenizer = str(results / "tokenizer" / "tokenizer.model")
    done = run("-m", "pipeline", "adopt", str(shards), "--tokenizer", tokenizer, *given, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    settings = [f"train.out={tmp_path / 'adopted'}", "train.steps=2"]
    done = run(
        str(ROOT / "train/main.py"), "--manifest", str(shards / "manifest.json"), "--set", *settings, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "adopted" / "summary.json").read_text())["steps"] == 2


@pytest.mark.slow
def test_shard_40m_trains_a_few_steps_from_packed_text(out, tmp_path):
    raw = yaml.safe_load((ROOT / "manifests" / "shard_40m.yaml").read_text())
    docs = {"from": "installed_docs", "packages": ["stdlib"], "rules": ["gopher_quality"]}
    raw |= {"sources": {"docs": docs}, "dedup": {"exact": True}, "evals": {}, "decontaminate": {}}
    raw["mixtures"] = {"anneal": {"tokens": "20k", "ratios": {"docs": "100%"}, "val_tokens": 2000}}
    raw["train"] = {"anneal": raw["train"]["anneal"] | {"init_from": "none"}}
    recipe = tmp_path / "shard.yaml"
    recipe.write_text(yaml.safe_dump(raw))
    build = ["-m", "pipeline", "run", "pack_anneal_mix", "--recipe", str(recipe), "--executor", "local"]
    done = run(*build, "--out", str(out), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    manifest = out / "shard_40m" / "anneal" / "manifest.json"
    settings = ["steps=2", "adamw.lr=0.01", "batch_size=2", "micro_batch=2", "seq_len=64", "schedule.warmup=1"]
    # Newton-Schulz at this size is most of a CPU step; five iterations instead of ten
    settings += ["muon.ns=jordan5", "schedule.decay_frac=0", "sample_tokens=0"]
    settings += ["eval_tokens=300", "eval_every=0", "log_every=1", "checkpoint_every=0", f"out={tmp_path / 'run'}"]
    sets = [f"train.{s}" for s in settings]
    done = run(str(ROOT / "train" / "main.py"), "--manifest", str(manifest), "--set", *sets, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["parameters"] == SHARD_PARAMETERS
    assert summary["after"]["bits_per_byte"] < summary["before"]["bits_per_byte"] - 0.05


def test_the_readmes_recipe_is_valid():
    block = (ROOT / "README.md").read_text().split("```yaml\n")[1].split("```")[0]
    recipe = parse_recipe(yaml.safe_load(block), "README.md")
    for phase, config in recipe.train.items():
        held = recipe.mixtures[config.mixture or phase].tokens
        assert 0.9 < config.steps * config.batch_size * config.seq_len / held <= config.epochs, phase


def test_the_docs_name_every_dependency_with_its_reason():
    text = (ROOT / "docs" / "dependencies.md").read_text()
    for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]:
        name = requirement.split(">=")[0]
        assert any(name in line for line in text.splitlines() if line.startswith("| ")), name
