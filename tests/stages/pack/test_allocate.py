"""Where documents go: exact counts, each (document, part, copy) as often as it should be, whatever the units."""

import itertools
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pack_harness import BOS, TRAIN_IDS, VAL_IDS, Document, pack, source, unit

from stages import hashing
from stages.pack.allocate import GOLDEN, NUM_POSITIONS, equal_borders, rotated_histogram

TURN = int(GOLDEN)


def parts_of(documents, shard_tokens):
    """(id, part, file, row) -> tokens of every piece, as `tokenize` cuts them."""
    return {
        (d.id, part, d.file, d.row): d.tokens[at : at + shard_tokens]
        for d in documents
        for part, at in enumerate(range(0, d.length, shard_tokens))
    }


def check(packed, sources, targets, seed=0, shard_tokens=10**6, val_tokens=10**9, draw=0):
    """Every promise of packing, recomputed from the documents."""
    pieces = {(s, *key): tokens for s, docs in sources.items() for key, tokens in parts_of(docs, shard_tokens).items()}
    held = {key for key in pieces if hashing.is_validation([key[1]])[0]}
    seen, got, cuts = Counter(), Counter(), Counter()
    borders = packed.layout.borders
    assert borders[0] == 0 and borders[-1] == NUM_POSITIONS and borders == sorted(borders)
    shard_of = -1
    for record, rows, tokens in packed.train:
        assert record.counts["documents"] == len(rows) > 0 and record.counts["tokens"] == len(tokens)
        first = int(hashing.position(seed, [rows[0]["document_id"]], rows[0]["part"])[0]) + rows[0]["copy"] * TURN
        before, shard_of = shard_of, int(np.searchsorted(borders[1:], first % NUM_POSITIONS, "right"))
        assert before < shard_of
        low, high = borders[shard_of : shard_of + 2]
        at, orders = 0, []
        for row in rows:
            key = (row["source"], row["document_id"], row["part"], row["source_file"], row["source_row"])
            whole = pieces[key]
            assert row["token_start"] == at and row["token_count"] > 0
            piece = tokens[at : at + row["token_count"]]
            at += len(piece)
            assert np.array_equal(piece, whole[: len(piece)])
            assert row["truncated"] == (len(piece) < len(whole))
            place = int(hashing.position(seed, [row["document_id"]], row["part"])[0]) + row["copy"] * TURN
            assert low <= place % NUM_POSITIONS < high
            orders.append(int(hashing.order(seed, [row["document_id"]], row["part"], row["copy"])[0]))
            seen[key, row["copy"]] += 1
            got[row["source"]] += len(piece)
            cuts[row["source"]] += row["truncated"]
        assert at == len(tokens) and orders == sorted(orders)
    assert got == Counter({s: n for s, n in targets.items() if n})
    assert max(seen.values(), default=1) == 1 and max(cuts.values(), default=0) <= 1
    for name, target in targets.items():
        mine = {key: len(t) for key, t in pieces.items() if key[0] == name and key not in held}
        full = target // sum(mine.values()) if target else 0
        for key, copy in itertools.product(mine, range(full)):
            assert seen.pop((key, copy)) == 1
        part_epoch = {key for key, copy in seen if key[0] == name and copy == full}
        order = sorted(mine, key=lambda k: (int(hashing.take(seed, [k[1]], draw)[0]), k[1], k[2], k[3:]))
        assert part_epoch == set(order[: len(part_epoch)])
        for key in part_epoch:
            del seen[key, full]
    assert not seen  # no held-out document, no copy beyond
    val = [row for _, rows, _ in packed.val for row in rows]
    found = Counter((r["source"], r["document_id"], r["part"], r["source_file"], r["source_row"]) for r in val)
    assert set(found.values()) <= {1} and set(found) <= held
    everything = {s: sum(len(pieces[key]) for key in held if key[0] == s) for s, n in targets.items() if n}
    taken = Counter({s: sum(r["token_count"] for r in val if r["source"] == s) for s in everything})
    room = min(
        (n * sum(targets[s] for s in everything if everything[s]) // targets[s] for s, n in everything.items() if n),
        default=0,
    )
    assert abs(sum(taken.values()) - min(room, val_tokens)) <= len(everything)
    for name in everything:
        rows = packed.val_of[name][1] if name in packed.val_of else []
        assert {r["source"] for r in rows} <= {name}
        assert sum(r["token_count"] for r in rows) == min(everything[name], val_tokens) >= taken[name]
        mine = [(r["document_id"], r["part"]) for r in val if r["source"] == name]
        assert {(r["document_id"], r["part"]) for r in rows} >= set(mine)
        assert sum(r["truncated"] for r in rows) <= 1 >= sum(r["truncated"] for r in val if r["source"] == name)
    for _, rows, tokens in [*packed.val, *packed.val_of.values()]:
        for row in rows:
            whole = pieces[row["source"], row["document_id"], row["part"], row["source_file"], row["source_row"]]
            piece = tokens[row["token_start"] : row["token_start"] + row["token_count"]]
            assert np.array_equal(piece, whole[: len(piece)]) and row["truncated"] == (len(piece) < len(whole))


@st.composite
def mixtures(draw):
    """Small sources, with long documents and held-out ones, and what is asked of them."""
    sources, targets = {}, {}
    for name in "abc"[: draw(st.integers(1, 3))]:
        first = draw(st.integers(0, 200))
        lengths = draw(st.lists(st.integers(1, 40) | st.integers(100, 300), min_size=1, max_size=12))
        held = draw(st.lists(st.integers(1, 60), max_size=3))
        sources[name] = source(
            [*TRAIN_IDS[first:][: len(lengths)], *VAL_IDS[first % 40 :][: len(held)]], lengths + held
        )
        targets[name] = draw(st.integers(0, 5 * sum(lengths)) | st.sampled_from([sum(lengths), 3 * sum(lengths), 1]))
    if not any(targets.values()):
        targets["a"] = 1
    shard_tokens = max(draw(st.integers(30, 400)), sum(targets.values()) // 6 + 1)
    return sources, targets, draw(st.integers(0, 2**63 - 1)), shard_tokens, draw(st.integers(1, 200))


@pytest.mark.slow
@settings(max_examples=40)
@given(mixture=mixtures(), units=st.integers(1, 4))
def test_every_document_appears_as_often_as_it_should(mixture, units):
    sources, targets, seed, shard_tokens, val_tokens = mixture
    with tempfile.TemporaryDirectory() as folder:
        made = [
            (name, unit(Path(folder) / f"{name}{i}", documents[i::units], seed, shard_tokens))
            for name, documents in sources.items()
            for i in range(units)
        ]
        packed = pack(Path(folder), made, targets, seed, shard_tokens, val_tokens)
    check(packed, sources, targets, seed, shard_tokens, val_tokens)


def two_sources():
    lengths = np.random.default_rng(1).integers(2, 90, 300)
    return {
        "a": source([*TRAIN_IDS[:200], *VAL_IDS[:4]], lengths[:204]),
        "b": source([*TRAIN_IDS[200:290], *VAL_IDS[4:6]], lengths[204:296], "b.jsonl"),
    }


def split_and_pack(folder, sources, targets, units, flip=False, **params):
    """Pack with every source cut into `units` runs of documents (and one empty unit)."""
    made = []
    for name, documents in sources.items():
        edges = np.linspace(0, len(documents), units + 1).astype(int)
        runs = [documents[a:b] for a, b in itertools.pairwise(edges)] + [[]]
        made += [
            (name, unit(folder / f"{name}{i}", run, params.get("seed", 0), params.get("shard_tokens", 10**6)))
            for i, run in enumerate(runs)
        ]
    return pack(folder / "packed", made[::-1] if flip else made, targets, **params)


TARGETS = {"a": 21_000, "b": 9000}  # two full copies and a part; two copies and a part of b


@pytest.mark.slow
def test_shards_do_not_depend_on_how_documents_lay_in_units(tmp_path):
    sources = two_sources()
    whole = split_and_pack(tmp_path / "1", sources, TARGETS, 1, shard_tokens=4000, val_tokens=150)
    check(whole, sources, TARGETS, shard_tokens=4000, val_tokens=150)
    assert len(whole.train) == 8 and whole.layout.allocations["a"].copies == 2
    for units, flip in ((3, False), (7, True)):
        other = split_and_pack(tmp_path / f"{units}", sources, TARGETS, units, flip, shard_tokens=4000, val_tokens=150)
        assert (other.layout.allocations, other.layout.borders) == (whole.layout.allocations, whole.layout.borders)
        assert other.digests == whole.digests


def test_the_seed_decides_order_and_choice(tmp_path):
    sources = two_sources()
    packs = [split_and_pack(tmp_path / f"{i}", sources, TARGETS, 1, seed=s) for i, s in enumerate((0, 1, 0))]
    assert packs[0].digests == packs[2].digests
    (first, other) = ([[r["document_id"] for r in rows] for _, rows, _ in p.train] for p in packs[:2])
    assert first != other
    chosen = [{r["document_id"] for _, rows, _ in p.train for r in rows if r["copy"] == 2} for p in packs[:2]]
    assert chosen[0] != chosen[1]
    check(packs[1], sources, TARGETS, seed=1)


@pytest.mark.slow
def test_copies_left_in_are_counted_one_by_one(tmp_path):
    """Without deduplication a text may be there twice, in one source or two; a cut that meets it stays exact."""
    a = source([*TRAIN_IDS[:3], TRAIN_IDS[0], TRAIN_IDS[0], VAL_IDS[0], VAL_IDS[0]], [10, 7, 5, 10, 10, 9, 9])
    b = source([TRAIN_IDS[0], VAL_IDS[0]], [10, 9], "b.jsonl")
    sources = {"a": a, "b": b}
    for target in (*range(1, 43), 84, 99):
        folder = tmp_path / f"{target}"
        units = [("a", unit(folder / "1", a[:4])), ("b", unit(folder / "2", b)), ("a", unit(folder / "3", a[4:]))]
        targets = {"a": target, "b": 5}
        packed = pack(folder, units, targets, val_tokens=1 + target)
        check(packed, sources, targets, val_tokens=1 + target)
        if target in (15, 99):  # and no tie is left to the order of the units
            turned = [("a", unit(folder / "4", a[::-1])), ("b", unit(folder / "5", b))]
            assert pack(folder / "turned", turned, targets, val_tokens=1 + target).digests == packed.digests


def test_a_document_longer_than_a_shard(tmp_path):
    long = Document(bytes(TRAIN_IDS[7]), 2345, "a.jsonl", 0)
    sources = {"a": [long, *source(TRAIN_IDS[10:30], [20] * 20, "b.jsonl")]}
    packed = split_and_pack(tmp_path, sources, {"a": 2745}, 2, shard_tokens=500)
    check(packed, sources, {"a": 2745}, shard_tokens=500)
    found = [(r, t) for _, rows, t in packed.train for r in rows if r["document_id"] == long.id]
    found.sort(key=lambda pair: pair[0]["part"])
    assert [(r["part"], r["token_count"]) for r, _ in found] == [(0, 500), (1, 500), (2, 500), (3, 500), (4, 345)]
    whole = np.concatenate([t[r["token_start"] :][: r["token_count"]] for r, t in found])
    assert np.array_equal(whole, long.tokens) and whole[0] == BOS
    # Several ranges may be empty beside it; those that are left do not overlap, and none is beyond measure.
    assert all(len(t) <= 1000 for _, _, t in packed.train)


@pytest.mark.parametrize("target", [1, 6, 7, 8, 70])
def test_one_tiny_document(tmp_path, target):
    sources = {"a": source(TRAIN_IDS[:1], [7])}
    check(split_and_pack(tmp_path, sources, {"a": target}, 1), sources, {"a": target})


@pytest.mark.parametrize("held", [0, 1])
def test_few_validation_documents(tmp_path, held):
    sources = {"a": source([*TRAIN_IDS[:5], *VAL_IDS[:held]], [9] * (5 + held))}
    packed = split_and_pack(tmp_path, sources, {"a": 45}, 1)
    check(packed, sources, {"a": 45})
    assert len(packed.val) == len(packed.val_of) == held


@pytest.mark.parametrize("val_tokens", [1, 8, 9, 10, 26, 27, 28])
def test_the_cap_on_validation_tokens(tmp_path, val_tokens):
    sources = {"a": source([*TRAIN_IDS[:5], *VAL_IDS[:3]], [9] * 8)}
    packed = split_and_pack(tmp_path, sources, {"a": 45}, 3, val_tokens=val_tokens)
    check(packed, sources, {"a": 45}, val_tokens=val_tokens)
    (_, rows, tokens) = packed.val[0]
    assert len(tokens) == min(27, val_tokens) and sum(r["truncated"] for r in rows) == (
        val_tokens % 9 != 0 and val_tokens < 27
    )


def test_held_out_documents_do_not_move_the_end_of_a_partial_epoch(tmp_path):
    """One that lies in the very bin of the histogram in which the count is reached, in front of the cut."""
    held, trained = hashing.take(0, VAL_IDS), hashing.take(0, TRAIN_IDS)
    v, t = next((v, t) for v, h in enumerate(held) for t in np.flatnonzero(trained >> 52 == h >> 52) if h < trained[t])
    sources = {"a": source([VAL_IDS[v], TRAIN_IDS[t]], [9, 9])}
    check(split_and_pack(tmp_path, sources, {"a": 5}, 1), sources, {"a": 5})


def test_documents_in_equal_positions_share_a_shard(tmp_path):
    """Two sources that hold the same ids: every position is there twice."""
    same = {"a": source(TRAIN_IDS[:40], [30] * 40), "b": source(TRAIN_IDS[:40], [30] * 40, "b.jsonl")}
    targets = {"a": 1200, "b": 1200}
    packed = split_and_pack(tmp_path, same, targets, 3, shard_tokens=300)
    check(packed, same, targets, shard_tokens=300)
    for _, rows, _ in packed.train:
        assert Counter(r["document_id"] for r in rows if r["source"] == "a") == Counter(
            r["document_id"] for r in rows if r["source"] == "b"
        )


@given(
    seed=st.integers(0, 999),
    filled=st.sampled_from([1, 3, 100, 4096]),
    copy=st.integers(0, 9),
    shards=st.integers(1, 40),
)
def test_borders_cut_any_density_into_equal_parts(seed, filled, copy, shards):
    rng = np.random.default_rng(seed)
    histogram = np.zeros(4096, np.int64)
    histogram[rng.choice(4096, filled, replace=False)] = rng.integers(1, 1000, filled)
    density = rotated_histogram(histogram, copy)
    assert density.sum() == pytest.approx(histogram.sum())
    borders = equal_borders(density, shards)
    assert borders[0] == 0 and borders[-1] == NUM_POSITIONS and borders == sorted(borders)
    reached = np.interp(
        np.array(borders, float) / NUM_POSITIONS * 4096, np.arange(4097), np.append(0, np.cumsum(density))
    )
    assert np.allclose(np.diff(reached), density.sum() / shards, rtol=1e-6)


# -- the shuffle, as a statistician would look at it: fixed ids, so these never flicker --------------------------


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory):
    """20,000 documents of three sources, one of them repeated 3.5 times, in ten shards: all rows in order."""
    folder = tmp_path_factory.mktemp("shuffled")
    rng = np.random.default_rng(0)
    identities = rng.integers(0, 256, (21_000, 16), np.uint8)
    identities = identities[~hashing.is_validation(identities)][:20_000]
    lengths = np.maximum(2, rng.lognormal(2.5, 0.8, 20_000)).astype(int)
    edges = {"web": (0, 14_000), "maths": (14_000, 18_000), "qa": (18_000, 20_000)}
    sources = {name: source(identities[a:b], lengths[a:b]) for name, (a, b) in edges.items()}
    totals = {name: sum(d.length for d in documents) for name, documents in sources.items()}
    targets = {"web": int(0.3 * totals["web"]), "maths": totals["maths"], "qa": int(3.5 * totals["qa"])}
    units = [(name, unit(folder / name, documents)) for name, documents in sources.items()]
    packed = pack(folder, units, targets, shard_tokens=sum(targets.values()) // 10 + 1)
    return packed, [r for _, rows, _ in packed.train for r in rows], sources


def far_from_uniform(places):
    """Kolmogorov's distance to the uniform distribution, in units in which 1.63 has a chance of 1 %."""
    x = np.sort(places)
    steps = np.arange(len(x) + 1) / len(x)
    return np.sqrt(len(x)) * max(np.max(steps[1:] - x), np.max(x - steps[:-1]))


@pytest.mark.slow
def test_each_source_and_copy_spreads_evenly(shuffled):
    _, rows, _ = shuffled
    place = (np.arange(len(rows)) + 0.5) / len(rows)
    for name, copies in (("web", 1), ("maths", 1), ("qa", 4)):
        for copy in range(copies):
            mine = np.array([r["source"] == name and r["copy"] == copy for r in rows])
            assert mine.sum() > 900
            assert far_from_uniform(place[mine]) < 1.63, (name, copy)


@pytest.mark.slow
def test_shares_in_windows_vary_as_chance_does(shuffled):
    _, rows, _ = shuffled
    for size in (20, 200):
        for name in ("web", "maths", "qa"):
            inside = np.array([r["source"] == name for r in rows], float)
            share = inside.mean()
            sums = inside[: len(inside) // size * size].reshape(-1, size).sum(1)
            ratio = sums.var() / (size * share * (1 - share))
            spread = 4 * np.sqrt(2 / len(sums))
            # Copies of one source lie apart by a rotation, so windows are a little more even than chance.
            assert 0.6 - spread < ratio < 1 + spread, (name, size, ratio)


@pytest.mark.slow
def test_a_partial_epoch_takes_any_document_alike(shuffled):
    _, rows, sources = shuffled
    taken = {r["document_id"] for r in rows if r["source"] == "web"}
    all_ids = [d.id for d in sources["web"]]
    position = hashing.position(0, all_ids, 0) / NUM_POSITIONS
    chosen = np.array([i in taken for i in all_ids])
    lengths = np.array([d.length for d in sources["web"]])
    assert 0.28 < chosen.mean() < 0.32
    assert far_from_uniform(position[chosen]) < 1.63
    assert far_from_uniform(np.flatnonzero(chosen) / len(chosen)) < 1.63  # and of any place in the file
    assert abs(lengths[chosen].mean() - lengths.mean()) < 3 * lengths.std() / np.sqrt(chosen.sum())


@pytest.mark.slow
def test_repeats_lie_far_apart_and_among_other_neighbours(shuffled):
    packed, rows, _ = shuffled
    shard_of = np.repeat(np.arange(len(packed.train)), [len(found) for _, found, _ in packed.train])
    shards, neighbours = {}, {}
    for i, row in enumerate(rows):
        if row["source"] == "qa":
            shards.setdefault(row["document_id"], []).append(shard_of[i])
            near = {r["document_id"] for r in rows[max(0, i - 3) : i + 4]} - {row["document_id"]}
            neighbours.setdefault(row["document_id"], []).append(near)
    # Four rotations by the golden ratio are at least 0.146 of the circle apart, and a shard is a tenth of it.
    assert {len(found) for found in shards.values()} == {3, 4}
    assert all(len(set(found)) == len(found) for found in shards.values())
    again = sum(bool(a & b) for near in neighbours.values() for a, b in itertools.combinations(near, 2))
    assert again < 0.05 * len(neighbours)  # chance makes it 0.03
    sizes = np.array([len(t) for _, _, t in packed.train])
    assert len(sizes) == 10 and np.all(np.abs(sizes / sizes.mean() - 1) < 0.05)


@pytest.mark.slow
def test_length_and_order_are_not_related(shuffled):
    _, rows, _ = shuffled
    lengths = np.array([r["token_count"] for r in rows], float)
    for lag in (1, 2, 10):
        assert abs(np.corrcoef(lengths[:-lag], lengths[lag:])[0, 1]) < 4 / np.sqrt(len(rows))
    assert abs(np.corrcoef(lengths, np.arange(len(rows)))[0, 1]) < 4 / np.sqrt(len(rows))
