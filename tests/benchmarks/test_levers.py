"""The benchmark of levers: equal parameters, going on where it was, and paired differences."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
from commands import python

from benchmarks import levers, measure
from benchmarks.gpu_systems import Setting, write_mixture
from benchmarks.paired import compare
from stages.compare.stats import holm, p_value, t_quantile
from train.model.transformer import count_parameters
from train.overrides import configs

RATES = levers.Rates(3e-3, 4.8e-2, 2e-3)
EVERY = levers.levers(RATES)


def parameters(settings):
    model = configs({"model": levers.MODEL, "train": {"pretrain": levers.TRAIN}}, "pretrain", list(settings), "t")[0]
    return count_parameters(model, levers.VOCAB)


@pytest.mark.parametrize("name", EVERY)
def test_all_have_the_parameters_of_the_baseline_to_within_one_hidden_unit(name):
    unit = 3 * levers.MODEL["dim"] * levers.MODEL["n_layers"]
    settings = levers.settings_of(EVERY[name], seed=1)
    assert abs(parameters(settings) - parameters(EVERY[levers.BASELINE].settings)) <= unit / 2
    assert EVERY[name].against in EVERY and settings[-1] == "train.seed=1"


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Run the command over random tokens, two small steps a run, in forked processes; returns what it wrote."""
    made = []
    for key, value in {"batch_size": 2, "eval_tokens": 1000}.items():
        monkeypatch.setitem(levers.TRAIN, key, value)
    monkeypatch.setattr(
        levers, "subprocess", SimpleNamespace(run=lambda words, cwd, env, **_: python(words[1:], cwd, env))
    )

    def build(folder, data, steps):
        made.append(steps)
        return write_mixture(
            folder / "mixture", 40_000, Setting(levers.MODEL, {**levers.TRAIN, "steps": steps}, levers.VOCAB)
        )

    monkeypatch.setattr(levers, "build", build)

    def run(*options):
        out = tmp_path / "levers.json"
        monkeypatch.setattr("sys.argv", ["levers", "--steps", "2", "--out", str(out), *options])
        levers.main()
        return json.loads(out.read_text())

    return run


@pytest.mark.slow
def test_the_command_goes_on_where_it_was(command, capsys):
    """With no time nothing is made; a run that is there is not made again; other lengths are refused."""
    assert command("--minutes", "0")["runs"] == []
    first = command("--only", "embed_norm", "--seeds", "1")
    assert [run["settings"] for run in first["runs"]] == [
        levers.settings_of(EVERY[name], 0) for name in (levers.BASELINE, "embed_norm")
    ]
    assert first["table"]["embed_norm"]["verdict"] == "not known: 1 seed"
    assert "relu2 (0 of 1 seeds)" in first["not_measured"]
    second = command("--only", "bigram", "--seeds", "2")
    assert second["runs"][:2] == first["runs"] and len(second["runs"]) == 5
    assert second["table"]["bigram"]["error"] > 0
    assert second["table"]["embed_norm"] == first["table"]["embed_norm"]
    capsys.readouterr()
    with pytest.raises(SystemExit, match="has runs with steps = 2, not 3"):
        command("--steps", "3")


def test_an_unknown_lever_is_named_before_anything_is_built(command):
    with pytest.raises(SystemExit, match="--only norm: write some of baseline, "):
        command("--only", "norm")


@pytest.mark.parametrize(
    ("df", "t"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (2, 9.925), (9, 3.250)]
)
def test_p_of_students_t(df, t):
    """The tables' quantiles of 5 and 1 per cent; of two degrees of freedom there is a closed form."""
    assert p_value(t, df) == pytest.approx(0.05 if t not in (9.925, 3.250) else 0.01, rel=5e-3)
    assert t_quantile(0.99 if t in (9.925, 3.250) else 0.95, df) == pytest.approx(t, rel=2e-3)
    assert p_value(-t, df) == p_value(t, df) and p_value(0, df) == pytest.approx(1, abs=1e-3)
    assert p_value(1.7, 2) == pytest.approx(1 - 1.7 / math.sqrt(2 + 1.7**2), rel=1e-3)


def test_holm():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({}) == {} and holm({"a": 0.7, "b": 0.9}) == {"a": 1.0, "b": 1.0}


def test_differences_are_paired_by_seed():
    scores = {
        "base": {0: 2.0, 1: 2.2, 2: 2.1},
        "helps": {2: 2.0, 0: 1.9, 1: 2.101},  # a tenth less in each, whatever the seed
        "noise": {0: 1.9, 1: 2.3, 2: 2.1},
        "hurts": {0: 2.5, 1: 2.701, 2: 2.6},
        "once": {1: 2.0},
        "never": {},
    }
    table = compare(scores, dict.fromkeys(scores, "base"))
    assert {name: row["verdict"] for name, row in table.items()} == {
        "helps": "better",
        "noise": "no difference shown",
        "hurts": "worse",
        "once": "not known: 1 seed",
    }
    assert table["helps"]["differences"] == pytest.approx([-0.1, -0.099, -0.1])
    assert table["helps"]["mean"] == pytest.approx(-0.0997, abs=1e-4)
    assert table["helps"]["error"] == pytest.approx(0.001 / 3)
    assert table["helps"]["half_width"] == pytest.approx(4.3027 * 0.001 / 3, rel=1e-3)
    assert table["once"]["error"] is None and table["once"]["p_holm"] is None


def test_results_that_were_saved_are_read_back():
    """The results of this repository have the form that the command goes on from."""
    for path in sorted(measure.RESULTS.glob("*-levers.json"))[1:]:  # the first is of an older form
        saved = json.loads(path.read_text())
        runs = levers.Runs(path, saved, ("steps", "data"), lambda settings: {}, 0.0)
        assert list(runs.known) == [tuple(run["settings"]) for run in saved["runs"]]
