"""Late quantization-aware training: the artefact's own rounding, behind a switch that no compiled graph knows."""

from __future__ import annotations

import copy
import dataclasses
import shutil

import pytest
import torch
from golf_toy import S4, batch, toy
from trainer_harness import losses, sets

from train.checkpoint.checkpoint import find_checkpoint, list_checkpoints
from train.config import ArtefactConfig, ConfigError, ModelConfig, QATConfig
from train.main import run
from train.model.fake_quant import FakeQuant
from train.model.transformer import build
from train.quantize import round_trip

TINY = ModelConfig(dim=16, n_layers=2, n_heads=2, max_seq_len=32, sliding_window=8)
SMALL = ArtefactConfig(keep_numel=0)
IDS, TARGETS = torch.arange(24).view(2, 12), torch.arange(1, 25).view(2, 12)


def test_golf_4_the_loss_of_six_bits_in_training_alone():
    model = toy(S4)
    switch = FakeQuant(model, QATConfig(0.1, "int6"), ArtefactConfig())
    assert float(model(*batch())[1]) == pytest.approx(4.383133, abs=2e-6)
    switch.turn_on()
    assert float(model(*batch())[1]) == pytest.approx(4.375221, abs=2e-6)
    assert float(model.eval()(*batch())[1]) == pytest.approx(4.383133, abs=2e-6)


def test_each_matrix_is_rounded_as_the_artefact_rounds_it():
    rules = ArtefactConfig(rules=("int5 *.mlp.*", "int6 *.attn.q*", "fp16 *.attn.k*"), keep_numel=0)
    model, rounded = build(TINY, 30, 0), build(TINY, 30, 0)
    switch = FakeQuant(model, QATConfig(0.1), rules)
    parts = ["attn.q", "mlp.gate", "mlp.up", "mlp.down"]
    assert {*switch.rounded} == {f"blocks.{i}.{part}.weight" for i in range(2) for part in parts}
    for name, kind in switch.rounded.items():
        weight = rounded.get_parameter(name)
        weight.data = round_trip(weight.data, kind)
        assert kind == ("int6" if "attn" in name else "int5")
    before = model(IDS, TARGETS)[1]
    switch.turn_on()
    assert model(IDS, TARGETS)[1] == rounded(IDS, TARGETS)[1] != before


def test_until_the_switch_losses_and_gradients_are_the_same_to_the_bit_and_then_pass_unchanged():
    plain, model = build(TINY, 30, 0), build(TINY, 30, 0)
    switch = FakeQuant(model, QATConfig(0.1), SMALL)
    for each in (plain, model):
        each(IDS, TARGETS)[0].backward()
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    linear = model.blocks[0].mlp.up
    switch.turn_on()
    linear.weight.grad = None
    used = linear.used_weight()
    assert not torch.equal(used, linear.weight)
    used.backward(torch.arange(used.numel()).float().view_as(used))
    assert torch.equal(linear.weight.grad, torch.arange(used.numel()).float().view_as(used))


@pytest.mark.parametrize("rule", ["artefact", "int6"])
def test_the_switch_of_a_compiled_model_compiles_nothing(rule):
    from torch._dynamo.utils import counters

    model = build(dataclasses.replace(TINY, n_layers=1, attention_pattern="all_global"), 30, 0)
    plain = copy.deepcopy(model)
    switch = FakeQuant(model, QATConfig(0.1, rule), SMALL)
    FakeQuant(plain, QATConfig(0.1, rule), SMALL).turn_on()
    torch._dynamo.reset()
    model.run_trunk = torch.compile(model.trunk, dynamic=False, fullgraph=True, backend="aot_eager")
    before = model(IDS, TARGETS)[0]
    before.backward()
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    switch.turn_on()
    after = model(IDS, TARGETS)[0]
    after.backward()
    assert counters["stats"]["unique_graphs"] == graphs
    assert after != before and torch.allclose(after, plain(IDS, TARGETS)[0], atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs

LATE = sets(steps=12, schedule__decay_frac=0.5, qat__start_frac=0.5, artefact={"keep_numel": 0}, keep_last=0)


@pytest.fixture(scope="module")
def late(pretrain, tmp_path_factory):
    """12 steps, of which the last are made with rounded matrices; the folder."""
    folder = tmp_path_factory.mktemp("qat") / "run"
    run(pretrain, [*LATE, *sets(out=str(folder), checkpoint_every=1)])
    return folder


def test_the_loss_moves_at_the_switch_and_not_before(pretrain, late, tmp_path, capsys):
    run(pretrain, sets(out=str(tmp_path / "off"), steps=12, schedule__decay_frac=0.5))
    off, on = losses(tmp_path / "off"), losses(late)
    states = {p.name: find_checkpoint(p, "k").state["qat"] for p in list_checkpoints(late / "checkpoints")}
    first = min(int(name[5:]) for name, is_on in states.items() if is_on)
    assert 7 < first < 12 and [states[f"step_{s:06d}"] for s in range(first, 13)] == [True] * (13 - first)
    assert [s for s in off if off[s] != on[s]] == list(range(first + 1, 13))
    assert "qat" not in find_checkpoint(tmp_path / "off", "k").state


@pytest.mark.parametrize("ahead", [True, False])
def test_a_resume_on_either_side_of_the_switch_continues_to_the_bit(pretrain, late, tmp_path, ahead):
    folder = tmp_path / "run"
    shutil.copytree(late, folder)
    for path in list_checkpoints(folder / "checkpoints"):
        if int(path.name[5:]) > (6 if ahead else 11):
            shutil.rmtree(path)
    assert find_checkpoint(folder, "k").state["qat"] is not ahead
    run(pretrain, [*LATE, *sets(out=str(folder), resume="auto")])
    assert losses(folder) == losses(late)
    mine, theirs = (find_checkpoint(each, "k").tensors("model.safetensors") for each in (folder, late))
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_what_would_round_nothing_is_refused(pretrain, tmp_path):
    for keys, message in (
        ({"schedule__kind": "constant"}, "does not fall below it ahead of"),
        ({"schedule__decay_frac": 0.0}, "does not fall below it ahead of"),
        ({"artefact": {"keep_numel": 10**6}}, "all matrices of this model in 16 bits or more"),
    ):
        with pytest.raises(ConfigError, match=message):
            run(pretrain, [*LATE, *sets(out=str(tmp_path / "r"), **keys)])
