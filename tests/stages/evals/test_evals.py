"""Evaluation sets: the same questions from every file format, encoded as they are read, and no mark without them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from built import RECIPE, Inline, build, copy_of, edit, flip, small, texts
from commands import cli
from hypothesis import given, settings
from hypothesis import strategies as st
from stage_harness import SHARED, identify, needs_shared, rows_of, run_unit
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pipeline.commands import rebuild
from pipeline.commands.inspect import print_manifest
from pipeline.engine.store import open_store
from pipeline.errors import UsageError, UserError
from pipeline.recipe import parse_recipe
from stages.encode_evals import work as encode
from stages.errors import DataError
from stages.evals import stage as evals
from stages.pack.verify import verify
from stages.schemas import document_id
from stages.sources import ai2_arc
from stages.sources.questions import ITEMS, EvalConfig
from stages.task import Artifact
from stages.tokenizer.spec import SPECIALS, load_text_encoder
from train.data.evalset import read_evalset
from train.data.manifest import EvalSet, load_manifest

QUESTIONS = [
    ("Which is a mineral?", ["A", "B"], ["wood", "quartz"], "B"),
    ("Which is wet?", ["1", "2", "3"], ["water", "sand", "a stone"], "1"),
    ('She said "naïve"; who?', ["A", "B", "C", "D", "E"], ["é", "ab", "abc", "12", "(x)"], "E"),
]


def write_arc(path, questions=QUESTIONS):
    """An ARC file."""
    rows = [{"question": q, "choices": {"text": t, "label": c}, "answerKey": k} for q, c, t, k in questions]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_jsonl(path, rows):
    """A file of a user's own."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def items_of(folder, **keys):
    """The rows of an evaluation set, read as the stage reads it."""
    config = EvalConfig.model_validate({"from": "ai2_arc", **keys})

    async def run(stage, unit):
        return run_unit(folder / "out", unit.work, unit.params, unit.inputs)

    context = SimpleNamespace(identify=identify, run=run)
    return rows_of([asyncio.run(evals.read_set(context, "quiz", config)).output("items")])


def test_items_are_the_rows_of_the_source_with_the_ids_that_it_gives_them(tmp_path):
    write_arc(tmp_path / "arc/validation-0.parquet", QUESTIONS[:2])
    write_arc(tmp_path / "arc/validation-1.parquet", QUESTIONS[2:])
    found = items_of(tmp_path, path=f"{tmp_path}/arc/validation-*.parquet")
    assert [row["question"] for row in found] == [q for q, *_ in QUESTIONS]
    assert [json.loads(row["choices"]) for row in found] == [t for _, _, t, _ in QUESTIONS]
    assert [row["answer"] for row in found] == [1, 0, 4]
    assert [(row["source_file"], row["source_row"]) for row in found] == [
        ("validation-0.parquet", 0),
        ("validation-0.parquet", 1),
        ("validation-1.parquet", 0),
    ]
    # the same file read for training
    config = ai2_arc.Config.model_validate({"from": "ai2_arc", "path": str(tmp_path / "arc")})
    (unit,) = ai2_arc.units(config, identify)
    documents = rows_of(run_unit(tmp_path / "text", ai2_arc.work, unit.params, unit.inputs).named("part-"))
    assert [(row["item_id"], row["text"]) for row in found] == [(d["document_id"], d["text"]) for d in documents]
    assert all(row["item_id"] == document_id(row["text"]) for row in found)


def test_a_file_of_ones_own(tmp_path):
    lettered = [(q, list("ABCDE"[: len(t)]), t, "ABCDE"[labels.index(k)]) for q, labels, t, k in QUESTIONS]
    write_arc(tmp_path / "arc/x.parquet", lettered)
    theirs = items_of(tmp_path, path=str(tmp_path / "arc"))
    for answers in ("BAE", (1, 0, 4)):
        pairs = zip(lettered, answers, strict=True)
        rows = [{"question": q, "choices": t, "answer": answer} for (q, _, t, _), answer in pairs]
        mine = items_of(tmp_path, **{"from": "jsonl"}, path=str(write_jsonl(tmp_path / "mine.jsonl", rows)))
        assert mine == [{**row, "source_file": "mine.jsonl"} for row in theirs]


