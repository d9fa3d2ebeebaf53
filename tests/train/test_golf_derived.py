"""Values of the two parameter-golf systems that their specification does not print, found from its text alone.

What they are held against is written from that text and from none of our code: tests/harness/golf_text.py, and the
short forms in this file. At the specification's own sizes that reference gives the specification's own values, which
the first test sees; the others are at odd sizes: three heads a key, an odd number of blocks, other text.
"""

from __future__ import annotations

import dataclasses
import fractions
import math

import golf_text
import golf_toy
import numpy as np
import pytest
import torch
from golf_text import Size
from hypothesis import given
from hypothesis import strategies as st

from train.config import (
    AdamWConfig,
    EMAConfig,
    GroupConfig,
    GroupsConfig,
    ModelConfig,
    MuonConfig,
    QATConfig,
    ScheduleConfig,
    SWAConfig,
    TrainConfig,
)
from train.eval.windows import sliding_windows
from train.model.fake_quant import FakeQuant
from train.model.transformer import Model
from train.optim.averages import Averages
from train.optim.muon import momentum_at
from train.optim.optimizer import Optimizer
from train.optim.schedule import StepTimer, lr_factor
from train.quantize import dequantize, quantize

TABLE_S2 = Size()
TABLE_S4 = Size(memory=4, rope_dims=8, depth_scale=True, further=2)
ODD_S2 = Size(width=48, layers=5, heads=6, kv_heads=3, hidden=80, buckets=53, bigram_width=12)
ODD_S4 = ODD_S2._replace(layers=3, memory=3, rope_dims=4, depth_scale=True, further=2)


def config(size: Size) -> ModelConfig:
    """The keys of a model of that size."""
    return dataclasses.replace(
        golf_toy.S4 if size.memory else golf_toy.S2,
        dim=size.width,
        n_layers=size.layers,
        n_heads=size.heads,
        n_kv_heads=size.kv_heads,
        mlp_hidden=size.hidden,
        bigram_buckets=size.buckets,
        bigram_dim=size.bigram_width,
        memory_tokens=size.memory,
        rope_dims=size.rope_dims,
        mtp_heads=size.further,
    )


def ours(size: Size, weights: golf_text.Weights) -> golf_text.Weights:
    """The originals' weights by our names, the rotating rows of q and k for a rotation the other way round."""
    names = {"tok_emb": "embed.weight", "M": "memory.tokens", "gate": "smear.gate", "bigram.scale": "bigram.scale"}
    names |= {f"bigram.{part}": f"bigram.{part}.weight" for part in ("embed", "proj")}
    parts = {"c_q": "attn.q", "c_k": "attn.k", "c_v": "attn.v", "proj": "attn.o", "fc": "mlp.up"}
    parts["mlp_proj"] = "mlp.down"
    result = {}
    for name, value in weights.items():
        first, last = name.split(".")[0], name.split(".")[-1]
        if name == "skip":
            result |= {f"blocks.{size.layers // 2 + j}.skip": row for j, row in enumerate(value)}
        elif last == "mix":
            result |= {f"blocks.{first}.x_mix": value[0], f"blocks.{first}.x0_mix": value[1]}
        elif first == "mtp":
            result[f"mtp.heads.{last}.weight"] = value
        elif name in names:
            result[names[name]] = value
        elif last == "q_gain":
            result[f"blocks.{first}.attn.q_gain"] = value
        elif last in parts:
            turned = last in ("c_q", "c_k")
            value = golf_toy.flip_rotary_rows(value, config(size)) if turned else value
            result[f"blocks.{first}.{parts[last]}.weight"] = value
        else:
            result[f"blocks.{first}.{last}"] = value
    return result


def model_of(size: Size) -> Model:
    model = Model(config(size), size.vocabulary)
    weights = ours(size, golf_text.fill(size))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights.pop(name).view_as(parameter))
    assert not weights
    return model


