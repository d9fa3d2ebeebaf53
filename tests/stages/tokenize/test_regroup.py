"""Hundreds of units: merged by ranges of positions, and the shards are the same bytes. What pretrain showed."""

from pathlib import Path

import numpy as np
import pytest
from pack_harness import TRAIN_IDS, VAL_IDS, mixture, pack, source, unit

from stages.errors import DataError
from stages.task import Task
from stages.tokenize import regroup, token_file


def many(folder, units=11):
    """Two sources in many units, some of them empty, with repeats, held-out documents and one long document."""
    lengths = np.random.default_rng(2).integers(2, 90, 400)
    lengths[7] = 2500
    a = source([*TRAIN_IDS[:260], *VAL_IDS[:6]], lengths[:266])
    b = source([*TRAIN_IDS[260:340], *VAL_IDS[6:8]], lengths[266:348], "b.jsonl")
    made = [("a", unit(folder / f"a{i}", a[i::units], shard_tokens=1000)) for i in range(units)]
    made += [("a", unit(folder / "none", []))]
    return made + [("b", unit(folder / f"b{i}", b[i::3], shard_tokens=1000)) for i in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("packing", [{}, {"packing": "best_fit", "window": 100}])
def test_merged_units_give_the_same_shards(tmp_path, monkeypatch, packing):
    units = many(tmp_path)
    targets = {"a": 16_000, "b": 4000}
    whole = pack(tmp_path / "whole", units, targets, shard_tokens=1000, val_tokens=200, **packing)
    monkeypatch.setattr(regroup, "MOST_UNITS", 4)
    monkeypatch.setattr(regroup, "MERGED_UNITS", 4)
    monkeypatch.setattr(token_file, "ROW_GROUP", 3)
    merged = pack(tmp_path / "merged", units, targets, shard_tokens=1000, val_tokens=200, **packing)
    assert [u.low for u in merged.layout.units] == [i << 62 for _ in range(3) for i in range(4)] + [0] * 3
    assert merged.digests == whole.digests and len(whole.train) > 15
    assert (merged.layout.allocations, merged.layout.borders) == (whole.layout.allocations, whole.layout.borders)


def test_shards_read_only_units_of_their_range(tmp_path, monkeypatch):
    monkeypatch.setattr(regroup, "MOST_UNITS", 4)
    monkeypatch.setattr(regroup, "MERGED_UNITS", 4)
    units = [(s, r) for s, r in many(tmp_path, 8) if s == "a"][:8]
    packed = pack(tmp_path / "p", units, {"a": 5000}, shard_tokens=500)
    read = [len(record.inputs) / 2 for record, _, _ in packed.train]
    # 8 units, 2 groups: a narrow range meets one merged file of each, or two at a border.
    assert len(read) > 8 and min(read) == 2 and max(read) <= 4


def test_row_groups_are_passed_over(tmp_path, monkeypatch):
    """A reader of a narrow range decodes the row groups that meet it and no others."""
    monkeypatch.setattr(token_file, "ROW_GROUP", 10)
    record = unit(tmp_path, source(TRAIN_IDS[:200], [5] * 200))

    task = Task({}, [], tmp_path, "t", lambda artifact: artifact.path)
    whole = token_file.TokenFile(task, record.output("docs"), record.output("tokens"))
    everything = whole.rows()
    position = everything["position"].to_numpy()
    decoded = []
    read = token_file.pq.ParquetFile.read_row_groups
    monkeypatch.setattr(
        token_file.pq.ParquetFile,
        "read_row_groups",
        lambda self, groups, **keys: decoded.append(len(groups)) or read(self, groups, **keys),
    )
    for first, last in ((0, 5), (50, 60), (33, 34), (190, 199), (0, 199)):
        low, high = int(position[first]), int(position[last])
        found = whole.rows(low, high)
        assert found.equals(everything.slice(first, last - first))
        assert decoded[-1] <= (last - first) // 10 + 2
    assert whole.rows(int(position[-1]) + 1).num_rows == 0 and whole.rows(0, 0).num_rows == 0


def test_of_a_unit_in_a_bucket_the_tokens_of_a_range_are_fetched(tmp_path):
    record = unit(tmp_path, source(TRAIN_IDS[:200], [5] * 200))
    docs, tokens = record.output("docs"), record.output("tokens")
    fetched = []

    def read_bytes(artifact, start, stop):
        assert artifact is tokens
        fetched.append(stop - start)
        return Path(artifact.path).read_bytes()[start:stop]

    def opened(read_bytes=None):
        task = Task({}, [], tmp_path, "t", lambda artifact: artifact.path, read_bytes=read_bytes)
        return token_file.TokenFile(task, docs, tokens)

    position = opened().rows()["position"].to_numpy()
    for ranges in ([(20, 60)], [(150, 190), (20, 60)], [(20, 60), (40, 90)], [(7, 7)], [(0, 199)]):
        local, remote = opened(), opened(read_bytes)
        fetched.clear()
        rows = set()
        for first, last in ranges:
            low, high = int(position[first]), int(position[last])
            table = remote.rows(low, high)
            assert table.equals(local.rows(low, high))
            starts, counts = table["token_start"].to_pylist(), table["token_count"].to_pylist()
            rows |= set(zip(starts, counts, strict=True))
        for start, count in rows:
            span = slice(remote.itemsize * start, remote.itemsize * (start + count))
            assert remote.memory()[span] == local.memory()[span] != bytes(remote.itemsize * count)
        assert sum(fetched) == remote.itemsize * sum(count for _, count in rows), "each token once, and no other"
        assert len(fetched) <= len(ranges)


# -- carry-over: what an anneal mixture takes of a source that pretrain has used ----------------------------------


def shown(packed):
    return {(r["document_id"], r["part"]) for _, rows, _ in packed.train for r in rows if r["source"] == "a"}


def carry(folder, units, seen, pretrain, anneal):
    """The two mixtures of one recipe."""
    mixtures = {"pretrain": mixture({"a": pretrain}), "anneal": mixture({"a": anneal}, seen={"a": seen})}
    first = pack(folder / "first", units, {}, mixtures=mixtures)
    return first, pack(folder / "second", units, {}, name="anneal", mixtures=mixtures)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    lengths = np.random.default_rng(5).integers(2, 90, 300)
    documents = source(TRAIN_IDS[:300], lengths)
    return [("a", unit(folder / f"{i}", documents[i::2])) for i in range(2)], {d.id: d.length for d in documents}


@pytest.mark.parametrize("pretrain", [1, 777, 5000])
def test_exclude_takes_nothing_that_pretrain_showed(tmp_path, one, pretrain):
    units, lengths = one
    total = sum(lengths.values())
    first, second = carry(tmp_path, units, "exclude", pretrain, 3000)
    left = total - sum(lengths[i] for i, _ in shown(first))
    assert not shown(first) & shown(second) and second.layout.available == {"a": left}
    # The rest of the source, to the last token, and then twice over.
    for times in (1, 2):
        first, second = carry(tmp_path / str(times), units, "exclude", pretrain, times * left)
        rows = [r for _, rows, _ in second.train for r in rows]
        assert shown(second) == {(i, 0) for i in lengths} - shown(first) and len(rows) == times * len(shown(second))


def test_exclude_of_a_source_that_pretrain_used_up(tmp_path, one):
    units, lengths = one
    with pytest.raises(DataError, match=r"(?s)short.*pretrain"):
        carry(tmp_path, units, "exclude", sum(lengths.values()), 10)


def test_prefer_takes_first_what_pretrain_showed(tmp_path, one):
    units, _lengths = one
    first, second = carry(tmp_path, units, "prefer", 4000, 3000)
    assert shown(second) < shown(first)
    _, more = carry(tmp_path / "more", units, "prefer", 4000, 6000)
    assert shown(first) <= shown(more)


def test_any_is_an_independent_draw(tmp_path, one):
    units, lengths = one
    total = sum(lengths.values())
    first, second = carry(tmp_path, units, "any", total // 2, total // 2)
    overlap = len(shown(first) & shown(second)) / len(lengths)
    assert 0.15 < overlap < 0.35  # a quarter, by chance
