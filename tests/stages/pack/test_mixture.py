"""The mixture solver: exact counts, ties, caps, and proposals that work when they are taken."""

import hashlib
import json
import re
from fractions import Fraction
from itertools import pairwise

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import DataError
from stages.pack.config import Mixture, check_mixtures
from stages.pack.mixture import capacity, largest_remainder, nearest_mix, root, solve, weights

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
    mixture = Mixture.model_validate({"tokens": 1000, "ratios": {"a": 0.5, "b": 0.5}, "max_epochs": {"a": 2}})
    assert solve(mixture, {"a": 250, "b": 500}) == {"a": 500, "b": 500}
    with pytest.raises(DataError, match=r"^source a is short by 2 tokens: 50.00% of 1,000 is 500, it has 249 and"):
        solve(mixture, {"a": 249, "b": 500})


def proposals(message):
    """The lines for the recipe that a shortage proposes, as (key, value)."""
    _, found, ways = message.partition("what would work, any one of: ")
    lines = [way.removesuffix(" in place of temperature") for way in ways.split("; ")] if found else []
    return [pair for line in lines for pair in yaml.safe_load(line).items()]


CAPS = st.sampled_from([0.3, 1.0, 1.3333333333, 4.0, 10.0])
POOLS = st.integers(0, 10**6) | st.integers(0, 20)


@st.composite
def asks(draw):
    """A recipe's mixture in one of its three ways, as plain values, and the training tokens of its sources."""
    ratios = draw(shares())
    names = list(ratios)
    asked = {"max_epochs": {s: draw(CAPS) for s in names}}
    tokens = draw(st.integers(1, 10**7))
    match draw(st.sampled_from(["ratios", "temperature", "counts"])):
        case "ratios":
            asked |= {"tokens": tokens, "ratios": ratios}
        case "temperature":
            temperature = draw(st.sampled_from([1, 1.5, 3.33, 5, 100, 1e9]) | st.floats(1, 50))
            asked |= {"tokens": tokens, "temperature": temperature, "sources": names}
        case "counts":
            asked |= {"counts": {s: draw(st.integers(1, 10**7)) for s in names}}
    return asked, {s: draw(POOLS) for s in names}


@pytest.mark.slow
@settings(max_examples=300)
@given(asks())
def test_every_proposal_works_when_it_is_taken(ask):
    asked, have = ask
    mixture = Mixture.model_validate(asked)
    room = {s: capacity(have[s], mixture.cap(s)) for s in mixture.sources}
    if mixture.temperature and not any(have.values()):
        with pytest.raises(DataError, match="hold no training tokens at all; add text"):
            solve(mixture, have)
        return
    wanted = largest_remainder(mixture.tokens, weights(mixture, have))
    try:
        counts = solve(mixture, have)
    except DataError as error:
        ways = proposals(str(error))
        lacking = [s for s, n in wanted.items() if n > room[s]]
        assert re.findall(r"source (\w) is short", str(error)) == lacking and lacking
    else:
        assert counts == wanted and sum(counts.values()) == mixture.tokens
        assert list(counts) == mixture.sources
        assert all(n <= room[s] for s, n in counts.items())
        return
    keys = [key for key, _ in ways]
    enough = sum(room.values()) >= mixture.tokens
    assert ("max_epochs" in keys) == all(have[s] for s in lacking)
    if mixture.counts:
        assert keys.count("counts") == any(room[s] for s in room) + enough
    else:
        assert ("ratios" in keys) == enough
        taking = [s for s in room if mixture.ratios or have[s]]
        assert ("tokens" in keys) == all(room[s] for s in taking) or max(room.values()) < 10_000  # too little to share
    for key, value in ways:
        counts = solve(taken(asked, key, value), have)
        if key == "tokens":
            assert value < mixture.tokens
            least = min(
                weight / sum(weights(mixture, have).values()) for weight in weights(mixture, have).values() if weight
            )
            more = largest_remainder(value + 2 + len(room) + int(1 / least), weights(mixture, have))
            assert any(n > room[s] for s, n in more.items())  # nothing much larger fits
        if key in ("ratios", "temperature", "max_epochs"):
            assert sum(counts.values()) == mixture.tokens


def taken(asked, key, value):
    """The recipe's mixture once a person took a proposal: that key changed, and validated again."""
    changed = asked | {key: value}
    if key == "ratios":
        changed = {k: v for k, v in changed.items() if k not in ("temperature", "sources")}
    if key in ("ratios", "counts"):
        changed["max_epochs"] = {s: c for s, c in asked["max_epochs"].items() if s in value}
    return Mixture.model_validate(changed)


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


@given(
    tokens=st.integers(1, 10**7),
    have=st.lists(st.integers(1, 10**7), min_size=1, max_size=6),
    temperature=st.floats(1, 100),
)
def test_temperatures_lie_between_proportional_and_equal(tokens, have, temperature):
    have = dict(zip(NAMES, have, strict=False))

    def mix(t):
        asked = {"tokens": tokens, "temperature": t, "sources": list(have), "max_epochs": 10**8}
        return solve(Mixture.model_validate(asked), have)

    assert mix(1) == largest_remainder(tokens, have)
    equal = largest_remainder(tokens, dict.fromkeys(have, 1))
    assert all(abs(n - equal[s]) <= 1 for s, n in mix(1e12).items())
    counts = mix(temperature)
    by_size = sorted(have, key=have.__getitem__)
    assert all(counts[a] <= counts[b] + 1 for a, b in pairwise(by_size))  # the larger source never gives less
    ideal = {s: n ** (1 / temperature) for s, n in have.items()}
    assert all(counts[s] == pytest.approx(tokens * ideal[s] / sum(ideal.values()), abs=1 + 1e-6) for s in have)


