"""Dead parts are told: parameters that never moved, parts without effect, graphs compiled inside the clock."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainer_harness import sets

from train import step
from train.config import ModelConfig
from train.main import run
from train.model.transformer import build
from train.monitor import dead_parts
from train.monitor.dead_parts import DeadPartWatch, parts_without_effect, sums_of_bits

TINY = ModelConfig(dim=16, n_layers=2, n_heads=2, max_seq_len=32, sliding_window=8)
IDS = torch.arange(12)[None]


def told(folder):
    return json.loads((folder / "summary.json").read_text())["dead_parts"]


def test_a_run_without_a_dead_part_says_so_in_a_line(pretrain, tmp_path, capsys):
    run(pretrain, sets(out=str(tmp_path / "r"), steps=3))
    said = capsys.readouterr().out
    assert "parts      none is dead: 20 parameters moved, nothing was compiled inside the clock" in said
    assert "dead part(s)" not in said
    assert "## Dead parts\n\nNone." in (tmp_path / "r/summary.md").read_text()
    assert told(tmp_path / "r") == {"parameters": {}, "outputs": [], "compiled": []}


def test_parameters_that_never_move_are_told(pretrain, tmp_path, capsys):
    run(pretrain, sets(out=str(tmp_path / "r"), steps=3, groups__scalars={"lr": 0.0, "weight_decay": 0.0}))
    norms = [f"blocks.{i}.{part}_norm.weight" for i in range(2) for part in ("attn", "mlp")] + ["norm.weight"]
    assert told(tmp_path / "r")["parameters"] == dict.fromkeys(norms, "32 values that never moved")
    page = (tmp_path / "r/summary.md").read_text()
    assert "## Dead parts\n\n| what | why |" in page and "| norm.weight | 32 values that never moved |" in page
    said = capsys.readouterr().out
    assert "warning: 5 dead part(s)" in said and "           norm.weight: 32 values that never moved" in said


def test_a_parameter_that_decay_alone_moves_is_told():
    model = build(TINY, 20, 0)
    parameters = dict(model.named_parameters())
    watch = DeadPartWatch(parameters, False)
    watch.begin_step()
    for name, parameter in parameters.items():
        parameter.grad = torch.ones_like(parameter) * (name != "norm.weight")
        parameter.data.mul_(0.5)
    watch.look_at_gradients()
    watch.end_step(1)
    found = watch.find(model, IDS)
    assert found is not None and found.parameters == {
        "norm.weight": "16 values without a gradient in 1 step(s) looked at"
    }
    for parameter in parameters.values():
        parameter.grad.fill_(1.0)
    watch.look_at_gradients()
    assert watch.all_had_gradient and watch.find(model, IDS).parameters == {}


def test_parts_whose_output_is_zero_or_their_input_are_told_and_not_what_is_in_them():
    model = build(TINY, 20, 0)
    assert parts_without_effect(model, IDS) == []
    model.blocks[1].attn.o.weight.data.zero_()
    assert parts_without_effect(model, IDS) == ["blocks.1.attn"]
    for part in (model.blocks[0].attn.o, model.blocks[0].mlp.down):
        part.weight.data.zero_()
    assert parts_without_effect(model, IDS) == ["blocks.0", "blocks.1.attn"]
    assert model.training and not any(m._forward_hooks for m in model.modules())


def test_an_engram_whose_gate_is_closed_has_no_effect():
    cfg = ModelConfig(**{**vars(TINY), "engram_enabled": True, "engram_inject_layer": 1})
    assert parts_without_effect(build(cfg, 20, 0), IDS) == ["engram"]


@given(st.integers(1, 9), st.data())
def test_a_changed_value_changes_the_sums(count, data):
    values = torch.tensor(data.draw(st.lists(st.floats(width=32), min_size=count, max_size=count)))
    before = sums_of_bits({"w": values})
    assert torch.equal(before, sums_of_bits({"w": values.clone()}))
    place = data.draw(st.integers(0, count - 1))
    changed = values.clone()
    changed.view(torch.int32)[place] += 1
    assert (before != sums_of_bits({"w": changed})).any()


def test_two_values_that_change_places_change_the_sums(monkeypatch):
    monkeypatch.setattr(dead_parts, "CHUNK", 2)
    one, other = (sums_of_bits({"w": torch.tensor(values)}) for values in ([1.0, 2, 3], [3.0, 2, 1]))
    assert one[0, 0] == other[0, 0] and one[0, 1] != other[0, 1]


@pytest.mark.parametrize(("warmup", "steps"), [(0, [3]), (1, [1, 3])])
def test_graphs_compiled_inside_the_clock_are_told(pretrain, tmp_path, monkeypatch, capsys, warmup, steps):
    """In the first step too, where steps ahead of it should have compiled everything."""
    graphs = [0]
    monkeypatch.setattr(dead_parts, "graphs_compiled", lambda: graphs[0])
    backward = step.backward

    def compiling(run, micro_batch):
        if run.dead_parts.steps in (0, 2):
            graphs[0] += 1
        backward(run, micro_batch)

    monkeypatch.setattr(step, "backward", compiling)
    run(pretrain, sets(out=str(tmp_path / "r"), steps=4, kernel_warmup=warmup))
    assert told(tmp_path / "r")["compiled"] == steps
    said = capsys.readouterr().out
    assert f"compiled inside the clock: in {len(steps)} step(s): {', '.join(map(str, steps))};" in said
    assert [f"warning: step {n}: a graph was compiled" in said for n in range(1, 5)] == [
        n in steps for n in range(1, 5)
    ]


def test_a_graph_that_is_compiled_again_is_told_with_the_reason():
    torch._dynamo.reset()
    watch = dead_parts.DeadPartWatch({"w": torch.ones(3)}, first_is_timed=False)
    double = torch.compile(lambda x: 2 * x, dynamic=False, backend="eager")
    warnings = []
    for number, size in enumerate((3, 3, 4), 1):
        watch.begin_step()
        double(torch.ones(size))
        warnings.append(watch.end_step(number))
    assert warnings[:2] == [None, None] and "size mismatch at index 0. expected 3, actual 4" in warnings[2]
    assert watch.compiled == [3]
    torch._dynamo.reset()


def test_a_start_that_makes_no_step_tells_nothing_and_keeps_what_was_found(pretrain, tmp_path, capsys):
    run(pretrain, sets(out=str(tmp_path / "r"), steps=3))
    before = told(tmp_path / "r")
    capsys.readouterr()
    run(pretrain, sets(out=str(tmp_path / "r"), steps=3, resume="auto"))
    assert "dead" not in capsys.readouterr().out and told(tmp_path / "r") == before is not None
