"""What many documents hold: copies of a passage are found however many there are, and its phrases are not."""

from __future__ import annotations

import itertools
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.decontaminate.ngrams import is_whole_in
from stages.decontaminate.search import find_hits, index_ngrams, weigh_hits
from stages.evals.passages import PASSAGES_OF
from stages.sources.questions import ITEMS
from stages.task import Artifact, Task

SHAPE = {"ngram": 13, "short": 8}
VOCABULARY = ["".join(letters) for letters in itertools.product("bdkr", "aeiou", "lmnst", "aeiou")]
OTHERS = [word + "x" for word in VOCABULARY]  # of what stands around a passage: no word of it by chance


def unit(work, params, inputs, folder, name):
    task = Task(params, inputs, folder, name, lambda artifact: artifact.path)
    work(task)
    return task.outputs


def found(folder, items, documents, common=10, parts=2):
    """The documents, by number, in which something is found that is evidence."""
    schema = ITEMS if "question" in items[0] else PASSAGES_OF
    facts = {"source_file": "", "source_row": 0, "answer": 0, "text": ""}
    rows = [{**facts, "item_id": f"{i:>16}".encode(), **item} for i, item in enumerate(items)]
    path = folder / f"items{len(list(folder.iterdir()))}.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    params = {"sets": ["exam"], **SHAPE, "common": common}
    known = unit(index_ngrams, params, [Artifact(str(path), "d")], folder, f"{path.stem}index")
    hits = []
    for part in range(parts):
        texts = pa.array(documents[part::parts], pa.string())
        pq.write_table(pa.table({"text": texts}), folder / f"{path.stem}{part}.parquet")
        inputs = [Artifact(str(folder / f"{path.stem}{part}.parquet"), "d"), *known]
        hits += unit(find_hits, SHAPE, inputs, folder, f"{path.stem}hits{part}")
    weighed = unit(weigh_hits, {"common": common}, hits, folder, f"{path.stem}weighed")
    evidence = set()
    for part, artifact in enumerate(weighed):
        table = pq.read_table(artifact.path).slice(artifact.rows_from, artifact.rows_to - artifact.rows_from)
        evidence |= {part + parts * row for row in table["row"].to_pylist()}
    return evidence


def prose(rng, n, vocabulary=VOCABULARY):
    return " ".join(rng.choices(vocabulary, k=n))


def around(rng, text):
    """The text in a document of its own."""
    before, behind = (prose(rng, rng.randrange(60), OTHERS) for _ in range(2))
    return f"{before} {text} {behind}"


@pytest.mark.slow
@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    length=st.integers(13, 120),
    copies=st.integers(1, 60),
    phrases=st.integers(0, 60),
    repeats=st.booleans(),
)
def test_copies_are_found_for_any_number_of_them(tmp_path_factory, seed, length, copies, phrases, repeats):
    """`copies` documents have the passage, `phrases` a third of it; other documents are clean."""
    rng, folder = random.Random(seed), tmp_path_factory.mktemp("common")
    passage = prose(rng, length)
    if repeats:  # words of its own again and again
        few = rng.sample(VOCABULARY, 6)
        passage = " ".join(rng.choices(few, k=length))
    words = passage.split()
    phrase = " ".join(words[: max(8, length // 3)])
    clean = [prose(rng, 80) for _ in range(20)]
    documents = [around(rng, passage) for _ in range(copies)]
    documents += [around(rng, phrase) for _ in range(phrases)] + clean
    evidence = found(folder, [{"passages": json.dumps({"asked": passage})}], documents)
    assert set(range(copies)) <= evidence
    assert not evidence & set(range(copies + phrases, len(documents)))
    if phrases > 10 and not repeats:
        assert evidence == set(range(copies))


@pytest.mark.slow
@pytest.mark.parametrize("edit", ["word changed", "word left out", "word more", "two words swapped", "end lost"])
def test_light_edits_of_a_passage_that_everybody_copies(tmp_path, edit):
    rng = random.Random(5)
    passage = prose(rng, 24)
    documents = []
    for _ in range(40):
        words, at = passage.split(), rng.randrange(2, 21)
        if edit == "word changed":
            words[at] = "other"
        elif edit == "word left out":
            del words[at]
        elif edit == "word more":
            words.insert(at, "other")
        elif edit == "two words swapped":
            words[at], words[at + 1] = words[at + 1], words[at]
        else:
            words = words[:-3]
        documents.append(around(rng, " ".join(words)))
    assert found(tmp_path, [{"passages": json.dumps({"asked": passage})}], documents) == set(range(40))


@pytest.mark.slow
def test_boilerplate_in_a_thousand_documents_is_no_evidence(tmp_path):
    """A license header before a task, an instruction before a question, a short question that everybody asks."""
    rng = random.Random(6)
    header, instruction = prose(rng, 150), prose(rng, 11)
    asked = "which of the following statements is true of all"
    code, question = prose(rng, 20), prose(rng, 9)
    items = [
        {"passages": json.dumps({"prompt": f"{header} {code}"})},
        {"passages": json.dumps({"prompt": f"{instruction} {question}"})},
        {"passages": json.dumps({"prompt": asked})},
    ]
    documents = [around(rng, rng.choice([header, instruction, asked])) for _ in range(1000)]
    documents += [around(rng, f"{header} {code}"), around(rng, f"{instruction} {question}")] * 12
    documents += [around(rng, code)] * 9
    assert found(tmp_path, items, documents) == set(range(1000, 1033)), "but what goes with it is"


@pytest.mark.slow
def test_a_question_is_a_passage_with_its_choices(tmp_path):
    """One too short for itself is found with its choices in any number of documents, and not without."""
    rng = random.Random(7)
    question, choices = prose(rng, 9), [prose(rng, 3) for _ in range(4)]
    items = [{"question": question, "choices": json.dumps(choices)}]
    full = " ".join([question, *(f"{label}. {choice}" for label, choice in zip("ABCD", choices, strict=True))])
    documents = [around(rng, full) for _ in range(30)] + [around(rng, question) for _ in range(30)]
    assert found(tmp_path, items, documents) == set(range(30))


def test_a_copy_is_no_piece():
    passage = [f"w{i}" for i in range(40)]
    assert is_whole_in(passage, ["x", *passage, "y"], 13, 8)
    assert is_whole_in(passage, [*passage[:20], "other", *passage[21:]], 13, 8)
    assert is_whole_in(passage, passage[7:], 13, 8) and not is_whole_in(passage, passage[8:], 13, 8)
    assert not is_whole_in(passage, passage[::-1], 13, 8) and not is_whole_in(passage, [], 13, 8)
    assert is_whole_in(passage[:15], passage[:13], 13, 8) and not is_whole_in(passage[:15], passage[:12], 13, 8)
    assert not is_whole_in(passage[:12], passage[:12], 13, 8)
