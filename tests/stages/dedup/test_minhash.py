"""Near-duplicates: compiled keys against readable ones, the S-curve, clusters at any cut against a plain search."""

import json
import random
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stage_harness import SHARED, LocalContext, build, needs_shared, recipe, rows_of

from stages.dedup import keys as dedup_keys
from stages.dedup import minhash
from stages.dedup import stage as dedup
from stages.dedup.arrays import Range, read_ranges
from stages.dedup.clusters import PAIR, both_ways, equal_keys, unite_pairs
from stages.dedup.config import Dedup
from stages.dedup.keys import EXACT, NEAR, first_bits, write_keys
from stages.dedup.stage import ranges_for
from stages.exclude.config import Exclude
from stages.hashing import is_validation
from stages.kernels.words import MASK, ngram_hash, word_hash, words
from stages.registry import STAGES
from stages.schemas import document_id
from stages.task import Artifact, Task

WORDS = st.lists(st.sampled_from(["a", "b", "c", "A", "Bé", "é1", ",", "...", "١", "İ\n"]), max_size=30).map(" ".join)
HOSTILE = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def shingles(text, ngram):
    """The word n-grams of a text; all its words where there are fewer; none of a text without words."""
    given_words = words(text)
    if not given_words:
        return set()
    starts = range(max(1, len(given_words) - ngram + 1))
    return {tuple(given_words[start : start + ngram]) for start in starts}


def readable_keys(text, ngram, bands, rows):
    """`band_keys` of one text, made step by step."""
    factors, terms = (values.tolist() for values in minhash.permutations(bands * rows))
    shingle_bits = {ngram_hash([word_hash(word) for word in shingle]) >> 32 for shingle in shingles(text, ngram)}
    if not shingle_bits:
        return [0] * bands
    signature = [min((a * x + b) % 2**32 for x in shingle_bits) for a, b in zip(factors, terms, strict=True)]
    keys = []
    for band in range(bands):
        key = band
        for value in signature[band * rows : (band + 1) * rows]:
            key = ((key ^ value) * 0x9E3779B97F4A7C15) & MASK
            key ^= key >> 32
        keys.append(key)
    return keys


@pytest.mark.slow
@settings(max_examples=150)
@example(["", "a", "a b c d", "a b c d e", "..."], 5, 2, 3)
@given(st.lists(st.one_of(WORDS, HOSTILE), max_size=5), st.integers(1, 7), st.integers(1, 4), st.integers(1, 9))
def test_compiled_keys_are_the_readable_ones(texts, ngram, bands, rows):
    found = minhash.band_keys(pa.array(texts, pa.string()), ngram, bands, rows)
    assert found.tolist() == [readable_keys(text, ngram, bands, rows) for text in texts]
    for a, b in pairwise(texts):
        left, right = shingles(a, ngram), shingles(b, ngram)
        assert minhash.jaccard(a, b, ngram) == len(left & right) / max(1, len(left | right))


def planted(rng, number, length, similarity):
    """Pairs of texts of `length` words that share so much: (texts, texts, mean Jaccard similarity)."""
    left, right, shingles = [], [], length - 4
    shared = round(2 * similarity / (1 + similarity) * shingles)
    for _ in range(number):
        words = [f"w{rng.randrange(50_000)}" for _ in range(length)]
        left.append(" ".join(words))
        right.append(" ".join(words[: shared + 4] + [f"z{rng.randrange(10**9)}" for _ in range(shingles - shared)]))
    return left, right, sum(minhash.jaccard(a, b, 5) for a, b in zip(left, right, strict=True)) / number


@pytest.mark.slow
@pytest.mark.parametrize("length", [40, 300])
def test_planted_pairs_follow_the_curve(length):
    rng, number = random.Random(length), 600
    for similarity in (0.5, 0.6, 0.7, 0.8, 0.9):
        left, right, true = planted(rng, number, length, similarity)
        keys = [minhash.band_keys(pa.array(side), 5, 14, 8) for side in (left, right)]
        found = (keys[0] == keys[1]).any(axis=1).mean()
        expected = minhash.chance_found(true, 14, 8)
        assert abs(true - similarity) < 0.02
        assert abs(found - expected) < 4 * (expected * (1 - expected) / number) ** 0.5 + 0.01, (true, found, expected)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=60), st.integers(1, 6), st.data())
