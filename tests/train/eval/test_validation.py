"""Scores: each validation token once, bytes rightly, the same for any number of ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch._dynamo
from trainer_harness import BOS, MODEL, VOCAB

from train.config import ModelConfig
from train.data.loader import open_shard
from train.eval import validation
from train.eval.validation import Validation, sample_texts
from train.generate import Generated
from train.model.transformer import build
from train.monitor.dead_parts import graphs_compiled


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
    assert part.groups[""].tokens == 100 and [len(w) - 1 for w in part.windows] == [32, 32, 32, 4]
    assert all(np.array_equal(a, b[: len(a)]) for a, b in zip(part.windows, whole.windows, strict=False))


def test_ranks_share_the_windows(manifest, model, monkeypatch):
    alone = Validation(manifest, 32, 0, None, 0, 1)
    want = alone.score(model, torch.device("cpu"))
    parts = []
    for rank in range(3):
        v = Validation(manifest, 32, 0, None, rank, 3)
        monkeypatch.setattr(v, "_sum_over_ranks", lambda sums: (parts.append(sums), sums)[1])
        v.score(model, torch.device("cpu"))
    windows = np.stack(parts)[:, : len(alone.windows)]
    assert (windows != 0).sum(0).tolist() == [1] * len(alone.windows)
    assert np.sum(windows.sum(0)) / want.tokens == want.nats
    assert np.allclose(np.stack(parts)[:, len(alone.windows) :].sum(0), want.document_nats, rtol=1e-12)
    assert want.document_nats.sum() == pytest.approx(want.nats * want.tokens, rel=1e-12)


def test_unigram_is_add_one_over_the_vocabulary(manifest):
    v = Validation(manifest, 32, 0, None, 0, 1)
    counts = np.ones(VOCAB)
    for s in manifest.split("train"):
        np.add.at(counts, open_shard(manifest, s), 1)
    tokens = open_shard(manifest, manifest.split("val")[0])
    want = -np.log(counts[tokens[1:]] / counts.sum()).sum()
    assert v.unigram(manifest).nats == pytest.approx(want / (len(tokens) - 1))


def test_a_prompt_that_spells_a_special_token_gets_text(manifest, model, monkeypatch, capsys):
    seen = []

    def fake(model, prompts, count, stop, seed):
        seen.append((prompts, count, stop))
        return Generated([[0, 0, 0]], 8, 1.0, 3, 1.0)

    monkeypatch.setattr("train.eval.validation.generate", fake)
    got = sample_texts(model, manifest, ("<|bos|>a",), 3, seed=0)
    assert seen == [([[BOS, *b"<|bos|>a"]], 3, BOS)]
    assert got == [{"prompt": "<|bos|>a", "text": "\0\0\0"}]
    assert sample_texts(model, manifest, ("a",), 0, seed=0) == []
    assert sample_texts(model, manifest, ("a" * 99,), 3, seed=0) == []
    assert "a prompt fills model.max_seq_len = 64" in capsys.readouterr().out


@pytest.mark.slow
def test_samples_are_the_same_for_a_seed_and_end_where_the_model_ends(manifest, model):
    first = sample_texts(model, manifest, ("the", "once"), 100, seed=0)
    assert first == sample_texts(model, manifest, ("the", "once"), 100, seed=0)
    assert first != sample_texts(model, manifest, ("the", "once"), 100, seed=1)
    assert model.training


@pytest.mark.parametrize("stride", [1, 5, 32])
def test_sliding_windows_score_each_token_once_with_all_before_it(manifest, model, stride):
    v = Validation(manifest, 32, 90, None, 0, 1, stride=stride)
    tokens = torch.from_numpy(np.array(open_shard(manifest, manifest.split("val")[0])[:91], np.int64))
    nll = 0.0
    for target in range(1, 91):  # by hand, each target alone
        start = max(0, -(-(target - 32) // stride)) * stride
        ids = tokens[None, start:target]
        nll += model.score(ids, tokens[None, start + 1 : target + 1])[0, -1].double().item()
    score = v.score(model, torch.device("cpu"))
    assert score.tokens == 90 and score.bytes == int((tokens[1:] != BOS).sum())
    assert score.nats == pytest.approx(nll / 90, rel=1e-6)


def test_records_count_whole_rows_alone(manifest, model):
    v = Validation(manifest, 16, 90, None, 0, 1, stride=4, counting="pr465", row=32)
    assert v.groups[""].tokens == 64 + 3 * 4
    v = Validation(manifest, 16, 90, None, 0, 1, stride=4, counting="pr352", row=32)
    assert v.groups[""].tokens == 64 - 12
    assert v.score(model, torch.device("cpu")).tokens == 52


@pytest.mark.parametrize("documents", [False, True])
def test_a_compiled_trunk_is_not_compiled_again_for_the_score(manifest, documents):
    torch._dynamo.reset()
    plain = Validation(manifest, 32, 0, None, 0, 1, document_mask=documents)
    as_trained = Validation(manifest, 32, 0, None, 0, 1, document_mask=documents)
    as_trained.use_graph_of_training(5)
    model = build(ModelConfig(**MODEL), VOCAB, 0)
    want = plain.score(model, torch.device("cpu"))
    model.run_trunk = torch.compile(model.trunk, dynamic=False, fullgraph=True, backend="aot_eager")
    for step in range(2):
        tokens = torch.randint(0, VOCAB, (5, 33), generator=torch.Generator().manual_seed(step))
        borders = torch.tensor([0, 7 + step, *range(32, 161, 32)], dtype=torch.int32) if documents else None
        model(tokens[:, :-1], tokens[:, 1:], None, borders)[0].backward()
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    compiled = graphs_compiled()
    score = as_trained.score(model, torch.device("cpu"))
    assert graphs_compiled() == compiled and len(as_trained.passes) != len(plain.passes)
    assert (score.tokens, score.bytes) == (want.tokens, want.bytes)
    assert score.nats == pytest.approx(want.nats, rel=1e-6)
    assert all(torch.equal(a, p.grad) for a, p in zip(grads, model.parameters(), strict=True))
    assert plain.score(model, torch.device("cpu")).nats == pytest.approx(want.nats, rel=1e-6)
    assert graphs_compiled() > compiled  # the same without gradients, in passes of another size, is another graph
    torch._dynamo.reset()


def test_the_host_waits_once_for_many_passes(manifest, model, monkeypatch):
    """And sums alike however often."""
    scores = []
    for tokens in (1, 100, 2**20):
        monkeypatch.setattr(validation, "SETTLE_TOKENS", tokens)
        v = Validation(manifest, 32, 0, None, 0, 1, pass_tokens=64)
        settled = []
        settle = v._settle
        monkeypatch.setattr(v, "_settle", lambda w, *rest, of=settle, n=settled: (n.append(len(w)), of(w, *rest)))
        scores.append(v.score(model, torch.device("cpu")))
        assert max(settled) == {1: 1, 100: 2, 2**20: len(v.passes)}[tokens] and sum(settled) == len(v.passes)
    assert scores[0] == scores[1] == scores[2]
