"""Tokenizers of the hub that are not byte-level: every id's bytes by one rule, from packing to generation."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from built import RECIPE, build
from commands import cli
from hypothesis import given, settings
from hypothesis import strategies as st
from piece_tokenizers import CORPUS, KINDS, SPACE, added, definition, metaspace, write
from trainer_harness import losses, sets

from pipeline.errors import UserError
from stages.errors import DataError
from stages.lineage.rows import Decoder, rows_table, shard_rows
from stages.lineage.trace import trace
from stages.pack.verify import verify
from stages.tokenizer.encoder import open_encoder
from stages.tokenizer.external import check_accountable
from train.data.manifest import Manifest, Tokenizer, load_manifest
from train.eval.text_bytes import TextBytes
from train.eval.validation import Validation
from train.main import run
from train.tokenizer.text import TextTokenizer
from train.tokenizer.vocabulary import read_vocabulary

BOS = 2  # of piece_tokenizers
MODEL = {"dim": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 64, "sliding_window": 16}
TRAIN = {"steps": 2, "batch_size": 8, "seq_len": 32, "log_every": 1, "eval_tokens": 0, "eval_every": 0}
LINES = [
    *[
        "the model reads ",
        "हिन्दी पाठ ",
        "🙂👩\u200d🔬",
        "  ",
        "\n\n",
        "\n   ",
        "\t",
        "\x07",
        "naïve ",
        "a",
        "Ω≠",
        "<table>",
    ],
    *["<bos>", "<0x41>", "12345 ", "every token once. "],
]


def some_texts(n: int = 400) -> list[str]:
    """`n` distinct texts of LINES; a third begin with a blank."""
    rng = random.Random(7)
    return [" " * (i % 3 == 0) + f"{i}: " + "".join(rng.choices(LINES, k=rng.randint(3, 30))) for i in range(n)]


def pack(folder: Path, tokenizer: dict[str, Any], **model: int) -> tuple[Manifest, list[str]]:
    """The manifest of a mixture of `some_texts`, built in `folder`, and what was warned of."""
    (folder / "web.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in some_texts()))
    raw = {
        **RECIPE,
        "sources": {"web": {"from": "jsonl", "path": str(folder / "web.jsonl")}},
        "mixtures": {"anneal": {"tokens": 20_000, "ratios": {"web": "100%"}}},
        "tokenizer": tokenizer,
        "model": {**MODEL, **model},
        "train": {"anneal": TRAIN},
    }
    context = build(folder, raw)
    return load_manifest(folder / "build" / "small" / "anneal"), context.warnings


def llama_model(folder: Path) -> Path:
    """A SentencePiece model with a blank in front of every text, as Llama 2's."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 20), model_prefix=str(folder / "tokenizer"), vocab_size=400, model_type="bpe",
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        hard_vocab_limit=False, pad_id=0, bos_id=BOS, eos_id=1, unk_id=3, minloglevel=2,
    )  # fmt: skip
    return folder / "tokenizer.model"


@pytest.fixture(scope="module", params=[*KINDS, "model"])
def path(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kind")
    file = llama_model(folder) if request.param == "model" else write(folder, request.param)
    check_accountable(str(file), request.param, CORPUS)
    return file


def counted(path: Path, texts: list[list[int]]) -> int:
    """Bytes of documents by the trainer's rule."""
    vocabulary = read_vocabulary(path)
    entry = Tokenizer("", "", vocabulary.size, BOS, BOS, {}, vocabulary.token_bytes, vocabulary.space_ids)
    stream = np.array([i for ids in texts for i in [BOS, *ids]])
    return int(TextBytes(entry).count(stream).sum())


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.lists(st.sampled_from([*LINES, SPACE]) | st.text(max_size=8)).map("".join), min_size=1))
def test_the_bytes_of_tokens_are_those_of_the_text(path, texts):
    encoder, vocabulary, tokenizer = open_encoder(str(path)), read_vocabulary(path), TextTokenizer(path)
    ids, counts = encoder.encode(texts)
    parts = [part.tolist() for part in np.split(ids, np.cumsum(counts)[:-1])]
    stored = [vocabulary.as_stored(text) for text in texts]
    for text, kept, part in zip(texts, stored, parts, strict=True):
        assert not set(part) & {*vocabulary.special_ids.values()}
        assert b"".join(vocabulary.spell(part, BOS)).decode() == kept == tokenizer.decode(part, BOS)
        assert tokenizer.encode(text) == part
        half = len(part) // 2  # what goes on, as a generated text does, begins with a blank where it has one
        behind = part[half - 1] if half else BOS
        spelled = vocabulary.spell(part[:half], BOS) + vocabulary.spell(part[half:], behind)
        assert b"".join(spelled).decode() == kept
        changed = (SPACE in text and vocabulary.writes_spaces) or (text != kept and vocabulary.front != "nothing")
        assert kept == text or changed
        if SPACE not in text:
            assert text in (kept, f" {kept}") and (kept == text or vocabulary.front == "missing blank")
    assert counted(path, parts) == sum(len(text.encode()) for text in stored)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gemma", "llama", "metaspace, first", "model"])
