"""A vocabulary of more than 65,536 ids: the same shards and lineage, with ids of four bytes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from built import RECIPE, copy_of, edit, small
from commands import cli
from readers import MegatronIndexed
from tokenizers import Tokenizer
from trainer_harness import losses, sets

from stages.pack.verify import verify
from stages.tokenizer.encoder import open_encoder
from train.config import TrainConfig
from train.data.format import read_header
from train.data.loader import Loader
from train.data.manifest import ManifestError, load_manifest
from train.data.tokens import UINT16, UINT32, token_dtype
from train.main import run
from train.tokenizer.vocabulary import byte_alphabet

pytestmark = pytest.mark.slow
MODEL = {"dim": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 64, "sliding_window": 16}
TRAIN = {"steps": 10, "batch_size": 8, "seq_len": 32, "log_every": 1, "eval_tokens": 1024, "eval_every": 0}


def write_wide_tokenizer(path: Path) -> None:
    """All bytes and all pairs of bytes as tokens, pairs of letters last, so that text has ids beyond 65,536."""
    letters = sorted(byte_alphabet(), key=lambda character: character in "aeioubdgklmnrst")  # those of the test's words
    pairs = [(a, b) for a in letters for b in letters]
    vocab = {token: i for i, token in enumerate(["<|endoftext|>", *letters, *(a + b for a, b in pairs)])}
    split = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    special = {"id": 0, "content": "<|endoftext|>", "special": True}
    added = [{**special, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}]
    definition = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": split,
        "decoder": split,
        "model": {"type": "BPE", "vocab": vocab, "merges": [f"{a} {b}" for a, b in pairs]},
    }
    Tokenizer.from_str(json.dumps(definition)).save(str(path))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide")
    write_wide_tokenizer(folder / "tokenizer.json")
    train = {"anneal": TRAIN}
    return small(folder, tokenizer={"from": str(folder / "tokenizer.json")}, model=MODEL, train=train)


def test_the_width_follows_the_vocabulary():
    assert [token_dtype(n) for n in (1, 65_536, 65_537, 262_144)] == [UINT16, UINT16, UINT32, UINT32]


def test_shards_of_four_byte_ids_hold_the_text(published):
    manifest = load_manifest(published)
    assert manifest.tokenizer.vocab_size == 65_793
    encoder = open_encoder(str(published / "tokenizer.json"))
    texts = {}
    for file in (published.parent / "curated").glob("*.parquet"):
        table = pq.read_table(file)
        texts |= dict(zip(table["document_id"].to_pylist(), table["text"].to_pylist(), strict=True))
    highest = 0
    for shard in manifest.shards:
        raw = (published / shard.path).read_bytes()
        assert np.frombuffer(raw, "<i4", 3).tolist() == [20240801, 7, shard.tokens]
        assert len(raw) == shard.bytes == 1024 + 4 * shard.tokens
        rows = pq.read_table(published / shard.rows).to_pylist()
        megatron = MegatronIndexed((published / shard.path).with_suffix(""))
        assert megatron.dtype == "<i4" and len(megatron) == len(rows)
        for number, row in enumerate(rows):
            found = megatron.get(number)
            highest = max(highest, int(found.max()))
            if row["part"] == 0:
                ids = [manifest.tokenizer.bos_id, *encoder.encode([texts[row["document_id"]]])[0].tolist()]
                assert found.tolist() == ids[: len(found)] and (row["truncated"] or len(found) in (len(ids), 6000))
    assert highest > 65_536


def test_lineage_of_four_byte_ids(published, tmp_path):
    manifest = load_manifest(published)
    assert list(verify(manifest)) == []
    traced = cli("trace", str(published), "--shard", "1", "--token", "700", "--json")
    assert traced.returncode == 0, traced.stderr
    value = json.loads(traced.stdout)
    assert value["origin"]["status"] in ("equal", "prefix") and value["curated"]["status"] in ("equal", "prefix")
    found = cli("find", str(published), "--text", value["text"][:40], "--json")
    places = [place for line in found.stdout.splitlines() for place in json.loads(line)["places"]]
    assert any(p["shard"] == value["shard"] and p["start"] <= value["token_start"] + 3 < p["stop"] for p in places)
    shown = cli("inspect", str(published), "--shard", "1", "--token", str(value["token_start"]), "--length", "30")
    assert "<|endoftext|>" + value["text"][:20] in shown.stdout
    assert "no difference" in cli("diff", str(published), str(published)).stdout
    again = cli("rebuild", str(published), "--out", str(tmp_path / "again"), "--executor", "local", "--workers", "1")
    assert again.returncode == 0 and "every sha256 as the manifest has it" in again.stdout, again.stderr


def test_ten_steps_on_four_byte_ids(published, tmp_path):
    run(published, sets(out=str(tmp_path / "run")))
    values = losses(tmp_path / "run")
    assert list(values) == list(range(1, 11)) and values[10] < values[1]
    traced = cli("trace", str(published), "--run", str(tmp_path / "run"), "--step", "7", "--json")
    assert traced.returncode == 0 and {json.loads(line)["row"] for line in traced.stdout.splitlines()} == set(range(8))


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    """The mixture with windows filled up."""
    folder = tmp_path_factory.mktemp("padded")
    write_wide_tokenizer(folder / "tokenizer.json")
    definition = json.loads((folder / "tokenizer.json").read_text())
    definition["added_tokens"].append({**definition["added_tokens"][0], "id": 65_793, "content": "<|pad|>"})
    (folder / "tokenizer.json").write_text(json.dumps(definition))
    mixtures = {"anneal": {**RECIPE["mixtures"]["anneal"], "packing": "best_fit", "window": 128}}
    return small(folder / "wide", tokenizer={"from": str(folder / "tokenizer.json")}, mixtures=mixtures)


def test_shards_of_four_byte_ids_with_padding_verify(padded):
    assert list(verify(load_manifest(padded))) == []


@pytest.mark.parametrize("long", [1, 1024])
def test_rows_padding_and_borders_of_four_byte_ids(padded, monkeypatch, long):
    """The same batches as a plain read of the files gives, with windows filled up and documents told."""
    folder, manifest = padded, load_manifest(padded)
    assert any(s.padding for s in manifest.shards)
    monkeypatch.setattr("train.data.loader.LONG", long)
    stream = {s.path: np.fromfile(folder / s.path, "<u4", offset=1024) for s in manifest.split("train")}
    for order in ("shuffled", "sequential"):
        batch = Loader(manifest, TrainConfig(batch_size=8, seq_len=50, order=order)).batch(3, document_mask=True)
        rows = batch.tokens.numpy()
        known = {tuple(t[i : i + 51].tolist()) for t in stream.values() for i in range(len(t) - 50)}
        assert sum(tuple(row.tolist()) in known for row in rows) >= 7
        starts = np.flatnonzero((rows[:, :-1] == manifest.tokenizer.bos_id) | (np.arange(50) == 0)).tolist()
        assert batch.cu_seqlens.tolist() == [*starts, 400]
        pad = rows == manifest.tokenizer.pad_id
        assert np.array_equal(batch.targets.numpy() < 0, pad[:, 1:] | pad[:, :-1])


def test_a_shard_of_two_byte_ids_is_refused_by_name(published, tmp_path):
    folder = copy_of(published, tmp_path / "copy")
    manifest = load_manifest(folder)
    path = folder / manifest.shards[1].path
    header = dataclasses.replace(read_header(path), dtype=UINT16)
    path.write_bytes(header.pack() + np.zeros(header.tokens, "<u2").tobytes())
    message = rf"{path.name}: has ids of 2 bytes, those of a vocabulary of 65,793 have 4: a manifest cannot mix them"
    with pytest.raises(ManifestError, match=message):
        run(folder, sets(out=str(tmp_path / "run")))
    edit(folder, lambda value: value["shards"][1].update(bytes=path.stat().st_size))
    assert any(f"{path.name}" in problem for problem in verify(load_manifest(folder)))