GOOD = {"question": "Which?", "choices": ["a", "b"], "answer": 0}


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([1], "the row is list, not an object"),
        ({**GOOD, "question": 3}, "needs `question`, a text"),
        ({**GOOD, "choices": "ab"}, "`choices`, a list of texts"),
        ({**GOOD, "choices": ["a", 1]}, "`choices`, a list of texts"),
        ({**GOOD, "choices": ["a"]}, "two choices or more"),
        ({**GOOD, "choices": ["a", " "]}, "that are not empty"),
        ({**GOOD, "question": " "}, "a question needs a text"),
        ({**GOOD, "answer": 2}, "`answer` is 2; for 2 choices write a number from 0"),
        ({**GOOD, "answer": -1}, "`answer` is -1"),
        ({**GOOD, "answer": True}, "`answer` is True"),
        ({**GOOD, "answer": "C"}, "`answer` is 'C'"),
        ({**GOOD, "question": "\ud800"}, "a lone surrogate"),
    ],
)
def test_a_row_that_is_no_question_is_an_error_and_named(tmp_path, row, said):
    path = write_jsonl(tmp_path / "q.jsonl", [GOOD, row])
    with pytest.raises(DataError) as caught:
        items_of(tmp_path, **{"from": "jsonl"}, path=str(path))
    assert str(caught.value).startswith("q.jsonl row 1: ") and said in str(caught.value)


def test_what_cannot_be_read_is_an_error_that_names_the_set(tmp_path):
    with pytest.raises(DataError, match=r"^evals\.quiz: no files match .*; check `path`"):
        items_of(tmp_path, path=str(tmp_path / "nothing"))
    pq.write_table(pa.table({"question": ["x"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"^evals\.quiz: .*no column 'answerKey' or 'choices'"):
        items_of(tmp_path, path=str(tmp_path / "x.parquet"))
    with pytest.raises(DataError, match=r"no questions in q\.jsonl"):
        items_of(tmp_path, **{"from": "jsonl"}, path=str(write_jsonl(tmp_path / "q.jsonl", [])))
    write_arc(tmp_path / "bad.parquet", [("Which?", ["A", "B"], ["x", "y"], "C")])
    with pytest.raises(DataError, match=r"bad\.parquet row 0: answerKey 'C' is not among the labels"):
        items_of(tmp_path, path=str(tmp_path / "bad.parquet"))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"from": "parquet", "path": "x"}, "evals.q.from: a source of kind 'parquet' gives no questions with choices"),
        ({"path": "x"}, "evals.q.from: is required"),
        ({"from": "jsonl"}, "evals.q.path: is required"),
        ({"from": "jsonl", "path": "x", "rules": []}, "evals.q.rules: unknown key; allowed: from, license, origin, "),
        ({"from": "jsonl", "path": "x", "prompt": "Answer:"}, "must have {question} in it, once"),
        ({"from": "jsonl", "path": "x", "prompt": "{question} "}, "ends with a blank"),
        (3, "evals.q: must be a group of keys"),
    ],
)
def test_errors_of_the_recipe(value, said):
    sources = {"web": {"from": "jsonl", "path": "x"}}
    with pytest.raises(UsageError) as caught:
        parse_recipe({"name": "r", "sources": sources, "evals": {"q": value}}, "r.yaml")
    assert said in str(caught.value) and str(caught.value).startswith("r.yaml: evals.q")
    with pytest.raises(UsageError, match=r"evals\.web has the name of a source"):
        parse_recipe({"name": "r", "sources": sources, "evals": {"web": {"from": "jsonl", "path": "x"}}}, "r.yaml")


# ---------------------------------------------------------------------------------------------------------------------
# Encoding


def tokenizer_file(folder, cut=True):
    """A tokenizer trained on questions; without `cut`, one whose merges cross every border."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=list(SPECIALS), initial_alphabet=alphabet)
    trainer.show_progress = False
    corpus = [f"Question: {t}?\nAnswer: {w} {i}" for i, t in enumerate(texts(3, 60, 9)) for w in t.split()]
    tokenizer.train_from_iterator(corpus, trainer)
    path = folder / f"tokenizer-{cut}.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """cut -> (its file, the reference)."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return {cut: (path := tokenizer_file(folder, cut), load_text_encoder(str(path))) for cut in (True, False)}


def encoded(folder, path, rows, prompt):
    """The items of a file of one's own, through both units."""
    file = write_jsonl(folder / "q.jsonl", rows)
    config = EvalConfig.model_validate({"from": "jsonl", "path": str(file), "prompt": prompt})

    async def run(stage, unit):
        return run_unit(folder / "items", unit.work, unit.params, unit.inputs)

    items = asyncio.run(evals.read_set(SimpleNamespace(identify=identify, run=run), "q", config)).output("items")
    tokenizer = Artifact(str(path), identify(str(path))[0])
    found = run_unit(folder / "encoded", encode.work, {"prompt": prompt}, [tokenizer, items]).output("encoded")
    said = EvalSet("q", "", found.sha256, found.rows, prompt, "jsonl", "", "", "", [])
    return read_evalset(Path(found.path), said, 400)


