"""Samples of sources: bounded, repeatable, unbiased where it can be known, and near what a whole reading counts."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from stage_harness import SHARED, LocalContext, needs_shared

from pipeline.recipe import parse_recipe
from stages.errors import DataError
from stages.estimate.forecast import check_inputs
from stages.estimate.mixtures import check_mixtures
from stages.estimate.sample import SamplingUnit, draw, estimate, sample_source
from stages.filter.document import Document
from stages.filter.parse import parse_rules
from stages.filter.rules import apply_rules
from stages.sources.registry import SOURCES, SourceConfig
from stages.sources.writer import rejection_reason
from stages.task import Artifact, Task


def identify(path):
    data = Path(path).read_bytes()
    return hashlib.sha256(data).hexdigest(), len(data)


def sampled(folder, **source):
    """(config, units, sample) of one source."""
    config = TypeAdapter(SourceConfig).validate_python(source)
    specs = SOURCES[config.kind].units(config, identify)
    folder.mkdir(exist_ok=True)
    return config, specs, sample_source(config, specs, folder)


def truth(config, specs):
    """(documents, bytes of text, bytes kept by the rules) of a source read whole."""
    rules, found = parse_rules(config.rules, config.words), []
    for spec in specs:
        for row in SOURCES[config.kind].rows(Task(spec.params, spec.inputs, Path(), "", lambda a: a.path)):
            if not hasattr(row, "reason") and rejection_reason(row) is None:
                size = len(row.text.encode())
                found.append((1, size, size * (apply_rules(Document(row.text, {}), rules)[0] is None)))
    return np.array(found).sum(axis=0)


@given(weights=st.lists(st.integers(1, 1000), min_size=1, max_size=30), draws=st.integers(1, 20))
def test_a_piece_is_drawn_in_proportion_to_its_size(weights, draws):
    pieces = [SamplingUnit(str(i), {}, Artifact("", ""), w) for i, w in enumerate(weights)]
    drawn = draw(pieces, draws)
    assert drawn.total() == draws
    for i, weight in enumerate(weights):  # systematic: within one of its share
        assert abs(drawn[i] - draws * weight / sum(weights)) < 1 + 1e-9


@pytest.mark.slow
@settings(max_examples=15)
@given(sizes=st.lists(st.integers(10, 400), min_size=1, max_size=60), files=st.integers(1, 4))
def test_a_source_that_is_read_whole_is_estimated_exactly(tmp_path_factory, sizes, files):
    folder = tmp_path_factory.mktemp("whole")
    for f in range(files):
        rows = [json.dumps({"text": f"{i:03d}" + "x" * n}) for i, n in enumerate(sizes)]
        (folder / f"{f}.jsonl").write_text("\n".join(rows) + "\n")
    config, specs, sample = sampled(folder / "scratch", **{"from": "jsonl", "path": f"{folder}/*.jsonl"})
    guess = estimate(sample, sample.text_bytes)
    documents, text, kept = truth(config, specs)
    assert guess.error == pytest.approx(0, abs=1e-6)
    assert (guess.documents, guess.text) == pytest.approx((documents, text))
    assert (guess.kept_text, guess.tokens) == pytest.approx((kept, kept))


def write_long(folder, ending, count=12_000):
    """A file of many documents of random length, one in three of which the rule drops. About 6 MB."""
    draws = np.random.default_rng(7)
    words = ["alpha", "beta", "gamma", "delta", "of", "the"]
    texts = [" ".join(draws.choice(words, int(n))) + ("" if n % 3 else "!") for n in draws.integers(5, 190, count)]
    records = [{"text": text, "keep": len(text) % 3} for text in texts]
    path = folder / f"long{ending}"
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=500)
    elif ending == ".json":
        path.write_text(json.dumps(records))
    else:
        lines = "".join(json.dumps(record) + "\n" for record in records).encode()
        path.write_bytes(zstandard.compress(lines) if ending.endswith(".zst") else lines)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.zst", ".json", ".parquet"])
def test_a_large_file_is_read_in_part_and_estimated_within_the_error(tmp_path, monkeypatch, ending):
    monkeypatch.setattr("stages.estimate.sample.FILE_BYTES", 400_000)
    monkeypatch.setattr("stages.estimate.sample.TEXT_BYTES", 400_000)
    path = write_long(tmp_path, ending)
    kind = {".json": "json_array", ".parquet": "parquet"}.get(ending, "jsonl")
    rules = [{"metadata": {"keep": {"min": 1}}}]
    config, specs, sample = sampled(tmp_path / "scratch", **{"from": kind, "path": str(path), "rules": rules})
    assert sample.text_bytes.sum() < 600_000
    assert sample.read < path.stat().st_size
    assert kind == "parquet" or sample.read <= 400_000
    guess = estimate(sample, sample.text_bytes)
    documents, text, _ = truth(config.model_copy(update={"rules": []}), specs)
    assert guess.documents == pytest.approx(documents, rel=0.12)
    assert guess.text == pytest.approx(text, rel=0.08)  # a block of zstd is cut, and a row
    assert guess.kept_text / guess.text == pytest.approx(2 / 3, abs=0.08)
    assert 0 < guess.error < 0.3


@pytest.mark.slow
def test_a_sample_is_the_same_every_time(tmp_path):
    path = write_long(tmp_path, ".parquet")
    one, other = (sampled(tmp_path / name, **{"from": "parquet", "path": str(path)})[2] for name in "ab")
    assert one.texts == other.texts
    assert np.array_equal(one.used, other.used)


def test_bad_rows_are_counted_and_a_source_of_nothing_else_says_so(tmp_path):
    (tmp_path / "some.jsonl").write_text('{"text": "good"}\n{"text": 3}\n')
    assert sampled(tmp_path / "a", **{"from": "jsonl", "path": str(tmp_path / "some.jsonl")})[2].bad.total() == 1
    (tmp_path / "none.jsonl").write_text('{"text": 3}\n{"txt": "x"}\n')
    with pytest.raises(DataError, match=r"none of its 2 rows can be used \(text is int"):
        sampled(tmp_path / "b", **{"from": "jsonl", "path": str(tmp_path / "none.jsonl")})
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="empty"):
        sampled(tmp_path / "c", **{"from": "jsonl", "path": str(tmp_path / "empty.jsonl")})


QA = "Question: {query}\n\nAnswer: {response}"
REAL = {  # with `blanks` the rules leave enough documents of code and formulas for an estimate
    "web": {
        "from": "parquet",
        "path": [f"{SHARED}/web/{n}.parquet" for n in ("peps", "wikitext2_valid", "textbooks_d2l_cpalgo")],
        "rules": ["gopher_quality"],
        "words": "blanks",
    },
    "planetmath": {
        "from": "parquet",
        "path": f"{SHARED}/math/*.parquet",
        "rules": ["gopher_quality"],
        "words": "blanks",
    },
    "metamath": {"from": "json_array", "path": f"{SHARED}/qa/metamathqa_schema/*.json", "template": QA},
    "arc": {"from": "ai2_arc", "path": f"{SHARED}/qa/ai2_arc/*/train*.parquet"},
}


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_real_sources_are_predicted_within_twice_the_stated_error(tmp_path, name):
    config, specs, sample = sampled(tmp_path / "scratch", **REAL[name])
    guess = estimate(sample, sample.text_bytes)
    _, text, kept = truth(config, specs)
    assert guess.error < 0.25
    assert abs(guess.kept_text / kept - 1) <= 2 * guess.error + 0.01
    assert guess.text == pytest.approx(text, rel=2 * guess.error + 0.01)


def test_all_that_is_wrong_with_the_inputs_is_told_at_once(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    sources = {name: {"from": "jsonl", "path": str(tmp_path / f"{name}.jsonl")} for name in ("a", "gone", "lost")}
    recipe = parse_recipe(
        {
            "name": "r",
            "sources": sources,
            "evals": {"exam": {"from": "jsonl", "path": str(tmp_path / "exam.jsonl")}},
            "mixtures": {"pretrain": {"tokens": 1000, "ratios": {"a": "100%"}}},
            "train": {"pretrain": {"steps": 100, "batch_size": 4, "seq_len": 32}},
        },
        "r.yaml",
    )
    context = LocalContext(tmp_path / "out", recipe)
    with pytest.raises(DataError) as error:
        check_inputs(context, ["download", "evals", "train"])
    lines = str(error.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["source gone", "source lost", "evals.exam", "train.pretrain"]
    with pytest.raises(DataError) as error:
        check_inputs(context, ["download"])
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["source gone", "source lost"]


WORDS = (
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "looked",
    "at",
    "birds",
    "over",
    "green",
    "hills",
    "in",
    "autumn",
)


def write_documents(path, number, words=40):
    rng = np.random.default_rng(3)
    lines = [json.dumps({"text": f"{i} " + " ".join(rng.choice(WORDS, words))}) for i in range(number)]
    path.write_text("\n".join(lines) + "\n")


def looked_at(tmp_path, tokens, vocab_size, stages):
    """Warnings, and the error or "", of what is said before a first build of a.jsonl."""
    keys = {
        "name": "r",
        "sources": {"a": {"from": "jsonl", "path": str(tmp_path / "a.jsonl")}},
        "tokenizer": {"vocab_size": vocab_size},
        "mixtures": {"pretrain": {"tokens": tokens, "ratios": {"a": "100%"}}},
        "train": {"pretrain": {"steps": 1, "batch_size": 1, "seq_len": 8}},
    }
    context = LocalContext(tmp_path / "out", parse_recipe(keys, "r.yaml"))
    context.listed = check_inputs(context, ["download"])
    try:
        check_mixtures(context, stages)
    except DataError as error:
        return context.warnings, str(error)
    return context.warnings, ""


def test_a_mixture_that_cannot_be_packed_is_told_before_anything_is_built(tmp_path):
    write_documents(tmp_path / "a.jsonl", 2000)
    warnings, error = looked_at(tmp_path, 9_000_000, 300, ["pack_pretrain"])
    assert "mixture pretrain: would not fit, by the estimate: source a is short by" in error and not warnings
    assert len(error.splitlines()) == 1


def test_a_mixture_that_may_fit_is_only_doubted(tmp_path):
    write_documents(tmp_path / "a.jsonl", 2000)
    available = sum(len(line) for line in (tmp_path / "a.jsonl").open()) // 2  # of about four bytes a token
    warnings, error = looked_at(tmp_path, available, 300, ["pack_pretrain"])
    assert not error and warnings[0].startswith("mixture pretrain: would not fit, by the estimate")


def test_a_vocabulary_too_large_for_all_of_the_text_is_told(tmp_path):
    write_documents(tmp_path / "a.jsonl", 400)
    _, error = looked_at(tmp_path, 100, 5000, ["pack_pretrain"])
    assert error.startswith("tokenizer: the text supports only ")


@pytest.mark.parametrize("stages", [["pack_pretrain"], ["pack_pretrain", "train"]])
def test_ten_documents_hold_nothing_out(tmp_path, stages):
    write_documents(tmp_path / "a.jsonl", 10)
    warnings, error = looked_at(tmp_path, 100, 300, stages)
    said = error if "train" in stages else warnings[0]
    assert said.startswith("mixture pretrain: of its 10 documents none will be held out") and "paragraph" in said
    assert bool(error) == ("train" in stages)


def test_a_source_without_a_usable_row_is_told(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"body": "no text"}\n' * 500)
    warnings, error = looked_at(tmp_path, 100, 300, ["pack_pretrain"])
    assert not error and "source a: no sample: in the sample none of its 500 rows can be used" in warnings[0]


def test_enough_documents_are_fine(tmp_path):
    write_documents(tmp_path / "a.jsonl", 2000)
    assert looked_at(tmp_path, 1000, 300, ["pack_pretrain", "train"]) == ([], "")
