"""Best-fit packing: whole documents in windows, as little padding as best-fit decreasing leaves, shards that verify."""

import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
from built import RECIPE, small
from hypothesis import example, given
from hypothesis import strategies as st
from pack_harness import PAD, TRAIN_IDS, pack, source, unit

from pipeline.errors import UsageError
from pipeline.recipe import parse_recipe
from stages import hashing
from stages.pack.best_fit import best_fit
from stages.pack.verify import verify
from train.data.format import read_index
from train.data.manifest import load_manifest

COUNTS = st.lists(st.integers(1, 40) | st.integers(1, 150), max_size=60)


def reference(counts, window):
    """The rooms that best-fit decreasing leaves, each window looked at in turn."""
    rooms = []
    for size in sorted(counts, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= size] if size <= window else []
        if fitting:
            rooms[min(fitting, key=lambda i: rooms[i])] -= size
        else:
            rooms += [0] * ((size - 1) // window) + [-size % window]
    return sorted(rooms)


@pytest.mark.slow
@given(counts=COUNTS, window=st.integers(1, 64))
@example(counts=[64, 64, 1], window=64)
@example(counts=[65, 63, 1], window=64)
def test_documents_lie_whole_and_windows_are_as_full_as_the_reference_says(counts, window):
    placed, starts, total = best_fit(np.array(counts, np.int64), window)
    assert sorted(placed.tolist()) == list(range(len(counts)))
    sizes = np.array(counts, np.int64)[placed]
    ends = starts + sizes
    assert (starts[1:] >= ends[:-1]).all()
    if not counts:
        assert total == 0
        return
    assert total % window == 1 % window and total > ends[-1]
    inside = sizes <= window
    assert (starts[inside] // window == (ends[inside] - 1) // window).all()
    assert (starts[~inside] % window == 0).all()
    windows = (total - 1) // window
    filled = np.zeros(total - 1, np.int64)
    for start, end in zip(starts, ends, strict=True):
        filled[start:end] += 1
    assert filled.max() == 1
    assert sorted((window - filled.reshape(windows, window).sum(1)).tolist()) == reference(counts, window)


@pytest.mark.slow
@given(counts=st.lists(st.integers(1, 20), min_size=30, max_size=60))
def test_windows_keep_the_random_order_of_documents(counts):
    """A window stands where its first document stood, so that windows are in no order of size."""
    placed, starts, _ = best_fit(np.array(counts, np.int64), 25)
    firsts = [placed[starts // 25 == w].min() for w in np.unique(starts // 25)]
    assert firsts == sorted(firsts)


def test_a_shard_of_windows(tmp_path):
    lengths = np.random.default_rng(3).integers(2, 90, 300)
    documents = source(TRAIN_IDS[:300], lengths)
    total = int(lengths.sum())
    packed = pack(
        tmp_path, [("a", unit(tmp_path / "u", documents))], {"a": 2 * total + 50}, packing="best_fit", window=64
    )
    ((record, rows, tokens),) = packed.train
    by_id = {d.id: d.tokens for d in documents}
    covered = np.zeros(len(tokens), bool)
    for row in rows:
        a, n = row["token_start"], row["token_count"]
        assert np.array_equal(tokens[a : a + n], by_id[row["document_id"]][:n])
        assert n > 64 or a // 64 == (a + n - 1) // 64
        covered[a : a + n] = True
    assert (tokens[~covered] == PAD).all() and record.counts["padding"] == (~covered).sum()
    assert sum(r["token_count"] for r in rows) == 2 * total + 50 and len(tokens) % 64 == 1
    lengths, starts = read_index(record.output("idx").path)
    assert lengths.tolist() == [r["token_count"] for r in rows]
    assert starts.tolist() == [r["token_start"] for r in rows]
    # Windows come in the order of the in-shard hash of their first document, not of lengths.
    window = np.array([r["token_start"] // 64 for r in rows])
    hashes = np.array([int(hashing.order(0, [r["document_id"]], r["part"], r["copy"])[0]) for r in rows], object)
    firsts = [min(hashes[window == w]) for w in np.unique(window)]
    small = [f for f, w in zip(firsts, np.unique(window), strict=True) if (window == w).sum() > 1]
    assert small and sum(a < b for a, b in itertools.pairwise(small)) > 0.9 * len(small)


@pytest.fixture(scope="module")
def windows(tmp_path_factory):
    mixture = {**RECIPE["mixtures"]["anneal"], "packing": "best_fit", "window": 128}
    return small(tmp_path_factory.mktemp("windows"), mixtures={"anneal": mixture})


@pytest.mark.slow
def test_the_whole_pipeline_packs_windows_that_verify(windows):
    manifest = load_manifest(windows)
    assert list(verify(manifest)) == []
    assert manifest.tokens == 30_000
    assert sum(s.tokens - s.padding for s in manifest.split("train")) == 30_000
    assert 0 < sum(s.padding for s in manifest.split("train")) < 3000
    for shard in manifest.shards:
        rows = pq.read_table(windows / shard.rows)
        assert rows.num_rows == shard.documents and shard.tokens % 128 == 1


def test_a_window_without_best_fit_is_an_error():
    raw = {**RECIPE, "sources": {"web": {"from": "jsonl", "path": "x"}, "maths": {"from": "jsonl", "path": "y"}}}
    raw["mixtures"] = {"anneal": {**RECIPE["mixtures"]["anneal"], "window": 128}}
    with pytest.raises(UsageError, match="best_fit and window"):
        parse_recipe(raw, "test")