def test_the_reference_gives_the_specifications_values():
    """4: losses, norms of the gradient, and the loss of the heads for further tokens."""
    batch = golf_text.text(TABLE_S2, 16, 2)
    for size, loss, further, norm in ((TABLE_S2, 4.872219, 0, 3.654259), (TABLE_S4, 4.383133, 4.505465, 3.506795)):
        weights = {name: value.requires_grad_() for name, value in golf_text.fill(size).items()}
        found = golf_text.losses(weights, size, *batch)
        trained = [w for name, w in weights.items() if not name.startswith("mtp")]
        gradients = torch.autograd.grad(found[0], trained)
        assert [float(x.detach()) for x in found] == pytest.approx([loss, further], abs=1e-6)
        assert math.sqrt(sum(float(g.square().sum()) for g in gradients)) == pytest.approx(norm, abs=1e-6)


@pytest.mark.parametrize("length", [5, 12])
@pytest.mark.parametrize("size", [ODD_S2, ODD_S4, ODD_S2._replace(kv_heads=1, layers=1)], ids=["S2", "S4", "one block"])
def test_losses_and_gradients_at_other_sizes(size, length):
    ids, targets = golf_text.text(size, length, 3, first=2)
    weights = {name: value.requires_grad_() for name, value in golf_text.fill(size).items()}
    main, further = golf_text.losses(weights, size, ids, targets)
    gradients = torch.autograd.grad(main + 0.2 * further, [*weights.values()], allow_unused=True)
    filled = {n: torch.zeros_like(w) if g is None else g for (n, w), g in zip(weights.items(), gradients, strict=True)}
    wanted = ours(size, filled)
    model = model_of(size)
    total, ce = model(ids, targets)
    total.backward()
    assert float(ce) == pytest.approx(float(main.detach()), abs=2e-6)
    assert float(total.detach()) == pytest.approx(float((main + 0.2 * further).detach()), abs=2e-6)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, wanted[name].view_as(parameter), rtol=1e-3, atol=5e-6), name


GROUPS_S2 = GroupsConfig(tokens=GroupConfig(0.03, 0.01), scalars=GroupConfig(0.02, 0.01))
GROUPS_S4 = GroupsConfig(GroupConfig(0.05, 0.04), GroupConfig(0.04, 0.04), GroupConfig(0.04, 0), GroupConfig(0.008, 0))
MUON = MuonConfig(ns="jordan5", scale="aspect", weight_decay=0.04)
RULES = {
    "S2": (
        dataclasses.replace(MUON, lr=0.02, momentum=0.99, momentum_start=0.92, momentum_warmup=1500),
        GROUPS_S2,
    ),
    "S4": (
        dataclasses.replace(
            MUON, lr=0.04, momentum=0.95, momentum_start=0.85, momentum_warmup=500, decay_order="after"
        ),
        GROUPS_S4,
    ),
}


