"""A bad value costs its row and no other, whatever it is and wherever it stands."""

from __future__ import annotations

import base64
import datetime
import json
from decimal import Decimal
from itertools import count

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import cli
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow.parquet import encryption
from test_hostile_sources import download

from stages.errors import DataError
from stages.filter.edits import apply_edits
from stages.sources.base import template_fields

HUGE = 10**400
LONG = "9" * 5000  # of more digits than Python reads
SURROGATE = "\ud800"
numbered = count()
any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(HUGE)
    | st.floats()
    | st.text(st.characters(exclude_categories=()))
    | st.just(SURROGATE),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
KEYS = {"url": "url", "rules": [{"metadata": {"score": {"min": 0}, "lang": {"in": ["en"]}}}]}


def good(name: str) -> dict[str, object]:
    return {"text": name, "url": "https://a.test", "score": 1, "lang": "en", "more": {"deep": [1]}}


def write(path, records, kind):
    if kind == "jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        path.write_text(json.dumps(records))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(["text", "url", "score", "lang", "more", SURROGATE]), value=any_json, at=st.integers(0, 2))
@pytest.mark.parametrize(("kind", "ending"), [("jsonl", "jsonl"), ("json_array", "json")])
def test_any_json_value_in_any_field_costs_at_most_its_row(kind, ending, field, value, at, tmp_path):
    folder = tmp_path / str(next(numbered))
    folder.mkdir()
    records = [good("first"), good("last")]
    records.insert(at, good("odd") | {field: value})
    write(folder / f"a.{ending}", records, kind)
    rows, bad = download(folder, kind=kind, path=str(folder), **KEYS)
    assert len(rows) + len(bad) == 3
    assert {"first", "last"} <= {row["text"] for row in rows}
    assert all(row["source_row"] == at for row in bad)
    if field in ("more", SURROGATE):  # nobody asked for it
        assert not bad


@pytest.mark.parametrize(("kind", "ending"), [("jsonl", "jsonl"), ("json_array", "json")])
@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("url", '"\\ud800"', "field 'url' has a lone surrogate"),
        ("lang", '"\\udfff"', "field 'lang' has a lone surrogate"),
        ("score", "1" + "0" * 400, "field 'score' is a number too large for a rule"),
        ("score", LONG, "field 'score' is a number of more digits than can be read"),
        ("text", LONG, "text is a number of more digits than can be read"),
        ("score", '"3"', "field 'score' is str, the rule needs a number"),
    ],
)
def test_the_quarantine_names_the_field(kind, ending, field, value, reason, tmp_path):
    texts = [json.dumps(good("first")), json.dumps(good("odd") | {field: "@"}).replace('"@"', value)]
    text = "\n".join(texts) if kind == "jsonl" else f"[{', '.join(texts)}]"
    (tmp_path / f"a.{ending}").write_text(text)
    rows, (bad,) = download(tmp_path, kind=kind, path=str(tmp_path), **KEYS)
    assert [row["text"] for row in rows] == ["first"]
    assert (bad["source_file"], bad["source_row"]) == (f"a.{ending}", 1) and reason in bad["reason"]


def test_what_nobody_asked_for_costs_nothing(tmp_path):
    (tmp_path / "a.jsonl").write_text(f'{{"text": "a", "n": {LONG}, "s": {{"t": "\\ud800"}}}}\n')
    assert download(tmp_path, kind="jsonl", path=str(tmp_path))[0][0]["text"] == "a"


def test_nan_is_unknown_and_true_is_one(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "score": NaN}\n{"text": "b", "score": true}\n')
    rows, bad = download(tmp_path, kind="jsonl", path=str(tmp_path), rules=[{"metadata": {"score": {"min": 1}}}])
    assert [row["meta.score"] for row in rows] == [None, 1.0] and not bad


ARROW = [
    pa.array(["a", None, "é"], pa.string_view()),
    pa.array(["a", None, "é"], pa.large_string()),
    pa.array(["a", "a", None]).dictionary_encode(),
    pa.array([Decimal("0.65"), None, Decimal("1.00")], pa.decimal128(5, 2)),
    pa.array([True, None, False]),
    pa.array([0.65, None, 1.0], pa.float32()),
    pa.array([2**55, -(2**55), None], pa.timestamp("ms")),
    pa.array([2**31 - 1, None, 0], pa.date32()),
    pa.array([2**62, None, 0], pa.duration("s")),
    pa.array([[2**55], None, []], pa.list_(pa.timestamp("ms"))),
    pa.array([{"d": 2**31 - 1}, None, {"d": 0}], pa.struct([("d", pa.date32())])),
    pa.array([b"\xff", b"a", None], pa.binary()),
    pa.array([1, None, 2], pa.uint64()),
    pa.array([None, None, None], pa.null()),
]


