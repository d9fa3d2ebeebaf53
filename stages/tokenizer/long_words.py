"""Words too long to train on whole: the time that the trainer takes grows with the square of a word's length.

A word is what the split leaves whole: a run of letters, of signs or of blanks. Three million times the same letter,
DNA and base64 are such words. For counting pairs they are cut into pieces; encoding never cuts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from tokenizers import Regex, pre_tokenizers

LONGEST_WORD = 4096  # bytes of UTF-8
# Whatever has no such run has no word of more than LONGEST_WORD bytes in any split: a character has at most four bytes,
# and a word is one run of letters and marks, digits, signs or blanks, with a blank before it or line ends after it.
LETTERS = "[^\\x00-@\\[-`{-\\x7f\u3001\u3002\uff0c\uff1a\uff1b\uff01\uff1f]"
SUSPECT = re.compile(rf"{LETTERS}{{1000}}|\d{{1000}}|(?:[^\w \n]|_){{300}}|\s{{300}}")


class LongWords(NamedTuple):
    """The words of a text, or of several, that are longer than LONGEST_WORD."""

    number: int
    longest: int  # bytes


def find_long_words(texts: Iterable[str], splitter: pre_tokenizers.PreTokenizer) -> LongWords:
    """Count the words that `splitter`, which gives a character for each byte, leaves longer than LONGEST_WORD."""
    number = longest = 0
    for text in texts:
        if not SUSPECT.search(text):
            continue
        for word, _ in splitter.pre_tokenize_str(text):
            if len(word) > LONGEST_WORD:
                number += 1
                longest = max(longest, len(word))
    return LongWords(number, longest)


def cut_long_words(splitter: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    """Return `splitter` followed by a cut of each word into pieces of at most LONGEST_WORD bytes."""
    pieces = pre_tokenizers.Split(Regex(f".{{1,{LONGEST_WORD}}}"), behavior="isolated")
    return pre_tokenizers.Sequence([splitter, pieces])


def long_words_line(count: int, longest: int) -> str:
    """Say, for people, how many words were cut."""
    words = "1 word" if count == 1 else f"{count:,} words"
    return (
        f"the tokenizer was trained with {words} of more than {LONGEST_WORD:,} bytes cut into pieces (the longest had "
        f"{longest:,}); if such text is not wanted, drop its documents with a rule"
    )
