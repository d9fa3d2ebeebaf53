"""Words: the compiled ones against the readable, of any text in its comparable form; and what a word is."""

import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.comparable import comparable
from stages.kernels.text_columns import utf8_buffers
from stages.kernels.words import BASE, MASK, folded, next_word, ngram_hash, split_words, spread, word_hash, words

TEXT = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]), st.sampled_from("aB1 .\n-é'İẞΣßǅ٣五𐐀\u0301\u094dक\u093f\u00ad\u200d")
    ),
    max_size=60,
)


@settings(max_examples=300)
@example("")
@example("...")
@example("\U000e0041\U00040000x")
@example("İstanbul ΣΑΣ ẞ")
@example("\u0301a\u0301\u0901 \u093f\u0915\u093f")
@given(TEXT)
def test_words_are_the_readable_ones(text: str) -> None:
    """Each word's hash is that of the readable word, and its span holds it."""
    text = comparable(text)
    data, offsets = utf8_buffers(pa.array([text]))
    end = int(offsets[-1])
    found, at = [], 0
    while True:
        start, at, h = next_word(data, at, end, folded())
        if start == end:
            break
        found.append((split_words(bytes(data[start:at]).decode()), int(h)))
    assert found == [([word], word_hash(word)) for word in words(text)]


def test_polynomial_rolls() -> None:
    """The hash of an n-gram is the polynomial of its words, spread."""
    hashes = [word_hash(w) for w in ("the", "cat", "sat")]
    h = 0
    for one in hashes:
        h = (h * int(BASE) + one) & MASK
    assert int(spread(np.uint64(h))) == ngram_hash(hashes)


def test_case_and_marks_make_no_difference() -> None:
    """What stands between words does not count."""
    assert words("The-Cat,\n sat (x_1)!") == ["the", "cat", "sat", "x", "1"]


# In the order of the assertion: each text has these words, as has every way to write it.
SCRIPTS = {
    "Hindi": ("हिन्दी विकिपीडिया, क़लम।", ["हिन्दी", "विकिपीडिया", "क\u093cलम"]),
    "Tamil": ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
    "Bengali": ("বাংলা ভাষা", ["বাংলা", "ভাষা"]),
    "Thai": ("ภาษาไทย เป็นภาษา", ["ภาษาไทย", "เป็นภาษา"]),
    "Arabic": ("مُحَمَّدٌ كَتَبَ", ["مُحَمَّدٌ", "كَتَبَ"]),
    "Hebrew": ("שָׁלוֹם עוֹלָם", ["שָׁלוֹם", "עוֹלָם"]),
    "Vietnamese": ("Trung tâm Thành phố", ["trung", "tâm", "thành", "phố"]),
    "Korean": ("한국어 말", ["한국어", "말"]),
    "Myanmar": ("မြန်မာ ဘာသာ", ["မြန်မာ", "ဘာသာ"]),
    "astral": ("𑀓𑀸𑀫 𞤊𞤵\U0001e944", ["𑀓𑀸𑀫", "𞤬𞤵\U0001e944"]),
    "compatible": ("ﬁne ＡＢ１ x² 𝐛𝟏", ["fine", "ab1", "x2", "b1"]),
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
def test_marks_belong_to_words_of_every_script(script: str, form: str) -> None:
    """However a text is composed, its words are the same."""
    text, expected = SCRIPTS[script]
    expected = [unicodedata.normalize("NFKC", word) for word in expected]
    assert words(unicodedata.normalize(form, text)) == words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("co\u00adopera\u00adtion", ["cooperation"]),
        ("کتاب\u200cها می\u200cروند", ["کتابها", "میروند"]),
        ("मैं\u200dक श\u200cख", ["मैंक", "शख"]),
        ("word\u2060joiner \ufeffbom r\u200fl", ["wordjoiner", "bom", "rl"]),
        ("葛\U000e0100城 g\ufe0f e\u034f\u0301", ["葛城", "g", "é"]),
        ("a\u200bb \u200d \u00ad", ["a", "b"]),
        ("caf&eacute; e&#769;t&#xE9; co&shy;op AT&amp;T &amp;amp;eacute;a", ["café", "été", "coop", "at", "t", "éa"]),
        ("if&nbsp;x &lt;b&gt; &foo; &notit; &copy2 R&D; &#xD800;", ["if", "x", "b", "foo", "notit", "copy2", "r", "d"]),
        ("\u0301a ́́ -\u0901 1\ufe0f\u20e3", ["a", "1\u20e3"]),
    ],
)
def test_what_is_undone(text: str, expected: list[str]) -> None:
    """Format characters and entities count as what they mean; a zero width space parts words."""
    assert words(text) == expected
