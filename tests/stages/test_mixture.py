"""The mixture solver: exact counts, ties, caps, and proposals that work when they are taken."""

import re
from fractions import Fraction

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.recipe import Mixture
from stages.base import DataError
from stages.mixture import capacity, largest_remainder, nearest_mix, solve

NAMES = "abcdefg"


@st.composite
def shares(draw, most=6):
    """Ratios that sum to 100 %, as people write them: whole hundredths of a percent."""
    n = draw(st.integers(1, most))
    cuts = sorted(draw(st.lists(st.integers(1, 9999), min_size=n - 1, max_size=n - 1, unique=True)))
    edges = [0, *cuts, 10_000]
    return {NAMES[i]: (edges[i + 1] - edges[i]) / 10_000 for i in range(n)}


@given(tokens=st.integers(1, 10**13), ratios=shares())
def test_counts_sum_and_stay_within_one_of_the_share(tokens, ratios):
    counts = largest_remainder(tokens, ratios)
    assert sum(counts.values()) == tokens
    assert list(counts) == list(ratios)
    ideal = {s: tokens * Fraction(round(r * 10_000), 10_000) for s, r in ratios.items()}
    for s, n in counts.items():
        assert int(ideal[s]) <= n <= int(ideal[s]) + (ideal[s] != int(ideal[s]))
    # The largest remainders got the extra token: nobody below has a larger fraction than anybody above.
    up = [ideal[s] - int(ideal[s]) for s, n in counts.items() if n > int(ideal[s])]
    down = [ideal[s] - int(ideal[s]) for s, n in counts.items() if n == int(ideal[s])]
    assert not up or not down or min(up) >= max(down)


