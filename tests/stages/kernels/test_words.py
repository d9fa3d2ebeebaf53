"""Compiled words against the readable ones, on any text."""

import numpy as np
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.kernels.text_columns import utf8_buffers
from stages.kernels.words import BASE, MASK, folded, next_word, ngram_hash, spread, word_hash, words

TEXT = st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from("aB1 .\n-é'İẞΣßǅ٣五𐐀")), max_size=60)


@settings(max_examples=300, deadline=None)
@example("")
@example("...")
@example("\U000e0041\U00040000x")
@example("İstanbul ΣΑΣ ẞ")
@given(TEXT)
def test_words_are_the_readable_ones(text: str) -> None:
    """Each word's hash is that of the readable word, and its span holds it."""
    data, offsets = utf8_buffers(pa.array([text]))
    end = int(offsets[-1])
    found, at = [], 0
    while True:
        start, at, h = next_word(data, at, end, folded())
        if start == end:
            break
        found.append((words(bytes(data[start:at]).decode()), int(h)))
    assert found == [([word], word_hash(word)) for word in words(text)]


def test_polynomial_rolls() -> None:
    """The hash of an n-gram is the polynomial of its words, spread."""
    hashes = [word_hash(w) for w in ("the", "cat", "sat")]
    h = 0
    for one in hashes:
        h = (h * int(BASE) + one) & MASK
    assert int(spread(np.uint64(h))) == ngram_hash(hashes)


def test_case_and_marks_make_no_difference() -> None:
    """What stands between words does not count."""
    assert words("The-Cat,\n sat (x_1)!") == ["the", "cat", "sat", "x", "1"]
