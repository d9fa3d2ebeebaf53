"""Golden values of the two parameter-golf records, PR 465 (golf_int5_sp1024) and PR 352 (golf_memory_tokens).

They were produced by running the records' own functions in fp32 on a CPU, or derived from their rules. Numbers such as
1.4 are the sections of the specification that they stand in.
"""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from golf_toy import S2, S4
from torch import Tensor, nn

from train.config import AdamWConfig, EMAConfig, ModelConfig, MuonConfig, ScheduleConfig, SWAConfig, TrainConfig
from train.model.transformer import on_meta_device
from train.optim.averages import Averages
from train.optim.muon import momentum_at, newton_schulz
from train.optim.optimizer import Optimizer, group_of
from train.optim.schedule import StepTimer, lr_factor

CAP = 600.0  # seconds
BY_CLOCK = ScheduleConfig(kind="warmdown", warmdown=3000, seconds=CAP)


@pytest.mark.parametrize(
    ("matrix", "factor", "expected"),
    [
        ([[1, 2], [3, 4]], 1, [[-0.680661, 0.825539], [0.741295, 0.259440]]),
        ([[1, 2, 3], [4, 5, 6]], 1, [[-0.568290, 0.057742, 0.683774], [0.563355, 0.405613, 0.247871]]),
        (
            [[1, 4], [2, 5], [3, 6]],
            math.sqrt(1.5),
            [[-0.696011, 0.689966], [0.070720, 0.496772], [0.837449, 0.303578]],
        ),
        ([[0, 0], [0, 0]], 1, [[0, 0], [0, 0]]),
    ],
)
def test_1_4_newton_schulz(matrix, factor, expected):
    got = newton_schulz(torch.tensor([matrix], dtype=torch.float32), "jordan5")[0] * factor
    assert torch.allclose(got, torch.tensor(expected, dtype=torch.float32), atol=2e-6)


class OneMatrix(nn.Module):
    """A matrix of Muon's, and a vector that AdamW has."""

    def __init__(self, matrix: Tensor, vector: Tensor) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(*matrix.shape[::-1], bias=False)])
        self.blocks[0].weight.data = matrix
        self.scale = nn.Parameter(vector)


def train_two_steps(cfg: TrainConfig, start: Tensor, gradients: list[Tensor], moments: list[float]) -> list[Tensor]:
    """The parameter of two updates, Muon's if it is a matrix, and after them Muon's momentum."""
    is_matrix = start.ndim == 2
    other = torch.zeros(1) if is_matrix else torch.zeros(1, 1)
    model = OneMatrix(*((start, other) if is_matrix else (other, start)))
    optimizer = Optimizer(model, cfg)
    parameter = model.blocks[0].weight if is_matrix else model.scale
    after = []
    for gradient, momentum in zip(gradients, moments, strict=True):
        parameter.grad.copy_(gradient)
        optimizer.step(1.0, momentum)
        after.append(parameter.detach().clone())
    return [*after, dict(optimizer.muon_groups[0].state())["muon.blocks.0.weight"].T]


@pytest.mark.parametrize(
    ("order", "first", "second"),
    [
        (
            "before",
            [1.0005455, -0.9810913, 0.4847974, 1.9844532, 0.0120078, 2.9881864],
            [1.0113274, -0.9905937, 0.4719008, 1.9732395, 0.0123115, 2.9953878],
        ),
        (
            "after",
            [1.0005444, -0.9811057, 0.4848093, 1.9844644, 0.0119982, 2.9881938],
            [1.0113170, -0.9905999, 0.4719226, 1.9732585, 0.0123017, 2.9953876],
        ),
    ],
)
def test_1_4_muon_in_two_steps(order, first, second):
    muon = MuonConfig(lr=0.02, weight_decay=0.04, ns="jordan5", scale="aspect", decay_order=order)
    start = torch.tensor([[1, -1], [0.5, 2], [0, 3]])
    g1 = torch.tensor([[0.1, -0.2], [0.3, 0.05], [-0.4, 0.2]])
    g2 = torch.tensor([[-0.1, 0.1], [0.2, 0.3], [0.05, -0.25]])
    *got, buffer = train_two_steps(TrainConfig(muon=muon), start, [g1, g2], [0.92, 0.95])
    for weights, want in zip(got, (first, second), strict=True):
        assert weights.flatten().tolist() == pytest.approx(want, abs=2e-7)
    assert buffer.flatten().tolist() == pytest.approx([-0.005, -0.09, 0.485, 0.3475, -0.33, -0.06], abs=1e-7)


@pytest.mark.parametrize(
    ("decay", "first", "second"),
    [
        (0.01, [0.9798, -1.9796001, 0.4999], [0.98939, -1.9738368, 0.4851009]),
        (0.04, [0.9792, -1.9784, 0.4996], [0.9882025, -1.9714499, 0.4845011]),
        (0.0, [0.98, -1.98, 0.5], [0.9897859, -1.9746326, 0.4853008]),  # plain Adam
    ],
)
def test_1_4_adamw_in_two_steps(decay, first, second):
    groups = {"scalars": {"lr": 0.02, "weight_decay": decay}}
    cfg = with_groups(groups, adamw=AdamWConfig(lr=9.0, eps=1e-8))
    gradients = [torch.tensor([0.1, -0.2, 0]), torch.tensor([-0.3, 0.1, 0.05])]
    *got, _ = train_two_steps(cfg, torch.tensor([1, -2, 0.5]), gradients, [0.95, 0.95])
    for weights, want in zip(got, (first, second), strict=True):
        assert weights.tolist() == pytest.approx(want, abs=2e-7)


