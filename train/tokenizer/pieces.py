"""A SentencePiece model: its pieces, and what it does to a text before it is cut.

A `.model` file is a protocol buffer (sentencepiece_model.proto of google/sentencepiece): field 1 of the whole is a
piece, in the order of ids (its text is field 1, its score field 2, its type field 3); field 2 says how the model was
trained (the kind of model is field 3), field 3 is the normalizer.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

SUFFIX = ".model"  # of a file that holds one
SPACE = "\u2581"  # what SentencePiece writes for a space
TRAINER, NORMALIZER = 2, 3  # fields of the model
UNIGRAM, BPE = 1, 2  # kinds of it
MOST_BYTES = 1 << 26  # of a model file: Gemma's, of 262,144 pieces, has 4.7 MB


class TokenizerError(Exception):
    """A tokenizer's file is none, or what reads it is not installed. One line, for people."""


class PieceType(IntEnum):
    """What a piece is."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """An entry of the vocabulary."""

    text: str
    type: PieceType
    score: float = 0.0  # of BPE: pieces of higher ones are merged first


class PieceModel(NamedTuple):
    """What stands in a `.model` file. Its normalizer may rewrite characters, add a blank, or drop some."""

    pieces: list[Piece]
    kind: int  # UNIGRAM, BPE, or one that is neither
    rewrites: bool  # its normalizer has rules
    adds_blank: bool  # add_dummy_prefix: a blank in front of every text
    drops_blanks: bool  # remove_extra_whitespaces


def read_model(path: str | Path) -> PieceModel:
    """Read a `.model` file. Raises TokenizerError for a file that is none."""
    file = Path(path)
    if file.stat().st_size > MOST_BYTES:
        raise TokenizerError(
            f"{path}: {file.stat().st_size:,} bytes are no SentencePiece model; choose the .model file"
        )
    try:
        fields = [*_fields(file.read_bytes())]
        pieces = [_piece(value) for number, value in fields if number == 1]
        trainer, normalizer = (
            dict(_fields(b"".join(v for n, v in fields if n == number and isinstance(v, bytes))))
            for number in (TRAINER, NORMALIZER)
        )
        kind = int(trainer.get(3, UNIGRAM))
    except (ValueError, IndexError, TypeError) as error:
        raise TokenizerError(f"{path}: is no SentencePiece model ({error}); choose the .model file") from None
    if not pieces:
        raise TokenizerError(f"{path}: has no pieces, so it is no SentencePiece model; choose the .model file")
    rewrites, adds_blank, drops_blanks = normalizer.get(2), normalizer.get(3, 1), normalizer.get(4, 1)
    return PieceModel(pieces, kind, bool(rewrites), bool(adds_blank), bool(drops_blanks))


def _piece(message: bytes | int) -> Piece:
    if isinstance(message, int):
        raise ValueError("a number where a piece should be")
    values = dict(_fields(message))
    text, kind, score = values.get(1, b""), values.get(3, PieceType.NORMAL), values.get(2, bytes(4))
    if isinstance(text, int) or isinstance(kind, bytes) or isinstance(score, int) or len(score) != 4:
        raise ValueError("a piece without a text")
    return Piece(text.decode(), PieceType(kind), *struct.unpack("<f", score))


def _fields(message: bytes) -> Iterator[tuple[int, bytes | int]]:
    """Yield (number, value) of the fields of a message: the wire format of protocol buffers."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == 0:
            value: bytes | int
            value, at = _varint(message, at)
        else:
            size, at = _varint(message, at) if wire == 2 else ({1: 8, 5: 4}.get(wire, -1), at)
            if not 0 <= size <= len(message) - at:
                raise ValueError("a field that is cut off, or of no known type")
            value, at = message[at : at + size], at + size
        yield tag >> 3, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return a number of the wire format, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        value |= (message[at] & 127) << shift
        at += 1
        if message[at - 1] < 128:
            return value, at
    raise ValueError("a number without an end")