WORD = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8).filter(str.strip)
CHOICES = st.lists(WORD, min_size=2, max_size=5)
ROW = st.builds(lambda q, c: {"question": q, "choices": c, "answer": len(c) - 1}, WORD, CHOICES)


@pytest.mark.slow
@settings(max_examples=25)
@given(rows=st.lists(ROW, min_size=1, max_size=4), cut=st.booleans())
@pytest.mark.parametrize("prompt", ["Question: {question}\nAnswer:", "{question}"])
def test_a_choice_is_encoded_as_it_is_read(tmp_path_factory, encoders, prompt, rows, cut):
    path, truth = encoders[cut]
    found = encoded(tmp_path_factory.mktemp("e"), path, rows, prompt)
    for item, row in zip(found, rows, strict=True):
        text = prompt.replace("{question}", row["question"])
        alone = truth.encode(text).ids
        wholes = [truth.encode(f"{text} {choice}").ids for choice in row["choices"]]
        assert [item.prompt + choice for choice in item.choices] == wholes
        assert all(item.choices) and item.prompt == alone[: len(item.prompt)]
        assert item.bytes == [len(choice.encode()) for choice in row["choices"]]
        assert item.answer == row["answer"]
        if all(whole[: len(alone)] == alone for whole in wholes):
            assert item.prompt == alone  # then it is lm-evaluation-harness's cut
        elif cut:
            assert prompt == "{question}"  # a question that ends with blanks


