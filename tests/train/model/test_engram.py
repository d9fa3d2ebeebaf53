"""The engram: nothing at the start, learned after it; and absent when it is off."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_harness import MODEL as HARNESS_MODEL
from trainer_harness import losses, sets

from train.checkpoint.run_folder import run_identity
from train.config import AdamWConfig, ModelConfig, TrainConfig, TrainError
from train.main import run
from train.model.engram import Engram
from train.model.transformer import build, count_parameters
from train.optim.optimizer import Optimizer

OFF = ModelConfig(
    dim=32, n_layers=4, n_heads=2, max_seq_len=32, sliding_window=8, engram_slots=10, engram_inject_layer=2
)
ON = dataclasses.replace(OFF, engram_enabled=True)
V = 50
IDS = torch.randint(0, V, (3, 25), generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@settings(max_examples=15)
@given(
    layer=st.integers(0, 3),
    slots=st.integers(1, 600),
    seed=st.integers(0, 99),
    tied=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_at_the_start_logits_and_weights_are_those_without_it_to_the_bit(layer, slots, seed, tied, dtype):
    change = {"engram_slots": slots, "engram_inject_layer": layer, "tie_embeddings": tied}
    on, off = build(dataclasses.replace(ON, **change), V, seed), build(dataclasses.replace(OFF, **change), V, seed)
    on.dtype = off.dtype = dtype
    bank = {n for n, _ in on.named_parameters()} - {n for n, _ in off.named_parameters()}
    assert bank == {"engram.keys", "engram.values", "engram.gate", "engram.norm.weight"}
    for name, p in off.named_parameters():
        assert torch.equal(p, on.get_parameter(name)), name
    assert torch.equal(on.logits(on.trunk(IDS)), off.logits(off.trunk(IDS)))
    assert torch.equal(on.trunk(IDS), off.trunk(IDS))
    added = sum(p.numel() for p in on.parameters()) - sum(p.numel() for p in off.parameters())
    assert added == 2 * slots * 32 + 2 * 32 == count_parameters(on.cfg, V) - count_parameters(off.cfg, V)
    assert on.engram.keys.std() > 0


def test_it_is_the_formula():
    """x + g * (softmax(RMSNorm(x) Kᵀ / sqrt(d)) V), by hand in fp64, where the gate is open."""
    engram = Engram(ON)
    generator = torch.Generator().manual_seed(1)
    for p in engram.parameters():
        torch.nn.init.normal_(p, generator=generator)
    x = torch.randn(2, 5, 32, generator=generator)
    k, v, g, w = (p.detach().double() for p in (engram.keys, engram.values, engram.gate, engram.norm.weight))
    y = x.double()
    y = y / (y.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w
    score = (y @ k.T / 32**0.5).exp()
    want = x.double() + g * ((score / score.sum(-1, keepdim=True)) @ v)
    assert torch.allclose(engram(x).double(), want, atol=1e-5)


def test_it_is_read_ahead_of_the_layer_that_is_named():
    for layer in range(4):
        model = build(dataclasses.replace(ON, engram_inject_layer=layer), V, 1)
        torch.nn.init.ones_(model.engram.gate)
        inputs = []
        for block in model.blocks:
            block.register_forward_pre_hook(lambda _, given, seen=inputs: seen.append(given[0]))
        read = []
        model.engram.register_forward_hook(lambda _, given, out, read=read: read.append(out))
        model.trunk(IDS)
        assert [x is read[0] for x in inputs] == [i == layer for i in range(4)]


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_gate_learns_first_then_all_and_none_decays(optimizer):
    model = build(ON, V, 1)
    cfg = TrainConfig(optimizer=optimizer, grad_clip=0, adamw=AdamWConfig(lr=0.01, weight_decay=0.5))
    rule = Optimizer(model, cfg)
    bank = [n for n, _ in model.named_parameters() if n.startswith("engram.")]
    assert set(bank) <= {n for m in rule.adamw_groups for n in m.names}  # AdamW's, also under Muon
    before = {n: model.get_parameter(n).clone() for n in bank}

    def update():
        rule.grads.zero_()
        model(IDS[:, :-1], IDS[:, 1:])[0].backward()
        rule.step(1.0)

    update()
    for name in bank:
        # without a gradient (the gate was 0) only decay could have moved the others
        assert torch.equal(before[name], model.get_parameter(name)) == (name != "engram.gate"), name
    update()
    assert all(not torch.equal(before[n], model.get_parameter(n)) for n in bank)
    (decaying,) = (m.names for m in rule.adamw_groups if m.cfg.weight_decay)
    assert "embed.weight" in decaying and not any("engram" in n for n in decaying)


def test_off_it_is_no_part_of_a_run(manifest):
    """A run's identity neither has nor depends on the bank's size, so runs from before there was one still resume."""
    small = ModelConfig(**HARNESS_MODEL)
    off = run_identity(manifest, small, TrainConfig())
    assert off == run_identity(manifest, dataclasses.replace(small, engram_slots=3), TrainConfig())
    assert not any(key.startswith("engram") for key in off["model"])
    on = dataclasses.replace(small, engram_enabled=True, engram_inject_layer=1)
    assert run_identity(manifest, on, TrainConfig())["model"]["engram_slots"] == 512
    assert build(OFF, V, 1).engram is None


@pytest.mark.slow
def test_a_run_with_it_starts_as_one_without_and_resumes_exactly(pretrain, tmp_path):
    on = ["model.engram_enabled=true", "model.engram_inject_layer=1", "model.engram_slots=32"]
    whole, cut, off = (tmp_path / name for name in ("whole", "cut", "off"))
    run(pretrain, [*on, *sets(out=str(whole), steps=8)])
    run(pretrain, sets(out=str(off), steps=8))
    mine, theirs = losses(whole), losses(off)
    assert mine[1] == theirs[1] and mine[8] != theirs[8]
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints/step_000008")
    run(pretrain, [*on, *sets(out=str(cut), steps=8, resume="auto")])
    files = [(f / "checkpoints/step_000008/model.safetensors").read_bytes() for f in (whole, cut)]
    assert losses(cut) == mine and files[0] == files[1]
    with pytest.raises(TrainError, match=r"another model: model\.engram_enabled"):
        run(pretrain, [*on, *sets(out=str(tmp_path / "r"), init_from=str(off))])
