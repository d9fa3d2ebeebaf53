"""Filter rules: each reason on text made for it, thresholds and their errors."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.filter.document import Document
from stages.filter.gopher import gopher_quality
from stages.filter.measure import text_hash
from stages.filter.parse import parse_rules
from stages.filter.rules import RULES, apply_rules
from stages.filter.words import count_words, split_words

PROSE = "The quick brown foxes of that old forest have to be with the lazy dogs and rest. " * 4

CRAFTED = {
    "gopher_short_doc": "The cat and the dog have to be with that of old.",
    "gopher_long_doc": "the and " * 50_001,
    "gopher_mean_word_length": "a b the of and " * 20 + "x y " * 40,
    "gopher_symbol_ratio": PROSE + "# " * 12,
    "gopher_bullet_lines": "\n".join("- " + line for line in (PROSE * 3).split(". ")),
    "gopher_ellipsis_lines": "\n".join(line + "..." if i % 2 else line for i, line in enumerate([PROSE] * 10)),
    "gopher_alphabetic": PROSE + "12345 " * 60,
    "gopher_stop_words": "Lorem ipsum dolor amet consectetur " * 20,
}


def test_good_prose_passes():
    assert gopher_quality(Document(PROSE)) is None


@pytest.mark.parametrize("reason", CRAFTED)
def test_gopher_reasons(reason):
    assert gopher_quality(Document(CRAFTED[reason])) == reason


def test_thresholds_are_inclusive():
    fifty = " ".join(["the", "and"] + ["words"] * 48)
    assert gopher_quality(Document(fifty)) is None
    assert gopher_quality(Document(fifty), min_words=51) == "gopher_short_doc"


def test_symbols_do_not_count_as_words():
    assert gopher_quality(Document("the and " + "words " * 40 + "-- " * 20)) == "gopher_short_doc"


# As spaCy cuts them too, but for the last three: Mr. is an exception of its, `'s` a suffix, and it cuts 2 from m.
CUT = {
    'He said: "Well-known (and old)..." again!': 'He said : " Well - known ( and old ) ... " again !',
    "..note:: $x$ costs $5, not 5%; .5 is (1/2).": ".. note : : $ x$ costs $ 5 , not 5 % ; .5 is ( 1/2 ) .",
    "the state-of-the-art -- a--b, x—y": "the state - of - the - art -- a -- b , x — y",
    "‘Quoted’ «it»…": "‘ Quoted ’ « it » …",
    "#tag snake_case foo.bar(x) ☃": "# tag snake_case foo.bar(x ) ☃",
    "Mr. X": "Mr . X",
    "it's": "it's",
    "2m": "2m",
}


@pytest.mark.parametrize("text", CUT)
def test_words_as_fineweb_counts_them(text):
    assert split_words(text) == CUT[text].split(" ")
    assert split_words(text, "blanks") == text.split()


@given(st.text() | st.text("ab-—.!( 5\n'é☃\u0301"), st.sampled_from(["punctuation", "blanks"]))
def test_words_lose_no_character(text, words):
    found = split_words(text, words)
    assert "".join(found) == "".join(text.split()) and all(found)
    assert count_words(text, words) == Counter(found)
    assert set(text.split()).issuperset(word for word in found if word.isalnum()) or words == "punctuation"


def test_the_key_decides_what_counts_as_a_word():
    code = "the cat and (x), [y]; {z}: the mat. " * 10  # 8 words between blanks, 7 marks, 16 with them
    assert gopher_quality(Document(code), words="blanks", min_mean_word_length=1) is None
    assert gopher_quality(Document(code), min_mean_word_length=1) == "gopher_alphabetic"
    named = dict(parse_rules(["gopher_quality", "gopher_repetition", "fineweb", "c4", "length"], "blanks"))
    assert [name for name, thresholds in named.items() if thresholds.get("words")] == list(named)[:3]


def test_length():
    rule = RULES["length"]
    assert rule(Document("abc"), min_chars=4) == "length_short"
    assert rule(Document("abc"), max_chars=2) == "length_long"
    assert rule(Document("abc"), min_chars=3, max_chars=3) is None


@pytest.mark.parametrize(
    ("test", "value", "reason"),
    [
        ({"min": 3}, 3.0, None),
        ({"min": 3}, 2.0, "metadata_x"),
        ({"min": 1, "max": 2}, 2.5, "metadata_x"),
        ({"in": ["en"]}, "en", None),
        ({"in": ["en"]}, "de", "metadata_x"),
        ({"min": 3}, None, "metadata_x_missing"),
    ],
)
def test_metadata(test, value, reason):
    assert apply_rules(Document("text", {"x": value}), parse_rules([{"metadata": {"x": test}}]))[0] == reason


def test_first_failing_rule_names_the_reason():
    rules = parse_rules([{"length": {"min_chars": 10}}, "gopher_quality"])
    assert apply_rules(Document("short"), rules)[0] == "length_short"
    assert apply_rules(Document("long enough for one"), rules)[0] == "gopher_short_doc"
    assert apply_rules(Document(""), [])[0] == "empty"


def test_naming_a_default_changes_nothing():
    assert parse_rules([{"gopher_quality": {"min_words": 50}}]) == parse_rules(["gopher_quality"])


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (["gofer"], "the rules are gopher_quality, gopher_repetition, c4, fineweb, length, metadata"),
        ([{"length": {"min": 3}}], "it has min_chars, max_chars"),
        ([{"length": {"min_chars": "3"}}], "must be a number"),
        (["metadata"], "names no column"),
        ([{"metadata": {"x": 3}}], "must be tested by"),
        ([{"metadata": {"x": {"in": "en"}}}], "list of strings"),
        ([{"metadata": {"x": {"min": "3"}}}], "must be a number"),
    ],
)
def test_mistakes_are_explained(rules, message):
    with pytest.raises(ValueError, match=message):
        parse_rules(rules)


def test_text_hash_ignores_case_space_and_composition():
    assert text_hash("Caf\u00e9  au\nlait ") == text_hash("cafe\u0301 AU lait")
    assert text_hash("a b") != text_hash("ab")
