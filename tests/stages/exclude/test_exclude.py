"""Take-downs: what is named goes, its copies go with it, and nothing else runs again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from built import Inline, build, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.recipe import parse_recipe
from stages.hashing import is_validation
from stages.pack.verify import verify
from stages.report import exclusion_lines
from stages.schemas import ID, document_id
from stages.selectors import parent_domains, select_documents
from train.data.manifest import load_manifest

SHARED = texts(7, 3)  # in both sources, with other white space: the one of `b` is kept, the one of `a` dropped


def write(folder: Path) -> None:
    """Two files a source, so that a source has two parts where each file is a unit of its own."""
    for name, salt in (("a", 1), ("b", 2)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(2):
            mine = texts(salt * 10 + i, 150)
            if i == 0:
                mine[5:5] = [f" {t.upper()}" for t in SHARED] if name == "a" else SHARED
            lines = [{"text": t, "url": f"https://h{n % 3}.{name}{i}.test/{n}/"} for n, t in enumerate(mine)]
            (folder / name / f"{i}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


def recipe(folder: Path, **keys):
    sources = {}
    for name in ("a", "b"):
        for i in range(2):  # four sources of one part each
            sources[f"{name}{i}"] = {"from": "jsonl", "path": str(folder / name / f"{i}.jsonl")}
    return {
        "name": "taken",
        "sources": sources,
        "dedup": {"priority": ["b0"]},
        "tokenizer": {"vocab_size": 400, "sample": "1MB"},
        "mixtures": {"anneal": {"tokens": 20_000, "ratios": dict.fromkeys(sources, 0.25)}},
        **keys,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("taken")
    write(folder)
    build(folder, recipe(folder))
    return folder


def again(folder, **exclude):
    """Build with an exclusion. Returns (context, units that ran, ids in the shards, ids in curated/)."""
    inline = Inline()
    context, ran = build(folder, recipe(folder, exclude=exclude), inline=lambda: inline), inline.ran
    manifest = load_manifest(folder / "build/taken/anneal")
    assert list(verify(manifest)) == []
    packed = {i for s in manifest.shards for i in pq.read_table(manifest.file(s.rows))["document_id"].to_pylist()}
    curated = folder / "build/taken/curated"
    kept = {i for f in sorted(curated.iterdir()) for i in pq.read_table(f)["document_id"].to_pylist()}
    return context, ran, packed, kept, manifest


@pytest.mark.slow
def test_no_exclusion_no_units(folder):
    context, ran, *_ = again(folder)
    assert ran == set() and not context.state("exclude").units


@pytest.mark.slow
def test_one_document_by_id(folder):
    gone = document_id(texts(11, 150)[40])
    context, ran, packed, kept, manifest = again(folder, ids=[gone.hex()])
    assert gone not in packed and gone not in kept and len(kept) == 600 + 3 - 1
    touched = {(stage, label.split()[0]) for stage, label in ran if stage not in ("exclude", "pack_anneal_mix")}
    assert touched == {("tokenize", "a1"), ("dedup", "report")}, "and no download, filter or tokenizer"
    source = next(s for s in manifest.sources if s.name == "a1")
    assert source.dropped == {"excluded": 1} and (source.rows_in, source.rows_kept) == (150, 149)
    assert exclusion_lines(context)[0].startswith("Excluded: 1 documents, ")
    assert context.warnings == []


@pytest.mark.slow
def test_the_tokenizer_is_trained_again_without_them_where_that_is_asked(folder):
    def tokenizer():
        return (folder / "build/taken/tokenizer/tokenizer.json").read_bytes()

    before = tokenizer()
    ids = [document_id(text).hex() for text in texts(11, 150)[:60]]
    context, *_ = again(folder, ids=ids)
    assert tokenizer() == before and "trains it without them" in exclusion_lines(context)[1]
    context, ran, packed, _, _ = again(folder, ids=ids, retrain_tokenizer=True)
    assert tokenizer() != before and len(exclusion_lines(context)) == 1
    assert ("build_tokenizer", "400") in ran and not {bytes.fromhex(i) for i in ids} & packed
    _, ran, *_ = again(folder, retrain_tokenizer=True)  # without a name it means nothing
    assert tokenizer() == before and {label for _, label in ran} == {"manifest"}


def test_tokens_are_estimated_by_the_source_that_lost_them():
    """Code has fewer bytes a token than prose: what one loses is not counted at the ratio of both."""
    counts = {
        ("tokenize", "prose"): {"tokens": 1000, "text_bytes": 4000},
        ("tokenize", "code"): {"tokens": 9000, "text_bytes": 18_000},
        ("exclude", "prose"): {"dropped.excluded": 1, "excluded_bytes": 400},
        ("exclude", None): {"dropped.excluded": 1, "excluded_bytes": 400},
    }
    context = SimpleNamespace(
        recipe=SimpleNamespace(
            sources=["prose", "code"],
            tokenizer=SimpleNamespace(source=None),
            exclude=SimpleNamespace(retrain_tokenizer=False),
        ),
        counts=lambda stage, source=None: counts.get((stage.name, source), {}),
    )
    assert "1 documents, 400 bytes of text, about 100 tokens;" in exclusion_lines(context)[0]


def test_the_copy_that_was_kept_goes_with_the_one_that_is_named(folder):
    named, kept_copy = document_id(f" {SHARED[1].upper()}"), document_id(SHARED[1])
    _, _, packed, kept, manifest = again(folder, ids=[named.hex()])
    assert not {named, kept_copy} & (packed | kept) and document_id(SHARED[0]) in kept
    assert {s.name: s.dropped for s in manifest.sources}["b0"] == {"excluded": 1}


def test_a_dropped_copy_does_not_come_back(folder):
    named, dropped_copy = document_id(SHARED[2]), document_id(f" {SHARED[2].upper()}")
    _, _, packed, kept, _ = again(folder, ids=[named.hex()])
    assert not {named, dropped_copy} & (packed | kept)


def test_addresses_domains_and_names_of_nothing(folder):
    context, _, _, kept, manifest = again(
        folder,
        urls=["http://h1.b1.test/7", "https://b1.test/nothing"],
        domains=["h1.a1.test", "nowhere.test"],
        ids=["0" * 32],
    )
    assert len(kept) == 603 - 50 - 1
    assert document_id(texts(21, 150)[7]) not in kept
    assert context.warnings == [f"exclude: no document is meant by {'0' * 32}, https://b1.test/nothing, nowhere.test"]
    assert {s.name: s.dropped.get("excluded", 0) for s in manifest.sources} == {"a0": 0, "a1": 50, "b0": 0, "b1": 1}


def test_only_names_of_nothing_change_nothing(folder):
    again(folder)
    _, ran, *_ = again(folder, domains=["elsewhere.test"])
    assert {stage for stage, _ in ran} <= {"exclude", "pack_anneal_mix"}
    assert {label for stage, label in ran if stage == "pack_anneal_mix"} <= {"manifest"}


def test_with_duplicates_left_in_all_copies_go(tmp_path):
    write(tmp_path)
    keys = {"dedup": {"exact": False}, "exclude": {"ids": [document_id(SHARED[0]).hex()]}}
    build(tmp_path, recipe(tmp_path, **keys), "exclude")
    files = sorted((tmp_path / "build/taken/curated").iterdir())
    kept = {i for f in files for i in pq.read_table(f)["document_id"].to_pylist()}
    assert not {document_id(SHARED[0]), document_id(f" {SHARED[0].upper()}")} & kept
    assert {document_id(SHARED[1]), document_id(f" {SHARED[1].upper()}")} <= kept


@pytest.mark.parametrize("wrong", [{"ids": ["xyz"]}, {"domains": ["https://a.test"]}, {"files": ["x"]}])
def test_names_that_cannot_be(folder, wrong):
    with pytest.raises(UsageError, match=r"exclude\.(ids|domains|files)"):
        parse_recipe(recipe(folder, exclude=wrong), "test")


HOSTS = ["a.test", "b.a.test", "aa.test", "test", "A.test", "c.b.a.test"]
URLS = st.one_of(
    st.none(),
    st.builds(
        "{}{}{}{}".format,
        st.sampled_from(["https://", "http://", "ftp://u@", ""]),
        st.sampled_from(HOSTS),
        st.sampled_from(["", ":80"]),
        st.sampled_from(["", "/", "/x", "/x/", "/x?y=a.test", "/x#z", "#z"]),
    ),
)


def plain(url):
    """`plain_urls` said otherwise."""
    rest = url.partition("://")[2] if "://" in url else url
    rest = rest.partition("#")[0].rstrip("/")
    host = rest.partition("/")[0].partition("?")[0]
    return host.lower() + rest[len(host) :]


@pytest.mark.slow
@settings(max_examples=200)
@given(
    urls=st.lists(URLS, max_size=12),
    wanted=st.lists(URLS.filter(bool), max_size=3),
    domains=st.lists(st.sampled_from(HOSTS), max_size=2),
)
def test_match_against_plain_python(urls, wanted, domains):
    def host(url):
        return plain(url).partition("/")[0].partition("?")[0].rpartition("@")[2].partition(":")[0].lower()

    ids = pa.chunked_array([[bytes([i] * 16) for i in range(len(urls))]], ID)
    mask, used = select_documents(ids, pa.chunked_array([urls], pa.string()), [], wanted, domains)
    by_url = [u is not None and plain(u) in {plain(w) for w in wanted} for u in urls]
    names = {d.lower() for d in domains}
    by_domain = [u is not None and any(host(u) == d or host(u).endswith("." + d) for d in names) for u in urls]
    assert mask.tolist() == [a or b for a, b in zip(by_url, by_domain, strict=True)]
    assert used <= {*wanted, *domains} and bool(used) == bool(mask.any())


def test_every_spelling_of_a_name_counts():
    """Hosts know no capitals, and one outside ASCII has two forms; none that meant a document is said to be unused."""
    urls = ["https://WWW.Example.org/P", "http://bücher.test/1", "http://xn--bcher-kva.test:80/2", "http://other.test"]
    column = pa.chunked_array([urls], pa.string())
    ids = pa.chunked_array([[bytes([i] * 16) for i in range(len(urls))]], ID)
    wanted = ["http://www.example.org/P", "https://www.example.ORG/P/"]
    mask, used = select_documents(ids, column, [], wanted, [])
    assert mask.tolist() == [True, False, False, False] and used == {*wanted}
    assert not select_documents(ids, column, [], ["http://www.example.org/p"], [])[0].any()
    for domains in (["Bücher.test"], ["xn--bcher-kva.test", "XN--BCHER-KVA.test"]):
        mask, used = select_documents(ids, column, [], [], domains)
        assert mask.tolist() == [False, True, True, False] and used == {*domains}


def test_parents():
    assert parent_domains("A.b.C.") == ["a.b.c", "b.c", "c"]


def test_a_near_duplicate_that_stays_is_told_of(tmp_path):
    long = " ".join(f"word{i}" for i in range(80))
    write(tmp_path)
    for name, text in (("a", f"{long} more"), ("b", long)):
        with (tmp_path / name / "0.jsonl").open("a") as out:
            out.write(json.dumps({"text": text}) + "\n")
    ids = [document_id(text).hex() for text in (f"{long} more", long)]
    assert not is_validation([bytes.fromhex(i) for i in ids]).any()
    context = build(tmp_path, recipe(tmp_path, exclude={"ids": ids[:1]}), "exclude")
    said = f"exclude: {ids[0]} was dropped before, nearly the same as {ids[1]} of b0, which stays"
    assert context.warnings == [said]
    assert build(tmp_path, recipe(tmp_path, exclude={"ids": ids}), "exclude").warnings == []
