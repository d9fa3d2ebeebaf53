"""Words and merges are the reference's, the trainer of `tokenizers`: on real text, and on text made to trip over."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage_harness import SHARED, needs_shared
from tokenizer_harness import reference_tokenizer
from tokenizers import Regex, normalizers

from benchmarks import measure
from stages.kernels import pretokens
from stages.kernels.pretokens import WordCounts
from stages.kernels.text_columns import utf8_buffers
from stages.tokenizer.encoder import HOSTILE
from stages.tokenizer.spec import SPECIALS
from stages.tokenizer.split import CLASSED, POINTS, compiled_split, splitter
from stages.tokenizer.words import count_texts, word_table
from stages.tokenizer.work import canonical, train_on
from train.tokenizer.vocabulary import byte_alphabet

SPLITS = [("gpt4", None), ("gpt4", 1), ("gpt4_marks", 2), ("gpt2", None), ("gpt2", 3)]
splits = st.sampled_from(SPLITS)
# Letters, digits, marks, blanks and signs that the splits tell apart, and a long s, which is an s in another case.
NASTY = "ab sStLl'rRevEmd\u017f1\u0664½\u0915\u093f\u0301é日🙂\n\r\t\u00a0\u3000\u180e\x85-=_<|>"
texts_of = st.lists(st.text(st.sampled_from(NASTY), max_size=60) | st.text(max_size=20), max_size=8)


def words_of(counts: WordCounts) -> dict[bytes, int]:
    table = word_table(counts, 0, len(counts))
    return dict(zip(table["word"].to_pylist(), table["count"].to_pylist(), strict=True))


def reference_words(texts: list[str], split: str, digits: int | None) -> dict[bytes, int]:
    alphabet, pieces = byte_alphabet(), Counter()
    for text in texts:
        pieces.update(piece for piece, _ in splitter(split, digits).pre_tokenize_str(text))
    return {bytes(map(alphabet.__getitem__, piece)): n for piece, n in pieces.items()}


def differs(texts: list[str], vocab_size: int, split: str, digits: int | None) -> bool:
    """Tell whether the two trainers differ on texts, which may have too few pairs for the vocabulary."""
    truth = reference_tokenizer(texts, vocab_size, split, digits)
    words = count_texts(texts, split, digits)
    found = train_on(words, truth.get_vocab_size(), split, digits, SPECIALS)
    return canonical(found) != canonical(truth)


@pytest.mark.slow
@given(texts_of, splits)
def test_words_are_those_of_the_split(texts, split):
    assert words_of(count_texts(texts, *split)) == reference_words(texts, *split)


@pytest.mark.parametrize("split", SPLITS)
def test_words_of_hostile_text(split):
    short = [text[:3000] for text in HOSTILE]
    assert words_of(count_texts(short, *split)) == reference_words(short, *split)


def test_no_other_character_has_a_class():
    """The planes that `character_classes` does not ask for are letters, numbers, blanks and marks of no edition yet."""
    asked = {point for points in CLASSED for point in points} | set(range(0xD800, 0xE000))
    rest = "".join(chr(point) for point in range(0, POINTS, 7) if point not in asked)
    for complement in (r"\P{L}+", r"\P{N}+", r"\S+", r"\P{M}+"):
        assert normalizers.Replace(Regex(complement), "").normalize_str(rest) == ""


def test_counts_grow_and_add_up(monkeypatch):
    monkeypatch.setattr(pretokens, "FIRST_WORDS", 4)
    rng = random.Random(0)
    texts = ["".join(rng.choices(NASTY, k=200)) + "x" * rng.randrange(9000) for _ in range(60)]
    halves = [count_texts(texts[:30], "gpt4", None), count_texts(texts[30:], "gpt4", None)]
    total = WordCounts()
    for half in halves:
        table = word_table(half, 0, len(half))
        total.add(*utf8_buffers(table["word"].combine_chunks()), np.array(table["count"]))
    assert words_of(total) == words_of(count_texts(texts, "gpt4", None))
    assert sum(words_of(total).values()) == int(total.counts[: len(total)].sum()) > 1000


@pytest.mark.slow
@given(texts_of, splits, st.integers(1, 60))
def test_merges_of_nasty_text(texts, split, merges):
    assert not differs(texts, 264 + merges, *split)


@pytest.mark.slow
@given(
    st.lists(st.text(st.sampled_from("ab"), max_size=40) | st.text(st.sampled_from("aab c"), max_size=80), max_size=9)
)
def test_merges_until_nothing_is_left(texts):
    """Every pair of a few letters, over and over: ties, and runs of a letter or of a pair."""
    assert not differs(texts, 5000, "gpt4", None)


def test_nothing_and_little():
    for texts in ([], [""], ["a"], [" ", "\n"], ["aa"], ["aaaa"], ["é"], ["ab"] * 3, ["🙂🙂"]):
        assert not differs(texts, 300, "gpt4", None)


def every_text() -> Iterator[tuple[str, list[str]]]:
    return measure.every_text(Path(SHARED))


@needs_shared
@pytest.mark.slow
def test_real_text_of_every_file():
    """A quarter of a megabyte of each file of the shared data, 8192 ids as in the recipes."""
    size: Counter[str] = Counter()
    texts = []
    for file in sorted(path for path in Path(SHARED).rglob("*") if path.is_file()):
        for rows in measure.rows_of(file):
            for text in measure.strings(rows):
                if size[file.name] < 250_000:
                    size[file.name] += len(text.encode())
                    texts.append(text)
            if size[file.name] >= 250_000:
                break
    assert len(size) > 10 and sum(size.values()) > 2_500_000
    assert not differs(texts, 8192, "gpt4", None)


@needs_shared
@pytest.mark.soak
@pytest.mark.parametrize("split", [("gpt4", None), ("gpt2", None)])
def test_all_real_text(split):
    texts = [text for _, strings in every_text() for text in strings]
    words = WordCounts()
    for start in range(0, len(texts), 1000):
        words.count(*utf8_buffers(pa.array(texts[start : start + 1000])), compiled_split(*split))
    truth = reference_tokenizer(texts, 8192, *split)
    print(f"{sum(len(text.encode()) for text in texts):,} bytes, {len(words):,} distinct words")
    assert canonical(train_on(words, 8192, *split, SPECIALS)) == canonical(truth)
