"""Decontamination: planted items go with evidence, clean documents stay, and nothing else runs again."""

from __future__ import annotations

import json
import random
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from built import Inline, build
from planting import EDITS, WAYS, edited
from stage_harness import SHARED, needs_shared

from pipeline.commands.stored_records import records_beside
from pipeline.errors import UnitFailed, UsageError
from pipeline.recipe import parse_recipe
from stages.decontaminate.cut import cut_out
from stages.errors import DataError
from stages.hashing import is_validation
from stages.lineage.drop_reason import explain_drops
from stages.lineage.find import Query, find
from stages.lineage.rows import rows_table, shard_rows
from stages.lineage.trace import trace
from stages.registry import STAGES
from stages.report import decontamination_lines
from stages.schemas import document_id
from train.data.manifest import load_manifest

RNG = random.Random(9)
VOCABULARY = ["".join(RNG.choices("abcdefghilmnoprstuvwz", k=RNG.randint(2, 9))) for _ in range(4000)]


def prose(rng, n):
    """`n` made-up words as sentences."""
    found = rng.choices(VOCABULARY, k=n)
    return " ".join(w.capitalize() + "," if i % 9 == 0 else w for i, w in enumerate(found)) + "."


def questions(rng, n):
    """Questions of 5 to 40 words with four choices of 1 to 6."""
    made = []
    for _ in range(n):
        choices = [prose(rng, rng.randint(1, 6)) for _ in range(4)]
        made.append({"question": prose(rng, rng.randint(5, 40)) + "?", "choices": choices, "answer": rng.randrange(4)})
    return made


def lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def whole(item, rng):
    """An item as a page might have it, with its choices."""
    way = rng.choice([name for name in WAYS if name.startswith("choices")])
    return WAYS[way](item["question"], item["choices"], item["answer"])


