"""What comparing texts costs that are not written as they are compared: entities, NFD, nukta; one core.

    python -m benchmarks.forms [--megabytes 10] [--rounds 5] [--data FOLDER]

Rules, near-duplicates and decontamination look at texts in their comparable form (`stages.comparable`). Each runs over
the same texts twice, in turn, column by column: as they are written, and already in that form, which has nothing to
undo. The ratio of the processor seconds is what the form costs; the median of rounds.

The texts: real ones of --data, plain ones and those that have entities; plain ones with their quotes, ampersands and
angle brackets escaped, as a careless crawl has them; with an accent on one vowel in eight, composed (NFC) and taken
apart (NFD); and made-up words of Hindi, one in twelve with a nukta, apart and in one character.
"""

from __future__ import annotations

import html
import json
import random
import time
import unicodedata
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import measure
from stages.comparable import ENTITY, comparable_texts
from stages.dedup.config import Dedup
from stages.dedup.minhash import band_keys
from stages.filter.apply import apply_to_column
from stages.filter.parse import parse_rules
from stages.kernels.ngrams import NgramSearch

GROUP = 250  # documents in a column
RULES = ["gopher_repetition", "gopher_quality", "c4", "fineweb"]
NGRAMS = 200_000  # looked for, none of which is there
LIBRARIES = ("numba", "numpy", "pyarrow")
ACCENTED = {"a": "\u0300", "e": "\u0301", "i": "\u0302", "o": "\u0308", "u": "\u0301"}
CONSONANTS, VOWELS, NUKTA = "कखगघचछजझटठडढतथदधनपफबभमयरलवशसह", ["", "\u093e", "\u093f", "\u0940", "\u0947"], "\u093c"
IN_ONE = {"क": "\u0958", "ख": "\u0959", "ग": "\u095a", "ज": "\u095b", "ड": "\u095c", "ढ": "\u095d", "फ": "\u095e"}


def accented(text: str, rng: random.Random) -> str:
    """The text with an accent on one vowel in eight, taken apart."""
    return "".join(c + ACCENTED[c] if c in ACCENTED and rng.random() < 1 / 8 else c for c in text)


def hindi(rng: random.Random, words: int) -> str:
    """Made-up words, one in twelve with a nukta, as a text with full stops and lines."""

    def word() -> str:
        first = rng.choice([*IN_ONE]) + NUKTA if rng.random() < 1 / 12 else rng.choice(CONSONANTS)
        return first + "".join(rng.choice(VOWELS) + rng.choice(CONSONANTS) for _ in range(rng.randint(1, 4)))

    ends = ["।\n" if i % 60 == 59 else "।" if i % 12 == 11 else "" for i in range(words)]
    return " ".join(word() + end for end in ends)


def texts_by_kind(megabytes: float, folder: str | None) -> dict[str, list[str]]:
    """About so many MB of each kind of text."""
    rng = random.Random(0)
    real = measure.corpus(20 * megabytes, folder)
    plain = [text for text in real if text.isascii() and not ENTITY.search(text)]
    plain = measure.spread(plain, min(megabytes, measure.megabytes(plain)))
    with_entities = [text for text in real if ENTITY.search(text)]
    apart = [accented(text, rng) for text in plain]
    nukta = [hindi(rng, rng.randint(80, 900)) for _ in range(int(megabytes * 200))]
    in_one = nukta
    for c, one in IN_ONE.items():
        in_one = [text.replace(c + NUKTA, one) for text in in_one]
    return {
        "ASCII without entities": plain,
        "English with entities": with_entities * max(1, round(megabytes / max(0.1, measure.megabytes(with_entities)))),
        "the ASCII, escaped": [html.escape(text) for text in plain],
        "Latin, composed": [unicodedata.normalize("NFC", text) for text in apart],
        "Latin, taken apart": apart,
        "Hindi, nukta apart": nukta,
        "Hindi, nukta in one": in_one,
    }


def candidates() -> dict[str, Callable[[pa.Array], Any]]:
    """What is run over columns."""
    rng, shape, rules = np.random.default_rng(0), Dedup().minhash() or {}, parse_rules(RULES)
    hashes, lasts = rng.integers(0, 2**63, (2, NGRAMS)).astype(np.uint64)
    search = NgramSearch(hashes, np.full(NGRAMS, 13), lasts, 4, 8)
    return {
        "rules": lambda column: apply_to_column(column, None, rules),
        "near-duplicates": lambda column: band_keys(column, **shape),
        "search": lambda column: search.find(comparable_texts(column)[0]),
    }


def cost(texts: list[str], run: Callable[[pa.Array], Any], rounds: int) -> dict[str, float]:
    """MB/s of texts as written, and the ratio of the seconds that they and their forms take."""
    written = [pa.array(texts[i : i + GROUP]) for i in range(0, len(texts), GROUP)]
    formed = [comparable_texts(column)[0] for column in written]
    of_rounds: list[list[float]] = []
    for _ in range(rounds + 1):
        seconds = [0.0, 0.0]
        for pair in zip(written, formed, strict=True):
            for i, column in enumerate(pair):
                start = time.process_time()
                run(column)
                seconds[i] += time.process_time() - start
        of_rounds.append(seconds)
    del of_rounds[0]  # machine code and pieces are learned
    return {
        "MB/s": round(measure.megabytes(texts) / measure.median(as_written for as_written, _ in of_rounds), 1),
        "as written / in form": round(measure.median(as_written / in_form for as_written, in_form in of_rounds), 3),
    }


def main() -> None:
    """Run it."""
    options = measure.parser(__doc__, megabytes=10.0, rounds=5, data=None).parse_args()
    measure.use_one_core()
    result: dict[str, Any] = {"machine": measure.machine(LIBRARIES)}
    for kind, texts in texts_by_kind(options.megabytes, options.data).items():
        if texts:
            result[kind] = {"documents": len(texts), "MB": round(measure.megabytes(texts), 1)}
            result[kind] |= {name: cost(texts, run, options.rounds) for name, run in candidates().items()}
            print(kind, json.dumps(result[kind]), flush=True)
    measure.save("forms", result)


if __name__ == "__main__":
    main()
