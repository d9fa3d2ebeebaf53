"""Tokenized units: round trips, special tokens, order, accounts."""

from collections import Counter
from importlib.metadata import version

import numpy as np
import pyarrow.parquet as pq
import pytest
from stage_harness import run_unit
from tokenizer_harness import TEXTS, curated, train

from stages.hashing import is_validation, position, take
from stages.schemas import document_id
from stages.task import Artifact
from stages.tokenize import work as tokenize
from stages.tokenize.stage import slices_of
from stages.tokenizer.spec import load_text_encoder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return train(folder, [curated(folder, "a", TEXTS)])


@pytest.fixture(scope="module")
def path(trained):
    return trained.output("tokenizer").path


def tokenized(tmp_path, trained, texts, shard_tokens=1000, seed=0, slice=(0, 1), **keys):
    inputs = [curated(tmp_path, "a", texts, **keys), trained.output("tokenizer")]
    params = {"seed": seed, "shard_tokens": shard_tokens, "bos_id": 0, "vocab_size": 8192, "slice": list(slice)}
    record = run_unit(tmp_path / "out", tokenize.work, params, inputs)
    tokens = np.fromfile(record.output("tokens").path, "<u2")
    return record, tokens, pq.read_table(record.output("docs").path).to_pylist()


@pytest.mark.slow
@pytest.mark.parametrize("shard_tokens", [1000, 40, 7])
def test_every_token_is_accounted_for(tmp_path, trained, path, shard_tokens):
    record, tokens, rows = tokenized(tmp_path, trained, TEXTS, shard_tokens)
    encoder = load_text_encoder(path)
    pieces, lengths = {}, Counter()
    at = 0
    for row in rows:
        assert row["token_start"] == at
        at += row["token_count"]
        lengths[row["document_id"]] += row["token_count"]
        assert 0 < row["token_count"] <= shard_tokens
        pieces[row["document_id"], row["part"]] = tokens[row["token_start"] : at]
        assert row["position"] == int(position(0, [row["document_id"]], row["part"])[0])
        assert row["val"] == is_validation([row["document_id"]])[0]
        assert TEXTS[row["source_row"]] and row["source_file"] == "a.jsonl"
        assert document_id(TEXTS[row["source_row"]]) == row["document_id"]
    assert at == len(tokens)
    keys = [(r["position"], r["document_id"], r["part"]) for r in rows]
    assert keys == sorted(keys)
    for text in TEXTS:
        parts = [pieces[document_id(text), n] for n in range(-(-lengths[document_id(text)] // shard_tokens))]
        whole = np.concatenate(parts).tolist()
        assert whole[0] == 0 and 0 not in whole[1:]
        assert encoder.decode(whole[1:], skip_special_tokens=False) == text
        assert all(len(p) == shard_tokens for p in parts[:-1])
    counts = record.counts
    assert counts["tokens"] == counts["train_tokens"] + counts["val_tokens"] == len(tokens)
    assert counts["documents"] == len(TEXTS)
    assert [k for k in counts if k.startswith("encoded_by.")] == [f"encoded_by.fastokens {version('fastokens')}"]
    assert counts["text_bytes"] == sum(len(t.encode()) for t in TEXTS)
    histogram = np.load(record.output("histogram").path)
    want = np.zeros((4, 4096), np.int64)
    for row in rows:
        first, second = (int(take(0, [row["document_id"]], number)[0]) >> 52 for number in (0, 1))
        if row["val"]:
            want[3, first] += row["token_count"]
        else:
            for i, draw in enumerate((row["position"] >> 52, first, second)):
                want[i, draw] += row["token_count"]
    assert (histogram == want).all()


def test_digests_do_not_depend_on_batches(tmp_path, trained, monkeypatch):
    first, _, _ = tokenized(tmp_path, trained, TEXTS)
    monkeypatch.setattr(tokenize, "BATCH_BYTES", 300)
    second, _, _ = tokenized(tmp_path, trained, TEXTS, group=3)
    assert [o.digest for o in first.outputs] == [o.digest for o in second.outputs]


@pytest.mark.slow
@pytest.mark.parametrize("of", [1, 2, 5, 40])
def test_slices_of_a_part_hold_each_document_once(tmp_path, trained, of):
    found = [tokenized(tmp_path / str(i), trained, TEXTS, slice=(i, of), group=50)[2] for i in range(of)]
    rows = sorted(r["source_row"] for rows in found for r in rows if r["part"] == 0)
    assert rows == list(range(len(TEXTS)))


def test_small_sources_are_cut_finer():
    def part(size):
        return Artifact("x", "", meta={"text_bytes": size})

    def units(*sizes):
        return [of for _, _, number, of in slices_of([part(s) for s in sizes]) if number == 0]

    assert units(100) == units(8 << 20) == [1] and units(0) == [1] and units() == []
    assert units(128 << 20) == [16]
    assert units(*[128 << 20] * 4) == [8] * 4
    assert units(*[128 << 20] * 500) == [1] * 500


def test_an_empty_part(tmp_path, trained):
    record, tokens, rows = tokenized(tmp_path, trained, [])
    assert (len(tokens), rows, record.counts["tokens"]) == (0, [], 0)


def test_copies_left_in_have_a_fixed_order(tmp_path, trained):
    _, _, rows = tokenized(tmp_path, trained, ["same", "other", "same"])
    assert [r["source_row"] for r in rows if r["document_id"] == document_id("same")] == [0, 2]
