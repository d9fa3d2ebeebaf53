"""What counts as a piece of an evaluation set: the passages of its items, and their n-grams.

Words are runs of letters, digits and marks in lower case (`stages.kernels.words`). A passage of 2 x `ngram` words or
more is found by any `ngram` words in a row: one changed word leaves so many. A shorter one by `short` words in a row,
where a word more, less or other behind the first half of them makes no difference. One with fewer words than that only
whole, and of fewer than LEAST words not at all. No n-gram counts with fewer than LETTERS letters (numbers, formulas,
labels), nor one that more than `common` items share, nor one made of words alone that more items of its set than
`common`, and than one in a hundred, use ("which of the following is most likely to"): a passage of such words alone
only counts whole.

An n-gram that more than `common` documents hold without the rest of its passage is a turn of speech or boilerplate, and
no evidence. (GPT-3 counts all documents that hold it, so that what is copied most is found least.) A document with a
copy of the passage (`is_whole_in`) does not count, and is contaminated however many there are. Only a passage of
`ngram` words or more has copies in this sense: a shorter one is itself no more than a turn of speech.

Of a question with choices the passages are the question, the question with each choice, and with all of them: bare,
and labeled A, B, ... or 1, 2, ...; so a question too short to be looked for is found with its choices.

The rule was chosen on the 869 questions of ARC's validation splits and 35,641 documents of other text (see
`benchmarks/decontaminate.py`). 13 words are those of GPT-3 (Brown et al. 2020, appendix C).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stages.sources.questions import LABELS

LEAST = 5  # words of a passage that is looked for
LONGEST = 100  # words of an n-gram
RUN = 3  # words in a row that are found again in a copy of a passage
SPARED = 5  # of so many words of a passage one may be missing in a copy
LETTERS = 25  # of an n-gram: eight words of English prose have some 36, `for i in range(0, n)` has 13


class Passage(NamedTuple):
    """One text of an item."""

    name: str
    words: list[str]
    size: int  # words of its n-grams
    varied: bool  # whether it is looked for with one word changed too
    holder: str  # items that say the same are one when it is counted how many share an n-gram


def ngram_size(length: int, ngram: int, short: int) -> int:
    """Return the words of the n-grams by which a passage of `length` words is found."""
    return ngram if length >= 2 * ngram else short


def passages_of(item: Mapping[str, Any], ngram: int, short: int) -> Iterator[Passage]:
    """Yield the passages of an item: a row of ITEMS (stages/sources/questions.py) or of PASSAGES_OF."""
    from stages.kernels.words import words

    if "question" not in item:
        for name, text in json.loads(item["passages"]).items():
            passage = words(text)
            yield Passage(name, passage, ngram_size(len(passage), ngram, short), True, text)
        return
    question = words(item["question"])
    choices = [words(choice) for choice in json.loads(item["choices"])]
    size = ngram_size(len(question), ngram, short)
    holder = item["question"] + item["choices"]
    yield Passage("question", question, size, True, holder)
    for i, choice in enumerate(choices):
        yield Passage(f"question, choice {i + 1}", question + choice, size, True, holder)
    for name, labels in (("", ""), (", lettered", LABELS.lower()), (", numbered", "123456789")):
        everything = list(question)
        for i, choice in enumerate(choices):
            everything += [*labels[i : i + 1], *choice]
        yield Passage(f"question, choices{name}", everything, size, False, holder)


class NgramKind(NamedTuple):
    """The n-grams of a passage that are made alike: one begins at each of its first `number` words."""

    size: int  # words
    number: int
    skips: bool  # whether the word behind the first half is left out


def ngram_kinds(passage: Passage, has_rare_words: bool) -> Iterator[NgramKind]:
    """Yield the kinds of n-grams that a passage is looked for by."""
    size, length = passage.size, len(passage.words)
    if not has_rare_words:
        if size <= length <= LONGEST:
            yield NgramKind(length, 1, False)
    elif length >= size:
        yield NgramKind(size, length - size + 1, False)
        if passage.varied and length > size:
            yield NgramKind(size, length - size, True)
    elif length >= LEAST:
        yield NgramKind(length, 1, False)


def ngram_words(words: Sequence[str], offset: int, size: int, skips: bool) -> list[str]:
    """Return the words of an n-gram that begins at `offset`."""
    half = offset + first_half(size)
    return [*words[offset:half], *words[half + skips : offset + size + skips]]


def first_half(size: int) -> int:
    """Return how many words of an n-gram stand before the one that may be left out."""
    return size - size // 2


def count_letters(word: str) -> int:
    """Return how many of a word's characters are letters, or the marks that are vowels in many scripts."""
    from stages.kernels.unicode import is_mark

    return sum(c.isalpha() or is_mark(c) for c in word)