@given(ask=asks(), order=st.randoms(use_true_random=False))
def test_the_order_of_sources_decides_ties_and_nothing_else(ask, order):
    asked, have = ask
    mixture = Mixture.model_validate(asked)
    names = list(mixture.sources)
    order.shuffle(names)
    shares = weights(mixture, have)
    if not any(shares.values()):
        return
    again = largest_remainder(mixture.tokens, weights(mixture.model_copy(update={"sources": names}), have))
    counts = largest_remainder(mixture.tokens, shares)
    fraction = {s: mixture.tokens * w / sum(shares.values()) % 1 for s, w in shares.items()}
    moved = {s for s in names if counts[s] != again[s]}
    assert len({fraction[s] for s in moved}) <= 1
    assert all(abs(counts[s] - again[s]) == 1 for s in moved)


def test_roots_are_the_same_on_every_machine():
    assert root(0, 3.0) == 0 and root(7, 1.0) == 7
    assert root(1000, 3.0) == pytest.approx(10)
    digits = hashlib.sha256(repr([root(n, 3.3) for n in (2, 10**6, 123_456_789, 10**12)]).encode()).hexdigest()
    assert digits[:16] == "b347e39ecd3bbb55"


def test_a_pool_that_pretrain_has_taken_from_says_so():
    mixture = Mixture.model_validate({"tokens": 100, "ratios": {"a": 1}, "seen": {"a": "exclude"}})
    with pytest.raises(DataError, match=r"it has 60 that pretrain does not take and max_epochs 1 allows 60"):
        solve(mixture, {"a": 60})


@pytest.mark.parametrize(
    ("given_keys", "said"),
    [
        ({"tokens": 9}, "ratios, temperature or counts; here is none of them"),
        ({"tokens": 9, "ratios": {"a": 1}, "temperature": 2}, "here is ratios and temperature"),
        ({"ratios": {"a": 1}}, "tokens is required and missing"),
        ({"tokens": 9, "counts": {"a": 8}}, "tokens is 9, but counts sum to 8; leave tokens out"),
        ({"tokens": 9, "temperature": 0.5}, "greater than or equal to 1"),
        ({"tokens": 9, "ratios": {"a": 1}, "sources": ["b"]}, r"sources is \['b'\], but ratios names \['a'\]"),
        ({"tokens": 9, "ratios": {"a": 1}, "packing": "best_fit"}, "belong together"),
        ({"tokens": 9, "ratios": {"a": 1}, "window": 8}, "belong together"),
        ({"tokens": 9, "ratios": {"a": 1}, "seen": {"b": "any"}}, "seen names .* no share"),
    ],
)
def test_a_mixture_that_contradicts_itself(given_keys, said):
    with pytest.raises(ValueError, match=said):
        Mixture.model_validate(given_keys)


def test_seen_needs_a_pretrain_mixture_that_takes_the_source():
    def check(**mixtures):
        check_mixtures({name: Mixture.model_validate(m) for name, m in mixtures.items()}, ["a", "b"])

    pretrain = {"tokens": 9, "ratios": {"a": 1}}
    check(pretrain=pretrain, anneal={"tokens": 9, "ratios": {"a": 1}, "seen": {"a": "exclude"}})
    check(pretrain=pretrain, anneal={"tokens": 9, "ratios": {"b": 1}, "seen": {"b": "any"}})
    with pytest.raises(ValueError, match="pretrain takes nothing of b; it takes a"):
        check(pretrain=pretrain, anneal={"tokens": 9, "ratios": {"b": 1}, "seen": {"b": "exclude"}})
    with pytest.raises(ValueError, match="of a recipe that has both"):
        check(anneal={"tokens": 9, "ratios": {"a": 1}, "seen": {"a": "prefer"}})


def test_a_dump_is_read_again_as_the_same_mixture():
    for keys in ({"counts": {"b": 5, "a": 4}}, {"tokens": 9, "ratios": {"b": 0.5, "a": 0.5}}):
        mixture = Mixture.model_validate(keys)
        dumped = json.loads(json.dumps(mixture.model_dump(mode="json"), sort_keys=True))
        assert Mixture.model_validate(dumped).sources == ["b", "a"]  # ties go where they went
        assert solve(Mixture.model_validate(dumped), {"a": 9, "b": 9}) == solve(mixture, {"a": 9, "b": 9})


def test_a_message_in_full():
    asked = {"tokens": 1000, "ratios": {"web": 0.6, "maths": 0.4}, "max_epochs": {"maths": 3}}
    with pytest.raises(DataError) as caught:
        solve(Mixture.model_validate(asked), {"web": 900, "maths": 100})
    assert str(caught.value) == (
        "source maths is short by 100 tokens: 40.00% of 1,000 is 400, it has 100 and max_epochs 3 allows 300; "
        "what would work, any one of: tokens: 750; max_epochs: {web: 1, maths: 4}; "
        "ratios: {web: 70.00%, maths: 30.00%}"
    )


def test_too_little_text_altogether():
    with pytest.raises(DataError, match="all sources together hold 9 tokens; add text"):
        solve(Mixture.model_validate({"tokens": 1000, "ratios": {"a": 0.5, "b": 0.5}}), {"a": 9, "b": 0})