def planted(documents, items, rng):
    """(documents, rows that hold items): one in each of as many documents, the second half with edits."""
    documents, rows = list(documents), rng.sample(range(len(documents)), len(items))
    for i, (row, item) in enumerate(zip(rows, items, strict=True)):
        text = whole(item, rng)
        if i >= len(items) // 2:
            text = edited(text, EDITS[i % len(EDITS)], rng)
        at = documents[row].find(" ", len(documents[row]) // 2)
        documents[row] = f"{documents[row][:at]}\n\n{text}\n\n{documents[row][at + 1 :]}"
    return documents, rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A corpus of two sources; `web` has 60 of 200 items planted, `maths` none; built with and without."""
    folder, rng = tmp_path_factory.mktemp("contaminated"), random.Random(1)
    items = questions(rng, 200)
    documents, rows = planted([prose(rng, 300) for _ in range(300)], items[:60], rng)
    lines(folder / "items.jsonl", items)
    lines(folder / "web.jsonl", [{"text": t, "url": f"https://web.test/{i}"} for i, t in enumerate(documents)])
    lines(folder / "maths.jsonl", [{"text": prose(rng, 100)} for _ in range(100)])
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def recipe(folder, **keys):
    return {
        "name": "clean",
        "sources": {n: {"from": "jsonl", "path": str(folder / f"{n}.jsonl")} for n in ("web", "maths")},
        "tokenizer": {"vocab_size": 400, "sample": "1MB"},
        "mixtures": {"anneal": {"tokens": 30_000, "ratios": {"web": 0.8, "maths": 0.2}, "max_epochs": 4}},
        "decontaminate": {"against": {"quiz": {"from": "jsonl", "path": str(folder / "items.jsonl")}}},
        **keys,
    }


def curated(folder):
    """document id -> text of the published corpus."""
    found = {}
    for path in sorted((folder / "build/clean/curated").iterdir()):
        table = pq.read_table(path, partitioning=None)
        found |= dict(zip(table["document_id"].to_pylist(), table["text"].to_pylist(), strict=True))
    return found


def evidence(folder):
    return pq.read_table(folder / "build/clean/contaminated/web.parquet", partitioning=None).to_pylist()


def originals(folder):
    return [json.loads(line)["text"] for line in (folder / "web.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_what_is_planted_goes_with_evidence_and_the_rest_stays(folder):
    inline = Inline()
    context = build(folder, recipe(folder), "exclude", lambda: inline)
    rows, told, texts = json.loads((folder / "rows.json").read_text()), evidence(folder), originals(folder)
    gone = {row["source_row"] for row in told}
    assert gone <= set(rows) and set(rows[:30]) <= gone and len(gone) >= 57
    items = {document_id(text_of(q)): q for q in map(json.loads, (folder / "items.jsonl").read_text().splitlines())}
    for row in told:
        text = texts[row["source_row"]].encode()
        assert text[row["start"] : row["stop"]].decode() == row["text"] and row["done"] == "dropped"
        assert row["set"] == "quiz" and row["item_id"] in items and row["document_id"] == document_id(text.decode())
        assert row["url"] == f"https://web.test/{row['source_row']}"
    kept = curated(folder)
    assert set(kept.values()) >= {t for i, t in enumerate(texts) if i not in gone}
    assert len(kept) == 400 - len(gone)
    assert context.counts(STAGES["decontaminate"], "web")["dropped.contaminated"] == len(gone)
    assert context.counts(STAGES["decontaminate"], "web")["contaminated_by.quiz"] == len(gone)
    assert context.warnings[0].startswith(
        f"quiz: {len({r['item_id'] for r in told})} of 200 items found in {len(gone)} "
    )
    assert decontamination_lines(context)[0].startswith(f"Contaminated: {len(gone)} documents dropped, 0 cut, ")
    assert {label.split()[0] for stage, label in inline.ran if stage == "decontaminate"} >= {"web", "maths", "index"}
    assert ("decontaminate", "maths 00000") not in inline.ran, "a part without hits is passed on as it is"
    again = Inline()
    build(folder, recipe(folder), "exclude", lambda: again)
    assert again.ran == set()


def text_of(item):
    """An item as a training document, which its id is of."""
    options = "\n".join(f"{label}. {text}" for label, text in zip("ABCD", item["choices"], strict=True))
    return (
        f"Question: {item['question']}\n{options}\nAnswer: {'ABCD'[item['answer']]}. {item['choices'][item['answer']]}"
    )


@pytest.mark.slow
def test_without_sets_nothing_is_done(folder):
    context = build(folder, recipe(folder, decontaminate={}), "exclude")
    assert not context.state("decontaminate").units and len(curated(folder)) == 400
    assert "decontaminate" not in context.recipe.to_dict()
    build(folder, recipe(folder), "exclude")


@pytest.mark.slow
def test_sets_of_evals_are_included_unless_switched_off(folder):
    evals = {"asked": {"from": "jsonl", "path": str(folder / "items.jsonl")}}
    context = build(folder, recipe(folder, decontaminate={}, evals=evals), "exclude")
    assert any(line.startswith("asked: ") for line in context.warnings)
    context = build(folder, recipe(folder, decontaminate={"evals": False}, evals=evals), "exclude")
    assert not context.state("decontaminate").units
    build(folder, recipe(folder), "exclude")


@pytest.mark.slow
def test_a_dropped_document_is_told_of_and_a_cut_one_is_traced(folder):
    context = build(folder, recipe(folder))
    context.save_state()
    manifest, told = load_manifest(folder / "build/clean/anneal"), evidence(folder)
    row = told[0]
    found = explain_drops(Query(ids=[row["document_id"].hex()]), records_beside(manifest))[
        "web", row["document_id"].hex()
    ]
    assert found.status == "dropped"
    assert found.note.startswith(f"contaminated by quiz item {row['item_id'].hex()}: ")
    source = next(s for s in manifest.sources if s.name == "web")
    assert source.dropped == {"contaminated": len({r["document_id"] for r in told})}
    assert source.rows_kept == source.rows_in - source.dropped["contaminated"]

    raw = recipe(folder)
    raw["decontaminate"]["policy"] = {"web": "cut"}
    build(folder, raw).save_state()
    manifest, told, kept = load_manifest(folder / "build/clean/anneal"), evidence(folder), curated(folder)
    texts = originals(folder)
    by_document = {}
    for row in told:
        by_document.setdefault(row["document_id"], []).append(row)
    assert {row["done"] for row in told} == {"cut"} and set(by_document) <= set(kept)
    for identity, mine in by_document.items():
        left = cut_out(texts[mine[0]["source_row"]], [(r["start"], r["stop"]) for r in mine])
        assert kept[identity] == left and not any(r["text"] in left for r in mine)
    pieces = [p for s in manifest.shards for p in shard_rows(s.path, rows_table(manifest, s)) if not p.truncated]
    mine = [p for p in pieces if p.document_id in by_document]
    assert mine and any(is_validation([p.document_id])[0] for p in pieces)
    mended = told[0]
    wanted = Query(text=mended["text"])
    assert ("web", mended["document_id"].hex()) not in find(manifest, wanted)
    one = explain_drops(wanted, records_beside(manifest))["web", mended["document_id"].hex()]
    assert one.status == "curated" and one.note.startswith("a piece was cut out, contaminated by quiz item ")
    traced = trace(manifest, mine)
    assert {(t.curated.status, t.origin.status) for t in traced} == {("equal", "equal")}
    assert all("cut, see contaminated/" in t.origin.detail for t in traced)
    (folder / "build/clean/contaminated").rename(folder / "aside")
    assert {t.origin.status for t in trace(manifest, mine[:3])} == {"absent"}
    (folder / "aside").rename(folder / "build/clean/contaminated")


def test_a_cut_document_can_be_taken_down(folder):
    raw = recipe(folder)
    raw["decontaminate"]["policy"] = "cut"
    build(folder, raw, "exclude")
    row = evidence(folder)[0]
    raw["exclude"] = {"ids": [row["document_id"].hex()]}
    build(folder, raw, "exclude")
    assert row["document_id"] not in curated(folder)
    assert row["document_id"] not in {r["document_id"] for r in evidence(folder)}, "nor is its text shown"
    build(folder, recipe(folder), "exclude")


def test_what_many_documents_hold_is_no_evidence_but_a_copied_passage_is(tmp_path):
    """A phrase of a passage in 11 documents, the whole of another in 12: 0 and 12 go, and with common: 11 all 23."""
    rng = random.Random(3)
    phrase, rest, copied = prose(rng, 30), prose(rng, 15), prose(rng, 30)
    holders = [phrase] * 11 + [copied] * 12
    lines(tmp_path / "web.jsonl", [{"text": f"{prose(rng, 50)} {t} {prose(rng, 50)}"} for t in holders])
    lines(tmp_path / "maths.jsonl", [{"text": prose(rng, 20)}])
    rows = [{"asked": f"{phrase} {rest}", "told": None}, *[{"asked": copied, "told": 7}] * 2]
    lines(tmp_path / "own.jsonl", rows)
    against = {"own": {"from": "jsonl", "path": str(tmp_path / "own.jsonl"), "fields": ["asked", "told"]}}
    for most, gone in ((10, range(11, 23)), (11, range(23))):
        raw = recipe(tmp_path, decontaminate={"against": against, "common": most})
        context = build(tmp_path, raw, "exclude")
        assert {row["source_row"] for row in evidence(tmp_path)} == set(gone)
        assert any("n-grams are no evidence" in line for line in context.warnings) == (most == 10)
    told = evidence(tmp_path)
    assert {row["passage"] for row in told} == {"asked"} and len(told) == 23, "the item that is there twice counts once"
    assert context.warnings == ["own: 2 of 2 items found in 23 documents; see contaminated/"]


@pytest.mark.parametrize(
    ("rows", "fields", "kind", "message"),
    [
        (None, ["a"], "jsonl", "decontaminate.against.own: no files match"),
        ([], ["a"], "jsonl", "decontaminate.against.own: no rows in own"),
        ([{"a": "x"}], ["b"], "jsonl", r"decontaminate.against.own: own.jsonl row 0: no field 'b' \(there: a\)"),
        ([{"a": " "}], ["a"], "jsonl", "decontaminate.against.own: no text in a of own.jsonl"),
        ([{"a": ["x"]}], ["a"], "jsonl", "field 'a' is list, not text"),
        ([{"a": "x"}], ["b"], "parquet", "decontaminate.against.own: .*has no column 'b'; its columns are a"),
    ],
)
def test_a_set_that_cannot_be_read(folder, tmp_path, rows, fields, kind, message):
    path = tmp_path / f"own.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif rows is not None:
        lines(path, rows)
    against = {"own": {"from": kind, "path": str(path), "fields": fields}}
    with pytest.raises((DataError, UnitFailed), match=message):
        build(folder, recipe(folder, decontaminate={"against": against}), "exclude")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"policy": {"wep": "cut"}}, "decontaminate.policy names source 'wep'; the sources are web, maths"),
        ({"against": {"web": {"from": "ai2_arc", "path": "x"}}}, "decontaminate.against.web has the name of a source"),
        ({"against": {"x": {"from": "parquet", "path": "x"}}}, "needs `fields`, the columns that hold"),
        ({"against": {"x": {"from": "ai2_arc", "path": "x", "fields": ["a"]}}}, "leave `fields` out"),
        ({"short": 14}, "short is 14, more than ngram, 13"),
        ({"ngrams": 3}, "decontaminate.ngrams: unknown key; did you mean 'ngram'"),
    ],
)
def test_keys_that_cannot_be(folder, keys, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_recipe(recipe(folder, decontaminate=keys), "test")


@pytest.mark.slow
def test_hostile_sets(folder, tmp_path):
    """Items of one word, of numbers and of ten megabytes; all are counted, and what cannot be searched for is said."""
    big = prose(random.Random(5), 1_600_000 // 8)
    lines(tmp_path / "own.jsonl", [{"a": "word"}, {"a": "1 2 3 4 5 6 7 8 9 10 11 12 13 14"}, {"a": big}])
    against = {"own": {"from": "jsonl", "path": str(tmp_path / "own.jsonl"), "fields": ["a"]}}
    context = build(folder, recipe(folder, decontaminate={"against": against}), "exclude")
    assert context.warnings == [
        "own: 2 of 3 items are not searched for: too short, or in words that many items share",
    ]
    build(folder, recipe(folder), "exclude")


def arc_items():
    found = []
    for name in ("Easy", "Challenge"):
        for row in pq.read_table(SHARED / f"qa/ai2_arc/ARC-{name}/validation-00000-of-00001.parquet").to_pylist():
            choices = row["choices"]
            answer = choices["label"].index(row["answerKey"])
            found.append({"question": row["question"], "choices": choices["text"], "answer": answer})
    return found


@pytest.mark.slow
@needs_shared
def test_arc_validation_planted_in_web_documents(tmp_path):
    """50 items whole and 50 with light edits, in 184 real pages: all 50, at least 45, and no other page."""
    rng = random.Random(2)
    table = pq.read_table(SHARED / "web/peps.parquet", columns=["text"])
    documents, rows = planted(table["text"].to_pylist()[::4], rng.sample(arc_items(), 100), rng)
    lines(tmp_path / "web.jsonl", [{"text": t} for t in documents])
    lines(tmp_path / "maths.jsonl", [{"text": prose(rng, 20)}])
    paths = [str(SHARED / f"qa/ai2_arc/ARC-{name}/validation-00000-of-00001.parquet") for name in ("Easy", "Challenge")]
    against = {f"arc_{i}": {"from": "ai2_arc", "path": path} for i, path in enumerate(paths)}
    build(tmp_path, recipe(tmp_path, decontaminate={"against": against}), "exclude")
    told = evidence(tmp_path)
    gone = {row["source_row"] for row in told}
    assert set(rows[:50]) <= gone and len(set(rows[50:]) & gone) >= 45
    assert gone <= set(rows)
