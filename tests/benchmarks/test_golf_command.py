"""The benchmark of both golf recipes: runs of the recipe's form, going on where it was, and what fails it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import yaml

from benchmarks import golf, measure
from benchmarks.gpu_systems import Setting, write_mixture
from pipeline.recipe import load_recipe
from train.data.manifest import load_manifest
from train.files import sha256_file
from train.model.transformer import count_parameters
from train.overrides import configs

STEPS = {"full": 16, "small": 8}


@pytest.fixture(scope="module")
def manifests(tmp_path_factory):
    """Random tokens with each recipe, in both variants, and a tokenizer that scoring only asks the hash of."""
    folder, made = tmp_path_factory.mktemp("golf"), {}
    for name in golf.SYSTEMS:
        for variant in golf.VARIANTS:
            recipe = load_recipe(name, [f"variant={golf.RECORD}"] if variant == golf.RECORD else []).to_dict()
            setting = Setting(recipe["model"], recipe["train"]["pretrain"], golf.VOCAB)
            path = write_mixture(folder / f"{name}-{variant}", 60_000, setting)
            (path.parent / "tokenizer.json").write_text("{}")
            found = load_manifest(path)
            sha256 = sha256_file(path.parent / "tokenizer.json")
            found = dataclasses.replace(found, tokenizer=dataclasses.replace(found.tokenizer, sha256=sha256))
            path.write_text(found.to_json())
            made[name, variant] = path
    return made


@pytest.mark.parametrize("name", golf.SYSTEMS)
def test_without_a_part_there_are_as_many_parameters(manifests, name):
    """To within one hidden unit, and what is off is off; all runs differ."""
    runs = golf.small_runs(golf.Plan(manifests, STEPS), seed=2)
    recipe = yaml.safe_load(json.dumps(load_manifest(manifests[name, "fixed"]).recipe))

    def config(settings):
        return configs(recipe, "pretrain", settings[3:], name)

    base = config(runs[name, golf.ALL_PARTS])
    own = {part: settings for (system, part), settings in runs.items() if system == name}
    assert list(own) == [golf.ALL_PARTS, golf.RECORD, *golf.SYSTEMS[name].off]
    assert len({tuple(settings) for settings in own.values()}) == len(own)
    for part, settings in own.items():
        model, train = config(settings)
        unit = (3 if model.mlp == "swiglu" else 2) * model.dim * model.n_layers
        counts = [count_parameters(cfg.without_training_parts(), golf.VOCAB) for cfg in (model, base[0])]
        assert abs(counts[0] - counts[1]) <= unit / 2, part
        assert (model, train) != base or part in (golf.ALL_PARTS, golf.RECORD)
        assert train.seed == 2 and train.schedule.seconds is None


@pytest.mark.parametrize("variant", golf.VARIANTS)
@pytest.mark.parametrize("name", golf.SYSTEMS)
def test_a_full_run_is_the_recipe_but_for_its_length(manifests, name, variant):
    settings = golf.Plan(manifests, STEPS).settings(name, variant, "full", [])
    recipe = load_manifest(manifests[name, variant]).recipe
    (model, train), (own_model, own) = (configs(recipe, "pretrain", sets, name) for sets in (settings[3:], []))
    assert model == own_model and train.artefact == own.artefact
    assert (train.muon.lr, train.groups, train.grad_clip) == (own.muon.lr, own.groups, own.grad_clip)
    share = 16 / golf.SYSTEMS[name].record_steps
    assert train.steps == 16 and train.schedule.warmdown == max(4, round(3000 * share))


@pytest.mark.slow
def test_the_command_goes_on_where_it_was_and_fails_where_the_file_is_too_large(
    manifests, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(golf, "build", lambda folder, data, tokens: manifests)
    for name, system in golf.SYSTEMS.items():
        few = dict(list(system.off.items())[:1])
        monkeypatch.setitem(golf.SYSTEMS, name, system._replace(off=few))
    monkeypatch.setitem(golf.SCORED, "small", 1000)
    whole, made = golf.make, []

    def make(plan, folder, settings):
        made.append(settings)
        if settings[2] == "small":
            return whole(plan, folder, settings)
        limit = 16_000_000 if settings[0] == "golf_int5_sp1024" else 14_999_999  # a record's is no failure
        scores = {"before": {"plain": 3.0}, "after": {"plain": 3.005}, "bits_per_byte": 3.005, "if_fp16": {}}
        return {**scores, "file_bytes": 14_700_000, "code_bytes": 300_000, "limit": limit}

    monkeypatch.setattr(golf, "make", make)

    def run(*options):
        monkeypatch.setattr("sys.argv", ["golf", "--small-steps", "8", "--out", str(tmp_path / "g.json"), *options])
        with pytest.raises(SystemExit) as stopped:
            golf.main()
        return str(stopped.value), json.loads((tmp_path / "g.json").read_text())

    said, first = run("--seeds", "1")
    assert (
        said
        == "error: golf_memory_tokens fixed: 15,000,000 bytes, above 14,999,999"
        == "error: " + first["not_reached"][0]
    )
    assert len(first["runs"]) == len(made) == 4 + 2 * 3
    small = [run for run in first["runs"] if "small" in run["settings"]]
    assert all(run["before"].keys() == run["after"].keys() and run["bits_per_byte"] > 0 for run in small)
    dead = {tuple(run["settings"][:2]): run["dead_parts"]["parameters"] for run in small}
    assert "bigram.embed.weight" in dead["golf_memory_tokens", golf.RECORD]
    assert "bigram.embed.weight" not in dead["golf_int5_sp1024", golf.RECORD]
    _, second = run("--seeds", "2")
    assert second["runs"][: len(first["runs"])] == first["runs"] and len(made) == len(second["runs"]) == 4 + 2 * 2 * 3
    table = second["tables"]["golf_memory_tokens"]["table"]
    assert list(table) == [golf.RECORD, "memory tokens"] and table["memory tokens"]["half_width"] > 0
    assert "not measured: 0 run(s)" in capsys.readouterr().out


def test_results_that_were_saved_are_read_back():
    """The results of this repository have the form that the command goes on from."""
    for path in measure.RESULTS.glob("*-golf.json"):
        saved = json.loads(path.read_text())
        runs = golf.Runs(path, saved, ("steps", "data"), lambda settings: {}, 0.0)
        assert list(runs.known) == [tuple(run["settings"]) for run in saved["runs"]]
