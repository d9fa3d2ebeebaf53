"""What `init` proposes: text that YAML reads back, shares that sum up, a model that time and text allow."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stages.errors import DataError
from stages.proposal.fields import choose
from stages.proposal.mix import shares
from stages.proposal.page import Line, page
from stages.proposal.scale import LADDER, PASSES, Speed, scale_of

WORDS = st.text(min_size=1, max_size=120)  # longer than a line of the page


VALUES = st.one_of(WORDS, st.integers(), st.lists(WORDS, max_size=4))


@given(st.dictionaries(WORDS, VALUES, min_size=1, max_size=3), WORDS)
def test_yaml_reads_back_what_is_written(values, reason):
    text = page([Line(0, "top"), *(Line(1, key, value, reason) for key, value in values.items())])
    assert yaml.safe_load(text) == {"top": values}


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 10**9), min_size=1), st.floats(0.001, 1.0))
def test_shares_sum_to_one_and_repeat_no_source_more_than_twice(tokens, part):
    total = max(1, int(part * PASSES * sum(tokens.values())))
    mixture = shares(tokens, total)
    assert sum(round(1000 * share) for share in mixture.values()) == 1000
    for name, share in mixture.items():  # in tenths of a per cent, and one source has what rounding left
        assert (share - 0.001 * len(tokens)) * total <= PASSES * tokens[name] + 1


def test_small_sources_are_heard_and_large_ones_do_not_drown_them():
    assert shares({"web": 10_000_000, "faq": 100_000}, 1_000_000) == {"web": 0.91, "faq": 0.09}
    assert shares({"web": 10_000_000, "faq": 100_000}, 5_000_000) == {"web": 0.96, "faq": 0.04}, "twice, and no more"


def test_a_model_is_bound_by_time_or_by_text():
    speed = Speed(1e13, 1, "")
    little = scale_of(10**6, 500, 1024, speed, 3600)
    much = scale_of(10**10, 500, 8192, speed, 3600)
    assert (little.bound, much.bound) == ("text", "time")
    assert little.tokens <= PASSES * 10**6 and little.seconds < 3600
    assert much.tokens >= 20 * much.parameters and much.seconds == pytest.approx(3600, rel=0.01)
    assert much.model["dim"] > little.model["dim"] == LADDER[0][0]
    assert scale_of(10**10, 500, 8192, Speed(1e13, 4, ""), 7200).parameters > much.parameters
    with pytest.raises(DataError, match="10 tokens of text are too little"):
        scale_of(10, 5, 512, speed, 60)
    with pytest.raises(DataError, match="give more --minutes"):
        scale_of(10**9, 500, 512, Speed(1e6, 1, ""), 1)


def test_fields_are_chosen_by_name_and_else_by_what_stands_in_them():
    long = "A sentence of several words, with the number {}. Another one follows it."
    rows = [{"id": f"{i}", "label": "news of the day here", "inhalt": long.format(i)} for i in range(50)]
    assert choose(rows).keys == {"text": "inhalt"}
    assert choose([{**row, "text": long.format(row["id"])} for row in rows]).keys == {"text": "text"}
    nested = [{"doc": {"body_text": row["inhalt"]}, "n": 1} for row in rows]
    assert choose(nested).keys == {"text": "doc.body_text"}
    asked = [{"q": f"What is the number {i} about?", "a": f"It is {i}.", "tag": "x"} for i in range(50)]
    assert choose(asked).keys == {"template": "Question: {q}\n\nAnswer: {a}"}
    assert choose([{"a": i, "b": "x"} for i in range(9)]) is None