@pytest.mark.parametrize(("system", "size"), [("S2", ODD_S2._replace(layers=3)), ("S4", ODD_S4)], ids=["S2", "S4"])
def test_five_steps_with_averages_and_six_bits_at_the_end(system, size):
    """1.4, 1.5, 2.3, 2.4, 3.3, 3.5, 3.6: scales 1, 1, 1, 2/3, 1/3; the last step of both is in six bits."""
    batches = [golf_text.text(size, 12, 3, first) for first in (5, 9, 31, 40, 3)]
    told, kept = golf_text.train(size, batches, warmdown=3, qat_from=0.7)
    muon, groups = RULES[system]
    cfg = TrainConfig(
        steps=5,
        muon=muon,
        groups=groups,
        adamw=AdamWConfig(eps=1e-8),
        grad_clip=0.3,
        schedule=ScheduleConfig(kind="warmdown", warmdown=3),
        ema=EMAConfig(0.8, 2),
        swa=SWAConfig(0.9, 1),
        qat=QATConfig(0.7, "int6"),
    )
    model = model_of(size)
    optimizer, averages = Optimizer(model, cfg), Averages(model, cfg)
    switch = FakeQuant(model, cfg.qat, cfg.artefact)
    before = 1.0
    for step, batch in enumerate(batches):
        factor = lr_factor(step, cfg.steps, cfg.schedule)
        model.mtp_weight, before = 0.2 * before, factor
        optimizer.grads_and_loss.zero_()
        total, _ = model(*batch)
        total.backward()
        norm = optimizer.clip()
        bound = 5e-6 * 2**step  # a step makes of the last bits, which differ by processor, at least twice as much
        assert (float(total.detach()), float(norm)) == pytest.approx(told[step], abs=bound, rel=bound), step
        optimizer.step(factor, momentum_at(step, cfg.muon))
        averages.update(step + 1, factor)
        if factor < cfg.qat.start_frac:
            switch.turn_on()
    states = [ours(size, weights) for weights in (golf_text.fill(size), *kept)]
    for name, parameter in model.named_parameters():
        at = [state[name].view_as(parameter) for state in states]
        wanted = {
            "": at[5],
            "ema": 0.8 * (0.8 * at[0] + 0.2 * at[2]) + 0.2 * at[4],  # after steps 2 and 4
            "swa": (at[4] + at[5]) / 2,  # of the steps whose scale is below .9
        }
        found = {"": parameter.detach()} | {a: held.tensors[name] for a, held in averages.by_name.items()}
        for average, want in wanted.items():  # five steps make of the last bits some 1e-4 of what they move
            assert (found[average] - want).norm() <= 1e-3 * (want - at[0]).norm(), (name, average)


# ---------------------------------------------------------------------------------------------------------------------
# 1.6 Quantizers, one number at a time


def quantized(row: list[float], c: int) -> tuple[float, list[int], list[float]]:
    """int6 (c = 31) or int5 (15) of one row: the scale, q, and the row as it is read back."""
    w = np.array(row, np.float32)
    largest = max(abs(x) for x in w)
    scale = np.float32(np.float16(max(np.float32(largest / np.float32(c)), np.float32(1e-12))))
    scale = max(scale, np.float32(2.0**-14))  # 6.104e-5, fp16's smallest normal number
    q = [int(min(max(float(np.rint(x / scale)), -c - 1), c)) for x in w]
    return float(scale), q, [float(np.float32(n) * scale) for n in q]


NASTY = [
    [0.0, -0.0, 0.0, 0.0],
    [1e-45, -1e-45, 1e-40, 0.0],  # fp32's own denormals
    [6e-8, -3e-5, 3.05e-5, 6.1e-5],  # around fp16's
    [9.155e-4, -9.156e-4, 4.5e-4, -4.6e-4],  # around int5's smallest row
    [3e4, 1.0, -1.0, 1e-3],  # one is huge
    [-1e-3, 1e-3, 5e-4, -5e-4],
    [0.5, 0.25, -0.75, 1.5],  # halves of a step, to the even one
]


@pytest.mark.parametrize(("kind", "c"), [("int5", 15), ("int6", 31)])
def test_nasty_rows(kind, c):
    got = quantize(torch.tensor(NASTY), kind)
    back = dequantize(got)
    for n, row in enumerate(NASTY):
        scale, q, values = quantized(row, c)
        assert (float(got.scale[n]), got.q[n].tolist(), back[n].tolist()) == (scale, q, values), row


@given(st.lists(st.floats(-6e4, 6e4, width=32), min_size=1, max_size=9), st.sampled_from([("int5", 15), ("int6", 31)]))
def test_any_row(row, of):
    kind, c = of
    got = quantize(torch.tensor([row]), kind)
    assert (float(got.scale[0]), got.q[0].tolist()) == quantized(row, c)[:2]


# ---------------------------------------------------------------------------------------------------------------------
# 2.5, 3.8 Sliding windows, counted


