"""Validation by source: every byte of a source's text once, and the figures of its shard alone."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trainer_harness import (
    BOS,
    BUILD_ID,
    MODEL,
    TRAIN,
    VOCAB,
    make_mixture,
    metrics,
    sets,
    text,
    write_manifest,
    write_shard,
)

from train.config import ModelConfig
from train.data.format import Header
from train.data.manifest import load_manifest
from train.eval import validation
from train.eval.validation import Score, Validation
from train.main import run
from train.model.transformer import build

CPU = torch.device("cpu")
SHARDS = {"": [90, 20], "prose": [70], "maths": [3, 40, 30], "empty": [0]}  # words of each validation document


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A mixture with validation shards of its own and of three sources, one of them without a target."""
    folder = tmp_path_factory.mktemp("mixed") / "m"
    path = make_mixture(folder, MODEL, {"pretrain": TRAIN}, "pretrain")
    shards = [s for s in load_manifest(path).shards if s.split == "train"]
    for number, (source, documents) in enumerate(SHARDS.items()):
        texts = [text(10 * number + i, n) for i, n in enumerate(documents)]
        shard = write_shard(folder, f"v_val_{number:06d}", "val", texts)
        shards.append(dataclasses.replace(shard, source=source))
    return write_manifest(folder, shards, MODEL, {"pretrain": TRAIN}, "pretrain")


def alone(manifest, source):
    """The manifest with a source's shard in the place of the mixture's."""
    shards = [dataclasses.replace(s, source="") for s in manifest.split("val", source)]
    return dataclasses.replace(manifest, shards=manifest.split("train") + shards)


@pytest.mark.slow
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seq_len=st.integers(8, 64), world=st.integers(1, 5), rows=st.integers(1, 4))
def test_a_sources_score_is_that_of_its_shard_alone_at_any_number_of_ranks(mixed, seq_len, world, rows):
    manifest = load_manifest(mixed)
    model = build(ModelConfig(**MODEL), VOCAB, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "EVAL_TOKENS", rows * seq_len)  # every shard fills a pass
        whole = Validation(manifest, seq_len, 0, None, 0, 1)
        score, unigram = whole.score(model, CPU), whole.unigram(manifest)
        assert list(score.sources) == list(unigram.sources) == ["prose", "maths"]
        for source in ("prose", "maths"):
            only = Validation(alone(manifest, source), seq_len, 0, None, 0, 1)
            assert score.sources[source] == only.score(model, CPU)
            assert unigram.sources[source] == only.unigram(manifest)
        parts = []
        for rank in range(world):
            v = Validation(manifest, seq_len, 0, None, rank, world)
            patch.setattr(v, "_sum_over_ranks", lambda sums: (parts.append(sums), sums)[1])
            v.score(model, CPU)
        assert whole._score_of(np.sum(parts, 0)) == score


