"""The golden values of docs/trainer-math.md, computed apart from this code in numpy, fp64."""

from __future__ import annotations

import math

import pytest
import torch

from train.config import ModelConfig, ScheduleConfig
from train.eval.validation import Score
from train.model.loss import head_loss, head_loss_reference
from train.model.transformer import count_parameters
from train.optim.muon import newton_schulz, newton_schulz_reference
from train.optim.schedule import lr_factor


@pytest.mark.parametrize(
    ("matrix", "schedule", "expected"),
    [
        ([[1, 2], [3, 4]], "jordan5", [[-0.680661, 0.825540], [0.741295, 0.259440]]),
        ([[1, 2, 3], [4, 5, 6]], "jordan5", [[-0.568290, 0.057742, 0.683774], [0.563355, 0.405613, 0.247871]]),
        ([[1, 2], [3, 4]], "dsv4", [[-0.514885, 0.857777], [0.857677, 0.514387]]),
        # from the singular values, in numpy
        ([[1, 2], [3, 4]], "polar_express", [[-0.610182, 0.943948], [0.924033, 0.510607]]),
        ([[1, 2, 3], [4, 5, 6]], "polar_express", [[-0.557763, 0.093053, 0.743870], [0.639324, 0.497011, 0.354697]]),
    ],
)
def test_newton_schulz(matrix, schedule, expected):
    g = torch.tensor(matrix, dtype=torch.float64)
    want = torch.tensor(expected, dtype=torch.float64)
    assert torch.allclose(newton_schulz_reference(g, schedule), want, atol=2e-6)
    assert torch.allclose(newton_schulz_reference(g.T, schedule), want.T, atol=2e-6)
    assert torch.allclose(newton_schulz(g[None], schedule)[0], want, atol=2e-6)
    assert torch.allclose(newton_schulz(g.T[None], schedule)[0], want.T, atol=2e-6)


def test_newton_schulz_of_a_tall_matrix_with_its_scale():
    g = torch.tensor([[1.0, 2, 3], [4, 5, 6]], dtype=torch.float64).T
    want = [[-0.696010, 0.689966], [0.070719, 0.496772], [0.837449, 0.303579]]
    got = newton_schulz_reference(g, "jordan5") * math.sqrt(1.5)
    assert torch.allclose(got, torch.tensor(want, dtype=torch.float64), atol=2e-6)


def test_cap_and_z_loss():
    z, target = torch.tensor([[10.0, -5.0, 40.0]]), torch.tensor([0])
    for loss in (head_loss_reference, head_loss):  # h = z, weight = identity
        total, ce = loss(z, torch.eye(3), target, 30.0, 1e-4)
        assert float(ce) == pytest.approx(16.456468, abs=1e-5)  # five units of 16 in float32
        assert float(total) == pytest.approx(16.524598, abs=1e-5)
        assert float(total - ce) == pytest.approx(0.068131, abs=1e-5)


@pytest.mark.parametrize(
    ("step", "linear", "sqrt", "cosine"),
    [
        (0, 6.667e-4, 6.667e-4, 6.667e-4),
        (1499, 1, 1, 1),
        (80299, 1, 1, 1),
        (85225, 0.75, 0.5, 0.853553),
        (90150, 0.5, 0.292893, 0.5),
        (95075, 0.25, 0.133975, 0.146447),
    ],
)
def test_wsd(step, linear, sqrt, cosine):
    for shape, want in (("linear", linear), ("sqrt", sqrt), ("cosine", cosine)):
        cfg = ScheduleConfig(kind="wsd", warmup=1500, decay_frac=0.2, decay_shape=shape)  # type: ignore[arg-type]
        assert lr_factor(step, 100_000, cfg) == pytest.approx(want, abs=1e-6)


def test_cosine_and_constant():
    cosine = ScheduleConfig(kind="cosine", warmup=10, min_ratio=0.1)
    assert [lr_factor(t, 110, cosine) for t in (4, 9, 10, 60)] == pytest.approx([0.5, 1, 1, 0.55])
    assert lr_factor(109, 110, cosine) == pytest.approx(0.1, abs=1e-3)
    assert [lr_factor(t, 100, ScheduleConfig(kind="constant", warmup=2)) for t in (0, 1, 99)] == [0.5, 1, 1]


def test_shard_has_54_538_752_parameters():
    cfg = ModelConfig(dim=512, n_layers=12, n_heads=8, mlp_hidden=2048)
    assert count_parameters(cfg, 8192) == 54_538_752


def test_bits_per_byte():
    assert Score.from_sums(3.0 * 1000, 1000, 2442).bits_per_byte == pytest.approx(1.772353, abs=1e-6)
