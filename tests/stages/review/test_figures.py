"""The figure that is shown of a rule is the one that it decides by, and what is marked lies in the text."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest
from rules_harness import LOOSE, hostile

from stages.filter.document import Document
from stages.filter.measure import measure_column
from stages.filter.parse import parse_rules
from stages.filter.rules import RULES
from stages.filter.verdict import BOUND_OF, REASONS_OF, measured_rules
from stages.review.figures import FIGURES, evidence

PROGRAMS = [
    {"length": {"min_chars": 20, "max_chars": 500}},
    {"gopher_quality": {}},
    {"gopher_quality": {**LOOSE, "min_alphabetic_words": 0.3, "max_symbol_ratio": 0.5, "max_bullet_lines": 0.4}},
    {"gopher_repetition": {}},
    {"gopher_repetition": {"max_paragraphs": 1, "max_lines": 1, "max_line_chars": 1, "max_top_2_gram": 1}},
    {"fineweb": {}},
    {"fineweb": {"min_line_punctuation": 0, "max_short_lines": 0.8, "max_repeated_chars": 0.9}},
]


@pytest.mark.parametrize("words", ["punctuation", "blanks"])
@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_a_document_is_dropped_exactly_where_its_figure_is_beyond_the_line(program, words):
    ((name, thresholds),) = parse_rules([program], words)
    rng, met = random.Random(7), set()
    texts = [text for _ in range(400) if (text := hostile(rng))]
    columns, _ = measure_column(pa.array(texts), None, measured_rules([(name, thresholds)]))
    for i, text in enumerate(texts):
        outcome = RULES[name](Document(text, {}), **thresholds)
        for reason in REASONS_OF[name]:
            if reason in FIGURES:
                low, high = BOUND_OF[reason].edges(thresholds)
                low = max(low, 1) if reason == "gopher_short_doc" else low
                value = columns[BOUND_OF[reason].measure][i].as_py()
                beyond = (low is not None and value < low) or (high is not None and value > high)
                assert beyond == (outcome == reason), (reason, value, text)
                met.add((reason, beyond))
            if reason == outcome:
                break
    assert len(met) > 2 and any(beyond for _, beyond in met)


def test_every_figure_belongs_to_a_reason_of_a_compiled_rule():
    assert set(FIGURES) <= {reason for reasons in REASONS_OF.values() for reason in reasons}


def test_evidence_is_in_order_and_inside_the_text():
    rng, found = random.Random(8), set()
    marking = [reason for reason, figure in FIGURES.items() if figure.marks]
    for name in RULES:
        thresholds = {} if name == "metadata" else parse_rules([name])[0][1]
        for _ in range(40):
            text = hostile(rng)
            for reason in set(marking) & set(REASONS_OF.get(name, ())):
                spans = evidence(reason, text, thresholds)
                places = [place for span in spans for place in span]
                assert all(0 <= start < stop <= len(text) for start, stop in spans)
                if "top" not in reason:  # the commonest words in a row may overlap themselves
                    assert places == sorted(places)
                if spans:
                    found.add(reason)
    assert found == set(marking)


@pytest.mark.parametrize(
    ("reason", "text", "marked"),
    [
        ("gopher_alphabetic", "two 1 and 22 + 3", ["1", "22", "+", "3"]),
        ("gopher_symbol_ratio", "# a ... b#", ["#", "...", "#"]),
        ("gopher_alphabetic", "(so-called 1)", ["(", "-", "1", ")"]),
        ("gopher_repeated_lines", "a\nb\na\nc\nb", ["a", "b"]),
        ("gopher_top_2_gram", "a b c a b", ["a b", "a b"]),
        ("gopher_repeated_5_grams", "a b c d e a b c d e", ["a b c d e"]),
        ("fineweb_line_punctuation", "Yes.\nno\n\nNo", ["no", "No"]),
        ("length_short", "short", []),
    ],
)
def test_what_is_marked(reason, text, marked):
    assert [text[start:stop] for start, stop in evidence(reason, text, {"max_mean_word_length": 10})] == marked
