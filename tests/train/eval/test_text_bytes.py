"""Bytes of text by token: over a stream they are the size of the text, with each kind of tokenizer."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from golf_data import BOS, SHARDS, VAL_BYTES, VAL_TARGETS, toy_stream, toy_text_bytes
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from train.data.manifest import Tokenizer
from train.eval.text_bytes import TextBytes
from train.tokenizer.pieces import UNIGRAM, Piece, PieceModel, PieceType, TokenizerError, read_model
from train.tokenizer.vocabulary import Vocabulary, byte_alphabet, of_model, read_vocabulary

DOCUMENTS = [
    "The small model reads every token once, and then again.",
    "  Two spaces ahead, a tab\there,\nlines\n\n\nand an end  ",
    "naïve café, 漢字かな, emoji 🙂🙂, Ελληνικά, \u00a0 and \x07",
    "the the the the model model model reads reads reads",
    "x",
]
SIZE = sum(len(text.encode()) for text in DOCUMENTS)


def manifest_tokenizer(vocabulary: Vocabulary, bos: int) -> Tokenizer:
    return Tokenizer("", "", vocabulary.size, bos, bos, {}, vocabulary.token_bytes, vocabulary.space_ids)


def bytes_of_stream(tokenizer: Tokenizer, documents: list[list[int]]) -> int:
    """The bytes of all documents but the first token, BOS, which is no target."""
    stream = np.array([i for ids in documents for i in [tokenizer.bos_id, *ids]], np.uint16)
    return int(TextBytes(tokenizer).count(stream).sum())


def byte_level(tmp_path: Path, name: str, split: pre_tokenizers.PreTokenizer) -> Tokenizer:
    """A trained byte-level BPE; its documents are in `encoded`."""
    tokenizer = Tokenizers(models.BPE())
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[name], initial_alphabet=sorted(byte_alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(DOCUMENTS, trainer)
    path = str(tmp_path / "tokenizer.json")
    tokenizer.save(path)
    made = manifest_tokenizer(vocabulary := read_vocabulary(path), vocabulary.special_ids[name])
    assert bytes_of_stream(made, [tokenizer.encode(text).ids for text in DOCUMENTS]) == SIZE
    return made


def test_byte_level_tokens_are_the_size_of_the_text(tmp_path):
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(r" ?\w+|\s+|[^\s\w]+", "isolated"),  # whatever it cuts, no byte is lost
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made = byte_level(tmp_path, "<|bos|>", split)
    assert not TextBytes(made).has_space.any()


def test_gpt2_tokens_are_the_size_of_the_text(tmp_path):
    made = byte_level(tmp_path, "<|endoftext|>", pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
    assert made.token_bytes[made.bos_id] == 0


# ---------------------------------------------------------------------------------------------------------------------
# SentencePiece

SPECIALS = [
    Piece("<unk>", PieceType.UNKNOWN),
    Piece("<s>", PieceType.CONTROL),
    Piece("</s>", PieceType.CONTROL),
    Piece("unused", PieceType.UNUSED),
]
BYTES = [Piece(f"<0x{byte:02X}>", PieceType.BYTE) for byte in range(256)]
WORDS = [
    "\u2581the",
    "\u2581",
    "\u2581model",
    "\u2581small",
    "The",
    "re",
    "ad",
    "s",
    "e",
    "t",
    "o",
    "n",
    "\u2581\u2581",
    "é",
]
PIECES = [*SPECIALS, *BYTES, *(Piece(word, PieceType.NORMAL) for word in WORDS), Piece("🙂", PieceType.USER_DEFINED)]
PIECES = [piece._replace(score=-1.5) for piece in PIECES]
MODEL = PieceModel(PIECES, UNIGRAM, rewrites=False, adds_blank=True, drops_blanks=True)  # as the library defaults


def varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def model_file(path: Path, pieces: list[Piece]) -> Path:
    """A .model file of these pieces: text, score and type, as the library writes them, and a field it has beside."""
    entries = b""
    for text, kind, _ in pieces:
        entry = b"\x0a" + varint(len(text.encode())) + text.encode() + b"\x15" + struct.pack("<f", -1.5)
        entry += b"" if kind == PieceType.NORMAL else b"\x18" + varint(kind)
        entries += b"\x0a" + varint(len(entry)) + entry
    path.write_bytes(entries + b"\x12\x04\x0a\x02ab")
    return path


def test_pieces_are_read_from_the_file(tmp_path):
    assert read_model(model_file(tmp_path / "a.model", PIECES)) == MODEL


def test_pieces_are_the_size_of_the_text():
    words = {piece.text: i for i, piece in enumerate(PIECES)}
    # The library's own pieces and fallback to bytes, by another implementation: a unigram model of tokenizers.
    tokenizer = Tokenizers(
        models.Unigram([(piece.text, -1.0 - len(piece.text)) for piece in PIECES], unk_id=0, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    documents = [tokenizer.encode("\u2581" + text).ids for text in DOCUMENTS]
    assert not {i for ids in documents for i in ids} & {0, 1, 2, 3}
    assert {words["\u2581the"], words["\u2581model"], words["é"]} <= {i for ids in documents for i in ids}
    assert bytes_of_stream(manifest_tokenizer(of_model(MODEL), 1), documents) == SIZE


def test_the_toy_of_the_records():  # golf.md 5: ids, bytes and spaces of its tokenizer; 320 targets, 819 bytes
    stream = toy_stream(*SHARDS["toy_val_000000"])
    assert stream[:5] == [0, 48, 61, 36, 40]
    lengths, space_ids = toy_text_bytes()
    toy = Tokenizer("", "", len(lengths), BOS, BOS, {}, lengths, space_ids)
    sizes = TextBytes(toy).count(np.array(stream))
    assert sizes[:VAL_TARGETS].sum() == VAL_BYTES


def test_a_space_counts_behind_text_alone():
    count = TextBytes(manifest_tokenizer(of_model(MODEL), 1)).count
    word, blank, byte = (PIECES.index(piece) for piece in (PIECES[260], PIECES[261], PIECES[11]))
    assert PIECES[word].text == "\u2581the" and PIECES[blank].text == "\u2581"
    assert count(np.array([1, word, word, byte, word, blank, word, 0, word, 2, blank])).tolist() == [
        *(3, 4, 1, 4, 1, 4, 0, 3, 0, 0)
    ]


def test_with_the_library_itself(tmp_path):
    library = pytest.importorskip("sentencepiece")
    corpus = [text for text in DOCUMENTS for _ in range(20)]
    written = io.BytesIO()
    library.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=written,
        vocab_size=400,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
    )
    path = tmp_path / "tokenizer.model"
    path.write_bytes(written.getvalue())
    processor = library.SentencePieceProcessor(model_file=str(path))
    model = read_model(path)
    assert [piece.text for piece in model.pieces] == [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    made = manifest_tokenizer(of_model(model), processor.bos_id())
    assert bytes_of_stream(made, [processor.encode(text) for text in DOCUMENTS]) == SIZE


@given(st.binary(max_size=200))
def test_a_file_that_is_no_model_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("models") / "a.model"
    path.write_bytes(data)
    try:
        assert read_model(path).pieces
    except TokenizerError as error:
        assert "no SentencePiece model" in str(error)