def frequent_words(passages: Iterable[Passage], common: int) -> set[str]:
    """Return the words that more items of different text use than `common`, and than one in a hundred of them."""
    words_by_holder: dict[str, set[str]] = {}
    for passage in passages:
        words_by_holder.setdefault(passage.holder, set()).update(passage.words)
    times = Counter(word for words in words_by_holder.values() for word in words)
    most = max(common, len(words_by_holder) // 100)
    return {word for word, n in times.items() if n > most}


def readable_ngrams(passage: Passage, frequent: Container[str] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the n-grams of a passage that may be evidence: the readable form of `ngram_columns`."""
    has_rare_words = any(word not in frequent for word in passage.words)
    for size, number, skips in ngram_kinds(passage, has_rare_words):
        for offset in range(number):
            ngram = ngram_words(passage.words, offset, size, skips)
            has_letters = sum(map(count_letters, ngram)) >= LETTERS
            says_something = not has_rare_words or any(word not in frequent for word in ngram)
            if has_letters and says_something:
                yield tuple(ngram)


def sieve_words(short: int) -> int:
    """Return how many last words of each n-gram the sieve of `NgramSearch` is made of: as many as all have in a row."""
    return min(LEAST, short // 2)


class NgramColumns(NamedTuple):
    """Some n-grams of a passage, an element each."""

    hash: npt.NDArray[np.uint64]
    size: npt.NDArray[np.int64]
    last: npt.NDArray[np.uint64]  # hash of the last words, for the sieve
    offset: npt.NDArray[np.int64]
    skips: npt.NDArray[np.bool_]


def ngram_columns(
    passage: Passage, last_words: int, known: dict[str, tuple[int, int]], frequent: Container[str] = ()
) -> Iterator[NgramColumns]:
    """Yield the n-grams of a passage that may be evidence, a kind at a time.

    last_words: words that the sieve has of each. known: hash and letters of words seen before, which grows.
    """
    from stages.kernels.words import word_hash

    for word in passage.words:
        if word not in known:
            known[word] = word_hash(word), count_letters(word)
    hashes = np.array([known[word][0] for word in passage.words], np.uint64)
    letters = np.array([known[word][1] for word in passage.words], np.int64)
    is_rare = np.array([word not in frequent for word in passage.words], bool)
    has_rare_words = bool(is_rare.any())
    for size, number, skips in ngram_kinds(passage, has_rare_words):
        starts = np.arange(number)
        places = []  # of the first words, of the second ones, ...
        for i in range(size):
            skipped = 1 if skips and i >= first_half(size) else 0
            places.append(starts + i + skipped)
        may_be_evidence = np.sum([letters[place] for place in places], axis=0) >= LETTERS
        if has_rare_words:
            may_be_evidence &= np.any([is_rare[place] for place in places], axis=0)
        places = [place[may_be_evidence] for place in places]
        kept = int(may_be_evidence.sum())
        yield NgramColumns(
            hash=ngram_hashes(hashes, places),
            size=np.full(kept, size),
            last=ngram_hashes(hashes, places[-last_words:]),
            offset=starts[may_be_evidence],
            skips=np.full(kept, skips),
        )


def ngram_hashes(hashes: npt.NDArray[np.uint64], places: Iterable[npt.NDArray[np.int64]]) -> npt.NDArray[np.uint64]:
    """Return `ngram_hash` of many n-grams. places: where their first words stand, their second, ..."""
    from stages.kernels.utf8 import MIX
    from stages.kernels.words import BASE

    polynomial: npt.NDArray[np.uint64] = np.zeros((), np.uint64)
    for place in places:
        polynomial = polynomial * np.uint64(BASE) + hashes[place]
    return (polynomial ^ (polynomial >> np.uint64(32))) * np.uint64(MIX)


class WordSpan(NamedTuple):
    """A word of a document, and the bytes it takes."""

    word: str
    start: int
    stop: int


def word_spans(form: str) -> list[WordSpan]:
    """Return the words of a text in its comparable form with their places."""
    from stages.kernels.unicode import is_mark
    from stages.kernels.words import lower

    spans: list[WordSpan] = []
    offset, inside = 0, False
    for character in form:
        after = offset + len(character.encode())
        if inside and (character.isalnum() or is_mark(character)):
            word, start, _ = spans.pop()
            spans.append(WordSpan(word + lower(character), start, after))
        elif character.isalnum():
            inside = True
            spans.append(WordSpan(lower(character), offset, after))
        else:
            inside = False
        offset = after
    return spans


def find_readably(form: str, ngrams: Mapping[tuple[str, ...], int], gap: int) -> list[tuple[int, int, int]]:
    """Return (number, start, stop in bytes) of each n-gram that a text holds: the readable form of `NgramSearch.find`.

    form: the text in its comparable form. ngrams: their numbers. Those of `gap` words are also found with a word more
    behind their first half, unless it is 0.
    """
    spans = word_spans(form)
    words = [span.word for span in spans]
    kinds = [(size, False) for size in sorted({len(ngram) for ngram in ngrams})]
    if gap:
        kinds.append((gap, True))
    hits = []
    for end in range(1, len(spans) + 1):
        for size, skips in kinds:
            first = end - size - skips
            if first < 0:
                continue
            number = ngrams.get(tuple(ngram_words(words, first, size, skips)))
            if number is not None:
                hits.append((number, spans[first].start, spans[end - 1].stop))
    return hits


def has_words(form: str, ngram: Sequence[str]) -> bool:
    """Return whether the words of a stretch of a comparable form are those of the n-gram, or one more than those."""
    from stages.kernels.words import split_words

    given, wanted = split_words(form), list(ngram)
    if len(given) == len(wanted) + 1:
        return ngram_words(given, 0, len(wanted), True) == wanted
    return given == wanted


def is_whole_in(passage: Sequence[str], stretch: Sequence[str], ngram: int, short: int) -> bool:
    """Return whether a stretch of text is a copy of a passage: whether it has its words, in runs of RUN or more.

    Of a passage of SPARED words one may be missing, and so on, up to fewer than `short`; `ngram` words must be there.
    """
    runs = set(zip(*(stretch[k:] for k in range(RUN)), strict=False))
    is_there = np.zeros(len(passage), bool)
    for start, run in enumerate(zip(*(passage[k:] for k in range(RUN)), strict=False)):
        if run in runs:
            is_there[start : start + RUN] = True
    there = int(is_there.sum())
    missing = len(passage) - there
    return there >= ngram and missing < short and missing * SPARED <= len(passage)