def test_merges_that_cross_the_border_move_it(tmp_path, encoders):
    path, truth = encoders[False]
    rows = [{"question": t, "choices": t.split()[2:5], "answer": 0} for t in texts(3, 30, 9)]
    found = encoded(tmp_path, path, rows, "Question: {question}?\nAnswer:")
    alone = [truth.encode(f"Question: {row['question']}?\nAnswer:").ids for row in rows]
    assert any(len(item.prompt) < len(ids) for item, ids in zip(found, alone, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# In a build


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The small mixture without evaluation sets, and beside it the one with two."""
    folder = tmp_path_factory.mktemp("evals")
    plain = small(folder / "plain")
    asked = folder / "asked"
    write_arc(asked / "arc/validation.parquet", QUESTIONS * 3)
    write_jsonl(asked / "mine.jsonl", [GOOD])
    sets = {
        "arc": {"from": "ai2_arc", "path": str(asked / "arc"), "licence": "CC-BY-SA-4.0"},
        "mine": {"from": "jsonl", "path": str(asked / "mine.jsonl"), "prompt": "{question}"},
    }
    return plain, small(asked, evals=sets)


@pytest.mark.slow
def test_a_mixture_is_the_same_with_and_without(built):
    plain, asked = map(load_manifest, built)
    assert plain.build_id == asked.build_id
    assert [s.sha256 for s in plain.shards] == [s.sha256 for s in asked.shards]
    raw = json.loads((built[0] / "manifest.json").read_text())
    assert "evals" not in raw and "evals" not in raw["recipe"] and not any("evals" in name for name in raw["code"])
    assert json.loads(plain.to_json()) == raw and not list(built[0].glob("eval*"))


@pytest.mark.slow
def test_the_manifest_lists_them_and_verify_finds_any_bit(built, tmp_path, capsys):
    folder = copy_of(built[1], tmp_path / "copy")
    manifest = load_manifest(folder)
    assert [(e.name, e.items, e.license, e.path) for e in manifest.evals] == [
        ("arc", 9, "CC-BY-SA-4.0", "eval_arc.json"),
        ("mine", 1, "", "eval_mine.json"),
    ]
    assert [f.name for e in manifest.evals for f in e.files] == ["validation.parquet", "mine.jsonl"]
    items = pq.read_table(built[1].parent / "evals" / "arc.parquet")
    assert items.schema == ITEMS
    ids = [i.hex() for i in items["item_id"].to_pylist()]
    assert [i.id for i in read_evalset(folder / "eval_arc.json", manifest.evals[0], 400)] == ids
    assert list(verify(manifest)) == []
    print_manifest(manifest, 0, 0, 10)
    assert "Asked while training: arc (9 items, CC-BY-SA-4.0), mine (1 items)" in capsys.readouterr().out
    flip(folder / "eval_arc.json", 200)
    assert list(verify(manifest)) == ["eval_arc.json: sha256 differs from the manifest's"]
    (folder / "eval_arc.json").unlink()
    assert list(verify(manifest)) == ["eval_arc.json: missing"]
    folder = copy_of(built[1], tmp_path / "forged")
    edit(folder, lambda value: value["evals"][1].update(items=2))
    assert any("1 items, the manifest says 2" in problem for problem in verify(load_manifest(folder)))


def test_what_is_built_is_kept_and_a_new_prompt_only_encodes(built):
    folder, raw = built[1].parents[2], load_manifest(built[1]).recipe
    raw["sources"] = {name: raw["sources"][name] for name in ("web", "maths")}  # a manifest's keys are sorted
    ran = []

    class Counted(Inline):
        async def submit(self, spec):
            ran.append(spec["stage"])
            return await super().submit(spec)

    build(folder, raw, inline=Counted)
    assert ran == []
    raw = {**raw, "evals": {**raw["evals"], "mine": {**raw["evals"]["mine"], "prompt": "Q: {question}"}}}
    build(folder, raw, inline=Counted)
    assert ran == ["encode_evals", "pack_anneal_mix"]  # the unit that writes the manifest


@pytest.mark.slow
def test_two_workers_give_the_same_bytes(built, tmp_path):
    (tmp_path / "r.yaml").write_text(json.dumps(load_manifest(built[1]).recipe))
    given = ["--recipe", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out")]
    done = cli("run", "encode_evals", *given, "--executor", "local", "--workers", "2")
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in (tmp_path / "out/store/encode_evals").rglob("record.json")]
    made = {output["sha256"] for record in records for output in record["outputs"]}
    assert made == {asked.sha256 for asked in load_manifest(built[1]).evals}
    for name in ("arc", "mine"):
        tables = [pq.read_table(p / f"evals/{name}.parquet") for p in (built[1].parent, tmp_path / "out/small")]
        assert tables[0].equals(tables[1])


def test_a_set_that_is_trained_on_is_told(tmp_path):
    write_arc(tmp_path / "arc.parquet", [(t, ["A", "B"], ["wood", "quartz"], "B") for t in texts(8, 90)])
    arc = {"from": "ai2_arc", "path": str(tmp_path / "arc.parquet")}
    raw = {**RECIPE, "sources": {"quiz": arc}, "evals": {"arc": arc}, "tokenizer": {"vocab_size": 300}}
    raw["decontaminate"] = {"evals": False}  # or nothing would be left
    raw["mixtures"] = {"anneal": {"tokens": 2000, "ratios": {"quiz": 1}}}
    context = build(tmp_path, raw)
    (said,) = context.warnings
    assert said == "evals.arc asks what quiz trains on: both read arc.parquet; name another file"


@pytest.mark.slow
def test_rebuild_takes_moved_files_and_refuses_changed_ones(built, tmp_path, capsys):
    manifest = load_manifest(copy_of(built[1], tmp_path / "kept"))
    moved = tmp_path / "moved"
    write_arc(moved / "validation.parquet", QUESTIONS * 3)
    places = {"arc": str(moved)}
    again = rebuild.recipe_of(manifest, places)
    store = open_store(str(tmp_path / "again"))
    rebuild.require_same_inputs(manifest, again, store, places, False)
    build(tmp_path, again.to_dict())
    rebuild.require_same_outputs(manifest, str(tmp_path / "build"), places)
    shards = len(manifest.shards)
    assert f"{2 + 3 * shards + 2} files rebuilt, every sha256 as the manifest has it" in capsys.readouterr().out
    write_arc(moved / "validation.parquet", QUESTIONS * 2)
    with pytest.raises(UserError, match="1 differences in the sources"):
        rebuild.require_same_inputs(manifest, again, store, places, False)
    assert "source arc: validation.parquet has other contents" in capsys.readouterr().out


@pytest.mark.slow
@needs_shared
def test_arcs_validation_splits(tmp_path, encoders):
    """All 869 questions; the default prompt's tokens are nowhere touched by a choice's."""
    path, truth = encoders[True]
    for name, n in (("Easy", 570), ("Challenge", 299)):
        rows = items_of(tmp_path / name, path=f"{SHARED}/qa/ai2_arc/ARC-{name}/validation-*.parquet")
        assert len(rows) == n == len({row["item_id"] for row in rows})
        train = items_of(tmp_path / f"{name}-train", path=f"{SHARED}/qa/ai2_arc/ARC-{name}/train-*.parquet")
        assert not {row["item_id"] for row in rows} & {row["item_id"] for row in train}
        mine = [{"question": r["question"], "choices": json.loads(r["choices"]), "answer": r["answer"]} for r in rows]
        found = encoded(tmp_path / name, path, mine, "Question: {question}\nAnswer:")
        for item, row in zip(found, rows, strict=True):
            assert item.prompt == truth.encode(f"Question: {row['question']}\nAnswer:").ids
        assert all(choice.isascii() for row in mine for choice in row["choices"])
