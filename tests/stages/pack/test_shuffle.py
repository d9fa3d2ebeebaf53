"""Statistics of the shuffle and the mixture, on what a whole build publishes.

Every check gives the chance that a uniformly random permutation of whole documents looks as bad, and must not fall
below ALPHA. With some 80 checks at fixed seeds, a correct shuffle under other hashes would fail this file once in
1,200 times. Each check is also shown an order that is wrong in a way of its own, and must refuse it.

Copies of a document lie a fixed rotation apart, so the copies together are spread more evenly than chance; that
can only raise the chances computed here.
"""

import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from built import WORDS, build
from shuffle_statistics import (
    Order,
    copies_apart,
    neighbours_are_strangers,
    pairs_are_independent,
    read_order,
    subset_is_even,
    windows_are_even,
)
from stage_harness import SHARED, needs_shared

from stages.registry import STAGES

pytestmark = pytest.mark.slow

ALPHA = 1e-5
SEEDS = (0, 1, 2)
DOCUMENTS = {"web": 13_000, "maths": 5_000, "qa": 4_000}
EPOCHS = {"web": 0.6, "maths": 1.3, "qa": 2.5}
SHARDS = 24
GOLDEN = (5**0.5 - 1) / 2


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """Three sources of short texts, of which lengths differ and drift, tokenized."""
    folder, rng = tmp_path_factory.mktemp("shuffle"), random.Random(1)
    for name, n in DOCUMENTS.items():
        with (folder / f"{name}.jsonl").open("w") as file:
            for i in range(n):
                # Later rows are longer: a choice by row, or by length, shows.
                words = rng.choices(WORDS, k=rng.randint(2, 4 + (6 if name == "qa" else 20) * (i + n // 4) // n))
                file.write(json.dumps({"text": f"{name}{i} {' '.join(words)}"}) + "\n")
    return folder


def recipe(folder: Path, seed: int, counts: dict[str, int]) -> dict:
    return {
        "name": f"shuffle{seed}",
        "seed": seed,
        "sources": {name: {"from": "jsonl", "path": str(folder / f"{name}.jsonl")} for name in DOCUMENTS},
        "tokenizer": {"vocab_size": 1000, "sample": "300kB"},
        "shard_tokens": -(-sum(counts.values()) // SHARDS),
        "mixtures": {"pretrain": {"counts": counts, "max_epochs": dict.fromkeys(DOCUMENTS, 3)}},
    }


@pytest.fixture(scope="module")
def available(out):
    """Training tokens of each source."""
    context = build(out, recipe(out, 0, dict.fromkeys(DOCUMENTS, 4000)), "tokenize")
    return {name: context.counts(STAGES["tokenize"], name)["train_tokens"] for name in DOCUMENTS}


@pytest.fixture(scope="module", params=SEEDS)
def order(request, out, available) -> Order:
    """The order of all training documents, for one seed."""
    counts = {name: int(EPOCHS[name] * n) for name, n in available.items()}
    build(out, recipe(out, request.param, counts), "pack_pretrain")
    found = read_order(out / "build" / f"shuffle{request.param}" / "pretrain")
    assert {n: int(found.tokens[found.source == i].sum()) for i, n in enumerate(found.names)} == counts
    return found


@pytest.fixture(scope="module")
def pools(out, order) -> dict[str, list[bytes]]:
    """Ids of the training documents of each source, in the order of its file: all that is not in val_ids.bin."""
    base = next((out / "build").glob("shuffle?"))
    raw = (base / "pretrain" / "val_ids.bin").read_bytes()
    held = {raw[i : i + 16] for i in range(0, len(raw), 16)}
    found: dict[str, list[bytes]] = {}
    for name in DOCUMENTS:
        ids = [
            i
            for file in sorted((base / "curated").glob(f"{name}*.parquet"))
            for i in pq.read_table(file, columns=["document_id"])["document_id"].to_pylist()
        ]
        found[name] = [i for i in ids if i not in held]
        assert len(found[name]) > 0.98 * DOCUMENTS[name]
    return found


def taken(order: Order, name: str, copy: int) -> np.ndarray:
    """Which documents of the order are that copy of that source."""
    mine: np.ndarray = (order.source == order.names.index(name)) & (order.copy == copy)
    assert mine.any()
    return mine


def copies(order: Order):
    """Every (source, copy) there is."""
    return [(name, copy) for name in DOCUMENTS for copy in range(int(np.ceil(EPOCHS[name])))]


def test_every_source_and_copy_is_spread_evenly_over_the_mixture(order):
    for name, copy in copies(order):
        assert subset_is_even(taken(order, name, copy)) > ALPHA, (name, copy)


def test_the_order_is_not_that_of_the_source(order):
    for name, copy in copies(order):
        mine = np.flatnonzero(taken(order, name, copy))
        # Rows of the first half of the file, over the order; and each next row, given the one before.
        assert subset_is_even(order.row[mine] < np.median(order.row[mine])) > ALPHA
        assert neighbours_are_strangers(order.row[mine]) > ALPHA, (name, copy)


def test_lengths_are_spread_evenly(order):
    for i in range(len(order.names)):
        tokens = order.tokens[order.source == i]
        assert subset_is_even(tokens > np.median(tokens)) > ALPHA
        assert neighbours_are_strangers(tokens) > ALPHA


def test_neighbours_are_independent(order):
    assert pairs_are_independent(order.source) > ALPHA
    assert pairs_are_independent(order.source[::2]) > ALPHA  # and not only the nearest


@pytest.mark.parametrize("window", [1500, 10_000])
def test_windows_hold_the_mixture_as_permuted_documents_do(order, window):
    extreme, spread = windows_are_even(order, window)
    assert extreme > ALPHA
    assert spread > ALPHA


def test_every_document_is_there_as_often_as_the_epochs_say(order, pools):
    for i, name in enumerate(order.names):
        mine = order.source == i
        whole = int(EPOCHS[name])
        ids, times = np.unique(order.ids[mine].astype("S16"), return_counts=True)
        pool = np.array(pools[name], "S16")
        assert np.isin(ids, pool).all()
        often = np.zeros(len(pool), int)
        often[np.searchsorted(np.sort(pool), ids)] = times
        assert set(often.tolist()) == {whole, whole + 1}, name
        # The partial epoch, and nothing else, is what makes some of them one more.
        assert (often > whole).sum() == (order.copy[mine] == whole).sum()
        assert order.truncated[mine].sum() <= 1
        assert not order.truncated[mine & (order.copy < whole)].any()


def test_a_partial_epoch_is_a_fair_sample_of_its_source(order, pools):
    for name, epochs in EPOCHS.items():
        chosen = set(order.ids[taken(order, name, int(epochs))].tolist())
        assert subset_is_even(np.array([i in chosen for i in pools[name]])) > ALPHA, name  # over the file
        mine = taken(order, name, 0) if epochs > 1 else None
        if mine is not None:  # over the mixture, and over lengths
            inside = np.array([i in chosen for i in order.ids[mine]])
            assert subset_is_even(inside) > ALPHA
            assert subset_is_even(inside[np.argsort(order.tokens[mine], kind="stable")]) > ALPHA


def test_copies_lie_far_apart(order):
    # Two rotations are at least 1 - 2 (1 - golden) = 0.236 apart; inside its shard a document lies anywhere.
    least = 2 * GOLDEN - 1
    assert copies_apart(order) > least - 2 / SHARDS - 0.02


def test_a_copy_of_a_document_stands_before_another_one(order):
    pairs: dict[int, set[tuple[bytes, bytes]]] = {}
    for copy, here, behind in zip(order.copy.tolist(), order.ids.tolist(), order.ids.tolist()[1:], strict=False):
        pairs.setdefault(copy, set()).add((here, behind))
    again = len(pairs[0] & pairs[1])
    # of as many successors drawn from all documents at random, some one is the same
    assert again < 10 < len(pairs[1]) / 100


def test_seeds_give_different_orders(out, available):
    counts = {name: int(EPOCHS[name] * n) for name, n in available.items()}
    ranks = []
    for seed in SEEDS[:2]:
        build(out, recipe(out, seed, counts), "pack_pretrain")
        found = read_order(out / "build" / f"shuffle{seed}" / "pretrain")
        mine = taken(found, "maths", 0)
        ranks.append({i: n for n, i in enumerate(found.ids[mine].tolist())})
    both = np.array([ranks[1][i] for i in ranks[0]], float)
    assert abs(np.corrcoef(both, np.arange(len(both)))[0, 1]) < 4.5 / np.sqrt(len(both))


# -- each check refuses an order that is wrong ------------------------------------------------------------------


def test_a_source_at_the_front_is_seen(order):
    rng = np.random.default_rng(0)
    key = rng.random(len(order.source))
    early = taken(order, "maths", 0)
    key[early] *= 0.93  # one source lacks in the last 7 %
    assert subset_is_even(early[np.argsort(key)]) < ALPHA


def test_a_sorted_order_is_seen(order):
    mine = taken(order, "web", 0)
    rows = np.sort(order.row[mine])
    assert subset_is_even(rows < np.median(rows)) < ALPHA
    # Not shuffled but in blocks of 8, whose order is random: even, yet neighbours know each other.
    blocks = np.array_split(rows, len(rows) // 8)
    random.Random(1).shuffle(blocks)
    blocked = np.concatenate(blocks)
    assert subset_is_even(blocked < np.median(rows)) > ALPHA
    assert neighbours_are_strangers(blocked) < ALPHA


def test_a_source_in_small_runs_is_seen(order):
    # Documents in runs of two of a source, the runs at random.
    pairs = np.repeat(np.random.default_rng(2).permutation(order.source[::2]), 2)
    assert pairs_are_independent(pairs) < ALPHA
    # A source dealt out like clockwork is as wrong, and so is one that comes in runs of 40.
    assert pairs_are_independent(np.tile([0, 1, 2], 3000)) < ALPHA
    at = np.argsort(np.random.default_rng(3).permutation(-(-len(order.source) // 40)).repeat(40)[: len(order.source)])
    by_source = np.argsort(order.source, kind="stable")
    runs = order.take(by_source[at])
    assert min(windows_are_even(runs, 1500, 50)) < ALPHA


def test_a_partial_epoch_from_a_corner_is_seen(order, pools):
    n = int(0.3 * len(pools["maths"]))
    assert subset_is_even(np.arange(len(pools["maths"])) < n) < ALPHA
    # By length: the shortest documents first.
    mine = taken(order, "maths", 0)
    short = np.argsort(np.argsort(order.tokens[mine])) < n
    assert subset_is_even(short[np.argsort(order.tokens[mine], kind="stable")]) < ALPHA


def test_copies_that_are_not_rotated_are_seen(order):
    # A later copy where the first one is.
    first = order.ids.astype("S16")
    together = order.take(np.argsort(first, kind="stable"))
    assert copies_apart(together) < 0.01


# -- real text, windows of a million tokens ----------------------------------------------------------------------


@pytest.mark.soak
@needs_shared
def test_real_text_in_windows_of_a_million_tokens(tmp_path):
    paths = {
        "web": {"from": "parquet", "path": f"{SHARED}/web"},
        "planetmath": {"from": "parquet", "path": f"{SHARED}/math/openwebmath_schema_planetmath.parquet"},
        "stacks": {"from": "jsonl", "path": f"{SHARED}/math/arxiv_schema_*.jsonl.zst"},
        "cosmopedia": {"from": "parquet", "path": f"{SHARED}/qa/cosmopedia_schema"},
    }
    raw = {
        "name": "million",
        "seed": 11,
        "sources": paths,
        "tokenizer": {"vocab_size": 8192, "sample": "20MB"},
        "shard_tokens": "5M",
        "mixtures": {"pretrain": {"counts": dict.fromkeys(paths, 1000), "max_epochs": 4}},
    }
    context = build(tmp_path, raw, "tokenize")
    tokens = {name: context.counts(STAGES["tokenize"], name)["train_tokens"] for name in paths}
    epochs = {"web": 0.7, "planetmath": 1.0, "stacks": 1.6, "cosmopedia": 3.3}
    raw["mixtures"] = {"pretrain": {"counts": {n: int(epochs[n] * tokens[n]) for n in paths}, "max_epochs": 4}}
    build(tmp_path, raw, "pack_pretrain")
    order = read_order(tmp_path / "build" / "million" / "pretrain")
    extreme, spread = windows_are_even(order, 1_000_000, 500)
    print(f"{order.tokens.sum():,} tokens, {len(order.tokens):,} documents: chances {extreme:.3f}, {spread:.3f}")
    assert min(extreme, spread, pairs_are_independent(order.source)) > ALPHA
    for i, name in enumerate(order.names):
        for copy in range(int(np.ceil(epochs[name]))):
            assert subset_is_even((order.source == i) & (order.copy == copy)) > ALPHA, (name, copy)