@pytest.mark.parametrize("column", ARROW, ids=lambda column: str(column.type)[:20])
@pytest.mark.parametrize("place", ["text", "url", "score", "lang", "template", "none"])
@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_any_arrow_type_in_any_column_costs_at_most_its_rows(kind, place, column, tmp_path):
    columns = {"text": ["one", "two", "three"], "url": ["u"] * 3, "score": [1.0] * 3, "lang": ["en"] * 3, "x": [0] * 3}
    columns[{"template": "x", "none": "x"}.get(place, place)] = column
    table = pa.table(columns)
    if kind == "parquet":
        pq.write_table(table, tmp_path / "a.parquet")
    else:
        with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
            writer.write_table(table)
    keys = KEYS | ({"template": "{text}: {x}"} if place == "template" else {})
    rows, bad = download(tmp_path, kind=kind, path=str(tmp_path), **keys)
    assert sorted(row["source_row"] for row in [*rows, *bad]) == [0, 1, 2]
    if place == "none":
        assert not bad


@pytest.mark.parametrize(
    ("column", "test", "kept"),
    [
        (pa.array([0.65, 0.5, None], pa.float32()), {"min": 0.65}, [0]),
        (pa.array([0.65, 0.5, None], pa.float32()), {"max": 0.5}, [1]),
        (pa.array([0.5, 0.25, None], pa.float16()), {"min": 0.5}, [0]),
        (pa.array([Decimal("0.65"), Decimal("0.5"), None], pa.decimal128(5, 2)), {"min": 0.65}, [0]),
        (pa.array([True, False, None]), {"min": 1}, [0]),
        (pa.array([3, 2, None]), {"min": 2.5}, [0]),
        (pa.array([2**64 - 1, 1, None], pa.uint64()), {"min": 3}, [0]),
        (pa.array([2**62 + 1, 1, None]), {"min": 2.5}, [0]),
        (pa.array([3, 2, None], pa.int8()), {"min": 10**30}, []),
        (pa.array([Decimal("9" * 70), Decimal(1), None], pa.decimal256(76, 0)), {"min": 3}, [0]),
        (pa.array(["en", "de", None], pa.string_view()), {"in": ["en"]}, [0]),
        (pa.array(["en", "de", None]).dictionary_encode(), {"in": ["en"]}, [0]),
    ],
)
def test_where_and_the_rule_agree_on_every_type(column, test, kept, tmp_path):
    pq.write_table(pa.table({"text": ["a", "b", "c"], "v": column}), tmp_path / "a.parquet")
    rows, bad = download(tmp_path, kind="parquet", path=str(tmp_path), where={"v": test})
    assert [row["source_row"] for row in rows] == kept and not bad
    rows, bad = download(tmp_path, kind="parquet", path=str(tmp_path), rules=[{"metadata": {"v": test}}])
    values = [row["meta.v"] for row in rows]
    passes = [
        v is not None and (v in test["in"] if "in" in test else test.get("min", v) <= v <= test.get("max", v))
        for v in values
    ]
    assert [i for i, passed in enumerate(passes) if passed] == kept and not bad


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ({"score": {"min": 2}}, ""),  # a column beside it has statistics that no date can hold
        ({"when": {"min": 2}}, "where.when compares numbers"),
        ({"inside.b": {"min": 2}}, "where.inside.b: column 'inside' has no field 'b'"),
        ({"several.a": {"min": 2}}, "where.several.a: column 'several' has no field 'a'"),
        ({"score.a": {"min": 2}}, "where.score.a: column 'score' has no field 'a'"),
    ],
)
def test_what_where_cannot_compare_is_a_mistake_of_the_recipe_and_no_damage(where, said, tmp_path):
    columns = {
        "text": ["a", "b"],
        "score": [1, 2],
        "when": pa.array([2**62, -(2**62)], pa.timestamp("us")),
        "inside": [{"a": 1}, {"a": 2}],
        "several": [[{"a": 1}], [{"a": 2}]],
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    if said:
        with pytest.raises(DataError, match=said):
            download(tmp_path, kind="parquet", path=str(tmp_path), where=where)
    else:
        assert [row["text"] for row in download(tmp_path, kind="parquet", path=str(tmp_path), where=where)[0]] == ["b"]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_a_column_that_is_there_twice_is_refused_and_a_bad_row_is_shown(kind, tmp_path):
    def write_table(name, table):
        if kind == "parquet":
            pq.write_table(table, tmp_path / name)
        else:
            with pa.ipc.new_file(str(tmp_path / name), table.schema) as writer:
                writer.write_table(table)

    write_table("twice", pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["text", "text"]))
    with pytest.raises(DataError, match="twice has several columns called 'text'"):
        download(tmp_path, kind=kind, path=str(tmp_path / "twice"))
    write_table("bad", pa.table({"text": [b"how it begins\xff", b"good"]}))
    _, (bad,) = download(tmp_path, kind=kind, path=str(tmp_path / "bad"))
    assert "how it begins" in bad["excerpt"]


