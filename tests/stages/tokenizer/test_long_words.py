"""Words of any kind and length are trained on in time, cut and reported; text without such words trains as ever."""

from __future__ import annotations

import random
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.tokenizer import work
from stages.tokenizer.long_words import LONGEST_WORD, SUSPECT, find_long_words

LETTERS = random.Random(1)
TEXTS = [" ".join("".join(LETTERS.choices("abcdefgh", k=LETTERS.randint(1, 9))) for _ in range(3000))]
LONG = {
    "letter": "a" * 200_000,
    "dna": "".join(LETTERS.choices("ACGT", k=200_000)),
    "blanks": " " * 200_000,
    "signs": "-=" * 100_000,
    "marks": "\u0915\u093f" * 30_000,
}


@pytest.mark.parametrize("kind", LONG)
def test_a_long_word_neither_stalls_the_trainer_nor_changes_the_split(kind):
    started = time.process_time()
    tokenizer, cut = work.train([*TEXTS, LONG[kind]], 400, "gpt4_marks")
    assert time.process_time() - started < 5  # uncut it grows with the square: 2.5 s for 100,000
    assert str(LONGEST_WORD) not in work.canonical(tokenizer)
    assert cut.number == 1 and cut.longest >= len(LONG[kind].encode()) - 1


def test_cutting_changes_nothing_where_no_word_is_long(monkeypatch):
    texts = [*TEXTS, "x" * LONGEST_WORD]
    plain = work.canonical(work.train(texts, 400, "gpt4")[0])
    found = find_long_words([*texts, "y" * (LONGEST_WORD + 1)], work.splitter("gpt4", None))
    assert find_long_words(texts, work.splitter("gpt4", None)).number == 0 and found.number == 1
    monkeypatch.setattr(work, "find_long_words", lambda *_: found)
    assert work.canonical(work.train(texts, 400, "gpt4")[0]) == plain


@given(
    st.sampled_from(["gpt2", "gpt4", "gpt4_marks"]),
    st.lists(st.sampled_from([*"aA0_-= \n\t\u0301\u4e2d\U0001f600\u3001\u0915\u0661'"]), min_size=1, max_size=3),
    st.integers(300, LONGEST_WORD + 100),
)
def test_whatever_has_a_long_word_is_suspect(split, characters, times):
    text = "".join(characters) * times
    words = work.splitter(split, None).pre_tokenize_str(text)
    if any(len(word) > LONGEST_WORD for word, _ in words):
        assert re.search(SUSPECT, text)
