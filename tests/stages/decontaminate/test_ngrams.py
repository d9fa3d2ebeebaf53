"""N-grams of evaluation sets: the compiled search against the readable one, and the rule on made-up items."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.comparable import comparable, comparable_texts
from stages.decontaminate.cut import MARGIN, cut_out, merge_ranges
from stages.decontaminate.ngrams import (
    find_readably,
    frequent_words,
    ngram_columns,
    passages_of,
    readable_ngrams,
    sieve_words,
    word_spans,
)
from stages.decontaminate.search import put_source_ranges
from stages.kernels.ngrams import NgramSearch
from stages.kernels.words import ngram_hash, split_words, word_hash, words

# Few words, so that n-grams repeat; what stands between them, and characters that are hard to lower or to cut.
WORD = st.sampled_from(
    ["a", "b", "Ab", "é", "É", "ß", "ǅ", "İ", "٣", "²", "中文", "naïve", "x" * 9, "ß" * 9, "😀", "1"]
)
GAP = st.sampled_from([" ", "  ", "\n", ", ", "—", "\u0301", "_", "\u2028", "\U000e0001", "'", "-"])
TEXT = st.lists(st.one_of(WORD, GAP, st.characters(exclude_categories=["Cs"])), max_size=60).map("".join)


def search_for(grams, gap):
    """The compiled search for n-grams given as tuples of words."""
    last = min([*map(len, grams), *([gap // 2] if gap else [])])
    hashes = [ngram_hash([word_hash(w) for w in gram]) for gram in grams]
    lasts = [ngram_hash([word_hash(w) for w in gram[-last:]]) for gram in grams]
    return NgramSearch(np.array(hashes, np.uint64), np.array([*map(len, grams)]), np.array(lasts, np.uint64), last, gap)


@pytest.mark.slow
@settings(max_examples=150)
@given(texts=st.lists(TEXT, min_size=1, max_size=4), data=st.data(), gap=st.sampled_from([0, 4, 5]))
def test_the_compiled_search_finds_what_the_readable_one_finds(texts, data, gap):
    """N-grams are taken from the texts themselves, some with a word left out."""
    texts = [comparable(text) for text in texts]
    given_words = [split_words(text) for text in texts]
    grams: dict[tuple[str, ...], int] = {}
    for _ in range(data.draw(st.integers(1, 8))):
        found = data.draw(st.sampled_from(given_words))
        n = data.draw(st.sampled_from([2, 3, gap or 4, 7]))
        at = data.draw(st.integers(0, max(0, len(found) - n)))
        gram = found[at : at + n]
        if n == gap and data.draw(st.booleans()):
            gram = (found[at : at + n - n // 2] + found[at + n - n // 2 + 1 :])[:n]
        if len(gram) == n:
            grams.setdefault(tuple(gram), len(grams))
    if not grams:
        return
    found = search_for(list(grams), gap).find(pa.array(["", *texts, "x"]).slice(1, len(texts)))
    expected = [(i, *one) for i, text in enumerate(texts) for one in find_readably(text, grams, gap)]
    assert sorted(map(tuple, found.tolist())) == sorted(expected)


@settings(max_examples=200)
@given(text=TEXT)
def test_spans_are_the_words(text):
    form = comparable(text)
    assert [s.word for s in word_spans(form)] == words(text)
    assert all(split_words(form.encode()[s.start : s.stop].decode()) == [s.word] for s in word_spans(form))


@pytest.mark.slow
@settings(max_examples=100)
@given(
    text=TEXT,
    choices=st.lists(TEXT, min_size=2, max_size=4),
    ngram=st.integers(6, 9),
    short=st.just(6),
    frequent=st.sets(st.sampled_from(["a", "b", "ab", "é", "x" * 9, "1", "ǆ", "ß" * 9])),
)
def test_hashes_of_whole_passages_are_those_of_their_ngrams(text, choices, ngram, short, frequent):
    row = {"question": text, "choices": json.dumps(choices)}
    for passage in passages_of(row, ngram, short):
        hashes = [int(h) for part in ngram_columns(passage, sieve_words(short), {}, frequent) for h in part.hash]
        assert hashes == [ngram_hash([word_hash(w) for w in gram]) for gram in readable_ngrams(passage, frequent)]


def test_more_hits_than_room_are_all_there():
    text = "a b " * 20_000
    found = search_for([("a", "b"), ("b", "a", "b")], 0).find(pa.array([text, "c"]))
    assert len(found) == 20_000 + 19_999


def test_numbers_formulas_and_labels_are_no_evidence():
    row = {
        "passages": json.dumps({"x": "1 2 3 4 5 6 7 8 9 10 11 12", "y": "for i in range ( 0 , n ) : x [ i ] = i + 1"})
    }
    assert [gram for passage in passages_of(row, 13, 8) for gram in readable_ngrams(passage)] == []


def test_turns_of_speech_are_no_evidence():
    """What many questions say in the same words, or in words that all of them use, is not looked for."""
    phrase = "which of the following is most likely to explain"
    rows = [{"question": f"{phrase} {c * 8} {c * 9}?", "choices": '["x", "y"]'} for c in "abcdefghijkl"]
    passages = [p for row in rows for p in passages_of(row, 13, 8)]
    frequent = frequent_words(passages, 10)
    assert frequent == {*words(phrase), "x", "y", "1", "2"} | {"a", "b"}
    grams = {gram for p in passages for gram in readable_ngrams(p, frequent)}
    assert tuple(words(phrase))[:8] not in grams and (*words(phrase)[3:], "a" * 8, "a" * 9) in grams


def test_a_short_question_is_found_with_its_choices_only_whole():
    row = {"question": "One example of matter is", "choices": json.dumps(["magnetism", "heat"])}
    found = {" ".join(gram) for passage in passages_of(row, 13, 8) for gram in readable_ngrams(passage)}
    assert "one example of matter is" not in found, "twenty letters say nothing"
    assert "one example of matter is magnetism" in found
    assert "one example of matter is a magnetism b" in found


@pytest.mark.slow
@settings(max_examples=200)
@given(data=st.data(), size=st.integers(0, 4000), character=st.sampled_from("aé中😀"))
def test_what_is_cut_is_gone_and_the_rest_is_the_texts(data, size, character):
    text = "".join(chr(ord("0") + i % 10) if i % 2 else character for i in range(size))
    width = len(character.encode())
    edges = np.cumsum([0, *(width if i % 2 == 0 else 1 for i in range(size))]).tolist()
    places = st.integers(0, size)
    stretches = [(edges[min(p)], edges[max(p)]) for p in data.draw(st.lists(st.tuples(places, places), max_size=5))]
    left = cut_out(text, stretches)
    gone = np.zeros(size, bool)
    for a, b in stretches:
        gone[max(0, edges.index(a) - MARGIN) : edges.index(b) + MARGIN] = True
    pieces, at = [], 0
    for i in range(size + 1):
        if i == size or gone[i]:
            if i - at >= MARGIN:
                pieces.append(text[at:i])
            at = i + 1
    assert left == "\n\n".join(pieces)


def test_a_text_with_many_cuts_goes():
    text = "x" * 20_000
    assert cut_out(text, [(i * 1000, i * 1000 + 1) for i in range(10)])
    assert cut_out(text, [(i * 1000, i * 1000 + 1) for i in range(11)]) == ""


@pytest.mark.parametrize("given_stretches", [[], [(3, 5), (1, 2), (4, 9), (9, 10)]])
def test_merged(given_stretches):
    assert merge_ranges(given_stretches) == ([(1, 2), (3, 10)] if given_stretches else [])


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_hindi_question_is_found_however_it_is_written(form):
    """Its vowels count as letters, and what was found is given in the text's own bytes."""
    question = "प्रकाश संश्लेषण की प्रक्रिया में पौधे कौन सी गैस लेते हैं और कौन सी गैस छोड़ते हैं"
    row = {"passages": json.dumps({"q": question})}
    grams = [gram for passage in passages_of(row, 13, 8) for gram in readable_ngrams(passage)]
    assert len(grams) > 5
    written = unicodedata.normalize(form, question).replace("छ", "\u00adछ").replace("और", "&#2324;र")
    text = f"… ½ {written}?"
    forms, rows = comparable_texts(pa.array([text]))
    hits = search_for(grams, 0).find(forms)
    put_source_ranges(pa.array([text]), rows, hits)
    assert len(hits) == len({gram for gram in grams if " ".join(gram) in " ".join(words(question))})
    stretch = text.encode()[min(hits[:, 2]) : max(hits[:, 3])].decode()
    assert stretch == written