def with_groups(groups, **keys) -> TrainConfig:
    from train.overrides import from_dict

    return from_dict(TrainConfig, {"groups": groups, **{k: vars(v) for k, v in keys.items()}}, "train")


@pytest.mark.parametrize(
    ("start", "end", "steps", "points"),
    [
        (0.92, 0.99, 1500, {0: 0.92, 1: 0.9200467, 375: 0.9375, 750: 0.955, 1500: 0.99, 9000: 0.99}),
        (0.85, 0.95, 500, {1: 0.8502, 125: 0.875, 250: 0.9, 500: 0.95, 9000: 0.95}),
    ],
)
def test_1_4_momentum(start, end, steps, points):
    cfg = MuonConfig(momentum=end, momentum_start=start, momentum_warmup=steps)
    assert {t: momentum_at(t, cfg) for t in points} == pytest.approx(points, abs=5e-8)


def by_clock(step: int, elapsed: float) -> float:
    """The factor of 0-based `step`, with `elapsed` seconds for all before it."""
    return lr_factor(step, StepTimer(elapsed, step).total(20_000, CAP), BY_CLOCK)


@pytest.mark.parametrize(
    ("step", "milliseconds", "factor"),
    [
        (0, 0, 1),
        *((step, 100 * step, 1) for step in (1, 1500, 2999, 3000)),
        (4500, 450_000, 0.5),
        (5700, 570_000, 0.1),
        (4499, 449_483, 0.502189),  # the specification cuts it off: .502188
        (4549, 4549 * 99.91, 0.485468),
        (5998, 599_927, 0.000243),
        (6327, 6327 * 64.3277, 1),
        (6328, 6328 * 64.3277, 0.999747),
        (9027, 9027 * 64.3277, 0.100081),
        (9028, 9028 * 64.3277, 0.099747),
        (9029, 9029 * 64.3277, 0.099414),
    ],
)
def test_1_5_the_rate_by_the_clock(step, milliseconds, factor):
    assert by_clock(step, milliseconds / 1000) == pytest.approx(factor, abs=6e-7)


def test_1_5_twelve_steps():
    cfg = ScheduleConfig(kind="warmdown", warmdown=6)
    want = [1] * 7 + [0.8333, 0.6667, 0.5, 0.3333, 0.1667]
    assert [lr_factor(t, 12, cfg) for t in range(12)] == pytest.approx(want, abs=5e-5)


def average(cfg: TrainConfig, values: list[float], factors: list[float]) -> list[float]:
    """The one average of `cfg` after each step, of a model of one weight that has `values`, the first ahead of all."""
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(values[0])
    averages = Averages(model, cfg)
    (held,) = averages.by_name.values()
    got = []
    for step, (value, factor) in enumerate(zip(values[1:], factors, strict=True), 1):
        model.weight.data.fill_(value)
        averages.update(step, factor)
        got.append(float(held.tensors["weight"]))
    return got


def test_3_6_ema():
    cfg = TrainConfig(ema=EMAConfig(0.997**10, 1))
    assert average(cfg, [1, 2, 3, 4], [1] * 3) == pytest.approx([1.0295982, 1.0879186, 1.1741110], abs=2e-7)


def test_2_4_swa_takes_29_snapshots_in_fp32():
    """4550 to 5950, of 5,999 steps at 99.91 ms; the records' sum in bf16 makes .1 to .0986 and .314 to .3105."""
    cfg = TrainConfig(steps=20_000, schedule=BY_CLOCK, swa=SWAConfig(0.5, 50))
    factors = [by_clock(t, t * 0.09991) for t in range(5999)]
    model = nn.Linear(1, 1, bias=False)
    averages, taken = Averages(model, cfg), []
    for step, factor in enumerate(factors, 1):
        count = averages.by_name["swa"].count
        model.weight.data.fill_(0.3 + 0.001 * count)
        averages.update(step, factor)
        if averages.by_name["swa"].count > count:
            taken.append(step)
    assert taken == list(range(4550, 5951, 50)) and len(taken) == 29
    assert float(averages.by_name["swa"].tensors["weight"]) == pytest.approx(0.314, abs=1e-6)


def values_by_group(cfg: ModelConfig) -> dict[str, tuple[int, int]]:
    """Group -> tensors and values, of the whole model with 1,024 ids."""
    sizes: dict[str, list[int]] = {}
    for name, parameter in on_meta_device(cfg, 1024).named_parameters():
        sizes.setdefault(group_of(name, parameter), []).append(parameter.numel())
    return {group: (len(each), sum(each)) for group, each in sizes.items()}


def test_2_3_and_3_4_groups_of_the_whole_models():
    """61 matrices are Muon's, the bigram's projection among them; a mix is two tensors here, and all skips are five."""
    sizes = {"dim": 512, "n_layers": 10, "n_heads": 8, "n_kv_heads": 4, "mlp_hidden": 1536, "bigram_dim": 128}
    s2 = dataclasses.replace(S2, **sizes, bigram_buckets=4096)
    s4 = dataclasses.replace(S4, **sizes, bigram_buckets=10240, memory_tokens=64, rope_dims=16, mtp_heads=2)
    scalars = 20_560 + 2_560 + 512 + 1
    both = {"matrices": (61, 23_658_496), "scalars": (50 + 5 + 1 + 1, scalars)}
    assert values_by_group(s2) == {**both, "tokens": (2, 2 * 524_288)}
    assert values_by_group(s4) == {
        **both,
        "tokens": (2, 524_288 + 1_310_720),
        "memory": (1, 32_768),
        "mtp": (2, 2 * 524_288),
    }
    assert sum(count for _, count in values_by_group(s2).values()) == 24_730_705
    assert sum(count for _, count in values_by_group(s4).values()) == 26_598_481
