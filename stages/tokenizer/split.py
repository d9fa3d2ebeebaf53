"""How text is cut into words before pairs are merged: as regular expressions, and as classes of characters.

The regular expressions are the definition, and `tokenizers` has its own edition of Unicode; so the classes that the
compiled form (`stages.kernels.pretokens`) goes by are asked of it, not of Python.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, normalizers, pre_tokenizers

# Llama 3's spelling of the GPT-4 split, and GPT-2's: every fast tokenizer knows them.
GPT4_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As GPT-4's, but a combining mark is part of a word (Qwen 3.5 has it so).
MARKS_SPLIT = GPT4_SPLIT.replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+")
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
POINTS = 0x110000  # code points
CLASSED = (range(0xD800), range(0xE000, 0x40000), range(0xE0000, 0xE1000))  # others are of no class


class Split(NamedTuple):
    """What `WordCounts.count` goes by."""

    classes: NDArray[np.uint8]  # of each code point
    gpt4: bool
    digits: int  # most in a word


def splitter(split: str, digits: int | None) -> pre_tokenizers.PreTokenizer:
    """Return what cuts text before merging.

    `digits`: the most digits in a token; by default 3 of gpt4 and gpt4_marks, any number of gpt2.
    gpt4 with 3 or 1 digits (then Qwen's spelling) and gpt2 as it is are spelled as the fast engines know them. Other
    splits take fastokens about three times longer, through PCRE2, whose `\\s` has U+180E in it as nobody else's has:
    so they are spelled with the property.
    """
    if split == "gpt2" and digits is None:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    numbers = {None: "{1,3}", 1: ""}.get(digits, f"{{1,{digits}}}")
    pattern = (MARKS_SPLIT if split == "gpt4_marks" else GPT4_SPLIT).replace("{1,3}", numbers)
    if split == "gpt2":
        pattern = GPT2_SPLIT.replace(r"\p{N}+", r"\p{N}" + numbers)
    if split != "gpt4" or digits not in (None, 1, 3):
        pattern = pattern.replace(r"\s", r"\p{White_Space}").replace(r"\S", r"\P{White_Space}")
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def compiled_split(split: str, digits: int | None) -> Split:
    """Return the compiled form of `splitter`."""
    from stages.kernels.pretokens import NO_LIMIT

    gpt4 = split != "gpt2"
    return Split(character_classes(gpt4, split == "gpt4_marks"), gpt4, digits or (3 if gpt4 else NO_LIMIT))


@functools.cache
def character_classes(gpt4: bool, marks: bool) -> NDArray[np.uint8]:
    """Return the class of each code point: `gpt4` tells line ends from other blanks, `marks` counts marks as letters.

    Takes some tenths of a second, once a process.
    """
    from stages.kernels.pretokens import BLANK, LETTER, NEWLINE, NUMBER

    table = np.zeros(POINTS, np.uint8)
    for expression, kind in ((r"\P{L}+", LETTER), (r"\P{N}+", NUMBER), (r"\S+", BLANK)):
        table[members(expression)] = kind
    if marks:
        table[members(r"\P{M}+")] = LETTER
    if gpt4:
        table[[ord("\r"), ord("\n")]] = NEWLINE
    return table


def members(complement: str) -> list[int]:
    """Return the code points that the regular expression `complement` matches none of."""
    characters = "".join(chr(point) for points in CLASSED for point in points)
    return [ord(c) for c in normalizers.Replace(Regex(complement), "").normalize_str(characters)]
