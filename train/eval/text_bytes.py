"""How many bytes of text a token stands for, given the one before it: what bits per byte are counted over.

    bytes(t | p) = base[t] + (1 if t begins with a space, and p stands for text, else 0)

Byte-level tokens (ours, GPT-2's) stand for the same bytes wherever they are: none of them is in the manifest's
`space_ids`. SentencePiece writes a space as part of the piece behind it, and puts one in front of every text, which is
not in the text: behind BOS, and other ids of 0 bytes, it is not counted. So the sum over a document is the size of its
text. That is how the parameter-golf scripts count (openai/parameter-golf, `build_sentencepiece_luts`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from train.data.manifest import Tokenizer


class TextBytes:
    """The bytes of the ids of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.base = np.array(tokenizer.token_bytes, np.int64)
        self.has_space = np.zeros(len(self.base), bool)
        self.has_space[tokenizer.space_ids] = True
        self.is_text = (self.base > 0) | self.has_space

    def count(self, ids: NDArray[np.integer]) -> NDArray[np.int64]:
        """Return the bytes of ids[1:], each behind the one before it, (len(ids) - 1,)."""
        previous, targets = ids[:-1], ids[1:]
        result: NDArray[np.int64] = self.base[targets]
        if self.has_space.any():
            result = result + (self.has_space[targets] & self.is_text[previous])
        return result
