"""`from: warc`: pages as crawls keep them; what is no page, what is damaged, and what attacks."""

from __future__ import annotations

import gzip
import io
import itertools
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from stage_harness import identify, rows_of, run_unit
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from stages.errors import DataError
from stages.sources import warc
from stages.sources.base import BadRow, Row
from stages.sources.registry import SourceConfig
from stages.task import Artifact, Task

ADAPTER: TypeAdapter[Any] = TypeAdapter(SourceConfig)
folders = itertools.count()
MAIN = "The main text of a page is what is left when its navigation has been taken away, and it has whole sentences."
PAGE = f"<html><head><title>A title</title></head><body><nav><a href=/>Home</a></nav><main><p>{MAIN}</p></main></body>"


def record(kind: str, url: str, body: bytes) -> bytes:
    """One record, written by hand."""
    lines = ("WARC/1.0", f"WARC-Type: {kind}", f"WARC-Target-URI: {url}", "WARC-Date: 2024-01-02T03:04:05Z")
    lines += ("WARC-Record-ID: <urn:uuid:1>", "Content-Type: application/http", f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + body + b"\r\n\r\n"


def answer(body: bytes, kind: str = "text/html; charset=utf-8", status: str = "200 OK", more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}\r\n".encode() + body


def download(folder: Path, data: bytes, name: str = "a.warc", **keys: Any) -> tuple[list[Any], list[Any]]:
    """All rows of a file, and of its quarantine."""
    (folder / name).write_bytes(data)
    config = ADAPTER.validate_python({"from": "warc", "path": str(folder / name), **keys})
    place = folder / f"out{next(folders)}"
    records = [run_unit(place, warc.work, unit.params, unit.inputs) for unit in warc.units(config, identify)]
    parts = rows_of(path for done in records for path in done.named("part-"))
    return parts, rows_of(done.output("quarantine") for done in records)


def read(data: bytes, folder: Path) -> list[Row | BadRow]:
    path = folder / "x.warc"
    path.write_bytes(data)
    params = {"text": "text", "template": None, "url": None, "meta": {}, "files": ["x"]}
    return list(
        warc.rows(Task(params, [Artifact(str(path), "", name="x")], str(folder / "work"), "x", lambda a: a.path))
    )


def test_a_page_is_its_main_text_and_its_address_and_the_rest_is_none(tmp_path):
    data = record("warcinfo", "", b"software: a crawler")
    data += record("request", "http://a.org/1", b"GET / HTTP/1.1\r\n\r\n")
    data += record("response", "http://a.org/1", answer(PAGE.encode()))
    data += record("response", "http://a.org/2", answer(b"gone", status="404 Not Found"))
    data += record("response", "http://a.org/3", answer(b"\x89PNG", kind="image/png"))
    data += record("response", "http://a.org/4", answer(b"plain", kind="text/plain"))
    data += record("conversion", "http://a.org/5", "Überall Text".encode())
    rows, bad = download(tmp_path, data)
    assert [(row["text"], row["url"], row["source_row"]) for row in rows] == [
        (MAIN, "http://a.org/1", 2),
        ("plain", "http://a.org/4", 5),
        ("Überall Text", "http://a.org/5", 6),
    ]
    assert bad == [] and {row["source_file"] for row in rows} == {"a.warc"}
    rows, _ = download(tmp_path, data, template="{title}: {text}")
    assert rows[0]["text"] == f"A title: {MAIN}"


def test_a_file_that_warcio_wrote_packed_by_records_is_read(tmp_path):
    file = io.BytesIO()
    writer = WARCWriter(file, gzip=True)
    for number in range(3):
        headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.0")
        page = io.BytesIO(PAGE.replace("A title", str(number)).encode())
        writer.write_record(writer.create_warc_record(f"http://a.org/{number}", "response", page, http_headers=headers))
    rows, _ = download(tmp_path, file.getvalue(), "crawl.warc.gz")
    assert [row["url"] for row in rows] == [f"http://a.org/{number}" for number in range(3)]
    assert {row["text"] for row in rows} == {MAIN}


@pytest.mark.parametrize(
    ("said", "meta", "codec"),
    [
        ("; charset=iso-8859-1", "", "latin-1"),
        ("; charset=rot13", "<meta charset=koi8-r>", "koi8-r"),
        ("", "", "utf-8"),
    ],
)
def test_a_page_is_decoded_as_http_or_it_itself_says(tmp_path, said, meta, codec):
    words = (
        "Слова и ещё слова на странице, которых довольно много" if codec == "koi8-r" else "déjà vu, naïve façade, élan"
    )
    body = f"<html><head>{meta}</head><body><p>{words}</p></body></html>".encode(codec)
    rows, _ = download(tmp_path, record("response", "http://a.org/", answer(body, f"text/html{said}")))
    assert rows[0]["text"] == words


def test_codings_of_http_are_undone_and_broken_ones_go_to_the_quarantine(tmp_path):
    packed = gzip.compress(PAGE.encode())
    whole = b"%x\r\n%s\r\n0\r\n\r\n" % (len(packed), packed)
    more = "Content-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n"
    bomb = gzip.compress(b"x" * 3_000_000)
    data = record("response", "http://a.org/whole", answer(whole, more=more))
    data += record("response", "http://a.org/bomb", answer(bomb, more="Content-Encoding: gzip\r\n"))
    data += record("conversion", "http://a.org/latin", "é".encode("latin-1"))
    data += record("response", "http://a.org/last", answer(PAGE.encode()))
    rows, bad = download(tmp_path, data, largest_document="1MB")
    assert [row["url"] for row in rows] == ["http://a.org/whole", "http://a.org/last"]
    assert [row["reason"].split(";")[0] for row in bad] == [
        "the page has more than 1,000,000 bytes",
        "not valid UTF-8 at byte 0",
    ]
    assert [row["source_row"] for row in bad] == [1, 2]


RECORDS = [record("response", f"http://a.org/{i}", answer(f"<p>Page {i}.</p>".encode())) for i in range(3)]


@given(st.integers(0, sum(map(len, RECORDS))), st.booleans())
def test_a_file_that_is_cut_off_is_named_or_ends_between_two_records(tmp_path_factory, cut, packed):
    folder = tmp_path_factory.mktemp("cut")
    data = b"".join(map(gzip.compress, RECORDS)) if packed else b"".join(RECORDS)
    whole, cut = read(data, folder), min(cut, len(data))
    try:
        rows = read(data[:cut], folder)
    except DataError as error:
        assert "fetch" in str(error) or "no WARC" in str(error)
    else:
        ends = list(itertools.accumulate(len(gzip.compress(r)) if packed else len(r) for r in RECORDS))
        assert cut in ends and rows == whole[: ends.index(cut) + 1]


def test_what_is_no_archive_is_named(tmp_path):
    for data, message in ((b"<html>", "no WARC or WET file"), (b"PK\x03\x04..", "a zip archive"), (b"{}", "no WARC")):
        with pytest.raises(DataError, match=message):
            read(data, tmp_path)
    with pytest.raises(DataError, match="damaged"):
        read(RECORDS[0] + b"something else\r\n" * 9, tmp_path)


def test_elements_nested_without_end_take_no_time(tmp_path):
    began = time.process_time()
    (row,) = read(record("response", "http://a.org/", answer(b"<div>" * 100_000 + MAIN.encode())), tmp_path)
    assert row.text == MAIN and time.process_time() - began < 20  # the search for the main text would take minutes