@pytest.mark.parametrize(
    ("tokens", "ratios", "expected"),
    [
        (10, {"a": 0.15, "b": 0.15, "c": 0.7}, [2, 1, 7]),
        (10, {"c": 0.7, "b": 0.15, "a": 0.15}, [7, 2, 1]),
        (5, {"a": 0.7, "b": 0.1, "c": 0.1, "d": 0.1}, [4, 1, 0, 0]),
        # A tie of 2.5 and 27.5, though as floats 50 * .55 is 27.500000000000004.
        (50, {"a": 0.05, "b": 0.4, "c": 0.55}, [3, 20, 27]),
        (7, {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, [3, 2, 2]),
        (1, {"a": 0.5, "b": 0.5}, [1, 0]),
        (300_000, {"docs": 0.3, "maths": 0.7}, [90_000, 210_000]),
        (10**12 + 1, {"a": 0.1, "b": 0.2, "c": 0.7}, [10**11, 2 * 10**11, 7 * 10**11 + 1]),
    ],
)
def test_ties_go_to_the_source_named_first(tokens, ratios, expected):
    assert list(largest_remainder(tokens, ratios).values()) == expected


def test_ratios_are_relative():
    assert largest_remainder(100, {"a": 3, "b": 1}) == {"a": 75, "b": 25}


@pytest.mark.parametrize(
    ("available", "cap", "expected"), [(100, 0.29, 29), (10, 1.1, 11), (3, 1.34, 4), (7, 0.5, 3), (0, 4.0, 0)]
)
def test_capacity_is_what_the_decimal_says(available, cap, expected):
    assert capacity(available, cap) == expected


def test_a_source_at_its_cap_fits_and_one_token_more_does_not():
    asked = {"tokens": 1000, "ratios": {"a": 0.5, "b": 0.5}, "available": {"a": 250, "b": 500}}
    assert solve(**asked, caps={"a": 2.0, "b": 1.0}) == {"a": 500, "b": 500}
    with pytest.raises(DataError, match=r"^source a is short by 2 tokens: 50.00% of 1,000 is 500, it has 249 and"):
        solve(**asked | {"available": {"a": 249, "b": 500}}, caps={"a": 2.0, "b": 1.0})


def proposals(message):
    """The lines for the recipe that a shortage proposes, as values."""
    _, found, ways = message.partition("what would work, any one of: ")
    return yaml.safe_load(re.sub("; ", "\n", ways)) if found else {}


@settings(max_examples=300)
@given(
    tokens=st.integers(1, 10**7),
    ratios=shares(),
    available=st.lists(st.integers(0, 10**6) | st.integers(0, 20), min_size=6, max_size=6),
    caps=st.lists(st.sampled_from([0.3, 1.0, 1.3333333333, 4.0, 10.0]), min_size=6, max_size=6),
)
def test_every_proposal_works_when_it_is_taken(tokens, ratios, available, caps):
    have = dict(zip(ratios, available, strict=False))
    caps = dict(zip(ratios, caps, strict=False))
    room = {s: capacity(have[s], caps[s]) for s in ratios}
    try:
        counts = solve(tokens, ratios, have, caps)
    except DataError as error:
        ways = proposals(str(error))
        lacking = [s for s, n in largest_remainder(tokens, ratios).items() if n > room[s]]
        assert re.findall(r"source (\w) is short", str(error)) == lacking
    else:
        assert all(n <= room[s] for s, n in counts.items())
        return
    assert ("max_epochs" in ways) == all(have[s] for s in lacking)
    assert ("tokens" in ways) == all(room.values()) or max(room.values()) < 10_000  # too little for any share
    assert ("ratios" in ways) == (sum(room.values()) >= tokens)
    for key, value in ways.items():
        # As a user would: change that one key of the recipe, have it validated, solve again.
        asked = {"tokens": tokens, "ratios": ratios, "max_epochs": caps} | {key: value}
        if key == "ratios":
            asked["max_epochs"] = {s: c for s, c in caps.items() if s in value}
        mixture = Mixture.model_validate(asked)
        counts = solve(mixture.tokens, mixture.ratios, have, {s: mixture.cap(s) for s in mixture.ratios})
        assert sum(counts.values()) == mixture.tokens
        if key == "tokens":
            assert mixture.tokens < tokens
            wider = 2 + len(ratios) + int(1 / min(ratios.values()))  # nothing much larger fits
            more = largest_remainder(mixture.tokens + wider, ratios)
            assert any(n > room[s] for s, n in more.items())


@given(
    tokens=st.integers(1, 10**6),
    ratios=shares(),
    room=st.lists(st.integers(0, 10**6), min_size=6, max_size=6),
)
def test_the_nearest_mix_keeps_the_proportions_of_those_with_room(tokens, ratios, room):
    room = dict(zip(ratios, room, strict=False))
    mix = nearest_mix(tokens, ratios, room)
    if sum(room.values()) < tokens:
        assert mix is None
        return
    assert sum(mix.values()) == tokens
    assert all(0 <= mix[s] <= room[s] for s in ratios)
    free = [s for s in ratios if mix[s] < room[s]]
    scale = {s: mix[s] / ratios[s] for s in free}
    for s in free:
        assert abs(mix[s] - ratios[s] * scale[free[0]]) <= 1 + ratios[s] / ratios[free[0]] + 1e-6
        assert mix[s] >= int(tokens * ratios[s] - 1e-6)  # nobody with room gets less than was asked


def test_a_message_in_full():
    with pytest.raises(DataError) as caught:
        solve(1000, {"web": 0.6, "maths": 0.4}, {"web": 900, "maths": 100}, {"web": 1.0, "maths": 3.0})
    assert str(caught.value) == (
        "source maths is short by 100 tokens: 40.00% of 1,000 is 400, it has 100 and max_epochs 3 allows 300; "
        "what would work, any one of: tokens: 750; max_epochs: {web: 1, maths: 4}; "
        "ratios: {web: 70.00%, maths: 30.00%}"
    )


def test_too_little_text_altogether():
    with pytest.raises(DataError, match="all sources together hold 9 tokens; add text"):
        solve(1000, {"a": 0.5, "b": 0.5}, {"a": 9, "b": 0}, {"a": 1.0, "b": 1.0})
