"""Scores: each validation token once, bytes rightly, the same for any number of ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from trainer_harness import BOS, MODEL, VOCAB

from train.config import ModelConfig
from train.data import open_shard
from train.evaluate import Validation, pick, samples
from train.model import build


@pytest.fixture
def model():
    return build(ModelConfig(**MODEL), VOCAB, 0)


def test_each_token_is_scored_once_and_bos_has_no_bytes(manifest, model):
    v = Validation(manifest, 32, 0, None, 0, 1)
    tokens = open_shard(manifest, manifest.split("val")[0])
    targets = np.concatenate([w[1:] for w in v.windows])
    assert np.array_equal(targets, tokens[1:])
    score = v.score(model, torch.device("cpu"))
    assert score.bytes == int((tokens[1:] != BOS).sum()) < score.tokens == len(targets)
    # by hand, a window at a time, unpadded
    nll = 0.0
    for w in v.windows:
        ids = torch.from_numpy(w.astype(np.int64))[None]
        nll += model.score(ids[:, :-1], ids[:, 1:]).double().sum().item()
    assert score.nats == pytest.approx(nll / score.tokens, rel=1e-6)
    assert score.bits_per_byte == pytest.approx(nll / math.log(2) / score.bytes, rel=1e-6)
    assert model.training


def test_the_limit_is_a_prefix(manifest):
    whole, part = (Validation(manifest, 32, n, None, 0, 1) for n in (0, 100))
    assert part.parts[""].tokens == 100 and [len(w) - 1 for w in part.windows] == [32, 32, 32, 4]
    assert all(np.array_equal(a, b[: len(a)]) for a, b in zip(part.windows, whole.windows, strict=False))


def test_ranks_share_the_windows(manifest, model, monkeypatch):
    alone = Validation(manifest, 32, 0, None, 0, 1)
    want = alone.score(model, torch.device("cpu"))
    parts = []
    for rank in range(3):
        v = Validation(manifest, 32, 0, None, rank, 3)
        monkeypatch.setattr(v, "_all", lambda sums: (parts.append(sums), sums)[1])
        v.score(model, torch.device("cpu"))
    assert (np.stack(parts) != 0).sum(0).tolist() == [1] * len(alone.windows)
    assert np.sum(np.stack(parts).sum(0)) / want.tokens == want.nats


def test_unigram_is_add_one_over_the_vocabulary(manifest):
    v = Validation(manifest, 32, 0, None, 0, 1)
    counts = np.ones(VOCAB)
    for s in manifest.split("train"):
        np.add.at(counts, open_shard(manifest, s), 1)
    tokens = open_shard(manifest, manifest.split("val")[0])
    want = -np.log(counts[tokens[1:]] / counts.sum()).sum()
    assert v.unigram(manifest).nats == pytest.approx(want / (len(tokens) - 1))


def test_pick_keeps_the_most_likely_that_hold_top_p():
    logits = torch.log(torch.tensor([0.04, 0.5, 0.3, 0.16])) * 0.7  # undone by the temperature
    assert [pick(logits, u) for u in (0.0, 0.5, 0.55, 0.8, 0.999)] == [1, 1, 2, 2, 3]
    assert pick(torch.tensor([0.0, 100.0]), 0.999) == 1


def test_a_prompt_that_spells_a_special_token_gets_text(manifest, model, monkeypatch):
    seen = []
    monkeypatch.setattr(model, "next_logits", lambda ids: (seen.append(ids[0].tolist()), torch.eye(VOCAB)[:1] * 99)[1])
    got = samples(model, manifest, ("<|bos|>a",), 3, seed=0)
    assert seen[0] == [BOS, *b"<|bos|>a"] and len(seen) == 3
    assert got == [{"prompt": "<|bos|>a", "text": "\0\0\0"}]
    end = torch.full((1, VOCAB), -99.0)
    end[0, BOS] = 99
    monkeypatch.setattr(model, "next_logits", lambda ids: end)
    assert samples(model, manifest, ("a",), 3, seed=0)[0]["text"] == ""
    assert samples(model, manifest, ("a",), 0, seed=0) == []
