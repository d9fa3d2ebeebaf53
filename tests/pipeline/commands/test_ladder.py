"""`ladder`: sizes trained, the largest predicted; killed and continued; what cannot be."""

from __future__ import annotations

import json

import pytest
import yaml
from engine_harness import Work

from pipeline.commands.ladder import transfer_lines
from pipeline.recipe import load_recipe
from stages.ladder.law import Optimum
from stages.ladder.scale import rung_of

pytestmark = pytest.mark.slow
MODEL = {"dim": 32, "n_layers": 4, "n_heads": 4, "mlp_hidden": 96, "max_seq_len": 64, "sliding_window": 32}
TRAIN = {"mixture": "pretrain", "steps": 8, "batch_size": 8, "seq_len": 32, "eval_tokens": 2048, "log_every": 4}
TRAIN |= {"muon": {"lr": 0.02}, "adamw": {"lr": 0.02}, "schedule": {"warmup": 2}}


def test_three_sizes_predict_a_fourth_whose_recipe_runs(packed: Work) -> None:
    packed.write(model=MODEL, train={"pretrain": TRAIN})
    words = ["ladder", "2", "4", "6", "--target", "8", "--executor", "local", "--workers", "2", "--tokens-per-weight"]
    plan = packed.cli(*words, "0.05", "--dry-run")
    assert "8 (target)" in plan.stdout and "3 runs, about" in plan.stdout, plan.stderr
    assert not list((packed.out / "store").glob("train/*"))
    done = packed.cli(*words, "0.05")
    assert done.returncode == 0, done.stderr
    result = json.loads((packed.out / "small/ladder/result.json").read_text())
    runs = result["runs"]
    assert [run["layers"] for run in runs] == [2, 4, 6] and [run["width"] for run in runs] == [16, 32, 48]
    for run in runs:
        summary = json.loads((packed.out / f"small-{run['layers']}-layers/train/pretrain/summary.json").read_text())
        assert (summary["steps"], summary["after"]["nats"]) == (run["steps"], run["nats"])
    said = result["prediction"]
    assert said["low"] < said["middle"] < said["high"] and result["said"][0] in done.stdout
    target = packed.out / "small/ladder/8-layers.yaml"
    assert load_recipe(str(target)).model.dim == 64 == yaml.safe_load(target.read_text())["model"]["dim"]
    again = packed.cli(*words, "0.05")
    assert "executor local" not in again.stderr, "all is there"
    assert result["said"][0] in again.stdout


def test_what_no_ladder_can_be_made_of_is_said(packed: Work) -> None:
    packed.write(model=MODEL, train={"pretrain": TRAIN})
    assert "takes three sizes or more" in packed.fails("ladder", "2", "4", "--target", "8", status=2)
    assert "larger than the sizes that are trained, 8" in packed.fails(
        "ladder", "4", "6", "8", "--target", "8", status=2
    )
    assert "allows 50,000: raise it" in packed.fails(
        "ladder", "4", "6", "8", "--target", "10", "--tokens-per-weight", "9"
    )
    assert "the phases of small are pretrain" in packed.fails(
        "ladder", "2", "4", "6", "--target", "8", "--phase", "x", status=2
    )


def test_rates_that_do_not_transfer_change_the_targets() -> None:
    recipe = load_recipe("quickstart")
    small, middle, goal = (rung_of(recipe, "pretrain", layers) for layers in (4, 8, 16))
    moves = [(small, Optimum(1.0, 0.9, 1.1)), (middle, Optimum(0.5, 0.45, 0.55))]
    lines, factor = transfer_lines(moves, goal)
    assert factor == pytest.approx(0.25) and "width ^ -1.00 beside the rule" in lines[-1]
    for best in (Optimum(0.8, 0.5, 1.3), Optimum(0.75, 0.7, 0.8)):
        lines, factor = transfer_lines([moves[0], (middle, best)], goal)
        assert factor == 1.0 and "they transfer" in lines[-1]
    lines, factor = transfer_lines([moves[0], (middle, None)], goal)
    assert factor == 1.0 and "is not known" in lines[-1]
