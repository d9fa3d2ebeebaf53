"""Texts as they are compared: what the quick check lets pass, where forms come from, and lines that stay lines."""

import unicodedata

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.comparable import comparable, comparable_texts, piece_sizes, source_ranges
from stages.kernels import forms
from stages.kernels.forms import rows_to_check
from stages.kernels.unicode import is_ignored, is_mark

PIECES = (
    "a b é e \u0301 \u0327 \u0323 क \u093f \u093c \u094d ऩ \u09c7 \u09be \u1103 \u1161 \u11a8 한 각 ﬁ ½ ² ™ … "
    "\u00ad \u200d \u200b \ufeff \ufe0f \U000e0100 & &amp; &eacute; &#769; &#x301; &shy; &lt &foo; ; amp; # 1 "
    "＆ ； 𝐛 🄀 \U00011131 \U00011127 𞤊 \U0001e944 \U0002f800 \U00040000 \U000e0fff \U0010ffff \u0344 \u0f73 ﷺ ﬀ ´ ¨ ; ·"
)
ENTITIES = (
    "&amp;lt; &amp;amp;lt; &amp;amp; &amp;foo; &amp;#x; &lt;amp; & &am &amp &# &#x &#; &#x; &#0; &#x0; &#1; &#13; "
    "&#10; &#128; &#x85; &#159; &#173; &#1114111; &#1114112; &#x110000; &#xFFFFFFFF; &#xFFFFFFFFF; &#9999999999; "
    "&#99999999999; &#0000000065; &#00000000065; &#xD800; &#xDFFF; &#64976; &NotEqualTilde; &nGt; &ThickSpace; &zwj; "
    "&CounterClockwiseContourIntegral; &caps; &Tab; &NewLine; &a; &a1; &1a; &ampx; &AMP; &Amp; &fjlig; ;"
)
TEXT = st.lists(
    st.sampled_from([*PIECES.split(" "), *ENTITIES.split(" "), " ", "\n", "\r", "\xa0", "\u2028", "\x85"])
    | st.characters(exclude_categories=["Cs"]),
    max_size=12,
).map("".join)


@settings(max_examples=400)
@example(["\xa0\u094d", "\r\u00ad\n", "e\u0301", "&#x301;", "\U0001f100", "&" * 40 + "amp;"])
@given(st.lists(TEXT, max_size=4))
def test_the_column_has_the_form_of_each_text(texts):
    column, rows = comparable_texts(pa.array(["", *texts], pa.string()).slice(1))
    assert column.to_pylist() == [comparable(text) for text in texts]
    assert rows.tolist() == [i for i, text in enumerate(texts) if comparable(text) != text]


@pytest.mark.parametrize("text", [*ENTITIES.split(" "), "e\u0301", "\r&shy;\n", "ﷺ" * 300, "&nGt;" * 200])
def test_a_piece_at_the_end_of_a_batch_and_cut_anywhere(text):
    cut = [text[:i] for i in range(max(0, len(text) - 40), len(text) + 1)]
    texts = [*cut, *(f"x{piece}y {piece}" for piece in cut)]
    assert comparable_texts(pa.array(texts))[0].to_pylist() == [comparable(t) for t in texts]
    for start, end in ((0, 1), (len(cut) - 1, 1), (1, len(cut) - 1)):
        alone = comparable_texts(pa.array(texts).slice(start, end))[0].to_pylist()
        assert alone == [comparable(t) for t in texts[start : start + end]]


def test_a_memory_that_is_full_forgets(monkeypatch):
    """More pieces than it holds, in one text and in many; a piece too long for it; and what it knew before."""
    monkeypatch.setattr(forms, "MOST_PIECES", 8)
    monkeypatch.setattr(forms, "MEMORIES", forms.Memories())
    numbers = [f"&#{n};" for n in range(900, 1000)]
    zalgo = "a" + "\u0316\u0301" * 400
    texts = [*numbers, "".join(numbers), zalgo, "e\u0301", "e\u0301" + zalgo, None, "&lt;", *numbers[:9], "ﷺ" * 2000]
    column = comparable_texts(pa.array(texts, pa.string()))[0].to_pylist()
    assert column == [t and comparable(t) for t in texts]
    assert forms.MEMORIES.memory.counters[forms.PIECES] <= 8


@settings(max_examples=400)
@given(TEXT)
def test_a_form_is_nfkc_wherever_letters_are(text):
    """However composed, a text has one form, but for what is no letter, digit or mark and what stands on it."""
    form = comparable(text)
    if any(map(is_ignored, form)):  # behind a return, or the whole of it
        return
    whole = unicodedata.normalize("NFKC", form)
    assert [c for c in whole if c.isalnum()] == [c for c in form if c.isalnum()]
    assert [c for c in whole if is_mark(c)] == [c for c in form if is_mark(c)] or "\xa0" in text or "…" in text
    if "&" not in unicodedata.normalize("NFKC", text):
        for name in ("NFC", "NFD", "NFKC"):
            other = comparable(unicodedata.normalize(name, text))
            assert unicodedata.normalize("NFKC", other) == whole


@settings(max_examples=400)
@given(TEXT)
def test_lines_stay_lines(text):
    form = comparable(text)
    for end in "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029":
        assert form.count(end) == text.count(end)


@settings(max_examples=400)
@given(TEXT)
def test_pieces_are_the_text_and_its_form(text):
    """Each piece of the text becomes its piece of the form, by itself."""
    form, data = comparable(text), text.encode()
    if form == " " and text != " ":
        return
    at, pieces = 0, []
    for size, form_size in piece_sizes(text):
        pieces.append((data[at : at + size].decode(), form_size))
        at += size
    assert at == len(data) and sum(size for _, size in pieces) == len(form.encode())


def test_ranges_lead_back_to_the_text():
    text = "x caf&eacute; co\u00adop e\u0301t\u00e9 \xa0½ ＡＢ"
    form, data = comparable(text), text.encode()
    assert form == "x café coop été \xa01\u20442 AB"
    for word, written in (
        ("café", "caf&eacute;"),
        ("coop", "co\u00adop"),
        ("été", "e\u0301t\u00e9"),
        ("AB", "ＡＢ"),
        ("2", "½"),
    ):
        start = len(form[: form.index(word)].encode())
        ((a, b),) = source_ranges(text, [(start, start + len(word.encode()))])
        assert data[a:b].decode() == written


@pytest.mark.parametrize("text", ["a" * 100 + " & b; c", "naïve “quotes” … \xa0 漢字 हिन्दी &", "x&;y &a b;", "{&}"])
def test_most_text_needs_no_look(text):
    assert rows_to_check(pa.array([text])).tolist() == []