def test_from_text_to_a_score_and_back(tmp_path, kind):
    file = llama_model(tmp_path) if kind == "model" else write(tmp_path, kind)
    name = "<s>" if kind == "model" else "<bos>"
    manifest, warnings = pack(tmp_path, {"from": str(file), "bos": name})
    assert list(verify(manifest)) == [] and bool(manifest.tokenizer.space_ids) == (kind != "gemma")
    vocabulary = read_vocabulary(file)
    assert any("comes back without it" in line for line in warnings) == (vocabulary.front == "missing blank")
    decoder, sizes = Decoder(manifest), 0
    for shard in manifest.shards:
        rows = shard_rows(shard.path, rows_table(manifest, shard))
        assert {t.curated.status for t in trace(manifest, rows)} <= {"equal", "prefix"}
        assert {t.origin.status for t in trace(manifest, rows)} <= {"equal", "prefix"}
        whole = [decoder.decode(row) for row in rows if not row.truncated]
        assert {text.decode() for text in whole} <= {vocabulary.as_stored(text) for text in some_texts()}
        assert decoder.text(shard.path, rows[1].token_start, rows[1].stop) == name + whole[1].decode()
        if shard.split == "val" and not shard.source:
            sizes += sum(len(decoder.decode(row)) for row in rows)
    validation = Validation(manifest, 32, 0, None, 0, 1, by_source=False)
    assert validation.groups[""].bytes == sizes > 0
    run(manifest.folder, sets(out=str(tmp_path / "run")))
    assert list(losses(tmp_path / "run")) == [1, 2]


# ---------------------------------------------------------------------------------------------------------------------
# Ids beyond the model's: Gemma 3's file has <image_soft_token>, 262,144, and its model 262,144 rows


@pytest.mark.slow
def test_special_ids_beyond_the_model_s_rows(tmp_path):
    value = definition("gemma")
    value["added_tokens"].append(added("<image_soft_token>", 420))
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(value))
    said = r"vocab_size is 400, but the tokenizer has 421 ids, and texts need the first 420"
    with pytest.raises(UserError, match=said):
        pack(tmp_path, {"from": str(file), "vocab_size": 400})
    manifest, _ = pack(tmp_path, {"from": str(file), "vocab_size": 420}, vocab_size=420)
    assert manifest.tokenizer.vocab_size == 420 and list(verify(manifest)) == []
    assert "<image_soft_token>" not in manifest.tokenizer.special_ids
    run(manifest.folder, sets(out=str(tmp_path / "run")))
    folder, shards = Path(manifest.folder), tmp_path / "elsewhere"
    shards.mkdir()
    for name in ("train_000000", "val_000000"):
        shutil.copy(folder / f"small_anneal_{name}.bin", shards / f"theirs_{name}.bin")
    done = cli("adopt", str(shards), "--tokenizer", str(file), "--bos", "<bos>", "--vocab-size", "420")
    assert done.returncode == 0, done.stderr
    adopted = load_manifest(shards)
    assert adopted.tokenizer.vocab_size == 420 and list(verify(adopted)) == []


# ---------------------------------------------------------------------------------------------------------------------
# What cannot be taken


def changed(kind: str, change) -> dict:
    value = definition(kind)
    change(value)
    return value


REFUSED = {
    "NFKC": ("gemma", lambda d: d.update(normalizer={"type": "NFKC"}), "its normalizer NFKC changes text"),
    "NFC": ("llama", lambda d: d["normalizer"]["normalizers"].append({"type": "NFC"}), "its normalizer NFC"),
    "no fallback": ("gemma", lambda d: d["model"].update(byte_fallback=False), "no byte_fallback"),
    "a byte": ("gemma", lambda d: d["model"]["vocab"].pop("<0xE4>"), "1 of the 256 bytes have no token"),
    "the blank": ("metaspace", lambda d: d["model"]["vocab"].pop(SPACE), "writes a space as '▁', which is no token"),
    "another blank": ("metaspace", lambda d: d["pre_tokenizer"].update(replacement="_"), "writes a space as '_'"),
    "behind added": (
        "llama",
        lambda d: d["added_tokens"].append(added("<x>", 420, special=False)),
        r"puts a blank behind added tokens such as \['<x>'\]",
    ),
    "every word": (
        "metaspace",
        lambda d: d.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [
            {"type": "Digits", "individual_digits": True}, metaspace("always")
        ]}),
        "does not give text back as it was",
    ),
    "unigram": ("gemma", lambda d: d["model"].update(type="Unigram"), "its model is Unigram, not BPE"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_tokenizers_that_change_text_are_refused_by_name(tmp_path, name):
    kind, change, message = REFUSED[name]
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed(kind, change)))
    with pytest.raises(DataError, match=message):
        check_accountable(str(tmp_path / "tokenizer.json"), "theirs", CORPUS)
