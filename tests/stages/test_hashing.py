"""Draws from document ids: frozen values, uniformity, independence."""

import numpy as np
import pyarrow as pa
import pytest

from stages import hashing
from stages.schemas import ID, document_id

MANY = [document_id(f"document {i}") for i in range(20_000)]
DRAWS = {
    "position": lambda i: hashing.position(0, i, 0),
    "position of another seed": lambda i: hashing.position(1, i, 0),
    "position of part 1": lambda i: hashing.position(0, i, 1),
    "order": lambda i: hashing.order(0, i, 0, 0),
    "order of copy 1": lambda i: hashing.order(0, i, 0, 1),
    "take": lambda i: hashing.take(0, i),
    "sample": hashing.sample,
    "validation": lambda i: hashing.draw(hashing.TAG_VALIDATION, i),
}


def test_mix64_is_splitmix64():
    # The first outputs of splitmix64 seeded with 1234567: state + increment, then the finaliser.
    step = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + i * step) % 2**64 for i in range(3)], np.uint64)
    assert hashing.mix64(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_frozen_values():
    two = [document_id("hello"), bytes(range(16))]
    got = {name: draw(two).tolist() for name, draw in DRAWS.items()}
    assert got == FROZEN


def test_kinds_of_input_agree():
    column = pa.array(MANY[:100], ID)
    raw = np.frombuffer(b"".join(MANY[:100]), np.uint8).reshape(-1, 16)
    want = hashing.take(3, MANY[:100])
    for same in (column, pa.chunked_array([column[:30], column[30:]]), raw):
        assert np.array_equal(hashing.take(3, same), want)
    assert np.array_equal(hashing.take(3, column[7:20]), want[7:20])
    assert hashing.take(3, []).size == 0


@pytest.mark.parametrize("name", DRAWS)
def test_uniform(name):
    # Kolmogorov-Smirnov at the 0.1 % level.
    x = np.sort(DRAWS[name](MANY) / 2.0**64)
    n = len(x)
    distance = max((np.arange(1, n + 1) / n - x).max(), (x - np.arange(n) / n).max())
    assert distance * np.sqrt(n) < 1.95


def test_independent():
    draws = np.array([d(MANY) / 2.0**64 for d in DRAWS.values()])
    correlation = np.abs(np.corrcoef(draws) - np.eye(len(draws)))
    assert correlation.max() < 5 / np.sqrt(len(MANY))


def test_one_in_a_hundred_is_held_out():
    share = hashing.is_validation(MANY).mean()
    assert abs(share - 0.01) < 4 * np.sqrt(0.01 * 0.99 / len(MANY))
    assert hashing.VALIDATION_RULE == "splitmix64:validation-1:0.01"


def test_part_may_be_an_array():
    parts = np.array([0, 1, 2])
    want = [int(hashing.position(5, [MANY[p]], int(p))[0]) for p in parts]
    assert hashing.position(5, MANY[:3], parts).tolist() == want


# Every build ever made relies on these: a change here is a change of format.
FROZEN = {
    "position": [8657477676910754333, 13112930163034493815],
    "position of another seed": [3657398526803161825, 6861696336979818439],
    "position of part 1": [10406816513480447971, 8230975816030820017],
    "order": [4060367866781696226, 2732417156346366376],
    "order of copy 1": [14254203186605697896, 8713028396341075820],
    "take": [8077986359635829398, 12095705482201889015],
    "sample": [12744660090554705869, 539611966232084892],
    "validation": [1117623758094939067, 18416896356065333266],
}
