"""The tokenizer and tokenised units: round trips, special tokens, order, accounts."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage_harness import REPO, run_unit
from tokenizers import Tokenizer

from stages import build_tokenizer, tokenize
from stages.base import Artifact, DataError
from stages.ids import is_validation, position, sample, take
from stages.tables import CURATED, document_id
from stages.text_encoder import SPECIALS, load_text_encoder, special_ids, token_bytes

WORDS = [hashlib.blake2b(bytes([i % 200]), digest_size=3).hexdigest() for i in range(4000)]
TEXTS = [f"Document {i}: " + " ".join(WORDS[i * 7 % 3900 :][: 5 + i % 40]) for i in range(400)]
TEXTS += ["<|bos|> is written <|end|> here", "größer 日本語 🙂" * 3, "\r\n \t x"]


def curated(folder, name, texts, group=50):
    """A curated part, as dedup writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.parquet"
    rows = [(document_id(t), t, f"{name}.jsonl", i, None, name) for i, t in enumerate(texts)]
    pq.write_table(
        pa.Table.from_pylist([dict(zip(CURATED.names, r, strict=True)) for r in rows], CURATED),
        path,
        row_group_size=group,
    )
    size = sum(len(t.encode()) for t in texts)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Artifact(str(path), digest, name="docs", rows=len(texts), meta={"text_bytes": size})


def train(folder, parts, **params):
    defaults = {
        "vocab_size": 400,
        "split": "gpt4",
        "digits": None,
        "reserved": [],
        "sample": 10**6,
        "sources": [["a", len(parts)]],
    }
    return run_unit(folder, build_tokenizer.work, {**defaults, **params}, parts)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return train(folder, [curated(folder, "a", TEXTS)])


@pytest.fixture(scope="module")
def path(trained):
    return trained.output("tokenizer").path


def test_layout(trained, path):
    tokenizer = Tokenizer.from_file(path)
    assert tokenizer.get_vocab_size() == 400
    assert [tokenizer.token_to_id(t) for t in SPECIALS] == list(range(8))
    assert special_ids(path) == {t: i for i, t in enumerate(SPECIALS)}
    report = json.loads(Path(trained.output("report").path).read_text())
    assert report["token_bytes"] == token_bytes(path)
    assert report["vocab_size"] == len(report["token_bytes"]) == 400
    assert sum(n == 1 for n in report["token_bytes"]) == 256
    assert report["bytes_per_token"]["a"] > 1


@given(text=st.text() | st.text(alphabet=st.sampled_from("<|>bos_enduser \n'1é🙂\u0301")))
def test_any_text_round_trips_without_special_ids(path, text):
    encoder = load_text_encoder(path)
    for wrapped in (text, "<|bos|>" + text + "<|end|><|user|>"):
        ids = encoder.encode(wrapped, add_special_tokens=False).ids
        assert encoder.decode(ids, skip_special_tokens=False) == wrapped
        assert all(i >= len(SPECIALS) for i in ids)
        lengths = token_bytes(path)
        assert sum(lengths[i] for i in ids) == len(wrapped.encode())


@given(text=st.text())
def test_the_published_file_round_trips_when_specials_are_text(path, text):
    tokenizer = Tokenizer.from_file(path)
    tokenizer.encode_special_tokens = True
    wrapped = text + "<|bos|>" + text
    ids = tokenizer.encode(wrapped).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == wrapped
    assert ids == load_text_encoder(path).encode(wrapped).ids


def test_the_sample_is_stratified_ordered_by_hash_and_free_of_validation(tmp_path):
    a = [curated(tmp_path, "a1", TEXTS[:150], group=7), curated(tmp_path, "a2", TEXTS[150:300], group=40)]
    b = [curated(tmp_path, "b", TEXTS[300:])]
    record = train(tmp_path, a + b, sample=20_000, sources=[["a", 2], ["b", 1]], vocab_size=300)
    rows = pq.read_table(record.output("sample").path).to_pylist()
    sizes = {n: sum(r["text_bytes"] for r in rows if r["source"] == n) for n in "ab"}
    total = sum(p.meta["text_bytes"] for p in a + b)
    for name, parts in (("a", a), ("b", b)):
        quota = 20_000 * sum(p.meta["text_bytes"] for p in parts) / total
        assert quota - 400 < sizes[name] <= quota
        training = [t for t in TEXTS[:300] if not is_validation([document_id(t)])[0]]
        order = sorted(training, key=lambda t: sample([document_id(t)])[0])
        ids = [r["document_id"] for r in rows if r["source"] == name]
        if name == "a":
            assert ids == [document_id(t) for t in order[: len(ids)]]
        assert not is_validation(ids).any()
    # The same text cut into other units gives the same tokenizer.
    again = [curated(tmp_path, "a", TEXTS[:300]), *b]
    again = train(tmp_path, again, sample=20_000, sources=[["a", 1], ["b", 1]], vocab_size=300)
    assert again.output("tokenizer").sha256 == record.output("tokenizer").sha256
    assert again.output("sample").digest == record.output("sample").digest


