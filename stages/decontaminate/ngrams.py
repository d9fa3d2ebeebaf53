"""What counts as a piece of an evaluation set: the passages of its items, their n-grams, and the cut.

Words are runs of letters and digits in lower case (`stages.kernels.words`). A passage of 2 x `ngram` words or more is
found by any `ngram` words in a row: one changed word leaves so many. A shorter one by `short` words in a row, where a
word more, less or other behind the first half of them makes no difference. One with fewer words than that only whole,
and of fewer than LEAST words not at all. No n-gram counts with fewer than LETTERS letters (numbers, formulas, labels),
nor one that more than `common` items share, nor one made of words alone that more items of its set than `common`, and
than one in a hundred, use ("which of the following is most likely to"): a passage of such words alone only counts
whole.

Of a question with choices the passages are the question, the question with each choice, and with all of them: bare,
and labelled A, B, ... or 1, 2, ...; so a question too short to be looked for is found with its choices.

The rule was chosen on the 869 questions of ARC's validation splits and 35,641 documents of other text (see
`benchmarks/decontaminate.py`). 13 words, 200 characters and 10 cuts are those of GPT-3 (Brown et al. 2020, appendix C).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.sources.questions import LABELS

LEAST = 5  # words of a passage that is looked for
LONGEST = 100  # words of an n-gram
LETTERS = 25  # of an n-gram: eight words of English prose have some 36, `for i in range(0, n)` has 13
MARGIN = 200  # characters cut on each side of a stretch; a piece that is shorter goes too
MOST_CUTS = 10  # more than so many, and the document goes


class Passage(NamedTuple):
    """One text of an item."""

    name: str
    words: list[str]
    size: int  # words of its n-grams
    varied: bool  # whether it is looked for with one word changed too
    holder: str  # items that say the same are one when it is counted how many share an n-gram


def size_of(length: int, ngram: int, short: int) -> int:
    """Words of the n-grams by which a passage of `length` words is found."""
    return ngram if length >= 2 * ngram else short


def passages_of(row: Mapping[str, Any], ngram: int, short: int) -> Iterator[Passage]:
    """The passages of an item: a row of ITEMS (stages/sources/questions.py) or of PASSAGES_OF."""
    from stages.kernels.words import words

    if "question" not in row:
        for name, text in json.loads(row["passages"]).items():
            found = words(text)
            yield Passage(name, found, size_of(len(found), ngram, short), True, text)
        return
    question, choices = words(row["question"]), [words(choice) for choice in json.loads(row["choices"])]
    size, holder = size_of(len(question), ngram, short), row["question"] + row["choices"]
    yield Passage("question", question, size, True, holder)
    for i, choice in enumerate(choices):
        yield Passage(f"question, choice {i + 1}", question + choice, size, True, holder)
    for name, labels in (("", None), (", lettered", LABELS.lower()), (", numbered", "123456789")):
        marked = [[*labels[i : i + 1], *choice] if labels else choice for i, choice in enumerate(choices)]
        yield Passage(f"question, choices{name}", [*question, *(w for c in marked for w in c)], size, False, holder)


def places(passage: Passage, rare: bool) -> Iterator[tuple[int, int, bool]]:
    """(words, places where one begins, whether one behind the first half is left out) of each kind of its n-grams."""
    n, length = passage.size, len(passage.words)
    if not rare:
        n = length if n <= length <= LONGEST else 0
    elif length < n:
        n = length if length >= LEAST else 0
    if n:
        yield n, length - n + 1, False
        if passage.varied and rare and n == passage.size and length > n:
            yield n, length - n, True


def chosen(words: list[str], offset: int, n: int, skips: bool) -> list[str]:
    """The words of an n-gram that begins at `offset`."""
    half = offset + n - n // 2
    return words[offset:half] + words[half + skips : offset + n + skips]


def letters(word: str) -> int:
    """How many of its characters are letters."""
    return sum(map(str.isalpha, word))


def frequent_words(passages: Iterable[Passage], common: int) -> set[str]:
    """Words that more items of different text use than `common`, and than one in a hundred of them."""
    holders: dict[str, set[str]] = {}
    for passage in passages:
        holders.setdefault(passage.holder, set()).update(passage.words)
    times = Counter(word for found in holders.values() for word in found)
    return {word for word, n in times.items() if n > max(common, len(holders) // 100)}


def ngrams(passage: Passage, frequent: Container[str] = ()) -> Iterator[tuple[str, ...]]:
    """The n-grams of a passage that may be evidence: the readable form of `grams_of`."""
    rare = any(word not in frequent for word in passage.words)
    for n, count, skips in places(passage, rare):
        for i in range(count):
            gram = chosen(passage.words, i, n, skips)
            if sum(map(letters, gram)) >= LETTERS and not (rare and all(word in frequent for word in gram)):
                yield tuple(gram)


Array = NDArray[Any]
COLUMNS = ("hash", "size", "last", "offset", "skips")


def sieved(short: int) -> int:
    """Of how many last words of each n-gram `kernel_ngrams` has a sieve: as many as all have in a row."""
    return min(LEAST, short // 2)


def grams_of(
    passage: Passage, last: int, known: dict[str, tuple[int, int]], frequent: Container[str] = ()
) -> Iterator[tuple[Array, ...]]:
    """COLUMNS of its n-grams that may be evidence. `known`: hash and letters of words seen before."""
    from stages.kernels.words import word_hash

    for word in passage.words:
        if word not in known:
            known[word] = word_hash(word), letters(word)
    facts = [known[word] for word in passage.words]
    hashes, sizes = np.array([h for h, _ in facts], np.uint64), np.array([n for _, n in facts], np.int64)
    rare = np.array([word not in frequent for word in passage.words], bool)
    for n, count, skips in places(passage, bool(rare.any())):
        start = np.arange(count)
        columns = [start + j + (skips and j >= n - n // 2) for j in range(n)]
        enough = sum((sizes[c] for c in columns), np.zeros(count, np.int64)) >= LETTERS
        enough &= np.any([rare[c] for c in columns], axis=0) | (not rare.any())
        columns = [c[enough] for c in columns]
        k = int(enough.sum())
        yield (
            polynomial(hashes, columns),
            np.full(k, n),
            polynomial(hashes, columns[-last:]),
            start[enough],
            np.full(k, skips),
        )


def polynomial(hashes: Array, columns: Iterable[Array]) -> Array:
    """`ngram_hash` of many n-grams: `columns` are the places of their first words, of their second, ..."""
    from stages.kernels.words import BASE, MIX

    h: Array = np.zeros((), np.uint64)
    for column in columns:
        h = h * np.uint64(BASE) + hashes[column]
    return (h ^ (h >> np.uint64(32))) * np.uint64(MIX)


class Word(NamedTuple):
    """A word of a document, and the bytes it takes."""

    word: str
    start: int
    stop: int


def spans(text: str) -> list[Word]:
    """The words of a text with their places: the readable form of `kernel_words.next_word`."""
    from stages.kernels.words import lower

    found: list[Word] = []
    at, inside = 0, False
    for c in text:
        size = len(c.encode())
        if c.isalnum():
            before = found.pop() if inside else Word("", at, at)
            found.append(Word(before.word + lower(c), before.start, at + size))
        inside, at = c.isalnum(), at + size
    return found


def found_in(text: str, grams: Mapping[tuple[str, ...], int], gap: int) -> list[tuple[int, int, int]]:
    """(number, start, stop in bytes) of each n-gram that a text holds: the readable form of `kernel_ngrams.Index.look`.

    Those of `gap` words are also found with a word more behind their first half.
    """
    given, found = spans(text), []
    sizes = sorted({len(gram) for gram in grams})
    plain = [w.word for w in given]
    for end in range(1, len(given) + 1):
        for n, skips in [*((n, False) for n in sizes), *([(gap, True)] if gap else [])]:
            start = end - n - skips
            if start >= 0 and (number := grams.get(tuple(chosen(plain, start, n, skips)))) is not None:
                found.append((number, given[start].start, given[end - 1].stop))
    return found


def says(text: str, gram: list[str]) -> bool:
    """Whether the words of a stretch are those of the n-gram, or one more than those."""
    from stages.kernels.words import words

    given = words(text)
    return given == gram or (len(given) == len(gram) + 1 and chosen(given, 0, len(gram), True) == gram)


def merged(stretches: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Stretches that overlap or touch, together; in order."""
    found: list[tuple[int, int]] = []
    for start, stop in sorted(stretches):
        if found and start <= found[-1][1]:
            start, stop = found[-1][0], max(stop, found.pop()[1])
        found.append((start, stop))
    return found


def cut(text: str, stretches: Iterable[tuple[int, int]]) -> str:
    """What is left of a text without some stretches (bytes of its UTF-8), as paragraphs; nothing where it must go.

    As GPT-3: MARGIN characters on each side go too, then pieces shorter than that, and a text with more than MOST_CUTS
    cuts altogether. Pieces stay one document, because a document id stands for one text.
    """
    data, stretches, at, characters = text.encode(), list(stretches), 0, {0: 0}
    for edge in sorted({edge for stretch in stretches for edge in stretch}):
        characters[edge] = characters[at] + len(data[at:edge].decode())
        at = edge
    edges = merged((max(0, characters[a] - MARGIN), characters[b] + MARGIN) for a, b in stretches)
    if len(edges) > MOST_CUTS:
        return ""
    kept, at = [], 0
    for start, stop in [*edges, (len(text), len(text))]:
        kept.append(text[at:start])
        at = stop
    return "\n\n".join(piece for piece in kept if len(piece) >= MARGIN)