@pytest.mark.parametrize("template", ["{score:.1f}", "{text!r}", "{text:>9999999999}"])
def test_a_format_in_a_template_is_refused(template):
    with pytest.raises(DataError, match="has a format, and fields are written as they are"):
        template_fields(template)


@pytest.mark.parametrize(
    ("kind", "name", "data"),
    [
        ("jsonl", "a.jsonl", b'{"text": "first"}\n\xef\xbb\xbf{"text": "last"}\n'),
        ("json_array", "a.json", b'[{"text": "first"}, {"text": "last"}]'),
        ("csv", "a.csv", b"text\nfirst\nlast\n"),
    ],
)
def test_a_byte_order_mark_is_dropped(kind, name, data, tmp_path):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + data)
    rows, bad = download(tmp_path, kind=kind, path=str(tmp_path))
    assert [row["text"] for row in rows] == ["first", "last"] and not bad
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbftext")
    assert download(tmp_path, kind="text", path=str(tmp_path / "a.txt"))[0][0]["text"] == "text"


def test_control_characters_makes_line_ends_alike():
    assert apply_edits("a\r\nb\rc\x07\td\n", ["control_characters"]) == "a\nb\nc\td\n"


def test_page_checksums_are_verified(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [f"text number {i}" for i in range(1000)]})
    pq.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    at = data.index(b"number 500")
    data[at] ^= 1  # still text
    path.write_bytes(data)
    with pytest.raises(DataError, match="is damaged"):
        download(tmp_path, kind="parquet", path=str(path))


class Keys(encryption.KmsClient):
    """A service of keys that keeps them as they are."""

    def wrap_key(self, key_bytes, master_key_identifier):
        return base64.b64encode(key_bytes)


@pytest.mark.parametrize("plaintext_footer", [False, True])
def test_an_encrypted_parquet_is_said_to_be_that(plaintext_footer, tmp_path):
    how = encryption.EncryptionConfiguration("a", column_keys={"b": ["text"]}, plaintext_footer=plaintext_footer)
    factory = encryption.CryptoFactory(lambda _: Keys())
    properties = factory.file_encryption_properties(encryption.KmsConnectionConfig(), how)
    table = pa.table({"text": ["one"] * 100})
    with pq.ParquetWriter(tmp_path / "a.parquet", table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    with pytest.raises(DataError, match=r"a\.parquet .*encrypted.*; write it again without encryption"):
        download(tmp_path, kind="parquet", path=str(tmp_path))
    recipe = {"name": "r", "sources": {"a": {"from": "parquet", "path": str(tmp_path / "a.parquet"), "text": "text"}}}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    for words in (["plan"], ["run"]):
        said = cli(*words, "download", "--recipe", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "out"))
        assert said.returncode in (0, 1) and "write it again without encryption" in said.stdout + said.stderr


def test_a_value_that_a_dictionary_repeats_is_not_held_as_often(tmp_path):
    path = tmp_path / "a.parquet"
    value = "x" * (4 << 20)
    pq.write_table(pa.table({"text": [value] * 60}), path, compression="brotli")  # 250 MB of text in some kilobytes
    group = pq.ParquetFile(path).metadata.row_group(0)
    assert path.stat().st_size < 20_000

    from stages.sources.parquet import MOST_BYTES, batch_rows

    assert batch_rows(group) * len(value) <= MOST_BYTES


def test_an_ordinary_group_is_read_some_hundred_rows_at_a_time(tmp_path):
    from stages.sources.parquet import MOST_BYTES, MOST_ROWS, batch_rows

    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": [f"{i} " * 100 for i in range(5000)], "day": [datetime.date.today()] * 5000}), path
    )
    assert batch_rows(pq.ParquetFile(path).metadata.row_group(0)) == MOST_ROWS == MOST_BYTES // (8 << 20)
