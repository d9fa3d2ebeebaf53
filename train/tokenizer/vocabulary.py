"""The one rule of which bytes of text an id stands for, for every kind of tokenizer.

    special tokens        none
    other added tokens    what they are called
    byte-level            GPT-2's alphabet: each character of a token is a byte
    byte fallback         <0xE4> is that byte
    other tokens          what they are called; where a space is written as U+2581, a space for it

A tokenizer may put a blank in front of every text (`front`), which the text does not have: the blank that an id begins
with counts only behind an id of text. Packing, lineage, bits per byte (train/eval/text_bytes.py, from what a manifest
has of it) and generation all go by this, so that the bytes of a document's tokens are those of the document.

A tokenizer.json is read with the standard library alone, a SentencePiece .model too.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from train.tokenizer.pieces import SPACE, SUFFIX, PieceModel, PieceType, TokenizerError, read_model

MOST_IDS = 1 << 20  # that a vocabulary may have
NO_TEXT_TYPES = (PieceType.UNKNOWN, PieceType.CONTROL, PieceType.UNUSED)  # pieces that are special tokens
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
Front = Literal["nothing", "blank", "missing blank"]  # the last: a blank only before a text that has none there


@dataclass(frozen=True)
class Vocabulary:
    """The ids of a tokenizer, from 0 to below `size`; some may be nothing's."""

    size: int
    special_ids: dict[str, int]  # in the order of ids
    texts: dict[int, bytes]  # of each id that stands for text
    writes_spaces: bool = False  # as U+2581, which in a text becomes a space, then
    front: Front = "nothing"  # what is put in front of a text

    @property
    def token_bytes(self) -> list[int]:
        """The bytes of each id, beside the space in front of those in `space_ids`."""
        front = {*self.space_ids}
        return [len(self.texts.get(i, b"")) - (i in front) for i in range(self.size)]

    @property
    def space_ids(self) -> list[int]:
        """The ids whose first space counts only behind text: none where nothing is put in front of a text."""
        if self.front == "nothing":
            return []
        return [i for i in sorted(self.texts) if self.texts[i].startswith(b" ")]

    def as_stored(self, text: str) -> str:
        """Return `text` as its tokens give it back."""
        text = text.replace(SPACE, " ") if self.writes_spaces else text
        return text.removeprefix(" ") if self.front == "missing blank" else text

    def spell(self, ids: Sequence[int], behind: int | None = None) -> list[bytes]:
        """Return the bytes of text of each id. behind: the id in front of the first; None: a text goes on."""
        spelled = [self.texts.get(i, b"") for i in ids]
        if self.front != "nothing":
            for n, before in enumerate([behind, *ids][: len(ids)]):
                if before is not None and not self.texts.get(before):
                    spelled[n] = spelled[n].removeprefix(b" ")
        return spelled

    def limited(self, size: int) -> Vocabulary:
        """Return the first `size` ids, where those beyond are special: Gemma 3's image token, which no text needs.

        Raises TokenizerError where a text may need one of them.
        """
        least = max(self.texts, default=-1) + 1
        if not least <= size <= self.size:
            raise TokenizerError(
                f"vocab_size is {size:,}, but the tokenizer has {self.size:,} ids, and texts need the first {least:,}"
            )
        specials = {name: i for name, i in self.special_ids.items() if i < size}
        return dataclasses.replace(self, size=size, special_ids=specials)


def read_vocabulary(path: str | Path) -> Vocabulary:
    """Return the ids of a tokenizer.json or a `.model`. Raises TokenizerError where it is damaged, or none."""
    if str(path).endswith(SUFFIX):
        return of_model(read_model(path))
    try:
        vocabulary = of_definition(json.loads(Path(path).read_text(encoding="utf-8")))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise TokenizerError(
            f"{path}: is no tokenizer.json, or it is damaged ({type(error).__name__}: {error})"
        ) from None
    if vocabulary.size > MOST_IDS:
        raise TokenizerError(f"{path}: has ids beyond {MOST_IDS:,}, which no vocabulary has; it is damaged")
    return vocabulary


def of_model(model: PieceModel) -> Vocabulary:
    """Return the ids of a SentencePiece model."""
    texts = {
        i: _piece_text(piece.text, piece.type == PieceType.BYTE)
        for i, piece in enumerate(model.pieces)
        if piece.type not in NO_TEXT_TYPES
    }
    specials = {piece.text: i for i, piece in enumerate(model.pieces) if piece.type in NO_TEXT_TYPES}
    return Vocabulary(len(model.pieces), specials, texts, True, "blank" if model.adds_blank else "nothing")


