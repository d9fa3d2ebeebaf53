"""Operations a token: golden values of docs/trainer-math.md, "FLOPs", and the mean attended length against a count."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.config import ModelConfig
from train.model.flops import flops_per_token

SHARD = ModelConfig()


def test_golden_values():
    found = flops_per_token(SHARD, 8192, 8192)
    assert round(found.causal / 1e6, 1) == 513.6 and round(found.full / 1e6, 1) == 666.9
    everywhere = dataclasses.replace(SHARD, attention_pattern="all_global")
    assert round(flops_per_token(everywhere, 8192, 8192).causal / 1e6, 1) == 629.2
    assert round(flops_per_token(SHARD, 8192, 2048).causal / 1e6, 1) == 393.2


def test_an_engram_adds_its_two_products_and_an_untied_head_nothing():
    base = flops_per_token(SHARD, 8192, 1024)
    engram = flops_per_token(dataclasses.replace(SHARD, engram_enabled=True), 8192, 1024)
    assert engram.causal - base.causal == engram.full - base.full == 6 * 2 * 512 * 512
    assert flops_per_token(dataclasses.replace(SHARD, tie_embeddings=False), 8192, 1024) == base


@pytest.mark.slow
@given(length=st.integers(1, 60), window=st.integers(1, 80))
def test_causal_counts_what_the_mask_leaves(length, window):
    cfg = ModelConfig(dim=8, n_heads=1, n_layers=2, sliding_window=window)
    pairs = sum(1 for i in range(length) for j in range(i + 1) if i - j < window) + length * (length + 1) // 2
    weights = 6 * (2 * (4 * 64 + 3 * 8 * 32) + 11 * 8)
    assert flops_per_token(cfg, 11, length).causal == pytest.approx(weights + 12 * 8 * pairs / length)
