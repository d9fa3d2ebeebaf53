"""Text to ids and back, with whichever package a tokenizer's file asks for: for prompts and samples alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


class MissingPackageError(Exception):
    """The package that reads a tokenizer is not installed. One line, for people."""


class TextTokenizer:
    """A tokenizer.json, or a SentencePiece .model. Text that spells a special token gets its characters, not its id."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises MissingPackageError."""
        self.pieces = path.suffix == ".model"
        package = "sentencepiece" if self.pieces else "tokenizers"
        try:
            if self.pieces:
                from sentencepiece import SentencePieceProcessor

                self.processor = SentencePieceProcessor(model_file=str(path))
            else:
                from tokenizers import Tokenizer

                self.tokenizer = Tokenizer.from_file(str(path))
                self.tokenizer.encode_special_tokens = True
        except ImportError:
            raise MissingPackageError(f"the package {package} is not installed; pip install {package}") from None

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without BOS."""
        if self.pieces:
            return list(self.processor.encode(text))
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids."""
        if self.pieces:
            return str(self.processor.decode(list(ids)))
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))
