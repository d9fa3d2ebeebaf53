"""What stands in files of records before any recipe says which field is the text: their first records, for `init`."""

from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.sources import warc
from stages.sources.arrow import MAGIC
from stages.sources.base import BadRow
from stages.sources.contents import chunks
from stages.sources.csv import text_lines
from stages.sources.files import open_source
from stages.sources.json_array import decoded, elements
from stages.sources.jsonl import lines, parse

RECORDS = 200  # looked at
DELIMITERS = ",;\t|"
Record = dict[str, Any]


def first_records(path: str, kind: str, delimiter: str = ",") -> list[Record]:
    """Return the first records of a file that `from: kind` reads. Raises DataError, OSError, ValueError."""
    with open_source(path) as stream:
        found = READERS[kind](stream, path, delimiter)
        with contextlib.suppress(UnicodeDecodeError):  # what came before it is enough
            return [record for record in islice(found, RECORDS) if isinstance(record, dict)]
    return []


def from_parquet(stream: IO[bytes], path: str, _: str) -> Iterator[Record]:
    """Yield records of a parquet file."""
    for batch in pq.ParquetFile(stream).iter_batches(RECORDS):
        yield from batch.to_pylist()


def from_arrow(stream: IO[bytes], path: str, _: str) -> Iterator[Record]:
    """Yield records of an Arrow file or stream."""
    if stream.read(len(MAGIC)) != MAGIC:
        stream.seek(0)
    for batch in pa.ipc.open_stream(stream):
        yield from batch.to_pylist()


def from_jsonl(stream: IO[bytes], path: str, _: str) -> Iterator[Any]:
    """Yield what the lines of a file hold."""
    for line in lines(chunks(stream, path)):
        if line and line.strip():
            record = parse(line, path, 0)
            if not isinstance(record, BadRow):
                yield record


def from_json_array(stream: IO[bytes], path: str, _: str) -> Iterator[Any]:
    """Yield the elements of an array."""
    yield from elements(decoded(chunks(stream, path)))


def from_csv(stream: IO[bytes], path: str, delimiter: str) -> Iterator[Record]:
    """Yield the rows of a file with a header, as far as they have its columns."""
    csv.field_size_limit(1 << 27)
    rows = csv.reader(text_lines(decoded(chunks(stream, path))), delimiter=delimiter)
    header = next(rows, [])
    for row in rows:
        if len(row) == len(header):
            yield dict(zip(header, row, strict=True))


def from_warc(stream: IO[bytes], path: str, _: str) -> Iterator[Record]:
    """Yield the pages of an archive of the web."""
    for number, record in enumerate(warc.records(chunks(stream, path), path)):
        page = warc.page_of(record)
        warc.finish(record, f"record {number}")
        if isinstance(page, dict):
            yield page


READERS: Mapping[str, Callable[[IO[bytes], str, str], Iterator[Any]]] = {
    "parquet": from_parquet,
    "arrow": from_arrow,
    "jsonl": from_jsonl,
    "json_array": from_json_array,
    "csv": from_csv,
    "warc": from_warc,
}


def delimiter_of(path: str) -> str:
    """Return what separates the fields of a CSV file: the one that cuts its first rows into most, all alike."""
    with open_source(path) as stream:
        head = next(chunks(stream, path), b"")[: 1 << 16].decode("utf-8", "ignore")
    best, most = ",", 1
    for delimiter in DELIMITERS:
        with contextlib.suppress(csv.Error):
            rows = [row for row in islice(csv.reader(io.StringIO(head), delimiter=delimiter), 20) if row]
            rows = rows[:-1] or rows  # the last may be cut
            if rows and len(rows[0]) > most and all(len(row) == len(rows[0]) for row in rows):
                best, most = delimiter, len(rows[0])
    return best
