"""SentencePiece models: trained here the same each time, encoded as the package does, accounted for byte by byte."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import sentencepiece
from built import small
from commands import cli
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_harness import losses, sets

from pipeline.errors import UserError
from pipeline.recipe import parse_recipe
from stages.errors import DataError
from stages.pack.adopt import adopt
from stages.pack.verify import verify
from stages.tokenizer.encoder import open_encoder
from stages.tokenizer.external import check_accountable
from stages.tokenizer.sentencepiece_work import train
from stages.tokenizer.spec import open_vocabulary
from train.data.manifest import load_manifest
from train.eval.text_bytes import TextBytes
from train.main import run

RNG = random.Random(7)
WORDS = ["the", "small", "model", "reads", "every", "token", "naïve", "größer", "日本", "once", "again"]
TEXTS = [f"{i}: " + " ".join(RNG.choices(WORDS, k=40)) + "\n\n  two\tlines" for i in range(600)]
MODEL = {"dim": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 64, "sliding_window": 16}
TRAIN = {"steps": 4, "batch_size": 8, "seq_len": 32, "log_every": 1, "eval_tokens": 1024, "eval_every": 0}


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def model(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "tokenizer.model"
    path.write_bytes(train(TEXTS, 305, request.param, ["<|user|>"]))
    assert path.read_bytes() == train(TEXTS, 305, request.param, ["<|user|>"]), "the same texts give the same bytes"
    return path


def test_the_scripts_of_the_competition_find_what_they_ask_for(model):
    """What `build_sentencepiece_luts` asks of the package, and what their data scripts set."""
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    assert theirs.vocab_size() == 305
    assert (theirs.pad_id(), theirs.bos_id(), theirs.eos_id(), theirs.unk_id()) == (0, 1, 2, 3)
    assert open_vocabulary(model).special_ids == {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<|user|>": 4}
    lengths = open_vocabulary(model).token_bytes
    for i in range(305):
        if theirs.is_control(i) or theirs.is_unknown(i) or theirs.is_unused(i):
            expected = 0
        elif theirs.is_byte(i):
            expected = 1
        else:
            piece = theirs.id_to_piece(i)
            assert "\u2581" not in piece[1:], "their count would take an inner one for three bytes"
            expected = piece.startswith("\u2581") + len(piece.removeprefix("\u2581").encode())
        assert lengths[i] == expected == len(open_vocabulary(model).texts.get(i, b""))


@settings(max_examples=80)
@given(texts=st.lists(st.text(alphabet=st.one_of(st.characters(codec="utf-8"), st.sampled_from(" \t\n▁<s>日a1")))))
def test_any_text_comes_back_from_the_package_s_own_ids(model, texts):
    encoder = open_encoder(str(model))
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(model))
    ids, counts = encoder.encode(texts)
    assert ids.tolist() == [i for text in texts for i in theirs.encode(text)]
    vocabulary = open_vocabulary(model)
    given_back, lengths = vocabulary.texts, vocabulary.token_bytes
    for text, part in zip(texts, np.split(ids, np.cumsum(counts)[:-1]) if texts else [], strict=True):
        stored = text.replace("\u2581", " ")  # all that is normalized
        assert b"".join(given_back[i] for i in part.tolist()).decode() == stored
        assert sum(lengths[i] for i in part.tolist()) == len(stored.encode())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"remove_extra_whitespaces": True}, "remove_extra_whitespaces drops blanks"),
        ({"normalization_rule_name": "nmt_nfkc"}, "its normalizer has rules"),
        ({"byte_fallback": False}, "no byte_fallback"),
    ],
)
def test_models_that_change_text_are_refused_by_reason(tmp_path, settings, message):
    keep = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "add_dummy_prefix": False}
    prefix = str(tmp_path / "theirs")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_prefix=prefix, minloglevel=2, hard_vocab_limit=False, model_type="bpe",
        **{"vocab_size": 305, "byte_fallback": True, **keep, **settings},
    )  # fmt: skip
    with pytest.raises(DataError, match=message):
        check_accountable(f"{prefix}.model", "theirs.model", [])


def test_too_few_pieces_are_an_error():
    with pytest.raises(DataError, match=r"9,000 ids cannot be trained on this text: Vocabulary size too high"):
        train(TEXTS, 9000, "bpe", [])


def test_recipes_that_make_no_sense(monkeypatch):
    recipe = {"name": "x", "sources": {"a": {"from": "jsonl", "path": "a.jsonl"}}}
    for keys, message in (
        ({"kind": "sentencepiece", "digits": 1}, "split and digits are not for kind: sentencepiece"),
        ({"model_type": "unigram"}, "model_type goes with kind: sentencepiece"),
        ({"kind": "sentencepiece", "from": "x.model"}, "kind cannot be set with `from`"),
        ({"kind": "sentencepiece", "vocab_size": 259}, "alone take 260"),
    ):
        with pytest.raises(UserError, match=message):
            parse_recipe({**recipe, "tokenizer": keys}, "test")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs the package: pip install 'shardmill\[sentencepiece\]'"):
        parse_recipe({**recipe, "tokenizer": {"kind": "sentencepiece"}}, "test")


@pytest.mark.slow
def test_from_text_to_a_run_and_back(tmp_path):
    keys = {"tokenizer": {"kind": "sentencepiece", "vocab_size": 400, "sample": "1MB"}, "model": MODEL}
    folder = small(tmp_path, **keys, train={"anneal": TRAIN})
    manifest = load_manifest(folder)
    assert manifest.tokenizer.path == "tokenizer.model" and (manifest.tokenizer.bos_id, manifest.tokenizer.pad_id) == (
        1,
        0,
    )
    assert list(verify(manifest)) == []
    published = {path.name for path in (folder.parent / "tokenizer").iterdir()}
    assert published == {"tokenizer.model", "report.json"}
    texts = {}
    for file in (folder.parent / "curated").glob("*.parquet"):
        table = pq.read_table(file)
        texts |= dict(zip(table["document_id"].to_pylist(), table["text"].to_pylist(), strict=True))
    for shard in manifest.split("val"):
        ids = np.fromfile(folder / shard.path, "<u2", offset=1024)
        rows = pq.read_table(folder / shard.rows).to_pylist()
        size = sum(len(texts[row["document_id"]].encode()) for row in rows if not row["truncated"])
        if not any(row["truncated"] for row in rows):
            assert TextBytes(manifest.tokenizer).count(ids).sum() == size
    traced = cli("trace", str(folder), "--shard", "0", "--token", "700", "--json")
    assert traced.returncode == 0 and json.loads(traced.stdout)["origin"]["status"] in ("equal", "prefix"), (
        traced.stderr
    )
    assert "<s>" in cli("inspect", str(folder), "--length", "500").stdout
    run(folder, sets(out=str(tmp_path / "run")))
    assert list(losses(tmp_path / "run")) == [1, 2, 3, 4]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["samples"]

    shards = tmp_path / "elsewhere"  # as if somebody else had made the shards, with a model that changes text
    shards.mkdir()
    for name in ("train_000000", "val_000000"):
        shutil.copy(folder / f"small_anneal_{name}.bin", shards / f"fineweb_{name}.bin")
    prefix = str(tmp_path / "theirs")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS, *texts.values()]), model_prefix=prefix, vocab_size=400,
        minloglevel=2, model_type="bpe", byte_fallback=True, split_digits=True,
    )  # fmt: skip
    adopted = adopt(shards, f"{prefix}.model", None, None)
    assert list(verify(adopted)) == [] and adopted.tokenizer.space_ids
    assert {p.name for p in shards.iterdir()} >= {"manifest.json", "tokenizer.model"}