def test_same_bytes_in_another_process_with_other_threads(trained):
    code = (
        "import sys; sys.path.insert(0, 'tests/stages')\n"
        "import test_tokenize as t; from pathlib import Path\n"
        "from stages.build_tokenizer import canonical, train\n"
        "import hashlib\n"
        "order = [x for x in t.TEXTS if not t.is_validation([t.document_id(x)])[0]]\n"
        "order.sort(key=lambda x: int(t.sample([t.document_id(x)])[0]))\n"
        "print(hashlib.sha256(canonical(train(order, 400, 'gpt4')).encode()).hexdigest())\n"
    )
    env = {"RAYON_NUM_THREADS": "1", "PYTHONPATH": str(REPO), "PATH": ""}
    out = subprocess.run([sys.executable, "-c", code], cwd=REPO, env=env, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == trained.output("tokenizer").sha256


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"vocab_size": 60_000}, r"the text supports only [\d,]+ ids; lower tokenizer.vocab_size"),
        ({"vocab_size": 70_000}, "at most 65,536"),
        ({"vocab_size": 100}, "at least 264"),
    ],
)
def test_impossible_vocabularies(tmp_path, keys, message):
    with pytest.raises(DataError, match=message):
        train(tmp_path, [curated(tmp_path, "a", TEXTS)], **keys)


def test_an_empty_sample_is_an_error(tmp_path):
    with pytest.raises(DataError, match="sample is empty"):
        train(tmp_path, [curated(tmp_path, "a", [])])


def tokenised(tmp_path, trained, texts, shard_tokens=1000, seed=0, **keys):
    inputs = [curated(tmp_path, "a", texts, **keys), trained.output("tokenizer")]
    record = run_unit(tmp_path / "out", tokenize.work, {"seed": seed, "shard_tokens": shard_tokens}, inputs)
    tokens = np.fromfile(record.output("tokens").path, "<u2")
    return record, tokens, pq.read_table(record.output("docs").path).to_pylist()


@pytest.mark.parametrize("shard_tokens", [1000, 40, 7])
def test_every_token_is_accounted_for(tmp_path, trained, path, shard_tokens):
    record, tokens, rows = tokenised(tmp_path, trained, TEXTS, shard_tokens)
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
    assert counts["text_bytes"] == sum(len(t.encode()) for t in TEXTS)
    histogram = np.load(record.output("histogram").path)
    want = np.zeros((2, 4096), np.int64)
    for row in rows:
        if not row["val"]:
            want[0, row["position"] >> 52] += row["token_count"]
            want[1, int(take(0, [row["document_id"]])[0]) >> 52] += row["token_count"]
    assert (histogram == want).all()


def test_digests_do_not_depend_on_batches(tmp_path, trained, monkeypatch):
    first, _, _ = tokenised(tmp_path, trained, TEXTS)
    monkeypatch.setattr(tokenize, "BATCH_BYTES", 300)
    second, _, _ = tokenised(tmp_path, trained, TEXTS, group=3)
    assert [o.digest for o in first.outputs] == [o.digest for o in second.outputs]


def test_an_empty_part(tmp_path, trained):
    record, tokens, rows = tokenised(tmp_path, trained, [])
    assert (len(tokens), rows, record.counts["tokens"]) == (0, [], 0)


def test_copies_left_in_have_a_fixed_order(tmp_path, trained):
    _, _, rows = tokenised(tmp_path, trained, ["same", "other", "same"])
    assert [r["source_row"] for r in rows if r["document_id"] == document_id("same")] == [0, 2]
