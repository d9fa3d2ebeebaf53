"""The compiled rules decide, edit and hash exactly as the readable ones do."""

import random
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rules_harness import EVERY, PARSED, PIECES, differences, hostile
from stage_harness import REPO, SHARED, needs_shared

from stages.filter.apply import apply_to_column
from stages.filter.measure import text_hashes
from stages.filter.parse import parse_rules
from stages.filter.rules import RULES
from stages.filter.verdict import BOUNDS, REASONS_OF, measured_rules
from stages.kernels import jit
from stages.kernels.rules import COMPILED, MEASURES_OF, SETTINGS, measure_compiled
from stages.kernels.unicode import ALNUM, ALPHA, BREAK, DIGIT, LIMIT, SPACE, classes

JOINED = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=60).map("".join)


@pytest.mark.slow
def test_classes_are_pythons():
    every, table = list(map(chr, range(0x110000))), classes()
    for flag, test in ((SPACE, str.isspace), (ALPHA, str.isalpha), (ALNUM, str.isalnum), (DIGIT, str.isdecimal)):
        expected = np.fromiter(map(test, every), bool, len(every))
        assert np.array_equal(expected[:LIMIT], table & flag != 0) and not expected[LIMIT:].any()
    assert "".join(every).splitlines(True)[-1][0] == "\u202a", "no line break beyond"
    breaks = [c for c in every[:0x3000] if len(f"a{c}b".splitlines()) == 2]
    assert breaks == [every[p] for p in np.flatnonzero(table & BREAK)]
    # What the kernels take for granted: only one other character has a letter of ASCII alone for its lower case.
    folded = [c for c in every[128:] if c.lower() != c and c.lower()[0] < "\x80"]
    assert folded == ["\u0130", "\u212a"] and "\u0130".lower() == "i\u0307"


@pytest.mark.slow
@settings(max_examples=60)
@given(st.lists(JOINED | st.text(), max_size=8))
@example(texts=["\r\n\ufeff"])
@example(texts=["one line of words.\r\ufeff\nanother line of words."])
def test_any_text(texts):
    assert differences(texts) == []


@pytest.mark.slow
def test_hostile_texts():
    rng = random.Random(0)
    texts = [hostile(rng) for _ in range(1000)]
    assert differences(texts) == []
    said = {reason for rules in PARSED for reason in apply_to_column(pa.array(texts), None, rules)[0]}
    assert len(said) > sum(map(len, REASONS_OF.values())) / 2, "the texts reach most of the rules"


@pytest.mark.slow
def test_extremes():
    long = "x" * 100_000
    texts = ["", long, long + " " + long, "\n" * 70_000, " " * 50_000, ("a" * 9 + " ") * 20_000, "é" * 50_000]
    texts += ["".join(f"{i} w{i}.\n" for i in range(20_000)), "\ta \n" * 9999 + "\t\ta\n", "." * 5000, "[" * 5000]
    assert differences(texts) == []


@pytest.mark.slow
def test_a_line_of_ten_megabytes():
    quality = [{"gopher_quality": {"max_words": 10**8, "min_alphabetic_words": 0.2, "min_mean_word_length": 0}}]
    lines = ["!?" * 500_000, "well-known (old), a-b--! " * 400_000]
    assert differences(lines, [parse_rules(quality)]) == []


@pytest.mark.slow
def test_lines_that_differ_in_white_space_alone_take_no_longer():
    """Their words are the same, their hashes must not be: comparing each with each would take minutes."""
    patterns = ["".join("\t" if i >> k & 1 else " " for k in range(16)) for i in range(60_000)]
    text = "\n".join(f"a{p}b" for p in patterns) + "\n\n" + "\n\n".join(f"c{p}" for p in patterns)
    assert differences([text], PARSED[:1] + PARSED[3:4]) == []


def test_a_slice_of_a_column_with_nulls():
    column = pa.array(["x", None, "Hello there.", "", "two words here"], pa.string()).slice(1, 3)
    rules = parse_rules([{"length": {"min_chars": 3}}])
    reasons, left = apply_to_column(column, None, rules)
    assert reasons == ["empty", "", "empty"] and left.to_pylist()[1] == "Hello there."
    assert text_hashes(column.slice(1, 1)) == text_hashes(pa.array(["hello THERE."]))


def test_metadata_and_compiled_rules_in_their_order():
    texts = pa.array(["short", "short", "a text that is long enough"])
    metas = [{"x": 1.0}, {"x": 5.0}, {"x": 5.0}]
    test, length = {"metadata": {"x": {"min": 3}}}, {"length": {"min_chars": 10}}
    assert apply_to_column(texts, metas, parse_rules([test, length]))[0] == ["metadata_x", "length_short", ""]
    assert apply_to_column(texts, metas, parse_rules([length, test]))[0] == ["length_short", "length_short", ""]


def test_every_threshold_has_its_place():
    for name in COMPILED:
        ((_, thresholds),) = parse_rules([name])
        ((_, settings, _),) = measured_rules([(name, thresholds)])
        edges = {edge for bound in BOUNDS[name] for edge in (bound.low, bound.high) if isinstance(edge, str)}
        assert edges <= set(thresholds) and len(settings) <= SETTINGS
        assert {bound.measure for bound in BOUNDS[name]} == set(MEASURES_OF[name])
    assert {"length", *EVERY} == set(COMPILED) == set(BOUNDS) <= set(RULES)


@pytest.mark.slow
@needs_shared
def test_real_text():
    """Some of every file; `python -m benchmarks.filter --prove` compares all of it."""
    texts = []
    for file in sorted(SHARED.glob("**/*.parquet")):
        if "text" in pq.read_schema(file).names:
            found = pq.read_table(file, columns=["text"])["text"]
            texts += [text for text in found.take(list(range(0, len(found), 150))).to_pylist() if len(text) < 40_000]
    assert len(texts) > 50
    assert differences(texts, PARSED[:5]) == []


SMALL = (
    "import numpy; from stages.kernels.utf8 import decode; assert decode(numpy.array([195, 169], 'u1'), 0) == (233, 2)"
)


@pytest.mark.slow
def test_machine_code_is_kept(tmp_path):
    """Of two processes that want a kernel at once, one compiles it and the other loads what it left, as later ones."""
    environment = {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(REPO)}
    counted = SMALL + "; print(sum(decode.stats.cache_misses.values()), sum(decode.stats.cache_hits.values()))"
    command = [sys.executable, "-c", counted]
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sorted(process.communicate(timeout=120)[0].strip() for process in both) == ["0 1", "1 0"]
    assert subprocess.run(command, env=environment, capture_output=True, text=True).stdout.strip() == "0 1"


@pytest.fixture
def folders(tmp_path, monkeypatch):
    jit.cache_folder.cache_clear()
    (tmp_path / "file").touch()
    monkeypatch.setattr(jit, "folders", lambda: [tmp_path / "file" / "in", tmp_path / "users"])
    yield tmp_path
    jit.cache_folder.cache_clear()


def test_where_the_install_folder_cannot_be_written(folders, monkeypatch, capsys):
    assert jit.cache_folder().startswith(str(folders / "users"))
    jit.cache_folder.cache_clear()
    monkeypatch.setattr(jit, "folders", lambda: [folders / "file" / "in"])
    assert jit.cache_folder() is None
    assert "set NUMBA_CACHE_DIR" in capsys.readouterr().err


def test_no_rule_at_all():
    texts = pa.array(["a", ""])
    assert measure_compiled(texts, np.zeros(2, bool), [], [], np.zeros((2, 0))) is texts
    assert apply_to_column(texts, None, [])[0] == ["", "empty"]