def of_definition(definition: dict[str, Any]) -> Vocabulary:
    """Return the ids of a tokenizer.json. Raises what reading of a value that is none raises."""
    model, added = definition["model"], definition["added_tokens"]
    cuts = steps(definition.get("pre_tokenizer"), "pretokenizers")
    changes = steps(definition.get("normalizer"), "normalizers")
    ids = (
        dict(model["vocab"]) if isinstance(model["vocab"], dict) else {t: i for i, (t, *_) in enumerate(model["vocab"])}
    )
    every = {*ids.values(), *(token["id"] for token in added)}
    if not all(type(i) is int and i >= 0 for i in every):
        raise ValueError("an id that is no number from 0 on")
    metaspaces = [step for step in cuts if step["type"] == "Metaspace"]
    writes_spaces = bool(metaspaces) or any(is_space_replacement(step) for step in changes)
    if any(step["type"] == "ByteLevel" for step in cuts):
        alphabet = byte_alphabet()
        texts = {i: _alphabet_text(token, alphabet) for token, i in ids.items()}
    else:
        fallback = bool(model.get("byte_fallback"))
        texts = {i: _piece_text(token, fallback, writes_spaces) for token, i in ids.items()}
    for token in added:
        texts[token["id"]] = b"" if token["special"] else _piece_text(token["content"], False, writes_spaces)
    specials = sorted((token["id"], token["content"]) for token in added if token["special"])
    return Vocabulary(
        size=max(every, default=-1) + 1,
        special_ids={name: i for i, name in specials},
        texts={i: text for i, text in texts.items() if text},
        writes_spaces=writes_spaces,
        front=_front(changes, metaspaces),
    )


def steps(component: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    """Return the steps of a normalizer or a pre-tokenizer; `inside` is where a sequence keeps its own."""
    if not component:
        return []
    if component["type"] != "Sequence":
        return [component]
    return [step for nested in component[inside] for step in steps(nested, inside)]


def is_space_replacement(step: dict[str, Any]) -> bool:
    """Return whether a step of a normalizer writes spaces as SentencePiece does, and nothing else."""
    return bool(step["type"] == "Replace" and (step["pattern"], step["content"]) == ({"String": " "}, SPACE))


def prepends(metaspace: dict[str, Any]) -> str:
    """Return where a Metaspace puts a blank in front: always, first or never; the old form has a flag for it."""
    return "never" if metaspace.get("add_prefix_space") is False else str(metaspace.get("prepend_scheme", "always"))


def _front(changes: Iterable[dict[str, Any]], metaspaces: Iterable[dict[str, Any]]) -> Front:
    if any(step["type"] == "Prepend" for step in changes):
        return "blank"
    return "missing blank" if any(prepends(step) != "never" for step in metaspaces) else "nothing"


def _piece_text(token: str, may_be_byte: bool, writes_spaces: bool = True) -> bytes:
    byte = BYTE.fullmatch(token) if may_be_byte else None
    if byte:
        return bytes([int(byte[1], 16)])
    return (token.replace(SPACE, " ") if writes_spaces else token).encode()


def _alphabet_text(token: str, alphabet: dict[str, int]) -> bytes:
    """Return the bytes of a byte-level token; the token itself where a character is none, as `tokenizers` does."""
    values = [alphabet.get(character) for character in token]
    return token.encode() if None in values else bytes(value for value in values if value is not None)


def byte_alphabet() -> dict[str, int]:
    """Return the byte behind each character of GPT-2's byte-level alphabet.

    Printable Latin-1 stands for itself, the other bytes for U+0100 on.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


def text_definition(path: str | Path) -> str:
    """Return the tokenizer.json at `path` as `for_text` makes it."""
    return for_text(json.loads(Path(path).read_text(encoding="utf-8")))


def for_text(definition: dict[str, Any]) -> str:
    """Return a tokenizer.json as JSON, for document text: no text it is given produces a special id.

    HF tokenizers turn a literal `<|bos|>` in a document into the real id. Without special tokens in the list there is
    nothing to look for, and merges cannot reach a special id (checked where it is opened). Tokens added for text, such
    as the runs of spaces of GPT-NeoX, stay; they are numbered after the vocabulary, so special tokens go into that.
    What would shorten, pad or wrap a text goes.
    """
    added = definition["added_tokens"]
    vocab = definition["model"]["vocab"] | {t["content"]: t["id"] for t in added if t["special"]}
    changes = {
        "model": definition["model"] | {"vocab": vocab},
        "added_tokens": [t for t in added if not t["special"]],
        **dict.fromkeys(("truncation", "padding", "post_processor")),
    }
    return json.dumps(definition | changes)
