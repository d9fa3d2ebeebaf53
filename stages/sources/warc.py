"""Pages of the web as crawls keep them: WARC and WET files (ISO 28500), plain or packed, streamed record by record.

A `response` is a page where the server said 200 and sent HTML or plain text: of HTML the main text is taken, without
navigation and what else surrounds it. A `conversion`, as WET files have, is text already. Other records are no rows.
The row of a page is the number of its record in the file. warcio reads the records, resiliparse the pages; the release
of resiliparse is a parameter of each unit, as another one may find other text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from stages.errors import DataError
from stages.extras import extra_versions
from stages.sources.base import (
    LARGEST,
    MAX_RATIO,
    BadRow,
    Identify,
    Row,
    SourceUnit,
    StreamConfig,
    row_of,
    stream_params,
)
from stages.sources.contents import PACKED, chunks, recognized
from stages.sources.files import files_of, open_source, whole_file_units
from stages.sources.writer import write_parts
from stages.task import Task

HTML = ("text/html", "application/xhtml+xml")
# Where elements lie deeper, as in browsers none do, the search for the main text takes time by the square of the depth.
DEEP = ">".join(["*"] * 512)
CHUNK = 1 << 20


class Config(StreamConfig):
    """Pages of WARC and WET files: `from: warc`.

    The fields of a page are text, title, url and date.
    """

    suffixes: ClassVar = tuple(kind + packed for kind in (".warc", ".wet") for packed in PACKED)
    kind: Literal["warc"] = Field(alias="from", description="The kind of source.")

    @model_validator(mode="after")
    def _packages_are_here(self) -> Config:
        versions()
        return self


def versions() -> dict[str, str]:
    """Return the releases of the packages that read pages. Raises ValueError where one is not installed."""
    return extra_versions(("warcio", "resiliparse"), "from: warc needs", "warc")


def units(config: Config, identify: Identify) -> list[SourceUnit]:
    """Return one unit a file, small neighbours batched. Raises DataError when nothing matches `path`."""
    params = {**stream_params(config), "versions": versions()}
    return whole_file_units(files_of(config), params, identify, config.cut_bytes())


def work(task: Task) -> None:
    """Read one unit. Params: text, template, url, meta, largest, max_ratio, versions, files (a name for each input)."""
    write_parts(task, rows(task))


def rows(task: Task) -> Iterator[Row | BadRow]:
    """Yield each page of each file as a row. Raises DataError on a damaged file."""
    for artifact, name in zip(task.inputs, task.params["files"], strict=True):
        with open_source(artifact, task.params.get("options")) as stream:
            data = chunks(stream, artifact.path, task.params.get("max_ratio", MAX_RATIO))
            for number, record in enumerate(records(recognized(data, artifact.path, "warc"), artifact.path)):
                page = page_of(record, task.params.get("largest", LARGEST))
                finish(record, f"{artifact.path}: record {number}")
                if isinstance(page, str):
                    yield BadRow(name, number, page, record.rec_headers.get_header("WARC-Target-URI") or "")
                elif page is not None:
                    yield row_of(page, name, number, task.params)


def records(data: Iterator[bytes], path: str) -> Iterator[Any]:
    """Yield warcio's records of a file's unpacked chunks. Raises DataError where they are none, and as `versions`."""
    versions()
    from warcio.archiveiterator import ArchiveIterator

    stream = Chunks(data)
    found = ArchiveIterator(stream, no_record_parse=True)  # which takes half an answer for the end
    while True:
        try:
            record = next(found, None)
            if record is None and not stream.end.replace(b"\r", b"").endswith(b"\n\n"):
                raise DataError(f"{path} is cut off behind its last whole record; fetch the file again")
        except DataError:
            raise
        except Exception as error:  # of a damaged header it raises whatever its code meets
            what = (str(error).splitlines() or [""])[0][:200]
            raise DataError(f"{path} is cut off or damaged ({what}); fetch the file again") from error
        if record is None:
            return
        yield record


class Chunks:
    """A stream over chunks, as parsers read one. `end` has the last bytes that were read."""

    def __init__(self, source: Iterator[bytes]):
        self.source, self.rest, self.end = source, b"", b""

    def read(self, size: int) -> bytes:
        """Return `size` bytes or less; none at the end."""
        while not self.rest:
            chunk = next(self.source, None)
            if chunk is None:
                return b""
            self.rest = chunk
        given, self.rest = self.rest[:size], self.rest[size:]
        self.end = (self.end + given[-4:])[-4:]
        return given


def page_of(record: Any, largest: int = LARGEST) -> dict[str, Any] | str | None:
    """Return the fields of a record that is a page, why it cannot be read, or None of another record."""
    try:
        kind = page_kind(record)
        if kind is None:
            return None
        body = read_at_most(record.content_stream(), largest + 1)
    except DataError:
        raise
    except Exception as error:  # headers and each coding of HTTP have their own kinds
        return f"the server's answer cannot be read ({type(error).__name__}: {error})"
    if len(body) > largest:
        return f"the page has more than {largest:,} bytes; see largest_document"
    try:
        text, title = text_of_page(body, kind, record)
    except UnicodeDecodeError as error:
        return f"not valid UTF-8 at byte {error.start}"
    address, date = map(record.rec_headers.get_header, ("WARC-Target-URI", "WARC-Date"))
    return {"text": text, "title": title, "url": address, "date": date}


def page_kind(record: Any) -> str | None:
    """Return the type of the page that a record holds, as HTTP names it; None where it holds none.

    Reads the headers of HTTP into the record.
    """
    from warcio.statusandheaders import StatusAndHeadersParser

    if record.rec_type == "conversion":
        return "text/plain"
    scheme = (record.rec_headers.get_header("WARC-Target-URI") or "").partition(":")[0]
    if record.rec_type != "response" or scheme not in ("http", "https"):  # there are records of DNS, too
        return None
    answer = record.http_headers = StatusAndHeadersParser([], verify=False).parse(record.raw_stream)
    if answer.get_statuscode() != "200":
        return None
    kind = (answer.get_header("Content-Type") or "").partition(";")[0].strip().lower()
    return kind if kind in (*HTML, "text/plain") else None


def text_of_page(body: bytes, kind: str, record: Any) -> tuple[str, str | None]:
    """Return a page's text and title. Raises UnicodeDecodeError where a conversion is no UTF-8, which it has to be."""
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.encoding import bytes_to_str, detect_encoding, map_encoding_to_html5
    from resiliparse.parse.html import HTMLTree

    if record.rec_type == "conversion":
        return body.decode("utf-8"), None
    said = (record.http_headers.get_header("Content-Type") or "").lower().partition("charset=")[2]
    charset = map_encoding_to_html5(said.partition(";")[0].strip(" \"'"), fallback_utf8=False)
    text = bytes_to_str(body, charset or detect_encoding(body, from_html_meta=True) or "utf-8")
    if kind not in HTML:
        return text, None
    tree = HTMLTree.parse(text)
    is_deep = tree.document is not None and tree.document.query_selector(DEEP) is not None
    return extract_plain_text(tree, main_content=not is_deep), tree.title


def read_at_most(stream: Any, size: int) -> bytes:
    """Return what a stream has, `size` bytes at most."""
    found = bytearray()
    while len(found) < size and (piece := stream.read(min(CHUNK, size - len(found)))):
        found += piece
    return bytes(found)


def finish(record: Any, what: str) -> None:
    """Read to the end of a record. Raises DataError where the file ends before it."""
    while record.raw_stream.read(CHUNK):
        pass
    if record.length is None or record.raw_stream.limit > 0:
        raise DataError(f"{what} is cut off; fetch the file again")
