"""JSON that ends with its own sha256: no change of it goes unseen, and what earlier versions wrote is read."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.sealed import FORMAT, parse_sealed, read_run_file, run_file_text, sealed_text


@given(st.data(), st.sampled_from([None, 1]))
def test_no_byte_of_a_sealed_text_can_change_unseen(data, indent):
    value = {"counts": {"rows_in": 1500}, "outputs": [{"sha256": "ab", "path": 'a", "seal": "b'}], "key": "k"}
    text = sealed_text(value, indent).encode()
    assert parse_sealed(text) == value == parse_sealed(json.dumps(value).encode()), "earlier ones have no seal"
    assert json.loads(text).keys() == {*value, "seal"}
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.binary(max_size=2).filter(lambda new: new != text[at : at + 1])) + text[at + 1 :]
    with contextlib.suppress(ValueError):
        assert {name: parse_sealed(changed).get(name) for name in value} == value


def test_a_file_of_a_run_has_its_format_and_cannot_lose_its_seal(tmp_path):
    value = {"step": 120, "identity": {"a": (1, 2), "b": None}, "seconds": 1.5, "before": None}
    path = tmp_path / "state.json"
    path.write_text(run_file_text(value))
    read = {**value, "identity": {"a": [1, 2], "b": None}, "format": FORMAT}
    assert read_run_file(path) == read
    path.write_text(json.dumps(read))
    with pytest.raises(ValueError, match="is missing"):
        read_run_file(path)
    path.write_text('{"step": 3, "format": 1}')
    assert read_run_file(path) == {"step": 3, "format": 1}
