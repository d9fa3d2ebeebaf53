"""Packing and format are decided by what is in a file: read, or named with what would read it."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hostile_sources import download

from stages.errors import DataError
from stages.sources import arrow, contents

PACK = {
    "gzip": gzip.compress,
    "zstd": zstandard.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
}
LINES = b'{"text": "one"}\n{"text": "two"}\n'
TABLE = pa.table({"text": ["a", "b"], "url": ["u", "v"]})


def arrow_bytes(make=pa.ipc.new_stream) -> bytes:
    sink = io.BytesIO()
    with make(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)
        writer.write_table(TABLE)
    return sink.getvalue()


def parquet_bytes() -> bytes:
    sink = io.BytesIO()
    pq.write_table(TABLE, sink)
    return sink.getvalue()


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("name", ["a.jsonl", "b.JSONL.GZ", "c.jsonl.bz2", "d.jsonl.zstd", "e.jsonl.xz", "f.Ndjson.zst"])
def test_any_packing_is_read_under_any_ending(tmp_path, packing, name):
    (tmp_path / name).write_bytes(PACK[packing](LINES))
    rows, bad = download(tmp_path, kind="jsonl", path=str(tmp_path))
    assert [row["text"] for row in rows] == ["one", "two"]
    assert not bad


@pytest.mark.parametrize("packing", PACK)
def test_other_sources_unpack_alike(tmp_path, packing):
    pack = PACK[packing]
    for kind, name, data in (
        ("json_array", "a.json", b'[{"text": "one"}]'),
        ("text", "a.txt", b"one"),
        ("csv", "a.csv", b"text\none\n"),
    ):
        (tmp_path / name).write_bytes(pack(data))
        assert [row["text"] for row in download(tmp_path, kind=kind, path=str(tmp_path / name))[0]] == ["one"]


@settings(max_examples=40)
@given(
    data=st.binary(min_size=1, max_size=400),
    packing=st.sampled_from(sorted(PACK)),
    streams=st.integers(1, 3),
    cut=st.data(),
)
def test_every_byte_comes_back_and_every_cut_is_seen(data, packing, streams, cut):
    packed = PACK[packing](data)
    assert b"".join(contents.chunks(io.BytesIO(packed * streams), "x")) == data * streams
    at = cut.draw(st.integers(8, len(packed) - 1))
    with pytest.raises(DataError):
        list(contents.chunks(io.BytesIO(packed * (streams - 1) + packed[:at]), f"x.{packing}"))


@pytest.mark.parametrize("ending", sorted(contents.ENDINGS))
def test_an_empty_or_unpacked_file_of_a_packed_name_is_an_error(tmp_path, ending):
    file = tmp_path / f"a.jsonl{ending}"
    file.write_bytes(b"")
    with pytest.raises(DataError, match="has 0 bytes, and an empty"):
        download(tmp_path, kind="jsonl", path=str(file))
    file.write_bytes(LINES)
    with pytest.raises(DataError, match="damaged, so fetch it again, or is not packed, so rename it"):
        download(tmp_path, kind="jsonl", path=str(file))


ARRAY = json.dumps([{"text": "x"}])
WRONG = [
    ("jsonl", ARRAY.encode(), "is a JSON array; say `from: json_array`"),
    ("jsonl", b'[\n  {\n "text": "x"}]', "is a JSON array; say `from: json_array`"),
    ("jsonl", b'{\n "text": "x"\n}\n', "holds an object over several lines"),
    ("jsonl", gzip.compress(ARRAY.encode()), "is a JSON array; say `from: json_array`"),
    ("jsonl", parquet_bytes(), "is a parquet file; say `from: parquet`"),
    ("jsonl", arrow_bytes(), "is an Arrow stream; say `from: arrow`"),
    ("jsonl", arrow_bytes(pa.ipc.new_file), "is an Arrow file; say `from: arrow`"),
    ("jsonl", LINES.decode().encode("utf-16"), "is UTF-16; convert it"),
    ("jsonl", LINES.decode().encode("utf-16-le"), "UTF-16LE"),
    ("jsonl", LINES.decode().encode("utf-16-be"), "UTF-16BE"),
    ("jsonl", LINES.decode().encode("utf-32"), "is UTF-32"),
    ("jsonl", gzip.compress(gzip.compress(LINES)), "is packed with gzip"),
    ("jsonl", b"PK\x03\x04" + bytes(60), "is a zip archive"),
    ("jsonl", b"PK\x05\x06" + bytes(18), "is an empty zip archive"),
    ("jsonl", lzma.compress(LINES, lzma.FORMAT_ALONE), "is packed with lzma; unpack it first"),
    ("jsonl", b"\x1f\x9d\x90" + bytes(60), "is packed with compress"),
    ("jsonl", b"\xff\x06\0\0sNaPpY" + bytes(60), "is packed with snappy"),
    ("jsonl", b"<!DOCTYPE html><html>", "is a page of HTML"),
    ("jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
    ("json_array", LINES, "holds JSON objects; say `from: jsonl`"),
    ("json_array", parquet_bytes(), "say `from: parquet`"),
    ("csv", LINES, "say `from: jsonl`"),
    ("csv", "text\nx\n".encode("utf-16"), "is UTF-16"),
    ("parquet", LINES, "say `from: jsonl`"),
    ("parquet", b"text,n\na,1\n", "is text, not parquet; say `from: jsonl`, `csv` or `text`"),
    ("parquet", arrow_bytes(pa.ipc.new_file), "is an Arrow file; say `from: arrow`"),
    ("parquet", bz2.compress(LINES), "is packed with bz2"),
    ("arrow", parquet_bytes(), "say `from: parquet`"),
    ("arrow", LINES, "say `from: jsonl`"),
    ("arrow", b"FEA1" + bytes(60), "is a Feather file of version 1"),
    ("csv", b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
]


@pytest.mark.parametrize(("kind", "data", "said"), WRONG, ids=range(len(WRONG)))
def test_another_format_is_named_with_what_reads_it(tmp_path, kind, data, said):
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(DataError) as raised:
        download(tmp_path, kind=kind, path=str(tmp_path / "a"))
    assert said in str(raised.value)
    assert str(tmp_path / "a") in str(raised.value)


def test_a_text_in_utf_16_is_quarantined_by_that_name_and_its_neighbours_stay(tmp_path):
    (tmp_path / "a.txt").write_bytes("h\xe9llo".encode("utf-16"))
    (tmp_path / "b.txt").write_text("here")
    rows, bad = download(tmp_path, kind="text", path=str(tmp_path))
    assert [row["text"] for row in rows] == ["here"]
    assert "UTF-16" in bad[0]["reason"]


def test_a_line_that_is_a_list_is_one_bad_row(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"[1, 2]\n" + LINES)
    rows, bad = download(tmp_path, kind="jsonl", path=str(tmp_path))
    assert len(rows) == 2
    assert len(bad) == 1


@pytest.mark.parametrize("make", [pa.ipc.new_stream, pa.ipc.new_file])
def test_arrow_is_read_and_every_cut_is_seen(tmp_path, make):
    file, data = tmp_path / "a.arrow", arrow_bytes(make)
    file.write_bytes(data)
    rows, bad = download(tmp_path, kind="arrow", path=str(tmp_path))
    assert [(r["text"], r["url"], r["source_row"]) for r in rows] == [(*"au", 0), (*"bv", 1), (*"au", 2), (*"bv", 3)]
    assert not bad
    for at in range(0, len(data), 8):
        file.write_bytes(data[:at])
        with pytest.raises(DataError):
            download(tmp_path, kind="arrow", path=str(file))
    file.write_bytes(data)
    with pytest.raises(DataError, match=r"has no column 'body'; its columns are text, url"):
        download(tmp_path, kind="arrow", path=str(file), text="body")


@pytest.mark.parametrize("offsets", [(0, 2**30, 3), (0, -5, 3), (0, 2, 1)])
def test_offsets_that_lead_out_of_a_batch_of_arrow_are_damage(tmp_path, offsets):
    good = pa.record_batch([pa.array(["a", "bc"])], ["text"])
    with pa.ipc.new_stream(tmp_path / "a.arrow", good.schema) as writer:
        writer.write_batch(good)
    data, written = (tmp_path / "a.arrow").read_bytes(), struct.pack("<3i", 0, 1, 3)
    assert data.count(written) == 1
    (tmp_path / "a.arrow").write_bytes(data.replace(written, struct.pack("<3i", *offsets)))
    with pytest.raises(DataError, match="is damaged"):
        download(tmp_path, kind="arrow", path=str(tmp_path / "a.arrow"))


def test_text_of_arrow_that_is_no_utf8_costs_its_row(tmp_path):
    column = pa.array([b"good", b"\xff"]).view(pa.string())
    with pa.ipc.new_stream(tmp_path / "a.arrow", pa.schema([("text", pa.string())])) as writer:
        writer.write_batch(pa.record_batch([column], ["text"]))
    rows, bad = download(tmp_path, kind="arrow", path=str(tmp_path / "a.arrow"))
    assert [row["text"] for row in rows] == ["good"]
    assert "not valid UTF-8" in bad[0]["reason"]


@pytest.mark.parametrize("make", [pa.ipc.new_stream, pa.ipc.new_file])
def test_complete_batches_of_the_beginning_of_a_file(make):
    data = arrow_bytes(make)
    ends = [arrow.complete_batches(data[:at]) for at in range(0, len(data) + 1, 8)]
    assert [batches for batches, _ in ends] == sorted(batches for batches, _ in ends)
    assert {batches for batches, _ in ends} == {0, 1, 2}
    assert all(end <= 8 * i for i, (_, end) in enumerate(ends))


def test_a_folder_of_save_to_disk_is_read_without_its_caches(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for name in ("data-00000-of-00001.arrow", "cache-1.arrow"):
        (folder / name).write_bytes(arrow_bytes())
    (folder / "dataset_info.json").write_text("{}")
    (folder / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    rows, _ = download(tmp_path, kind="arrow", path=str(folder))
    assert {row["source_file"] for row in rows} == {"data-00000-of-00001.arrow"}
    assert len(rows) == 4
    (folder / "data-00000-of-00001.arrow").unlink()
    with pytest.raises(DataError, match="is not there; fetch the folder again"):
        download(tmp_path, kind="arrow", path=str(folder))
    (tmp_path / "dataset_dict.json").write_text("{}")
    with pytest.raises(DataError, match="several splits"):
        download(tmp_path, kind="arrow", path=str(tmp_path))


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=12)


@settings(max_examples=60)
@given(rows=st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=5), cut=st.integers(1, 9), tabs=st.booleans())
def test_csv_of_any_text_cut_anywhere(tmp_path_factory, rows, cut, tabs):
    import csv

    from stages.sources import csv as source

    out = io.StringIO(newline="")
    csv.writer(out, "excel-tab" if tabs else "excel", quoting=csv.QUOTE_ALL).writerows([("text", "n"), *rows])
    text = out.getvalue()
    pieces = (text[i : i + cut] for i in range(0, len(text), cut))
    assert "".join(source.text_lines(pieces)) == text
    folder = tmp_path_factory.mktemp("csv")
    (folder / f"a.{'tsv' if tabs else 'csv'}").write_bytes(text.encode())
    read, bad = download(folder, kind="csv", path=str(folder))
    assert [row["text"] for row in read] == [row[0] for row in rows]
    assert not bad


def test_bad_rows_of_csv_leave_their_neighbours(tmp_path):
    data = b'\xef\xbb\xbftext,n\r\nfirst,1\r\n\r\nshort\r\n\xff,2\r\n"bad"x,3\r\nlast,x\r\n"end,4\r\n'
    (tmp_path / "a.csv").write_bytes(data)
    rows, bad = download(tmp_path, kind="csv", path=str(tmp_path))
    assert [(row["text"], row["source_row"]) for row in rows] == [("first", 0), ("last", 4)]
    assert [row["reason"][:30] for row in bad] == [
        "the row has 1 fields, the head",
        "lone surrogate at character 0:",
        "broken CSV: ',' expected after",
        "broken CSV: unexpected end of ",
    ]
    rules = [{"metadata": {"n": {"min": 0}}}]
    rows, bad = download(tmp_path, kind="csv", path=str(tmp_path), rules=rules)
    assert [row["meta.n"] for row in rows] == [1.0]
    assert "field 'n' is 'x', the rule needs a number" in [row["reason"] for row in bad]
    assert "(1 lines, from line 8)" in [row["excerpt"] for row in bad]
    names = ",".join(f"c{i}" for i in range(50_000))
    (tmp_path / "a.csv").write_text(f"{names}\n{names}\n")
    assert "no field 'text'" in download(tmp_path, kind="csv", path=str(tmp_path))[1][0]["reason"]
    (tmp_path / "a.csv").write_bytes(b"text,text\n1,2\n")
    with pytest.raises(DataError, match="several columns called 'text'"):
        download(tmp_path, kind="csv", path=str(tmp_path))


def test_the_ending_of_a_name_is_not_asked_by_a_source(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(parquet_bytes())
    assert len(download(tmp_path, kind="parquet", path=str(tmp_path / "rows"))[0]) == 2
