"""What a file is by its first bytes, whatever its name ends with: how it is packed, and of which format it is.

`chunks` unpacks gzip, zstd, bz2 and xz. What a source cannot read is named by `foreign`, with the `from:` that can.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

import zstandard

from stages.errors import DataError
from stages.paths import escaped

CHUNK = 4 << 20  # bytes asked for at a time; of a remote file one request
ZSTD_SLICE = 4 << 10  # compressed bytes unpacked at a time: zstd makes at most 32,768 times as much of them
SMALL_BYTES = 64 << 20  # unpacked bytes up to which no ratio is suspicious
XZ_MEMORY = 1 << 30  # bytes that unpacking xz may take; its strongest setting takes 65 MB
HEAD = 512  # bytes that say what a file is
PACKED = ("", ".gz", ".zst", ".zstd", ".bz2", ".xz")  # endings of a plain file and of packed ones

MAGIC = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\0", "xz"),
)
ENDINGS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2", ".xz": "xz"}
FORMATS = (
    (b"PAR1", "a parquet file", "say `from: parquet`"),
    (b"PARE", "a parquet file, but encrypted", "write it again without encryption"),
    (b"ARROW1", "an Arrow file", "say `from: arrow`"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "say `from: arrow`"),
    (b"PK\x03\x04", "a zip archive", "unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it first"),
    (b"Rar!", "a rar archive", "unpack it first"),
    (b"\x04\x22\x4d\x18", "packed with lz4", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", "unpack it first"),
    (b"\x1f\x8b", "packed with gzip", "unpack it first"),
    (b"BZh", "packed with bz2", "unpack it first"),
    (b"\xfd7zXZ\0", "packed with xz", "unpack it first"),
    (b"\x5d\0\0", "packed with lzma", "unpack it first: unlzma"),
    (b"\x1f\x9d", "packed with compress", "unpack it first: uncompress"),
    (b"\xff\x06\0\0sNaPpY", "packed with snappy", "unpack it first"),
    (b"PK\x05\x06", "an empty zip archive", "fetch it again"),
    (b"SQLite format 3\0", "an SQLite database", "export its rows as JSON lines"),
    (b"WARC/", "an archive of the web", "say `from: warc`"),
    (b"%PDF-", "a PDF", "extract its text first"),
    (b"Obj\x01", "an Avro file", "convert it to parquet"),
    (b"FEA1", "a Feather file of version 1", "read it with pandas and write it as parquet"),
    (b"\x89HDF\r\n", "an HDF5 file", "convert it to parquet"),
    (b"\x93NUMPY", "an array of numpy, not text", "check `path`"),
    (b"\xff\xfe\0\0", "UTF-32", "convert it: iconv -f UTF-32 -t UTF-8"),
    (b"\0\0\xfe\xff", "UTF-32", "convert it: iconv -f UTF-32 -t UTF-8"),
    (b"\xff\xfe", "UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file", "fetch it with git lfs pull"),
)


class FormatError(DataError):
    """A file is of another format than its source reads."""


def foreign(head: bytes, reads: str) -> str:
    """Return what the file that begins with `head` is and what to do, or "" where `from: <reads>` may read it.

    `reads` is jsonl, json_array, text, csv, parquet, arrow or warc.
    """
    for magic, what, remedy in FORMATS:
        if head.startswith(magic) and f"`from: {reads}`" not in remedy:
            return f"is {what}; {remedy}"
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it first"
    if reads == "warc":
        return "" if head.startswith(b"WARC/") or not head else "is no WARC or WET file; check `path`"
    if reads == "text":
        return ""
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    for order, pattern in (("LE", rb"(?:[\t-\r -~]\0){2}"), ("BE", rb"(?:\0[\t-\r -~]){2}")):
        if re.match(pattern, head):
            return f"is UTF-16 without a mark; convert it: iconv -f UTF-16{order} -t UTF-8"
    if start[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "is a page of HTML, not data; check where it was fetched from"
    if re.match(rb"\[\s*\{", start) or (start.startswith(b"[") and start[1:2] in b"\r\n"):
        return "" if reads in ("json_array", "csv") else "is a JSON array; say `from: json_array`"
    if re.match(rb"\{[ \t]*\r?\n", start) and reads == "jsonl":
        return "holds an object over several lines; write one object a line: jq -c . FILE"
    if re.match(rb'\{\s*"', start) and reads != "jsonl":
        return "holds JSON objects; say `from: jsonl`"
    if reads in ("parquet", "arrow") and head.isascii() and b"\0" not in head and head:
        return f"is text, not {reads}; say `from: jsonl`, `csv` or `text`"
    return ""


def check_format(head: bytes, name: str, reads: str) -> None:
    """Raise FormatError when a file whose unpacked contents begin with `head` is of another format than `reads`."""
    if what := foreign(head, reads):
        raise FormatError(f"{escaped(name)} {what}")


def recognized(source: Iterator[bytes], name: str, reads: str) -> Iterator[bytes]:
    """Yield the chunks of a file, without a byte order mark.

    Raises FormatError at once when its beginning is not what `reads` reads.
    """
    head = b""
    for chunk in source:
        head += chunk
        if len(head) >= HEAD:
            break
    check_format(head[:HEAD], name, reads)
    if head := head.removeprefix(codecs.BOM_UTF8):
        yield head
    yield from source


def chunks(stream: IO[bytes], name: str, max_ratio: float = 0) -> Iterator[bytes]:
    """Yield the file's unpacked bytes, a chunk at a time, by its contents: its name may end as it likes.

    Raises DataError for a damaged file, for one that is not packed though its name says so, and as `check_ratio` does.
    """
    buffered = io.BufferedReader(stream, CHUNK)  # type: ignore[type-var]
    head = buffered.peek(HEAD)[:HEAD]
    packing = next((kind for magic, kind in MAGIC if head.startswith(magic)), "zstd" if is_skippable(head) else "")
    said = next((kind for ending, kind in ENDINGS.items() if name.lower().endswith(ending)), "")
    if said and not head:
        raise DataError(f"{escaped(name)} has 0 bytes, and an empty {said} file has some; fetch the file again")
    if said and not packing:
        raise DataError(
            f"{escaped(name)} is not valid {said}, whatever its name says: it is damaged, so fetch it again, or is not "
            "packed, so rename it"
        )
    if packing == "gzip":
        yield from decompress_gzip(buffered, stream, name, max_ratio)
    elif packing in ("bz2", "xz"):
        yield from decompress(buffered, name, packing, max_ratio)
    elif packing == "zstd":
        yield from decompress_zstd(buffered, name, CHUNK, max_ratio)
    else:
        while chunk := buffered.read(CHUNK):
            yield chunk


def is_skippable(head: bytes) -> bool:
    """Return whether a zstd file begins with a frame that carries no data, as those of pzstd and seekable ones do."""
    return head[1:4] == b"\x2a\x4d\x18" and 0x50 <= head[0] <= 0x5F


def check_ratio(name: str, unpacked: int, packed: int, most: float) -> None:
    """Raise DataError when more than SMALL_BYTES came out, and `most` times what went in (0: no limit)."""
    if most and unpacked > max(SMALL_BYTES, most * packed):
        raise DataError(
            f"{escaped(name)} unpacks to more than {most:g} times its size; if it is meant to, raise the source's "
            "max_ratio"
        )


def decompress_gzip(buffered: IO[bytes], stream: IO[bytes], name: str, max_ratio: float) -> Iterator[bytes]:
    """Yield the unpacked bytes of all gzip members. Raises DataError when one is cut off or damaged."""
    try:
        with gzip.open(buffered) as inner:
            unpacked = 0
            while chunk := inner.read(CHUNK):
                unpacked += len(chunk)
                check_ratio(name, unpacked, stream.tell(), max_ratio)
                yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{escaped(name)} is cut off or damaged ({error}); fetch the file again") from error


def decompress(stream: IO[bytes], name: str, packing: str, max_ratio: float) -> Iterator[bytes]:
    """Yield the unpacked bytes of all bz2 or xz streams, CHUNK at most at a time.

    Raises DataError when the last is cut off or one is damaged.
    """
    make: Callable[[], Any] = (
        bz2.BZ2Decompressor if packing == "bz2" else lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY)
    )
    decoder, inside = make(), False
    packed = unpacked = 0
    while block := stream.read(CHUNK):
        packed += len(block)
        while block or (inside and not decoder.needs_input):
            if not inside and packing == "xz" and not (block := block.lstrip(b"\0")):
                break  # xz pads with zeros between streams
            inside = True
            try:
                data = decoder.decompress(block, CHUNK)
            except (OSError, EOFError, lzma.LZMAError) as error:
                raise DataError(f"{escaped(name)} is not valid {packing} ({error}); fetch the file again") from error
            unpacked += len(data)
            check_ratio(name, unpacked, packed, max_ratio)
            if data:
                yield data
            block = b""
            if decoder.eof:
                block, decoder, inside = decoder.unused_data, make(), False
    if inside:
        raise DataError(f"{escaped(name)} is cut off in the middle of a {packing} stream; fetch the file again")


def decompress_zstd(stream: IO[bytes], name: str, size: int = 1 << 20, max_ratio: float = 0) -> Iterator[bytes]:
    """Yield the decompressed bytes of all zstd frames in `stream`.

    Raises DataError when the last frame is cut off, and as `check_ratio` does. `zstandard`'s own reader ends quietly at
    a cut, which would lose rows without a word.
    """
    decoder = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
    inside = False
    packed = unpacked = 0
    try:
        while block := stream.read(size):
            for start in range(0, len(block), ZSTD_SLICE):
                chunk = block[start : start + ZSTD_SLICE]
                packed += len(chunk)
                while chunk:
                    inside = True
                    data = decoder.decompress(chunk)
                    unpacked += len(data)
                    check_ratio(name, unpacked, packed, max_ratio)
                    if data:
                        yield data
                    chunk = decoder.unused_data if decoder.eof else b""
                    if decoder.eof:
                        decoder = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
                        inside = False
    except zstandard.ZstdError as error:
        raise DataError(f"{escaped(name)} is not valid zstd ({error}); fetch the file again") from error
    if inside:
        raise DataError(f"{escaped(name)} is cut off in the middle of a zstd frame; fetch the file again")
