"""A subsample: a small mixture repeats its sources as often as a large one, and always the same documents of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from pack_harness import TRAIN_IDS, VAL_IDS, pack, source, unit

from stages.pack.allocate import Allocation
from stages.pack.config import Mixture

LENGTHS = np.random.default_rng(3).integers(5, 60, len(TRAIN_IDS[:900])).tolist()
TOKENS = sum(LENGTHS)


@pytest.fixture(scope="module")
def units(tmp_path_factory):
    documents = source(TRAIN_IDS[:900], LENGTHS) + source(VAL_IDS[:20], [30] * 20, "b.jsonl")
    return [("a", unit(tmp_path_factory.mktemp("units"), documents))]


def shown(packed) -> Counter:
    """How often each document is shown, by id; the one at a boundary is shown in part."""
    return Counter(row["document_id"] for _, rows, _ in packed.train for row in rows)


@pytest.mark.parametrize("share", [0.1, 0.37])
@pytest.mark.parametrize("epochs", [0.5, 1.0, 2.6])
def test_epochs_are_of_the_subsample(tmp_path, units, share, epochs):
    pool = int(TOKENS * share)
    target = int(pool * epochs)
    packed = pack(tmp_path, units, {"a": target}, shard_tokens=2000, subsample=share)
    assert packed.layout.available == {"a": pool}
    rows = [row for _, rows, _ in packed.train for row in rows]
    assert sum(row["token_count"] for row in rows) == target
    assert max(shown(packed).values()) == int(np.ceil(epochs))
    by_copy = Counter()
    for row in rows:
        by_copy[row["copy"]] += row["token_count"]
    assert [by_copy[copy] for copy in range(int(epochs))] == [pool] * int(epochs)


def test_a_larger_subsample_has_all_documents_of_a_smaller_one_and_held_out_ones_stay(tmp_path, units):
    packs = [
        pack(tmp_path / f"{share}", units, {"a": int(2 * TOKENS * share)}, subsample=share) for share in (0.1, 0.3, 1.0)
    ]
    sets = [set(shown(packed)) for packed in packs]
    assert sets[0] < sets[1] < sets[2] and len(sets[2]) == 900
    assert len({packed.val_of["a"][0].output("rows").digest for packed in packs}) == 1


def test_without_a_subsample_nothing_of_it_is_said():
    mixture = Mixture(tokens=1000, ratios={"a": 1.0})
    assert "subsample" not in mixture.model_dump(mode="json")
    assert Mixture(tokens=1000, ratios={"a": 1.0}, subsample="5%").model_dump(mode="json")["subsample"] == 0.05
    assert set(Allocation(draw=0).to_dict()) == {"draw", "copies", "rest", "cut", "floor", "shown"}
    value = {**Allocation(draw=0, copies=2).to_dict(), "pool": 7}
    assert Allocation.from_dict(value).pool == 7