def scored(targets: int, length: int, stride: int, counting: str) -> list[int]:
    """How often each target is scored, by the words of 2.5 (pr465), 3.8 (pr352) and 6.5 (once)."""
    times, start, done = [0] * targets, 0, 0
    while start < targets:
        end = min(start + length, targets)
        if counting == "pr352":
            scores = range(end - stride, end) if start + length <= targets else range(0)
        elif counting == "pr465":
            scores = range(start, end) if start == 0 else range(start + max(end - start - stride, 0), end)
        else:
            scores, done = range(done, end), end
        for t in scores:
            times[t] += 1
        start += stride
    return times


@pytest.mark.parametrize(
    ("counting", "total", "times"),
    [  # T = 13, L = 7, S = 3, by hand: windows at 0, 3, 6, 9 and 12
        ("pr465", 17, [1] * 10 + [2, 2, 3]),  # scored: 0-6, 7-9, 10-12, 10-12, 12
        ("pr352", 9, [0] * 4 + [1] * 9),  # 4-6, 7-9, 10-12
        ("once", 13, [1] * 13),
    ],
)
def test_a_table_of_windows(counting, total, times):
    assert scored(13, 7, 3, counting) == times and sum(times) == total
    assert counted(13, 7, 3, counting) == times


def counted(targets, length, stride, counting):
    times = [0] * targets
    for window in sliding_windows(targets, length, stride, counting):
        for t in range(window.first, window.stop):
            times[t] += 1
    return times


@given(st.integers(0, 120), st.integers(1, 30), st.data(), st.sampled_from(["once", "pr465", "pr352"]))
def test_any_table_of_windows(targets, length, data, counting):
    stride = data.draw(st.integers(1, length))
    assert counted(targets, length, stride, counting) == scored(targets, length, stride, counting)


# ---------------------------------------------------------------------------------------------------------------------
# 1.5 The scale by the wall clock


def scale_at(t: int, elapsed_ms: float, cap_ms: float, warmdown: int) -> float:
    """r / (W step_ms) if r <= W step_ms else 1, of exact numbers."""
    step_ms = fractions.Fraction(elapsed_ms) / max(t, 1)
    left = max(fractions.Fraction(cap_ms) - fractions.Fraction(elapsed_ms), 0)
    return float(left / (warmdown * step_ms)) if left <= warmdown * step_ms else 1.0


@given(st.integers(1, 9000), st.floats(20, 900), st.integers(1, 5000), st.floats(1e4, 1e6))
def test_the_scale_by_the_clock(t, step_ms, warmdown, cap_ms):
    """Where the clock ends the run: at t steps of step_ms each, before the cap."""
    elapsed = t * step_ms
    if elapsed >= cap_ms:
        return
    total = StepTimer(elapsed / 1e3, t).total(10**9, cap_ms / 1e3)
    schedule = ScheduleConfig(kind="warmdown", warmdown=warmdown, seconds=cap_ms / 1e3, overrun=True)
    assert lr_factor(t, total, schedule) == pytest.approx(scale_at(t, elapsed, cap_ms, warmdown), rel=1e-9, abs=1e-12)


def test_three_points_of_that_scale():
    """4,711 steps at 97.3 ms, and 7,000 at 64.3277 ms after one that took 29.7 s: worked out by hand."""
    schedule = ScheduleConfig(kind="warmdown", warmdown=3000, seconds=600, overrun=True)
    for t, elapsed, want in (
        (3166, 3166 * 97.3, 1.0),  # 600,000 / 97.3 = 6166.495: falls from step 3166.495 on
        (4711, 4711 * 97.3, 0.485165),  # (6166.495 - 4711) / 3000
        (7000, 7000 * 64.3277 + 29_700, 0.583370),  # (600,000 / 68.570557 - 7000) / 3000
    ):
        assert lr_factor(t, StepTimer(elapsed / 1e3, t).total(20_000, 600), schedule) == pytest.approx(want, abs=1e-6)
