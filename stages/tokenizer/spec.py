"""Reading a tokenizer file for the stages, and the special tokens of those that are made here.

Small and apart from training, so that a change in how a tokenizer is trained does not tokenize a corpus again
whose tokenizer came out the same.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from stages.errors import DataError
from train.tokenizer.pieces import TokenizerError
from train.tokenizer.vocabulary import Vocabulary, read_vocabulary, text_definition

PIECE_SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")  # of a SentencePiece model made here
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


def open_vocabulary(path: str | Path) -> Vocabulary:
    """Return the ids of the tokenizer at `path` and what they stand for: train/tokenizer/vocabulary.py.

    Raises DataError for a file that is none.
    """
    try:
        return read_vocabulary(path)
    except TokenizerError as error:
        raise DataError(str(error)) from None


def load_text_encoder(path: str) -> Tokenizer:
    """Return the tokenizer at `path` for document text; see `text_definition`."""
    return Tokenizer.from_str(text_definition(path))
