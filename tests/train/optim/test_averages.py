"""EMA and SWA: the seeds' arithmetic, nothing when off, scored as what a checkpoint holds."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.swa_utils import AveragedModel
from trainer_harness import MODEL, losses, metrics, sets

from train.checkpoint import checkpoint
from train.checkpoint.checkpoint import find_checkpoint
from train.config import ConfigError, EMAConfig, ModelConfig, ScheduleConfig, SWAConfig, TrainConfig
from train.eval.validation import Validation
from train.main import run
from train.model.transformer import build
from train.optim import averages
from train.optim.averages import Averages
from train.optim.schedule import lr_factor

ON = sets(ema__decay=0.9, ema__every=2, swa__start_frac=0.9, swa__every=1, steps=24)


def follow(values, cfg):
    """The averages of a model of one weight that takes `values`, first the one before any step."""
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(values[0])
    held = Averages(model, cfg)
    for step, value in enumerate(values[1:], 1):
        model.weight.data.fill_(value)
        held.update(step, lr_factor(step - 1, cfg.steps, cfg.schedule))
    return held


@pytest.mark.slow
@given(st.lists(st.floats(-4, 4, width=32), min_size=9, max_size=40), st.floats(0.1, 0.999), st.integers(1, 4))
def test_ema_is_the_seeds_formula(values, decay, every):
    cfg = TrainConfig(steps=len(values) - 1, ema=EMAConfig(decay, every))
    want = torch.tensor(values[0])
    for step, value in enumerate(values[1:], 1):
        if step % every == 0:
            want = decay * want + (1 - decay) * torch.tensor(value)
    ema = follow(values, cfg).by_name["ema"]
    assert ema.count == (len(values) - 1) // every
    assert float(ema.tensors["weight"]) == pytest.approx(float(want), abs=1e-5)


def test_the_first_weights_in_an_ema_of_9030_steps():
    """As parameter-golf PR #352 has it: .997 a step, taken every 10 steps."""
    ema = follow([1.0] + [0.0] * 9030, TrainConfig(steps=9030, ema=EMAConfig(0.997**10, 10))).by_name["ema"]
    assert ema.count == 903
    assert float(ema.tensors["weight"]) == pytest.approx(1.6e-12, rel=0.05)


def test_swa_takes_the_snapshots_of_the_seed():
    """After step t where the factor is below .5 and (t + 1) % 50 == 0: 30 of them, over 1,500 steps."""
    schedule = ScheduleConfig(kind="warmdown", warmdown=3000)
    cfg = TrainConfig(steps=9000, schedule=schedule, swa=SWAConfig(0.5, 50))
    swa = follow([float(t) for t in range(9001)], cfg).by_name["swa"]
    taken = [t + 1 for t in range(9000) if lr_factor(t, 9000, schedule) < 0.5 and (t + 1) % 50 == 0]
    assert swa.count == len(taken) == 30 and taken[0] == 7550
    assert float(swa.tensors["weight"]) == pytest.approx(sum(taken) / 30, rel=1e-6)


@pytest.mark.slow
@given(st.lists(st.floats(-4, 4, width=32), min_size=12, max_size=40))
def test_swa_is_the_mean_and_torchs(values):
    steps = len(values) - 1
    cfg = TrainConfig(steps=steps, schedule=ScheduleConfig(warmup=3, decay_frac=1.0), swa=SWAConfig(0.8, 1))
    model = torch.nn.Linear(1, 1, bias=False)
    theirs, taken = AveragedModel(model), []
    for step, value in enumerate(values[1:], 1):
        factor = lr_factor(step - 1, steps, cfg.schedule)
        if step > 3 and factor < 0.8:  # never in the warm-up, whose first factors are low as well
            model.weight.data.fill_(value)
            theirs.update_parameters(model)
            taken.append(value)
    swa = follow(values, cfg).by_name["swa"]
    assert swa.count == len(taken) > 0
    assert float(swa.tensors["weight"]) == pytest.approx(sum(taken) / len(taken), abs=1e-5)
    assert float(swa.tensors["weight"]) == pytest.approx(float(theirs.module.weight.detach()), abs=1e-5)


def test_off_holds_and_stores_nothing():
    held = follow([1.0] * 10, TrainConfig(steps=9))
    assert held.by_name == {} == held.state_tensors() and held.usable() == []


