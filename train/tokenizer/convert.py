"""A SentencePiece model as the tokenizer.json that gives its ids, for those who load neither the file nor the package.

SentencePiece's BPE merges, of all neighbors that together are a piece, the pair whose piece has the highest score, the
leftmost of equals. So the merges are the splits of every piece into two, in the order of scores, as transformers'
converter lists them. Ids are the same but where a text meets two splits of one piece: what is made is compared with the
package, on texts put together of the pieces, and refused where it differs.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from train.tokenizer.pieces import BPE, SPACE, Piece, PieceModel, PieceType, TokenizerError, read_model
from train.tokenizer.vocabulary import NO_TEXT_TYPES, for_text

NASTY = (
    " ",
    "  leading and   inner  blanks ",
    "\x00\x07 \t\r\n\r\n\n\n\n   \u00a0\u2028",
    "naïve e\u0301 हिन्दी में 日本語 \U0001f469\u200d\U0001f52c \ufeff\U0010ffff",
    "<0xE4><0x41> <s> </s> <pad> <unk>",
    "1234567 12 345,678.90 def f(x):\n\treturn x",
    "a" * 500 + "ab" * 500 + " " * 500 + "\n" * 300 + "-=" * 300,
)
DRAWN = 200  # texts of PIECES pieces each, drawn from the model
PIECES = 50


def converted(path: Path) -> dict[str, Any]:
    """Return the tokenizer.json of the model at `path`, proven on hard texts.

    Raises TokenizerError for a model whose ids it would not give, and without the packages that show it.
    """
    model = read_model(path)
    if reasons := _unlike(model):
        raise TokenizerError(f"{path}: has no tokenizer.json of the same ids: {'; '.join(reasons)}")
    definition = _definition(model)
    if text := _first_difference(path, definition, _hard_texts(model)):
        raise TokenizerError(f"{path}: has no tokenizer.json of the same ids: it would differ on {text[:60]!r}")
    return definition


def _unlike(model: PieceModel) -> list[str]:
    """Return why a model cannot be written as BPE of the tokenizers library; one phrase each."""
    types = [piece.type for piece in model.pieces]
    reasons = []
    if model.kind != BPE:
        reasons.append("it is no BPE (of unigram, tokenizers would read <0x41> in a text as a byte)")
    if model.rewrites or model.drops_blanks:
        reasons.append("it rewrites texts before it cuts them")
    if types.count(PieceType.BYTE) != 256:
        reasons.append("it has no byte_fallback")
    if PieceType.UNUSED in types:
        reasons.append("it has unused pieces")
    if model.adds_blank and PieceType.USER_DEFINED in types:
        reasons.append("it has pieces defined by its user, and puts a blank in front of texts")
    return reasons


def _definition(model: PieceModel) -> dict[str, Any]:
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    front = {"type": "Prepend", "prepend": SPACE}
    back = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if model.adds_blank else []
    unknown = next((piece.text for piece in model.pieces if piece.type == PieceType.UNKNOWN), None)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(i, piece) for i, piece in enumerate(model.pieces) if _is_added(piece)],
        "normalizer": {"type": "Sequence", "normalizers": [front, spaces]} if model.adds_blank else spaces,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": back + strip},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece.text: i for i, piece in enumerate(model.pieces)},
            "merges": _merges(model.pieces),
        },
    }


def _is_added(piece: Piece) -> bool:
    return piece.type in (*NO_TEXT_TYPES, PieceType.USER_DEFINED)


def _added(number: int, piece: Piece) -> dict[str, Any]:
    """Return an added token: a special one, or one for text, which is looked for where spaces are written already."""
    special = piece.type in NO_TEXT_TYPES
    same = {"single_word": False, "lstrip": False, "rstrip": False}
    return {"id": number, "content": piece.text, **same, "normalized": not special, "special": special}


def _merges(pieces: list[Piece]) -> list[list[str]]:
    """Return every split of a piece into two, those of the highest score first."""
    ids = {piece.text: i for i, piece in enumerate(pieces) if piece.type == PieceType.NORMAL}
    ordered = sorted(ids, key=lambda text: -pieces[ids[text]].score)
    splits = (
        sorted((ids[text[:n]], ids[text[n:]]) for n in range(1, len(text)) if text[:n] in ids and text[n:] in ids)
        for text in ordered
    )
    return [[pieces[left].text, pieces[right].text] for of_piece in splits for left, right in of_piece]


def _hard_texts(model: PieceModel) -> list[str]:
    """Return NASTY, and texts put together of the model's own pieces at random, the same each time."""
    rng = random.Random(0)
    pieces = [piece.text.replace(SPACE, " ") for piece in model.pieces if piece.type not in NO_TEXT_TYPES]
    return [*NASTY, *("".join(rng.choices(pieces, k=PIECES)) for _ in range(DRAWN))]


def _first_difference(path: Path, definition: dict[str, Any], texts: list[str]) -> str:
    """Return the first text whose ids are not the model's; nothing where there is none."""
    try:
        from sentencepiece import SentencePieceProcessor
        from tokenizers import Tokenizer
    except ImportError as error:
        raise TokenizerError(
            f"{path}: a tokenizer.json of it needs the packages sentencepiece and tokenizers ({error}); "
            "pip install sentencepiece tokenizers"
        ) from None
    theirs = SentencePieceProcessor(model_file=str(path))
    ours = Tokenizer.from_str(for_text(definition))
    for text in texts:
        if list(theirs.encode(text)) != ours.encode(text, add_special_tokens=False).ids:
            return text
    return ""
