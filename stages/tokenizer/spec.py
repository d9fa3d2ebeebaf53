"""Reading a tokenizer file: special ids, the bytes of every token, and an encoder for document text.

Small and apart from training, so that a change in how a tokenizer is trained does not tokenize a corpus again
whose tokenizer came out the same.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer

from stages.errors import DataError
from stages.tokenizer.pieces import SPACE, SUFFIX, PieceType, read_pieces, text_bytes

MOST_IDS = 1 << 20  # that a vocabulary may have
PIECE_SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")  # of a SentencePiece model made here
NO_TEXT_TYPES = (PieceType.UNKNOWN, PieceType.CONTROL, PieceType.UNUSED)  # pieces that are special tokens
BOS, PAD = "<|bos|>", "<|pad|>"
# Ids 0, 1, 2, ... in this order. The reserved ones are for chat formats; no stage produces them.
SPECIALS = (
    BOS,
    PAD,
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|tool|>",
    "<|end|>",
    "<|reserved_0|>",
)


def as_stored(path: str, text: str) -> str:
    """Return `text` as tokens of the tokenizer at `path` give it back: SentencePiece takes U+2581 for a space."""
    return text.replace(SPACE, " ") if path.endswith(SUFFIX) else text


def text_definition(path: str) -> str:
    """Return the tokenizer at `path` as JSON, for document text: no text it is given produces a special id.

    HF tokenizers turn a literal `<|bos|>` in a document into the real id. Without special tokens in the list there is
    nothing to look for, and merges cannot reach a special id (checked where it is opened). Tokens added for text, such
    as the runs of spaces of GPT-NeoX, stay; they are numbered after the vocabulary, so special tokens go into that.
    What would shorten, pad or wrap a text goes.
    """
    definition = json.loads(Path(path).read_text(encoding="utf-8"))
    definition["model"]["vocab"] |= {t["content"]: t["id"] for t in definition["added_tokens"] if t["special"]}
    definition["added_tokens"] = [t for t in definition["added_tokens"] if not t["special"]]
    return json.dumps(definition | {"truncation": None, "padding": None, "post_processor": None})


def load_text_encoder(path: str) -> Tokenizer:
    """Return the tokenizer at `path` for document text; see `text_definition`."""
    return Tokenizer.from_str(text_definition(path))


def special_ids(path: str) -> dict[str, int]:
    """Return the id of each special token, in the order of ids."""
    if path.endswith(SUFFIX):
        return {piece.text: i for i, piece in enumerate(read_pieces(path)) if piece.type in NO_TEXT_TYPES}
    definition = json.loads(Path(path).read_text(encoding="utf-8"))
    ids = {t["content"]: t["id"] for t in definition["added_tokens"] if t["special"]}
    return dict(sorted(ids.items(), key=lambda item: item[1]))


def token_bytes(path: str) -> list[int]:
    """Return the bytes of text that each id, the index, stands for; 0 for special tokens and ids that nothing has.

    Raises DataError for an id that would make the list larger than any vocabulary is.
    """
    if path.endswith(SUFFIX):
        return text_bytes(path)[0]
    definition = json.loads(Path(path).read_text(encoding="utf-8"))
    # The byte-level alphabet writes each byte as one character; added tokens are written as they are.
    lengths = {i: len(token) for token, i in definition["model"]["vocab"].items()}
    lengths |= {t["id"]: 0 if t["special"] else len(t["content"].encode()) for t in definition["added_tokens"]}
    if not all(isinstance(i, int) and 0 <= i < MOST_IDS for i in lengths):
        raise DataError(f"{path}: has ids beyond {MOST_IDS:,}, which no vocabulary has; it is damaged")
    return [lengths.get(i, 0) for i in range(max(lengths) + 1)]


def byte_alphabet() -> dict[str, int]:
    """Return the byte behind each character of GPT-2's byte-level alphabet.

    Printable Latin-1 stands for itself, the other bytes for U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def space_ids(path: str) -> list[int]:
    """Return the ids that have a space in front beside their `token_bytes`: train/eval/text_bytes.py."""
    return text_bytes(path)[1] if path.endswith(SUFFIX) else []


def token_texts(path: str) -> dict[int, bytes]:
    """Return the bytes of every id that stands for text."""
    if path.endswith(SUFFIX):
        pieces = {i: piece for i, piece in enumerate(read_pieces(path)) if piece.type not in NO_TEXT_TYPES}
        return {
            i: bytes([int(text[1:-1], 16)]) if kind == PieceType.BYTE else as_stored(path, text).encode()
            for i, (text, kind) in pieces.items()
        }
    definition = json.loads(Path(path).read_text(encoding="utf-8"))
    alphabet = byte_alphabet()
    added = {t["id"]: t for t in definition["added_tokens"]}
    texts = {i: t["content"].encode() for i, t in added.items() if not t["special"]}
    for token, i in definition["model"]["vocab"].items():
        if i not in added:
            texts[i] = bytes(alphabet[character] for character in token)
    return texts
