"""The incremental splitter of JSON arrays: any chunking, any damage."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.sources.json_array import ArrayError, decoded, elements

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.slow
@given(st.lists(values, max_size=6), st.lists(st.integers(0, 10**6), max_size=8), st.booleans(), st.booleans())
def test_any_chunking(array, cuts, ascii_only, spaced):
    text = json.dumps(array, ensure_ascii=ascii_only, indent=2 if spaced else None)
    data = text.encode("utf-8", "surrogatepass")
    assert list(elements(decoded(pieces(data, cuts)))) == json.loads(text)


@pytest.mark.slow
@given(st.lists(values, min_size=1, max_size=4), st.data())
def test_cut_off_anywhere(array, data):
    text = json.dumps(array)
    end = data.draw(st.integers(0, len(text) - 1))
    with pytest.raises(ArrayError):
        list(elements([text[:end]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1}', "from: jsonl"),
        ("", "does not start"),
        ("[1, 2", "cut off"),
        ("[1 2]", "'2' after an element"),
        ("[1, 2] 3", "follows"),
        ("[1, , 2]", "broken"),
        ("[1, 2,]", "broken"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_damage_is_named(text, message):
    with pytest.raises(ArrayError, match=message):
        list(elements([text]))


def test_a_long_element_in_small_chunks_is_linear():
    text = json.dumps([{"text": "x" * 3_000_000}, 7])
    chunks = (text[i : i + 1000] for i in range(0, len(text), 1000))
    assert [type(e) for e in elements(chunks)] == [dict, int]


def test_invalid_bytes_become_surrogates_and_a_mark_is_skipped():
    assert list(elements(decoded([b'\xef\xbb\xbf["a\xff", "b"]']))) == ["a\udcff", "b"]
