"""The type that ids of tokens are stored in: decided here, for every file and array of them.

A module of its own, so that tokenizing depends on no more of the trainer than this.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Tokens: TypeAlias = npt.NDArray[np.unsignedinteger[Any]]
TokenType: TypeAlias = np.dtype[np.unsignedinteger[Any]]

UINT16: TokenType = np.dtype("<u2")
UINT32: TokenType = np.dtype("<u4")


def token_dtype(vocab_size: int) -> TokenType:
    """Return the type for ids of a vocabulary of so many: two bytes where they hold them, else four."""
    return UINT16 if vocab_size <= 1 << 16 else UINT32
