"""Text to ids and back, with whichever package a tokenizer's file asks for: for prompts and samples alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from train.tokenizer.pieces import SUFFIX, TokenizerError
from train.tokenizer.vocabulary import read_vocabulary, text_definition


class TextTokenizer:
    """A tokenizer.json, or a SentencePiece .model. Text that spells a special token gets its characters, not its id."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises TokenizerError for one that is damaged, or whose package is not installed."""
        self.vocabulary = read_vocabulary(path)
        self.names = {i: name.encode() for name, i in self.vocabulary.special_ids.items()}
        self.pieces = path.suffix == SUFFIX
        package = "sentencepiece" if self.pieces else "tokenizers"
        try:
            if self.pieces:
                from sentencepiece import SentencePieceProcessor

                self.processor = SentencePieceProcessor(model_file=str(path))
            else:
                from tokenizers import Tokenizer

                self.tokenizer = Tokenizer.from_str(text_definition(path))
        except ImportError:
            raise TokenizerError(f"the package {package} is not installed; pip install {package}") from None

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without BOS."""
        if self.pieces:
            return list(self.processor.encode(text))
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int], behind: int | None = None) -> str:
        """Return the text of ids, special tokens by name. behind: the id in front of them; None: a text goes on."""
        spelled = self.vocabulary.spell(ids, behind)
        return b"".join(self.names.get(i, text) for i, text in zip(ids, spelled, strict=True)).decode(errors="replace")
