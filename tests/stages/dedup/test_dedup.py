"""Filter and exact deduplication through their builds: reasons, budgets, priority, held-out documents."""

import json

import pytest
from stage_harness import LocalContext, build, recipe, rows_of

from stages.dedup.clusters import RANKS
from stages.dedup.config import Dedup
from stages.download.stage import DOWNLOAD
from stages.errors import DataError
from stages.exclude.stage import EXCLUDE
from stages.hashing import is_validation
from stages.pack.describe import drop_reasons
from stages.schemas import document_id
from stages.sources import jsonl
from stages.sources.files import whole_file_units


def write(folder, name, texts):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))


def sources(tmp_path, **texts):
    found = {}
    for name, lines in texts.items():
        write(tmp_path / name, "a.jsonl", lines)
        found[name] = {"from": "jsonl", "path": str(tmp_path / name)}
    return found


def variant(words, held_out):
    """A text that normalises to `words` and is, or is not, a validation document."""
    for n in range(1, 5000):
        text = words + " " * n
        if is_validation([document_id(text)])[0] == held_out:
            return text
    raise AssertionError


def run(tmp_path, found, **keys):
    context = LocalContext(tmp_path / "out", recipe(found, **keys))
    return {name: [r["text"] for r in rows_of(parts)] for name, parts in build(context, "dedup").docs.items()}, context


def test_priority_and_order_of_recipe(tmp_path):
    texts = {n: [variant("Shared text", False), variant(f"only {n}", False)] for n in ("a", "b", "c")}
    texts["c"].append(variant("SHARED \n text", False))
    found = sources(tmp_path, **texts)
    kept, _ = run(tmp_path, found)
    assert kept == {"a": texts["a"], "b": [texts["b"][1]], "c": [texts["c"][1]]}
    kept, context = run(tmp_path, found, dedup=Dedup(priority=["b"]))
    assert kept == {"a": [texts["a"][1]], "b": texts["b"], "c": [texts["c"][1]]}
    written = {r.label: r.counts for r in context.records if r.stage == "dedup"}
    counts = [written[f"{name} 00000"] for name in "abc"]
    assert [c.get("dropped.duplicate", 0) for c in counts] == [1, 0, 2]
    assert [c.get("duplicate_of.b", 0) for c in counts] == [1, 0, 2]
    kept, _ = run(tmp_path, found, dedup=Dedup(exact=False, near=False))
    assert kept == texts


def test_smallest_id_within_a_source(tmp_path):
    same = [variant("Same words" + " " * 40 * i, False) for i in range(4)]
    kept, _ = run(tmp_path, sources(tmp_path, a=same))
    assert kept["a"] == [min(same, key=document_id)]


def test_a_validation_document_wins_over_priority(tmp_path):
    held_out, training = variant("Some words here", True), variant("some  words HERE", False)
    kept, _ = run(tmp_path, sources(tmp_path, a=[training, "other a"], b=[held_out]))
    assert kept == {"a": ["other a"], "b": [held_out]}


def test_only_parts_that_lose_a_row_run_again(tmp_path):
    found = {}
    for name in "abc":
        found |= sources(tmp_path, **{name: [f"{name} text {i}" for i in range(20)]})
    run(tmp_path, found)
    write(tmp_path / "c", "a.jsonl", [*(f"c text {i}" for i in range(20)), "a text 3", "new"])
    _, context = run(tmp_path, found)
    again = context.ran
    assert [stage for stage, _ in again][:3] == ["download", "measure", "filter"]
    assert [label for _, label in again if label.endswith(" 00000")][-1:] == ["c 00000"]
    assert [label for _, label in again if " sign " in label] == ["c sign 00000"]


def test_filter_counts_reasons_and_empty_text(tmp_path):
    found = sources(tmp_path, a=["", "short", "long enough"])
    found["a"]["rules"] = [{"length": {"min_chars": 6}}]
    kept, context = run(tmp_path, found)
    assert kept == {"a": ["long enough"]}
    counts = next(r.counts for r in context.records if "dropped.empty" in r.counts)
    assert counts == {"dropped.empty": 1, "dropped.length_short": 1, "kept": 1, "rows_in": 3, "text_bytes": 11}


def test_a_source_of_copies_is_told_of_and_too_many_sources_before_any_is_read(tmp_path):
    same = variant("the same text", False)
    _, context = run(tmp_path, sources(tmp_path, a=[same], b=[same, same]))
    assert context.warnings == ["dedup: nothing is left of b: each of its 2 documents is a copy of another's"]
    context = LocalContext(
        tmp_path / "many", recipe(sources(tmp_path, **{f"s{i}": [f"{i}"] for i in range(RANKS + 1)}))
    )
    with pytest.raises(DataError, match="dedup: 257 sources, and at most 256 can be ranked"):
        build(context, "dedup")
    assert not context.ran


def test_nothing_left_names_the_reason(tmp_path):
    found = sources(tmp_path, a=["x", "y", ""])
    found["a"]["rules"] = ["gopher_quality"]
    with pytest.raises(DataError, match="source a: the rules dropped all 3 documents, 2 of them for gopher_short"):
        run(tmp_path, found)


def test_no_rows_and_no_good_rows(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/a.jsonl").write_text("\n")
    found = {"a": {"from": "jsonl", "path": str(tmp_path / "a")}}
    with pytest.raises(DataError, match="source a has no rows"):
        run(tmp_path, found)
    (tmp_path / "a/a.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"source a: none of its 1 rows can be used .no field 'text'"):
        run(tmp_path, found)
    found["a"]["path"] = str(tmp_path / "gone")
    with pytest.raises(DataError, match="source a: no files match"):
        run(tmp_path, found)


@pytest.mark.parametrize(
    "budget",
    [
        {"max_documents": 35},
        {"max_bytes": 35 * 100},
        {"max_tokens": 35 * 25},
        {"max_documents": 9999},
        {"max_documents": 5},
    ],
)
def test_a_budget_takes_the_shortest_prefix_in_hash_order(tmp_path, budget, monkeypatch):
    def one_file_a_unit(config, identify):
        files = jsonl.files_of(config)
        return whole_file_units(files, jsonl.stream_params(config), identify, unit_bytes=1)

    monkeypatch.setattr(jsonl, "units", one_file_a_unit)
    for i in range(12):
        write(tmp_path / "a", f"{i:02d}.jsonl", [f"{i:02d} {j:02d}".ljust(100, ".") for j in range(10)])
    found = {"a": {"from": "jsonl", "path": str(tmp_path / "a"), **budget}}
    kept, context = run(tmp_path, found)
    files = list(dict.fromkeys(text[:2] for text in kept["a"]))
    assert len(files) == min(12, -(-budget.get("max_documents", 35) // 10))
    downloads = sum(stage == "download" for stage, _ in context.ran)
    assert downloads <= len(files) + 4
    read, gone = context.counts(DOWNLOAD, "a")["rows_in"], drop_reasons(context, EXCLUDE, "a")
    assert read == 10 * downloads == len(kept["a"]) + sum(gone.values()) and set(gone) <= {"beyond_budget"}
    more = {"a": {"from": "jsonl", "path": str(tmp_path / "a"), "max_documents": 75}}
    wider, _ = run(tmp_path, more)
    assert wider["a"][: len(kept["a"])] == kept["a"][: len(wider["a"])]
