"""Intervals against known values and by simulation: what they say they cover, they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stages.compare.stats import (
    Deviation,
    Difference,
    combine,
    holm,
    p_value,
    paired_right,
    pooled,
    ratio,
    seeds_needed,
    t_quantile,
    verdict,
    with_seeds,
)


@pytest.mark.parametrize(
    ("level", "df", "t"),  # scipy.stats.t.ppf((1 + level) / 2, df)
    [
        *((0.95, 1, 12.706205), (0.95, 2, 4.302653), (0.95, 2.5, 3.574655), (0.95, 5, 2.570582), (0.95, 30, 2.042272)),
        *(
            (0.9, 4, 2.131847),
            (0.99, 10, 3.169273),
            (0.95, 1000, 1.962339),
            (0.95, 1e5, 1.959988),
            (0.5, 1.3, 0.909518),
        ),
    ],
)
def test_student(level, df, t):
    assert t_quantile(level, df) == pytest.approx(t, rel=2e-4)
    assert p_value(t, df) == pytest.approx(1 - level, rel=2e-3) and p_value(-t, df) == p_value(t, df)


def test_holm():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5}) == pytest.approx(
        {"a": 0.04, "c": 0.09, "b": 0.09, "d": 0.5}
    )


def test_a_ratio_is_that_of_the_sums_with_the_jackknifes_error():
    x, size = np.array([1.0, 4.0, 2.0, 9.0]), np.array([10.0, 20.0, 30.0, 40.0])
    got = ratio(x, size)
    without = [np.delete(x, i).sum() / np.delete(size, i).sum() for i in range(4)]
    assert got.value == pytest.approx(0.16) and got.df == pytest.approx(100**2 / 3000 - 1)
    assert got.error == pytest.approx(math.sqrt(sum((r - 0.16) ** 2 for r in without)))
    equal = ratio(x, np.full(4, 25.0))
    assert equal.df == pytest.approx(3) and equal.error == pytest.approx(4 / 3 * np.std(x) / 25 / math.sqrt(4))
    assert ratio(x, size, np.array([7, 7, 1, 1])).df == 1
    assert ratio(x, size, np.array([0, 1, 2, 3])) == got
    alone = ratio(x[:1], size[:1])
    assert alone.interval() == (-math.inf, math.inf) and alone.p == 1.0


def test_recipes_of_experiments():
    """The total of the two recipes in shared/research/experiments.md, 1.1, from the figures that it prints."""
    a, b = [2.5413, 2.5426, 2.5443], [2.5184, 2.5372, 2.5399]
    seeds = pooled(a, b)
    assert seeds is not None and seeds.df == 4 and seeds.value == pytest.approx(0.0084, abs=2e-4)
    both = with_seeds(Difference(-0.0109, 0.0045, 519), seeds, 3, 3)
    low, high = both.interval()
    assert (low, high) == pytest.approx((-0.0299, 0.0080), abs=3e-3) and both.p == pytest.approx(0.19, abs=0.04)
    assert verdict(both, both.p, 0.005) == "unknown"
    assert pooled([1.0], [2.0]) is None


def test_verdicts():
    assert verdict(Difference(-0.02, 0.002, 50), 0.001, 0.005) == "different"
    assert verdict(Difference(0.001, 0.001, 50), 0.3, 0.005) == "equal"
    assert verdict(Difference(0.001, 0.004, 50), 0.8, 0.005) == "unknown"


def test_as_many_seeds_as_are_asked_for_are_enough():
    documents, seeds = Difference(0.0, 0.0015, 400), Deviation(0.004, 4)
    count = seeds_needed(documents, seeds, 0.005)
    assert count is not None and 4 < count < 12

    def half(k):
        return with_seeds(documents, Deviation(0.004, 2 * k - 2), k, k).interval()[1]

    assert half(count) <= 0.005 < half(count - 1)
    assert seeds_needed(Difference(0.0, 0.004, 400), seeds, 0.005) is None, "documents alone are too few"


def test_the_interval_of_right_answers_covers():
    rng = np.random.default_rng(0)
    for items in (60, 300):
        draws = rng.multinomial(items, [0.92, 0.03, 0.05], 2000)
        inside = [lo <= 0.02 <= hi for _, a, b in draws.tolist() for lo, hi in [paired_right(a, b, items).interval()]]
        assert 0.93 < np.mean(inside) < 0.985  # .976 and .954 in shared/research/experiments.md, 1.3


def population(seed=0):
    """Documents of four sources with sizes and differences as heavy in the tail as real ones."""
    rng = np.random.default_rng(seed)
    size = rng.lognormal(7.5, 0.9, (4, 130))
    rate = rng.normal([[-0.05], [0.02], [0.04], [0.0]], 0.1, (4, 130)) * rng.lognormal(0, 0.5, (4, 130))
    return size, size * rate


@pytest.mark.parametrize("each", [30, 100])
def test_sources_with_fixed_weights_cover(each):
    size, x = population()
    weights = [0.4, 0.3, 0.2, 0.1]
    truth = sum(w * a.sum() / b.sum() for w, a, b in zip(weights, x, size, strict=True))
    rng, inside, naive = np.random.default_rng(1), 0, 0
    for _ in range(1000):
        rows = rng.integers(0, 130, (4, each))
        parts = [(w, ratio(x[s, rows[s]], size[s, rows[s]])) for s, w in enumerate(weights)]
        low, high = combine(parts).interval()
        inside += low <= truth <= high
        half = 1.96 * math.sqrt(sum((w * p.error) ** 2 for w, p in parts)) / 3  # as if tokens were drawn
        naive += abs(combine(parts).value - truth) <= half
    assert 925 <= inside <= 970, inside
    assert naive < 600


@pytest.mark.parametrize("count", [2, 3, 5])
def test_seeds_and_documents_together_cover(count):
    size, x = population(3)
    size, x = size.ravel(), x.ravel()
    truth, rng, inside, documents_alone = x.sum() / size.sum(), np.random.default_rng(2), 0, 0
    for _ in range(1500):
        rows = rng.integers(0, len(x), 200)
        a, b = rng.normal(0, 0.0084, (2, count))
        measured = ratio(x[rows] + size[rows] * (b.mean() - a.mean()), size[rows])
        seeds = pooled(a.tolist(), b.tolist())
        assert seeds is not None
        low, high = with_seeds(measured, seeds, count, count).interval()
        inside += low <= truth <= high
        low, high = measured.interval()
        documents_alone += low <= truth <= high
    assert 0.93 <= inside / 1500 <= 0.97, inside
    assert documents_alone < inside