def test_rounds_of_joins_give_whole_clusters(tmp_path_factory, edges, of, data):
    """Any graph, its pairs in any files, cut into any ranges of documents: each document with the first it reaches."""
    folder = tmp_path_factory.mktemp("join")
    first = {
        n: data.draw(st.integers(0, 3)) for edge in edges for n in edge
    }  # makes the order another than the numbers'
    label = {n: first[n] << 32 | n for n in first}
    made = []

    def file(pairs):
        path = folder / f"{len(made)}.npy"
        made.append(path)
        np.save(path, pairs)
        return Artifact(str(path), "")

    arrays = [
        np.array([[label[a], label[b]] for a, b in edges[k::3] if a != b], np.uint64).reshape(-1, 2) for k in range(3)
    ]
    files = [file(both_ways(a[:, 0], a[:, 1])) for a in arrays]
    cuts = [(41 * i // of, 41 * (i + 1) // of) for i in range(of)]
    while True:
        before = [np.load(f.path).tobytes() for f in files]
        outputs = []
        for low, high in cuts:
            made.append(None)
            task = Task({"low": low, "high": high, "documents": 41}, files, folder, f"t{len(made)}", lambda a: a.path)
            unite_pairs(task)
            outputs.append(task.outputs[0])
        files = outputs
        if len(cuts) == 1 or [np.load(f.path).tobytes() for f in files] == before:
            break
    found = {}
    for f, (low, high) in zip(files, cuts, strict=True):
        pairs = np.load(f.path)
        assert pairs.dtype == PAIR
        found |= {
            int(p["label"]): int(p["other"])
            for p in pairs
            if p["other"] < p["label"] and low <= int(p["label"]) % 2**32 < high
        }
    assert found == reached(label, edges)


def reached(label, edges):
    """Each label that is not the least of its cluster, with the least: by walking."""
    near_by = defaultdict(set)
    for a, b in edges:
        near_by[a].add(b), near_by[b].add(a)
    found = {}
    for start in near_by:
        seen, open_ = {start}, [start]
        while open_:
            fresh = near_by[open_.pop()] - seen
            seen |= fresh
            open_ += fresh
        least = min(label[n] for n in seen)
        if least != label[start]:
            found[label[start]] = least
    return found


def test_equal_keys_against_a_plain_dictionary():
    rng = np.random.default_rng(0)
    for dtype in (EXACT, NEAR):
        entries = np.zeros(5000, dtype)
        for name in dtype.names:
            entries[name] = rng.integers(0, 60, 5000)
        entries["row"] = rng.permutation(5000)
        best = {}
        keys = [tuple(int(e[n]) for n in dtype.names if n in ("lo", "hi")) for e in entries]
        labels = [int(e["first"]) << 32 | int(e["row"]) for e in entries]
        for key, label in zip(keys, labels, strict=True):
            best[key] = min(best.get(key, label), label)
        expected = {(label, best[key]) for key, label in zip(keys, labels, strict=True) if best[key] != label}
        assert set(zip(*(a.tolist() for a in equal_keys(entries)), strict=True)) == expected


@pytest.mark.parametrize("run", [1, 28, 70, 1 << 22])
def test_keys_lie_in_sorted_runs(tmp_path, monkeypatch, run):
    """Whatever the length of a run, every key of every text that has words is found once, in any stretch of keys."""
    monkeypatch.setattr(dedup_keys, "RUN", run)
    texts = ["...", *(f"a b {i}" for i in range(11)), "", *(["..."] * 90)]  # the header says 1,442 entries at first
    ids = [document_id(str(i)) for i in range(len(texts))]
    path = tmp_path / "part.parquet"
    pq.write_table(pa.table({"text": [None, *texts, None]}), path, row_group_size=9)
    hashes = pa.array(ids, pa.binary(16))
    kept = {"row": range(1, len(ids) + 1), "document_id": hashes, "text_hash": hashes}
    pq.write_table(pa.table(kept), tmp_path / "kept.parquet")
    shape = {"ngram": 5, "bands": 14, "rows": 8}
    task = Task(
        {"near": shape},
        [Artifact(str(tmp_path / "kept.parquet"), ""), Artifact(str(path), "")],
        tmp_path,
        "t",
        lambda a: a.path,
    )
    write_keys(task)
    file = next(a for a in task.outputs if a.name == "near")
    first = first_bits(np.frombuffer(b"".join(ids), np.uint8).reshape(-1, 16)).tolist()
    keys = minhash.band_keys(pa.array(texts), **shape).tolist()
    wanted = sorted((key, first[i], i) for i, row in enumerate(keys) if any(row) for key in row)
    assert len(wanted) == file.rows == 11 * 14 and len(file.meta["runs"]) == -(-103 // max(1, run // 14)) + 1
    for bounds in ((0, 1 << 63, 1 << 64), (0, wanted[40][0], wanted[41][0], 1 << 64)):
        ranges = [Range(a, b, 1 << 64, lambda e: int(e["lo"]), NEAR) for a, b in pairwise(bounds)]
        found = [read_ranges(task, [file], wanted)[0] for wanted in ranges]
        for part, (a, b) in zip(found, pairwise(bounds), strict=True):
            assert all(a <= int(key) < b for key in part["lo"])
        assert sorted(e for part in found for e in part.tolist()) == wanted


def test_first_bits_order_as_documents_are_preferred():
    raw = sorted((document_id(str(i)) for i in range(3000)), key=lambda i: (not is_validation([i])[0], i))
    bits = first_bits(np.frombuffer(b"".join(raw), np.uint8).reshape(-1, 16))
    assert (np.diff(bits.astype(np.int64)) >= 0).all() and len(set(bits.tolist())) > 2900


def sources(folder, **texts):
    found = {}
    for name, lines in texts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
        found[name] = {"from": "jsonl", "path": str(folder / name)}
    return found


def corpus(rng, number):
    """Texts, many of which are others with a word or two changed; equal ones too."""
    texts = []
    for _ in range(number):
        if texts and rng.random() < 0.5:
            words = rng.choice(texts).split(" ")
            for _ in range(rng.randrange(3)):
                words[rng.randrange(len(words))] = f"x{rng.randrange(1000)}"
        else:
            words = [f"w{rng.randrange(5000)}" for _ in range(rng.randrange(1, 80))]
        texts.append(" ".join(words))
    return texts


@pytest.mark.slow
def test_any_cut_keeps_the_same_documents(tmp_path, monkeypatch):
    """One range, or many of keys, of runs and of documents: what a plain search over all pairs of equal keys says."""
    rng = random.Random(3)
    whole = corpus(rng, 270)
    texts = {name: whole[i::9] for i, name in enumerate("abcdefghi")}
    texts["c"] += rng.sample(texts["a"], 10)
    found = sources(tmp_path, **texts)
    kept = {}
    for entries, pairs, run in ((1 << 20, 1 << 20, 1 << 20), (100, 40, 50)):
        monkeypatch.setattr(dedup, "ENTRIES", entries), monkeypatch.setattr(dedup, "PAIRS", pairs)
        monkeypatch.setattr(dedup_keys, "RUN", run)
        context = LocalContext(tmp_path / f"out{entries}", recipe(found, dedup=Dedup(priority=["c"])))
        docs = build(context, "dedup").docs
        kept[entries] = {(n, r["source_row"]) for n, parts in docs.items() for r in rows_of(parts)}
        joins = [label for _, label in context.ran if " join " in label]
    assert " join 8 of 8, round 3" in joins and kept[100] == kept[1 << 20]
    rows = [(name, i, text) for name in "cabdefghi" for i, text in enumerate(texts[name])]
    label = {}
    for i, (name, _, text) in enumerate(rows):
        identity = document_id(text)
        label[i] = (not is_validation([identity])[0], "cabdefghi".index(name), identity, i)
    groups = defaultdict(list)
    for i, bands in enumerate(minhash.band_keys(pa.array([row[2] for row in rows]), 5, 14, 8).tolist()):
        for band in enumerate(bands):
            groups[band].append(i)
    lost = reached(label, [(group[0], other) for group in groups.values() for other in group])
    assert 60 < len(lost) < 200
    assert kept[100] == {row[:2] for i, row in enumerate(rows) if label[i] not in lost}


def test_a_near_duplicate_of_a_validation_document_leaves_training(tmp_path):
    rng = random.Random(8)
    held = next(t for t in corpus(rng, 4000) if is_validation([document_id(t)])[0] and len(t.split()) > 60)
    training = [" ".join([*held.split(), f"more{i}"]) for i in range(30)]
    training = [t for t in training if not is_validation([document_id(t)])[0]]
    found = sources(tmp_path, a=training, b=[held, "something else"])
    context = LocalContext(tmp_path / "out", recipe(found, dedup=Dedup(priority=["a"])))
    curated = build(context, "dedup")
    assert [r["text"] for r in rows_of(curated.docs["a"])] == []
    assert {r["text"] for r in rows_of(curated.docs["b"])} == {held, "something else"}
    assert context.counts(STAGES["dedup"], "a")["near_duplicate_of.b"] == len(training)
    report = json.loads(Path(curated.report.path).read_text())
    assert report["by source"]["a"] == {
        "documents": len(training),
        "kept": 0,
        "duplicate_of": {},
        "near_duplicate_of": {"b": len(training)},
    }
    shown = report["pairs"]
    assert len(shown) == min(20, len(training))
    for pair in shown:
        assert pair["kept"]["document_id"] == document_id(held).hex() and pair["kept"]["source"] == "b"
        assert pair["jaccard"] == round(minhash.jaccard(held, held + " more", 5), 4)


def test_off_compares_equal_texts_alone(tmp_path):
    text = " ".join(f"w{i}" for i in range(50))
    found = sources(tmp_path, a=[text, text + " more", text.upper()])
    for near_on, left in ((True, 1), (False, 2)):
        context = LocalContext(tmp_path / f"out{near_on}", recipe(found, dedup=Dedup(near=near_on)))
        assert len(rows_of(build(context, "dedup").docs["a"])) == left
    assert ranges_for(1, 10) == 1 and ranges_for(21, 10) == 4


@pytest.mark.slow
@needs_shared
def test_the_crawl_sample(tmp_path):
    """Its 269 exact duplicates go; copies with words changed go as often as the curve says; held-out ones stay."""
    file = SHARED / "web/crawl_dclm_c4_samples.parquet"
    whole = dict.fromkeys(t for t in pq.read_table(file)["text"].to_pylist() if len(shingles(t, 5)) > 30)
    rng, copies, expected, spread = random.Random(5), [], 0.0, 0.0
    for text in whole:
        words = text.split()
        for _ in range(max(1, round(len(words) * rng.choice((0.005, 0.01, 0.02, 0.03))))):
            words[rng.randrange(len(words))] = f"x{rng.randrange(10**6)}"
        copies.append(" ".join(words))
        chance = minhash.chance_found(minhash.jaccard(text, copies[-1], 5), 14, 8)
        expected, spread = expected + chance, spread + chance * (1 - chance)
    found = {"crawl": {"from": "parquet", "path": str(file)}} | sources(tmp_path, copies=copies)
    context = LocalContext(tmp_path / "out", recipe(found, dedup=Dedup(priority=["crawl"])))
    curated = build(context, "dedup")
    counts = context.counts(STAGES["dedup"], "crawl")
    assert counts["dropped.duplicate"] == 269 and counts["rows_in"] == 776
    gone = len(copies) - len(rows_of(curated.docs["copies"])) + counts["near_duplicate_of.copies"]
    assert 0.4 * len(copies) < expected < 0.95 * len(copies)
    assert abs(gone - expected) < 4 * spread**0.5 + 1, (gone, expected, len(copies))
    kept = {row["text"] for rows in curated.docs.values() for row in rows_of(rows)}
    held = [text for text in whole if is_validation([document_id(text)])[0]]
    assert held and kept.issuperset(held)


def test_the_report_shows_no_text_where_documents_are_taken_down(tmp_path):
    text = " ".join(f"w{i}" for i in range(50))
    found = sources(tmp_path, a=[text, text + " more"])
    exclude = Exclude(ids=[document_id("elsewhere").hex()])
    for keys, shown in (({}, True), ({"exclude": exclude}, False)):
        context = LocalContext(tmp_path / f"out{shown}", recipe(found, **keys))
        report = Path(build(context, "dedup").report.path).read_text()
        assert ("w0 w1" in report) == shown and document_id(text).hex() in report