def test_bytes_are_those_of_the_text(tmp_path):
    """With a real BPE, text of many alphabets, and a text that spells a special token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    from train.tokenizer.vocabulary import read_vocabulary

    texts = {
        "latin": ["plain words, plain words", "naïve café — “quotes”\n\ttabs"],
        "other": ["数学は楽しい 数学は", "Привет, мир! 🙂🙂 \u200d", "<|bos|> is not BOS", ""],
    }
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|bos|>"], initial_alphabet=alphabet)
    trainer.show_progress = False
    tokenizer.train_from_iterator([t for group in texts.values() for t in group], trainer)
    tokenizer.encode_special_tokens = True
    tokenizer.save(str(tmp_path / "bpe.json"))
    lengths, bos = read_vocabulary(tmp_path / "bpe.json").token_bytes, tokenizer.token_to_id("<|bos|>")
    assert lengths[bos] == 0 and max(lengths) > 1

    folder = tmp_path / "m"
    manifest = load_manifest(make_mixture(folder, MODEL, {"pretrain": TRAIN}, "pretrain"))
    shards = manifest.split("train")
    groups = {"": [t for group in texts.values() for t in group], **texts}
    for number, (source, group) in enumerate(groups.items()):
        ids = [i for t in group for i in (bos, *tokenizer.encode(t).ids)]
        shard = write_shard(folder, f"t_{number}", "val", [b""])
        header = Header(len(ids), VOCAB, BOS, len(group), BUILD_ID[:16]).pack()
        (folder / shard.path).write_bytes(header + np.array(ids, "<u2").tobytes())
        shards.append(dataclasses.replace(shard, source=source, tokens=len(ids)))
    sized = dataclasses.replace(manifest.tokenizer, token_bytes=lengths)
    parts = Validation(dataclasses.replace(manifest, shards=shards, tokenizer=sized), 8, 0, None, 0, 1).groups
    want = {source: sum(len(t.encode()) for t in group) for source, group in groups.items()}
    assert {source: part.bytes for source, part in parts.items()} == want
    assert parts[""].bytes == parts["latin"].bytes + parts["other"].bytes > 0


def test_the_limit_holds_for_the_mixture_and_for_the_sources_together(mixed):
    manifest = load_manifest(mixed)
    v = Validation(manifest, 32, 300, None, 0, 1)
    assert {source: p.tokens for source, p in v.groups.items()} == {"": 300, "prose": 100, "maths": 100}
    assert {p.tokens for p in Validation(manifest, 32, 1, None, 0, 1).groups.values()} == {1}
    whole = Validation(manifest, 32, 0, None, 0, 1)
    held = {source: sum(s.tokens - 1 for s in manifest.split("val", source)) for source in whole.groups}
    assert {source: p.tokens for source, p in whole.groups.items()} == held


def test_every_pass_has_one_shape(mixed):
    """Another shape would be another compilation."""
    model = build(ModelConfig(**MODEL), VOCAB, 0)
    shapes = set()
    score = model.score
    model.score = lambda ids, *rest: (shapes.add(ids.shape), score(ids, *rest))[1]
    Validation(load_manifest(mixed), 32, 0, None, 0, 1).score(model, CPU)
    assert len(shapes) == 1


def test_a_run_reports_each_source(mixed, tmp_path, capsys):
    settings_ = sets(out=str(tmp_path / "r"), steps=4, eval_every=2, eval_tokens=0, ema__decay=0.5, ema__every=1)
    run(mixed, settings_)
    said = capsys.readouterr().out
    summary = json.loads((tmp_path / "r/summary.json").read_text())
    size = sum(len(text(20 + i, n)) for i, n in enumerate(SHARDS["maths"]))
    for key in ("before", "unigram", "after"):
        assert list(summary[key]["sources"]) == ["prose", "maths"]
        assert Score.from_dict(summary[key]).sources["maths"].bytes == size
    scored = {m["step"]: m for m in metrics(tmp_path / "r") if "val_loss" in m}
    assert list(scored) == [0, 2, 4]
    for source in ("prose", "maths"):
        before, after = (summary[key]["sources"][source] for key in ("before", "after"))
        assert scored[0][f"val_loss/{source}"] == before["nats"] > after["nats"]
        assert scored[4][f"val_bits_per_byte/{source}"] == after["bits_per_byte"]
        assert scored[4][f"val_loss_ema/{source}"] == summary["averages"]["ema"]["sources"][source]["nats"]
        assert f"{source} {after['bits_per_byte']:.4f}" in said.split("step 4: bits/byte by source: ")[1].split("\n")[0]
        assert f": {source}, {after['bytes']:,} bytes" in said
    # the score before the first step comes back from a checkpoint
    (tmp_path / "r/summary.json").unlink()
    run(mixed, [*settings_, *sets(resume="auto")])
    assert json.loads((tmp_path / "r/summary.json").read_text())["before"] == summary["before"]
