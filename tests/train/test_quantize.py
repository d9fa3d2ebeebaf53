"""The quantizers of the artefact, against values of the originals' own scripts (parameter-golf, PR 465 and PR 352)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from train.config import ArtefactConfig, ConfigError
from train.quantize import (
    LARGEST,
    SMALLEST_SCALE,
    dequantize,
    fake_quantize,
    fake_quantize_pr352,
    kind_of,
    quantize,
    round_trip,
)

W = torch.tensor([[0.31, -0.155, 0.01, 0], [1, -1, 0.5, 0.26], [1e-7, -5e-8, 0, 0], [0, 0, 0, 0]])
VECTOR = torch.tensor([0.31, -0.155, 0.01, 1])
FLOOR = 1 / 127


def near(tensor: torch.Tensor, values: list) -> bool:
    """Whether a tensor has the values that the originals printed with eight digits."""
    return torch.allclose(tensor.float(), torch.tensor(values), rtol=6e-8, atol=6e-9)


@pytest.mark.parametrize(
    ("kind", "scales", "q"),
    [  # golf.md 1.6
        ("int6", [0.01000214, 0.03225708, 0.00006104, 0.00006104], [[31, -15, 1, 0], [31, -31, 16, 8]]),
        ("int5", [0.02066040, 0.06665039, 0.00006104, 0.00006104], [[15, -8, 0, 0], [15, -15, 8, 4]]),
        ("int8", [0.00787354] * 4, [[39, -20, 1, 0], [127, -127, 64, 33]]),
    ],
)
def test_rows_as_the_records_quantize_them(kind, scales, q):
    got = quantize(W, kind, FLOOR)
    assert got.q.dtype == torch.int8 and got.scale.dtype == torch.float16
    assert near(got.scale[:, 0], scales)
    assert got.q.tolist() == [*q, [0] * 4, [0] * 4]


def test_a_vector_has_one_scale_and_no_smallest_one():  # golf.md 1.6
    got = quantize(VECTOR, "int6")
    assert near(got.scale, 0.03225708) and got.scale.shape == ()
    assert got.q.tolist() == [10, -5, 0, 31]
    assert quantize(torch.zeros(4), "int6").q.tolist() == [0] * 4
    eight = quantize(VECTOR, "int8", FLOOR)
    assert eight.scale.dtype == torch.float32 and eight.q.tolist() == [39, -20, 1, 127]
    assert float(quantize(torch.zeros(4), "int8", FLOOR).scale) == 1


def test_int6_of_what_went_through_int8_is_not_int6_of_the_weights():  # golf.md 3.7
    rows = torch.tensor([[0.31, -0.155, 0.01, 0], [0.05, 0.02, -0.03, 0.004]])
    eight = round_trip(rows, "int8", FLOOR)
    want = [[0.307068, -0.157471, 0.007874, 0], [0.047241, 0.023621, -0.031494, 0.007874]]
    assert torch.allclose(eight, torch.tensor(want), rtol=0, atol=6e-7)
    assert quantize(eight, "int6").q.tolist() == [[31, -16, 1, 0], [31, 15, -21, 5]]
    assert quantize(rows, "int6").q.tolist() == [[31, -15, 1, 0], [31, 12, -19, 2]]


def test_without_a_floor_int8_keeps_small_rows():
    assert near(quantize(W, "int8").scale[:2, 0], [0.0024414062, 0.0078735352])
    small = torch.tensor([[0.004, -0.002, 0.001, 0.0]])
    assert (round_trip(small, "int8") - small).abs().max() < 0.004 / 127
    assert quantize(small, "int8", FLOOR).q.tolist() == [[1, 0, 0, 0]]


def test_int8_clips_at_the_quantile():
    row = torch.zeros(1, 10_001)
    row[0, 0], row[0, 1] = 100.0, 1.0  # rank .9999984 * 10,000 = 9999.984, between the largest two
    got = quantize(row, "int8")
    assert float(got.scale) == pytest.approx((1 + 0.984 * 99) / 127, rel=2e-3)
    assert got.q[0, :2].tolist() == [127, 1]


def test_a_matrix_of_more_values_than_torch_takes_at_once(monkeypatch):
    w = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    want = quantize(w, "int8")
    monkeypatch.setattr("train.quantize.QUANTILE_VALUES", 11)  # two rows at a time
    got = quantize(w, "int8")
    assert torch.equal(got.q, want.q) and torch.equal(got.scale, want.scale)


def test_late_training_as_in_pr_352():  # golf.md 3.5
    got = fake_quantize_pr352(W[:3])
    # golf.md says "unchanged" of the last row, as eight decimals show it: -15.5 steps round to -16, which is -5.16e-8
    assert near(got, [[0.31, -0.16, 0.01, 0], [1, -1, 0.51612902, 0.25806451], [1e-7, -5e-8, 0, 0]])
    assert float(got[2, 1]) == pytest.approx(-16 / 31 * 1e-7)


@pytest.mark.parametrize("fake", [fake_quantize_pr352, lambda w: fake_quantize(w, "int5")])
def test_gradients_pass_through(fake):
    w = W.clone().requires_grad_()
    weights = torch.arange(16.0).view(4, 4)
    (fake(w) * weights).sum().backward()
    assert w.grad is not None and torch.equal(w.grad, weights)


values = st.floats(-1e4, 1e4, width=32)


@given(st.lists(st.lists(values, min_size=3, max_size=3), min_size=1, max_size=5), st.sampled_from(sorted(LARGEST)))
def test_each_weight_is_within_half_a_step_and_reading_again_changes_nothing(rows, kind):
    w = torch.tensor(rows)
    got = quantize(w, kind)
    assert got.q.abs().max() <= LARGEST[kind] and (got.scale >= SMALLEST_SCALE).all()
    back = dequantize(got)
    # half a step; the largest value may be one rounding of its scale, 2**-11, off; int8's clip is not below it here
    slack = w.abs().amax(1, keepdim=True) * 2**-10
    assert ((back - w).abs() <= got.scale.float() / 2 + slack).all()
    assert torch.equal(round_trip(w, kind), back)
    if kind != "int8":  # where no rounding of the quantile comes in
        assert torch.equal(quantize(back, kind).q, got.q) or (got.scale == SMALLEST_SCALE).any()


@given(st.lists(values, min_size=1, max_size=8))
def test_fp16_is_a_rounding(row):
    w = torch.tensor(row)
    assert torch.equal(round_trip(w, "fp16"), w.half().float()) and torch.equal(round_trip(w, "fp32"), w)


def test_the_first_rule_that_matches_decides():
    cfg = ArtefactConfig(rules=("fp16 blocks.9.attn.k.*", "int5 *.mlp.*", "int6 *.attn.*", "int8 bigram.*"))
    names = ["blocks.9.attn.k.weight", "blocks.8.attn.k.weight", "blocks.0.mlp.up.weight", "bigram.embed.weight"]
    assert [kind_of(name, 65_537, cfg) for name in names] == ["fp16", "int6", "int5", "int8"]
    assert {kind_of(name, 65_536, cfg) for name in names} == {"fp16"}
    assert kind_of("head.weight", 70_000, cfg) == "fp16"


@pytest.mark.parametrize("text", ["", "int5", "int7 *", "*.mlp.* int5", "int5 ", "int5 a b"])
def test_a_rule_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match=r"train\.artefact\.rules: .*: write one of int5, int6"):
        ArtefactConfig(rules=(text,))
