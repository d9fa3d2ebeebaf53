"""A changed threshold reads no text again, and leaves what a run from nothing leaves; shares and samples by score."""

from __future__ import annotations

import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rules_harness import EVERY, PARSED, hostile
from stage_harness import LocalContext, build, kept_documents, recipe, rows_of

from stages.filter.measure import measure_column
from stages.filter.parse import parse_rules
from stages.filter.stage import FILTER
from stages.filter.verdict import BOUNDS, judge, measured_rules
from stages.filter.where import check_columns, threshold_at, with_thresholds
from stages.schemas import document_id

LENGTHS = [10 * i for i in range(1, 61)]


def texts_of(lengths):
    return [f"{i:03d} " + "x" * (n - 4) for i, n in enumerate(lengths)]


def corpus(folder, texts, rules, **keys):
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(3):
        (folder / f"{n}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[n::3]))
    return recipe({"web": {"from": "jsonl", "path": str(folder), "rules": rules}}, **keys)


def strict(rng, thresholds):
    """The thresholds moved at random, up or down; those that change what is measured stay."""
    edges = {edge for bounds in BOUNDS.values() for bound in bounds for edge in (bound.low, bound.high)}
    scale = rng.choice([0.3, 0.8, 1.3, 3])
    return {key: value * scale if key in edges else value for key, value in thresholds.items()}


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_measures_serve_every_threshold(seed):
    """Measured once under some thresholds, judged under others: as measured and judged under those from the start."""
    rng = random.Random(seed)
    column = pa.array([hostile(rng) for _ in range(40)], pa.string())
    for rules in (rng.choice(PARSED), parse_rules(rng.sample(EVERY, 3))):
        columns, left = measure_column(column, None, measured_rules(rules))
        others = [(name, strict(rng, thresholds)) for name, thresholds in rules]
        if measured_rules(others) != measured_rules(rules):
            continue  # so low a threshold measures again
        again, left_again = measure_column(column, None, measured_rules(others))
        assert left.equals(left_again) and list(columns) == list(again)
        assert judge(columns, others).of_each() == judge(again, others).of_each()


@pytest.mark.slow
def test_a_changed_threshold_is_recut_as_from_nothing(tmp_path):
    rng = random.Random(4)
    texts = [hostile(rng) for _ in range(300)] + texts_of(LENGTHS)
    loose, tight = ({"gopher_repetition": {"max_lines": n, "max_top_2_gram": n}} for n in (0.9, 0.15))
    for number, more in enumerate(([], ["c4"])):
        folder = tmp_path / str(number)
        out = LocalContext(folder / "out", corpus(folder / "in", texts, [{"length": {"min_chars": 5}}, loose, *more]))
        build(out, "dedup")
        changed = corpus(folder / "in", texts, [{"length": {"min_chars": 9}}, tight, *more])
        recut = LocalContext(folder / "out", changed)
        docs = build(recut, "dedup").docs["web"]
        assert {stage for stage, _ in recut.ran} == {"filter", "dedup"}
        fresh = LocalContext(folder / "fresh", changed)
        assert [part.digest for part in docs] == [part.digest for part in build(fresh, "dedup").docs["web"]]
        assert recut.counts(FILTER, "web") == fresh.counts(FILTER, "web")
        dropped = [rows_of(build(context, "filter").dropped.values()) for context in (recut, fresh)]
        assert dropped[0] == dropped[1]
        assert any(row["value"] is not None for row in dropped[0])


def test_shares_of_a_source_and_what_nothing_measures(tmp_path):
    where = {"where": {"length_chars": {"top": "25%"}}}
    context = LocalContext(tmp_path / "out", corpus(tmp_path / "in", texts_of(LENGTHS), [where]))
    kept = kept_documents(build(context, "filter").docs["web"])
    assert sorted(len(row["text"]) for row in kept) == LENGTHS[45:]
    wider = {"where": {"length_chars": {"top": 0.5, "bottom": 0.75}}}
    again = LocalContext(tmp_path / "out", corpus(tmp_path / "in", texts_of(LENGTHS), [wider]))
    kept = kept_documents(build(again, "filter").docs["web"])
    assert sorted(len(row["text"]) for row in kept) == LENGTHS[30:45]
    assert {stage for stage, _ in again.ran} == {"filter"}, "measured as it was"
    with pytest.raises(ValueError, match=r"sources\.web: rule where: nothing measures 'quality'"):
        corpus(tmp_path / "in", [], [{"where": {"quality": {"min": 1}}}])
    with pytest.raises(ValueError, match="top and bottom are shares of the whole source"):
        recipe({"web": {"from": "jsonl", "path": "x", "max_bytes": 9, "rules": [where]}})


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"where": {}}, "names no measure"),
        ({"where": {"length_chars": {"least": 3}}}, "must be tested by"),
        ({"where": {"length_chars": {"top": 30}}}, "a share, above 0 and at most 100%"),
        ({"where": {"length_chars": {"top": "30%", "min": 2}}}, "bounded twice on one side"),
        ({"where": {"length_chars": {"in": ["a"]}}}, "`in` is for language"),
        ({"sample": {"edu": {"power": 2}}}, "takes {full"),
        ({"sample": {"edu": {"full": 0}}}, "numbers above 0"),
    ],
)
def test_what_rules_on_measures_may_not_say(rule, said):
    with pytest.raises(ValueError, match=said):
        parse_rules([rule])


