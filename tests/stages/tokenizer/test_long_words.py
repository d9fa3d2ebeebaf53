"""Words of any kind and length are trained on in time, cut for counting and reported."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
from tokenizer_harness import TEXTS, curated, reference_tokenizer, train

from stages.kernels.pretokens import LONGEST_WORD
from stages.tokenizer import work

LETTERS = random.Random(1)
LINE = 3_000_000
LONG = {
    "letter": "a" * LINE,
    "dna": "".join(LETTERS.choices("ACGT", k=LINE)),
    "blanks": " " * LINE,
    "signs": "-=" * (LINE // 2),
    "marks": "\u0915\u093f" * (LINE // 6),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", LONG)
def test_a_line_of_three_megabytes_does_not_stall_training(kind):
    work.train(TEXTS, 300, "gpt4_marks")  # what is compiled or made once a process
    started = time.process_time()
    tokenizer, cut = work.train([*TEXTS, LONG[kind]], 400, "gpt4_marks")
    assert time.process_time() - started < 5
    assert str(LONGEST_WORD) not in work.canonical(tokenizer)
    assert cut.number == 1 and cut.longest >= len(LONG[kind].encode()) - 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", LONG)
def test_pieces_are_those_of_the_reference(kind):
    texts = [*TEXTS, *(LONG[kind][:n] for n in (LONGEST_WORD, LONGEST_WORD + 1, 3 * LONGEST_WORD, 20_000))]
    found = work.canonical(work.train(texts, 420, "gpt4_marks")[0])
    assert found == work.canonical(reference_tokenizer(texts, 420, "gpt4_marks", None))


def test_cut_words_are_in_the_report(tmp_path):
    texts = [*TEXTS, "z" * (LONGEST_WORD + 1) + " short", "y" * (2 * LONGEST_WORD)]
    parts = [curated(tmp_path, "a", texts[:200]), curated(tmp_path, "b", texts[200:])]
    report = json.loads(Path(train(tmp_path / "out", parts).output("report").path).read_text())
    assert report["cut_words"] == {"number": 2, "longest": 2 * LONGEST_WORD}
