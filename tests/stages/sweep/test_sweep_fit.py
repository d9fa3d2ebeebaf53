"""The design of a sweep, its fits and its search, against plain references and planted laws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from stages.errors import DataError
from stages.sweep.fit import PENALTIES, find_best, fit_law, rank_correlation, ridge, search
from stages.sweep.space import (
    GRAIN,
    Key,
    Point,
    Space,
    as_arrays,
    base_point,
    design,
    draw_shares,
    equal_shares,
    rounded,
    within_caps,
)

SOURCES = ("books", "web", "specs", "docs", "bad")
FIVE = Space(SOURCES, (0.2,) * 5, (1.0, 0.5, 0.6, 0.4, 0.8))
HELPS = np.array([[1, 0.3, 0.2, 0.1, 0], [0.2, 1, 0.3, 0.2, 0], [0.1, 0.3, 1, 0.2, 0], [0.3, 0.1, 0.2, 1, 0]])
WEIGHTS = np.full(4, 0.25)


def truth(shares):
    """Bits per byte of four targets where each source helps some of them, and the fifth none."""
    falls = (shares @ HELPS.T + 0.03) ** -np.array([0.25, 0.3, 0.2, 0.3]) - 1
    return np.array([0.9, 0.8, 1.0, 0.85]) + 0.45 * np.array([0.5, 0.6, 0.5, 0.55]) * falls


def measured(points, seed, sd=0.005, law=truth):
    """Scores with the noise of seeds, most of it common to the targets."""
    rng = np.random.default_rng(seed)
    exact = law(as_arrays(points)[0])
    return exact + rng.normal(0, sd, (len(points), 1)) + rng.normal(0, sd / 2, exact.shape)


# ---------------------------------------------------------------------------------------------------------------------
# Shares


def plain_within_caps(shares, caps):
    """What is above a cap goes to the others in proportion, again and again."""
    shares, full = list(shares / shares.sum()), set()
    while over := [i for i in range(len(shares)) if i not in full and shares[i] > caps[i] + 1e-12]:
        full |= set(over)
        rest = sum(shares[i] for i in range(len(shares)) if i not in full)
        room = 1 - sum(caps[i] for i in full)
        shares = [caps[i] if i in full else shares[i] * room / rest if rest else 0.0 for i in range(len(shares))]
    return shares


def test_caps_hold_and_what_is_above_goes_to_the_others_in_proportion():
    rng = np.random.default_rng(1)
    legal = 0
    for _ in range(300):
        number = rng.integers(2, 6)
        caps = rng.uniform(0.1, 1, number)
        shares = rng.dirichlet(np.ones(number)) * (rng.random(number) > 0.3)
        if not shares.any():
            continue
        reference = plain_within_caps(shares, caps)
        found = within_caps(shares[None], caps)
        if abs(sum(reference) - 1) > 1e-9:
            assert len(found) == 0
            continue
        legal += 1
        assert np.allclose(found[0], reference) and (found[0] <= caps + 1e-12).all()
        assert (found[0][shares == 0] == 0).all()
        whole = rounded(found[0], caps)
        if whole is not None:
            assert round(sum(whole) * GRAIN) == GRAIN and (np.array(whole) <= caps + 1e-9).all()
            assert np.abs(np.array(whole) - found[0]).max() <= number / GRAIN
    assert legal > 100


def test_caps_that_leave_no_mix_are_named():
    with pytest.raises(DataError, match=r"books 30.0%, web 20.0%; raise max_epochs"):
        equal_shares(Space(("books", "web"), (0.5, 0.5), (0.3, 0.2)))


# ---------------------------------------------------------------------------------------------------------------------
# Design


def test_a_design_has_the_base_equal_shares_and_faces_and_goes_on_where_it_was():
    short, long = design(FIVE, 10), design(FIVE, 16)
    assert short == long[:10] == design(FIVE, 10) and len(set(long)) == 16
    assert long[0] == base_point(FIVE)
    assert design(FIVE, 16, kept=short) == long
    shares = as_arrays(long)[0]
    assert ((shares == 0).sum(0) >= 3).all(), "of each source some points are without it"
    assert (shares <= np.array(FIVE.caps) + 1e-9).all()
    kept = Point((0.3, 0.3, 0.2, 0.1, 0.1))
    assert kept in design(FIVE, 10, kept=[kept])


def test_a_source_that_grows_adds_no_points_where_those_that_are_kept_are_about_the_same():
    before = Space(SOURCES, FIVE.base, (1.0, 0.24, 0.6, 0.4, 0.8))
    after = Space(SOURCES, FIVE.base, (1.0, 0.26, 0.6, 0.4, 0.8))
    kept = design(before, 15)
    assert set(kept) == set(design(after, 15, kept)) != set(design(after, 15)), "the caps move shares"
    other = Space(SOURCES, (0.3, 0.3, 0.2, 0.1, 0.1), (1.0,) * 5)
    assert len(design(other, 15, kept)) == 15 + 6, "another base: it and its five faces; equal shares are kept already"


def test_a_design_is_more_spread_than_points_at_random():
    def nearest(shares):
        apart = ((np.sqrt(shares)[:, None] - np.sqrt(shares)[None]) ** 2).sum(2)
        return np.sqrt((apart + np.eye(len(shares)) * 9).min(1)).min()

    drawn = [nearest(draw_shares(FIVE, 20, np.random.default_rng(i))[:12]) for i in range(20)]
    assert nearest(as_arrays(design(FIVE, 12))[0]) > max(drawn)


@pytest.mark.parametrize("caps", [FIVE.caps, (1.0,) * 5])
def test_points_are_mixes_that_somebody_would_train_also_where_caps_forbid_nothing(caps):
    shares = as_arrays(design(Space(SOURCES, FIVE.base, caps), 16))[0]
    assert ((shares > 0).sum(1) >= 3).all() and shares.max() < 0.75


# ---------------------------------------------------------------------------------------------------------------------
# Fit


def test_the_ridge_is_the_one_of_the_normal_equations_and_its_left_out_rows_are_really_left_out():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(14, 5)) * [1, 10, 0.1, 1, 0]
    y = x[:, 0] - 3 * x[:, 2] + rng.normal(0, 0.1, 14)
    scaled = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1)
    largest = np.linalg.svd(scaled, compute_uv=False).max() ** 2

    def plain(rows, penalty):
        """The intercept, which no penalty is on, and weights; and the matrix that makes the fit of y."""
        with_one = np.column_stack([np.ones(len(rows)), scaled[rows]])
        inverse = np.linalg.inv(with_one.T @ with_one + penalty * np.diag([0, 1, 1, 1, 1, 1]))
        return inverse @ with_one.T @ y[rows], with_one @ inverse @ with_one.T

    def gcv(penalty):
        weights, hat = plain(list(range(14)), penalty)
        freedom = np.trace(hat)
        residual = y - weights[0] - scaled @ weights[1:]
        return (residual**2).sum() / (14 - freedom) ** 2 if freedom <= 0.75 * 14 else np.inf

    best = min(PENALTIES * largest, key=gcv)
    weights, _ = plain(list(range(14)), best)
    found = ridge(x, np.column_stack([y, -2 * y]))
    assert np.allclose(found.weights[:, 0], weights[1:], atol=1e-6)
    assert np.allclose(found.predict(x)[:, 1] / -2, weights[0] + scaled @ weights[1:], atol=1e-6)
    for i in range(14):
        without, _ = plain([j for j in range(14) if j != i], best)
        assert found.left_out[i, 0] == pytest.approx(without[0] + scaled[i] @ without[1:], abs=1e-6)


def test_ranks_correlate_as_spearman_has_it():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(3)
    for _ in range(20):
        a, b = rng.normal(size=(2, 12))
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert rank_correlation(np.ones(5), np.arange(5.0)) == 0


@pytest.mark.parametrize("kind", ["logshare", "exponential"])
def test_a_planted_exponential_law_is_recovered(kind):
    def law(shares):
        return 0.8 + 0.5 * np.exp(
            shares @ np.array([[-1.0, -0.2], [-0.3, -1.2], [-0.5, -0.4], [-0.1, 0.0], [0.2, 0.1]])
        )

    points = design(FIVE, 24)
    found = fit_law(kind, FIVE, points, law(as_arrays(points)[0]), np.array([0.5, 0.5]))
    fresh = [Point(tuple(row)) for row in draw_shares(FIVE, 200, np.random.default_rng(8))]
    said, exact = found.mean(fresh), law(as_arrays(fresh)[0]).mean(1)
    assert rank_correlation(said, exact) > (0.99 if kind == "exponential" else 0.97)
    assert np.abs(said - exact).max() < 0.02


def test_a_source_that_helps_nobody_gets_about_nothing_and_most_of_the_gain_is_had():
    drawn = draw_shares(FIVE, 100_000, np.random.default_rng(0))
    best, equal = (truth(drawn) @ WEIGHTS).min(), float((truth(np.array([FIVE.base])) @ WEIGHTS)[0])
    regrets, bad = [], []
    for seed in range(5):
        points = design(FIVE, 15, seed=seed)
        found = find_best(FIVE, points, measured(points, seed), WEIGHTS, 0.005, seed)
        regrets.append(float((truth(np.array([found.best.shares])) @ WEIGHTS)[0]) - best)
        bad.append(found.best.shares[4])
        assert found.correlation > found.by_chance
    assert max(bad) <= 0.05 and np.mean(regrets) < 0.3 * (equal - best)


def test_where_no_mix_matters_it_is_said_that_the_proxies_cannot_tell():
    points = design(FIVE, 15)
    doubted = 0
    for seed in range(12):
        flat = measured(points, 50 + seed, law=lambda shares: np.full((len(shares), 4), 1.1))
        doubted += bool(find_best(FIVE, points, flat, WEIGHTS, 0.005, seed).doubts)
    assert doubted >= 11


@pytest.mark.parametrize("caps", [(1.0, 1.0, 1.0), (0.5, 0.45, 1.0), (0.4, 0.4, 0.3)])
@pytest.mark.parametrize("kept_near", [0.0, 0.02])
def test_the_search_finds_what_every_mix_of_a_grid_says(caps, kept_near):
    space = Space(SOURCES[:3], (0.4, 0.3, 0.3), caps)
    points = design(space, 12)
    shares = as_arrays(points)[0]
    losses = truth(np.column_stack([shares, np.zeros((len(points), 2))]))
    law = fit_law("logshare", space, points, losses, WEIGHTS)
    near = np.array(space.base) + 0.01

    def cost(mix):
        mix = np.array(mix)
        moved = (mix * np.log(np.maximum(mix, 1e-12) / near)).sum()
        return float(law.mean([Point(tuple(mix))])[0] + kept_near * moved)

    steps = range(0, 101, 2)
    grid = [(a / 100, b / 100, (100 - a - b) / 100) for a, b in itertools.product(steps, steps) if a + b <= 100]
    least = min(cost(mix) for mix in grid if all(share <= cap for share, cap in zip(mix, caps, strict=True)))
    found = search(law, kept_near).shares
    assert all(share <= cap + 1e-9 for share, cap in zip(found, caps, strict=True))
    assert round(sum(found) * GRAIN) == GRAIN and cost(found) <= least + 2e-4


def test_a_learning_rate_has_its_best_between_and_a_kind_is_chosen():
    keys = (Key("train.pretrain.muon.lr", (0.002, 0.004, 0.008, 0.016)), Key("model.activation", ("a", "b")))
    space = Space((), (), (), keys, (0, 0))
    points = design(space, 8)
    assert len(points) == 8 and points[0].levels == (0, 0)
    levels = as_arrays(points)[1]
    loss = 1.2 + 0.02 * (levels[:, 0] - 2) ** 2 + 0.03 * (levels[:, 1] == 0)
    found = find_best(space, points, loss[:, None], np.ones(1), 0.001)
    assert found.best.levels == (2, 1) and not found.doubts


def test_a_point_that_was_measured_better_than_the_fit_promises_is_taken():
    points = design(FIVE, 15)
    shares = as_arrays(points)[0]
    losses = np.exp(1 + 0.3 * (shares - 0.2) ** 2 @ np.ones((5, 2)))
    seen = 4  # some one point, which no law explains
    losses[seen] -= 0.3  # and the fit is off by a constant, as it is where it misses the base
    found = find_best(FIVE, points, losses, np.array([0.5, 0.5]), 0.001)
    assert found.best == points[seen]
    assert find_best(FIVE, points, losses, np.array([0.5, 0.5]), 9.0).best != points[seen], "seeds do as much"