def test_used_puts_the_weights_back_to_the_bit_also_after_an_error():
    torch.manual_seed(0)
    model = torch.nn.Linear(7, 5)
    held = Averages(model, TrainConfig(ema=EMAConfig(0.5, 1)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for p in model.parameters():
        p.data.mul_(3)
    with pytest.raises(RuntimeError, match="scoring"), held.used("ema"):
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        raise RuntimeError("scoring")
    assert all(torch.equal(v, before[k] * 3) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ema": EMAConfig(0.9, 50)}, "train.ema.every = 50: above train.steps = 20"),
        ({"swa": SWAConfig(0.5, 50)}, "train.swa: in no step"),
        ({"swa": SWAConfig(0.5, 1), "schedule": ScheduleConfig(kind="constant")}, "train.swa: in no step"),
        ({"swa": SWAConfig(0.5, 1), "schedule": ScheduleConfig(decay_frac=0)}, "train.swa: in no step"),
        ({"swa": SWAConfig(0.1, 1), "schedule": ScheduleConfig(kind="cosine", min_ratio=0.1)}, "train.swa: in no step"),
    ],
)
def test_an_average_that_would_do_nothing_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Averages(torch.nn.Linear(1, 1), TrainConfig(steps=20, **settings))


def test_values_out_of_range_are_refused():
    for wrong in (
        lambda: EMAConfig(decay=1.0),
        lambda: EMAConfig(every=0),
        lambda: SWAConfig(start_frac=1.5),
        lambda: SWAConfig(every=0),
    ):
        with pytest.raises(ConfigError, match=r"train\.(ema|swa)"):
            wrong()


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs


@pytest.fixture(scope="module")
def undisturbed(pretrain, tmp_path_factory):
    """24 steps with both averages; the folder."""
    folder = tmp_path_factory.mktemp("averages") / "run"
    run(pretrain, [*ON, *sets(out=str(folder), eval_every=8)])
    return folder


def held(folder):
    """All that the newest checkpoint holds, and its counts."""
    point = find_checkpoint(folder, "k")
    return {f"{f}/{k}": t for f in checkpoint.TENSOR_FILES for k, t in point.tensors(f).items()}, point.state[
        "averages"
    ]


def same(one, other):
    (mine, counts), (theirs, their_counts) = held(one), held(other)
    assert mine.keys() == theirs.keys() and counts == their_counts
    return all(torch.equal(mine[k], theirs[k]) for k in mine)


@pytest.mark.slow
def test_averages_change_no_bit_of_training_and_are_scored(pretrain, undisturbed, manifest, tmp_path):
    run(pretrain, sets(out=str(tmp_path / "off"), steps=24))
    assert losses(tmp_path / "off") == losses(undisturbed)
    assert not [k for k in held(tmp_path / "off")[0] if ".ema." in k or "/ema." in k or "/swa." in k]
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert json.loads((tmp_path / "off/summary.json").read_text())["averages"] == {}
    lines = {m["step"]: m for m in metrics(undisturbed) if "val_loss" in m}
    assert "val_loss_ema" in lines[8] and "val_loss_swa" not in lines[8] and "val_loss_ema" not in lines[0]
    # the score is of the weights that the checkpoint holds under that name
    model = build(ModelConfig(**MODEL), manifest.tokenizer.vocab_size, 0)
    tensors = find_checkpoint(undisturbed, "k").tensors("optimizer.safetensors")
    validation = Validation(manifest, 32, 1024, None, 0, 1)
    for name in ("ema", "swa"):
        model.load_state_dict(averages.weights(tensors, name))
        score = validation.score(model, torch.device("cpu"))
        assert summary["averages"][name]["nats"] == score.nats == lines[24][f"val_loss_{name}"]
        assert score.nats != summary["after"]["nats"]
    assert summary["averages"]["ema"]["updates"] == 12 and summary["averages"]["swa"]["updates"] == 4


def test_a_finished_run_that_is_resumed_scores_its_averages_again(pretrain, undisturbed, tmp_path):
    path = str(undisturbed / "checkpoints/step_000024")
    again = run(pretrain, [*ON, *sets(out=str(tmp_path / "r"), resume=path)])
    assert again["averages"] == json.loads((undisturbed / "summary.json").read_text())["averages"]
