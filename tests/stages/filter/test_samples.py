"""The sample of dropped documents: bounded, the same in every run, with its text, and without what is taken down."""

import json

from stage_harness import LocalContext, build, recipe, rows_of

from stages.filter.samples import PER_REASON, TEXT_CHARS
from stages.filter.stage import FILTER, publish
from stages.registry import STAGES
from stages.schemas import document_id

TEXTS = [f"short {i}" if i % 3 else f"{i} " + "long enough to be kept " * 9 for i in range(300)]


def sample(folder, lines, exclude=None, stage="filter", **keys):
    """(rows of the published sample, the context) of a filter over files of rows (JSON objects)."""
    folder.mkdir()
    for n, part in enumerate(lines):
        (folder / f"{n}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    source = {"from": "jsonl", "path": str(folder), "rules": [{"length": {"min_chars": 30}}], **keys}
    context = LocalContext(folder / "out", recipe({"a": source}, exclude=exclude or {}))
    return rows_of(build(context, stage).dropped.values()), context


def test_the_smallest_ids_of_each_reason_wherever_they_lie(tmp_path):
    rows = [{"text": t} for t in TEXTS] + [{"text": ""}] * 2
    one, context = sample(tmp_path / "one", [rows])
    many, _ = sample(tmp_path / "many", [rows[i::7] for i in range(7)])
    short = sorted(document_id(t) for t in TEXTS if t.startswith("short"))
    assert [r["document_id"] for r in one if r["reason"] == "length_short"] == short[:PER_REASON]
    assert [(r["reason"], r["document_id"], r["text"]) for r in one] == [
        (r["reason"], r["document_id"], r["text"]) for r in many
    ]
    assert context.counts(STAGES["filter"], "a")["dropped.length_short"] == len(short)
    assert sum(r["reason"] == "empty" for r in one) == 2


def test_the_text_is_the_sources_cut_short(tmp_path):
    text = "mail a@b.co " * 4000
    rows, _ = sample(
        tmp_path / "x", [[{"text": text}, {"text": "k" * 99}]], edit=["pii"], rules=[{"length": {"max_chars": 99}}]
    )
    assert [(r["text"], r["chars"]) for r in rows] == [(text[:TEXT_CHARS], len(text))]


def test_take_downs_are_not_shown(tmp_path):
    rows = [{"text": f"x{i}", "url": f"http://{'a' if i else 'b'}.org/{i}"} for i in range(5)] + [
        {"text": TEXTS[0], "url": ""}
    ]
    gone = {"domains": ["b.org"], "ids": [document_id("x4").hex()]}
    found, context = sample(tmp_path / "x", [rows], gone, "exclude", url="url")
    _, open_ = sample(tmp_path / "y", [rows], url="url")
    assert publish(context.built(FILTER)) == {} != publish(open_.built(FILTER))
    assert sorted(r["text"] for r in found) == ["x1", "x2", "x3"]