def test_c4_must_be_listed_for_its_measures():
    with pytest.raises(ValueError, match="list c4 among the rules"):
        check_columns(parse_rules([{"where": {"c4_sentences": {"min": 3}}}]), [])


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, 7.5]), min_size=1), st.floats(0.001, 1))
def test_a_share_is_that_many_or_more_at_a_tie(values, share):
    array = np.array(values)
    for edge, better in (("top", array.__ge__), ("bottom", array.__le__)):
        kept = better(threshold_at(array, edge, share))
        assert kept.sum() >= share * len(array) - 1e-6
        tied = array == threshold_at(array, edge, share)
        assert (kept & ~tied).sum() < share * len(array) + 1e-6


def test_only_shares_become_thresholds():
    rules = parse_rules(["length", {"where": {"bytes": {"top": "10%", "max": 9}, "length_chars": {"bottom": 0.5}}}])
    assert with_thresholds(rules, [3.0, 4.0])[1] == (
        "where",
        {"bytes": {"max": 9, "min": 3.0}, "length_chars": {"max": 4.0}},
    )


def test_a_sample_by_score_takes_its_share_and_only_grows():
    ids = pa.array([document_id(str(i)) for i in range(4000)], pa.binary(16))
    values = np.tile([0.1, 0.5, 0.9, np.nan], 1000)
    columns = {"document_id": ids, "bytes": pa.array(np.ones(4000, np.int64)), "score": pa.array(values)}

    def taken(full, power):
        return judge(columns, parse_rules([{"sample": {"score": {"full": full, "power": power}}}])).codes == 0

    one, lower = taken(1.0, 2), taken(0.6, 2)
    assert (lower >= one).all() and lower[values == 0.9].all() and not one[np.isnan(values)].any()
    for value, expected in ((0.1, 0.01), (0.5, 0.25), (0.9, 0.81)):
        assert abs(one[values == value].mean() - expected) < 4 * (expected * (1 - expected) / 1000) ** 0.5


def test_measures_are_readable_columns(tmp_path):
    rules = ["gopher_quality", {"where": {"fineweb_newlines": {"max": 9}}}]
    context = LocalContext(tmp_path / "out", corpus(tmp_path / "in", texts_of(LENGTHS), rules))
    build(context, "measure")
    (table, *_) = [record.output("measures") for record in context.records if record.stage == "measure"]
    names = pq.read_schema(table.path).names
    assert names[:4] == ["document_id", "text_hash", "edited", "bytes"]
    assert {"gopher_alphabetic", "fineweb_newlines"} <= set(names), "what `where` names is measured too"
