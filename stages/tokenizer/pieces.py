"""The pieces of a SentencePiece model, and the bytes of text that each stands for.

A `.model` file is a protocol buffer (sentencepiece_model.proto of google/sentencepiece). Two things of it are read
here: the pieces, field 1 of the whole, in the order of their ids (the text is field 1 of a piece, its type field 3),
and what is done to a text before it is cut, the normalizer, field 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

from stages.errors import DataError

SUFFIX = ".model"  # of a file that holds one
SPACE = "\u2581"  # what SentencePiece writes for a space
NORMALIZER = 3  # the field of the model
MOST_BYTES = 1 << 26  # of a model file: Gemma's, of 262,144 pieces, has 4.7 MB


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


def read_pieces(path: str | Path) -> list[Piece]:
    """Return the pieces of a `.model` file, by id. Raises DataError for a file that is none."""
    file = Path(path)
    if file.stat().st_size > MOST_BYTES:
        raise DataError(f"{path}: {file.stat().st_size:,} bytes are no SentencePiece model; choose the .model file")
    try:
        pieces = [_piece(value) for field, value in _fields(file.read_bytes()) if field == 1]
    except (ValueError, IndexError, TypeError) as error:
        raise DataError(f"{path}: is no SentencePiece model ({error}); choose the .model file") from None
    if not pieces:
        raise DataError(f"{path}: has no pieces, so it is no SentencePiece model; choose the .model file")
    return pieces


def text_changes(path: str | Path) -> list[str]:
    """Return what a model does to a text that its pieces cannot give back, a phrase each; none for those made here.

    U+2581 is how pieces write a space: in a text it becomes one, whatever the model.
    """
    normalizer = b"".join(v for n, v in _fields(Path(path).read_bytes()) if n == NORMALIZER and isinstance(v, bytes))
    values = dict(_fields(normalizer))
    changes = ["its normalizer has rules"] if values.get(2) else []
    if values.get(3, 1):
        changes.append("add_dummy_prefix puts a blank in front of every text")
    if values.get(4, 1):
        changes.append("remove_extra_whitespaces drops blanks")
    return changes


def text_bytes(path: str | Path) -> tuple[list[int], list[int]]:
    """Return `token_bytes` and `space_ids` of a manifest for the model at `path`.

    Without a blank in front of every text, the space of a piece always stands in the text, and is counted with it.
    """
    lengths, space_ids = piece_bytes(read_pieces(path))
    if any("add_dummy_prefix" in change for change in text_changes(path)):
        return lengths, space_ids
    for i in space_ids:
        lengths[i] += 1
    return lengths, []


def _piece(message: bytes | int) -> Piece:
    if isinstance(message, int):
        raise ValueError("a number where a piece should be")
    values = dict(_fields(message))
    text, kind = values.get(1, b""), values.get(3, PieceType.NORMAL)
    if isinstance(text, int) or isinstance(kind, bytes):
        raise ValueError("a piece without a text")
    return Piece(text.decode(), PieceType(kind))


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


def piece_bytes(pieces: list[Piece]) -> tuple[list[int], list[int]]:
    """Return the bytes of text of each id, and the ids with a space in front, which is not among them.

    As a manifest has them (`token_bytes`, `space_ids`). Control, unknown and unused pieces stand for no text.
    """
    lengths, space_ids = [], []
    for i, (text, kind) in enumerate(pieces):
        if kind == PieceType.BYTE:
            lengths.append(1)
        elif kind in (PieceType.NORMAL, PieceType.USER_DEFINED):
            if text.startswith(SPACE):
                space_ids.append(i)
            lengths.append(len(text.removeprefix(SPACE).replace(SPACE, " ").encode()))
        else:
            lengths.append(0)
    return lengths, space_ids
