"""`diff`: documents counted against sets, and every kind of change named."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import pyarrow.parquet as pq
import pytest
from built import build, copy_of, small, texts
from commands import cli

from stages.lineage import diff as module
from stages.lineage.diff import ABSENT, changes, diff
from stages.schemas import document_id
from train.data.manifest import load_manifest


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same recipe before and after a take-down, another seed and another source file."""
    folder = tmp_path_factory.mktemp("diff")
    a = copy_of(small(folder), folder / "a")
    raw = json.loads((a / "manifest.json").read_text())["recipe"]
    raw |= {"seed": 6, "exclude": {"ids": [document_id(texts(1, 500)[17]).hex()]}}
    with (folder / "maths.jsonl").open("a") as out:
        out.write(json.dumps({"text": "one more text of maths", "url": "https://maths.test/new"}) + "\n")
    build(folder, raw)
    return load_manifest(a), load_manifest(copy_of(folder / "build/small/anneal", folder / "b"))


def documents(manifest, split):
    """(source, id, part) -> tokens, all copies together."""
    found = Counter()
    for shard in manifest.split(split):
        for row in pq.read_table(manifest.file(shard.rows)).to_pylist():
            found[row["source"], row["document_id"], row["part"]] += row["token_count"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("bucket_rows", [10**6, 50])
def test_documents_against_sets(pair, monkeypatch, bucket_rows):
    monkeypatch.setattr(module, "BUCKET_ROWS", bucket_rows)
    found = diff(*pair)
    for split, moved in (("train", found.training), ("val", found.held_out)):
        a, b = (documents(m, split) for m in pair)
        assert set(moved) == {"web", "maths"}
        for name, m in moved.items():
            left, right = ({k for k in side if k[0] == name} for side in (a, b))
            expected = [(len(left - right), sum(a[k] for k in left - right))]
            expected += [(len(right - left), sum(b[k] for k in right - left))]
            both = left & right
            assert [(m.documents_a, m.tokens_a), (m.documents_b, m.tokens_b)] == expected
            assert (m.documents_both, m.tokens_both_a, m.tokens_both_b) == (
                len(both), sum(a[k] for k in both), sum(b[k] for k in both)
            )  # fmt: skip
    assert found.training["web"].documents_a and found.training["web"].documents_b


@pytest.mark.slow
def test_every_kind_of_change_is_named(pair):
    a, b = pair
    found = diff(a, b)
    gone = document_id(texts(1, 500)[17]).hex()
    assert ("exclude.ids", [], [gone]) in found.recipe and ("seed", 5, 6) in found.recipe
    assert len(found.recipe) == 2
    assert [name for name, _, _ in found.files] == ["maths: maths.jsonl"]
    assert ("web.dropped.excluded", ABSENT, 1) in found.sources
    assert {name for name, _, _ in found.build} == {"seed", "build_id"} | (
        {"val_tokens", "documents"} & {name for name, _, _ in found.build}
    )
    assert [name for name, _, _ in found.code] == ["stages.exclude.work", "stages.selectors"] and found.versions == []
    edited = dataclasses.replace(b, code={**b.code, "stages.filter.rules": "0"}, versions={**b.versions, "numpy": "0"})
    assert [n for n, _, _ in diff(b, edited).code] == ["stages.filter.rules"]
    assert [(n, y) for n, _, y in diff(b, edited).versions] == [("numpy", "0")]


@pytest.mark.slow
def test_nothing(pair):
    found = diff(pair[0], pair[0])
    lists = [found.build, found.recipe, found.sources, found.files, found.tokenizer, found.versions, found.code]
    assert lists == [[]] * 7
    assert all(
        m.documents_a == m.documents_b == 0 and m.tokens_both_a == m.tokens_both_b for m in found.training.values()
    )
    done = cli("diff", pair[0].folder, pair[0].folder)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "no difference"


@pytest.mark.slow
def test_the_command_line(pair):
    done = cli("diff", pair[0].folder, pair[1].folder)
    assert done.returncode == 0, done.stderr
    assert all(
        word in done.stdout for word in ("exclude.ids", "maths: maths.jsonl", "only in A", "web.dropped.excluded")
    )
    value = json.loads(cli("diff", pair[0].folder, pair[1].folder, "--json").stdout)
    assert value == json.loads(json.dumps(diff(*pair).to_dict()))


def test_leaves():
    assert changes({"a": {"b": 1, "c": {}}}, {"a": {"b": 2}, "d": None}) == [
        ("a.b", 1, 2),
        ("a.c", {}, ABSENT),
        ("d", ABSENT, None),
    ]
    assert changes({}, {"x": 1}) == [("x", ABSENT, 1)]
