"""One JSON array of objects a file, as MetaMathQA ships: streamed element by element, never loaded whole."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from stages.errors import DataError
from stages.sources.base import MAX_RATIO, PATIENT, BadRow, Identify, Row, SourceUnit, TextConfig, row_of, text_params
from stages.sources.contents import PACKED, chunks, recognized
from stages.sources.files import files_of, open_source, whole_file_units
from stages.sources.writer import write_parts
from stages.task import Task

LONGEST = 1 << 28  # characters in one element; beyond it the array is taken for damaged
SPACE = " \t\n\r"


class Config(TextConfig):
    """Elements of JSON arrays: `from: json_array`."""

    suffixes: ClassVar = tuple(".json" + packed for packed in PACKED)
    kind: Literal["json_array"] = Field(alias="from", description="The kind of source.")


class ArrayError(Exception):
    """The text is not one JSON array. The message says where and what."""


def units(config: Config, identify: Identify) -> list[SourceUnit]:
    """Return one unit a file, small neighbours batched. Raises DataError when nothing matches `path`."""
    return whole_file_units(files_of(config), text_params(config), identify, config.cut_bytes())


def work(task: Task) -> None:
    """Read one unit. Params: text, template, url, meta, largest, files (a name for each input)."""
    write_parts(task, rows(task))


def rows(task: Task) -> Iterator[Row | BadRow]:
    """Yield each element of each file as a row. Raises DataError when an array is cut off or malformed."""
    for artifact, name in zip(task.inputs, task.params["files"], strict=True):
        with open_source(artifact, task.params.get("options")) as stream:
            try:
                raw = recognized(chunks(stream, artifact.path, MAX_RATIO), artifact.path, "json_array")
                for number, record in enumerate(elements(decoded(raw))):
                    yield row_of(record, name, number, task.params)
            except ArrayError as error:
                raise DataError(f"{artifact.path}: {error}; fetch the file again") from error


def decoded(chunks: Iterable[bytes]) -> Iterator[str]:
    """Yield text of UTF-8 chunks cut anywhere.

    Invalid bytes become lone surrogates, so that only the row that holds them is quarantined.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
    for chunk in chunks:
        yield decoder.decode(chunk)
    yield decoder.decode(b"", final=True)


class Buffer:
    """Text not yet consumed, fed from chunks."""

    def __init__(self, chunks: Iterator[str]):
        self.chunks, self.text, self.at, self.seen = chunks, "", 0, 0

    def more(self, size: int = 1) -> bool:
        """Drop what was consumed and read at least `size` more characters; False at the end."""
        self.seen += self.at
        pieces, got = [self.text[self.at :]], 0
        self.at = 0
        for chunk in self.chunks:
            pieces.append(chunk)
            got += len(chunk)
            if got >= size:
                break
        self.text = "".join(pieces)
        return got > 0

    def next(self) -> str:
        """Return the next character that is no white space, not consumed; empty at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in SPACE:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    @property
    def where(self) -> int:
        """Return how many characters were consumed so far."""
        return self.seen + self.at


def elements(chunks: Iterable[str]) -> Iterator[Any]:
    """Yield the elements of the JSON array whose text comes in `chunks`, cut anywhere.

    Holds one chunk and one element. Raises ArrayError naming the character where it goes wrong.
    """
    buffer = Buffer(iter(chunks))
    if buffer.next() != "[":
        raise ArrayError("does not start with '[': not a JSON array (for JSON lines say `from: jsonl`)")
    buffer.at += 1
    if buffer.next() == "]":
        buffer.at += 1
    else:
        while True:
            yield element(buffer)
            mark = buffer.next()
            if mark not in (",", "]"):
                what = f"has {mark!r} after an element" if mark else "is cut off after an element"
                raise ArrayError(f"the JSON array {what}, at character {buffer.where}")
            buffer.at += 1
            if mark == "]":
                break
    if buffer.next():
        raise ArrayError(f"something follows the JSON array, at character {buffer.where}")


DECODER = json.JSONDecoder()


def decode_element(text: str, at: int) -> tuple[Any, int]:
    """Return (the JSON value that begins at `at`, where it ends). Raises JSONDecodeError, RecursionError."""
    try:
        return DECODER.raw_decode(text, at)
    except json.JSONDecodeError:
        raise
    except ValueError:  # a number with thousands of digits
        return PATIENT.raw_decode(text, at)


def element(buffer: Buffer) -> Any:
    """Parse and consume one element, reading on while it is incomplete."""
    buffer.next()
    while True:
        problem = ""
        try:
            value, end = decode_element(buffer.text, buffer.at)
        except json.JSONDecodeError as error:
            problem = f"is cut off or broken ({error.msg})"
        except RecursionError as error:
            raise ArrayError(f"an element is nested too deeply, at character {buffer.where}") from error
        # `12`, `12.` or `12e+` where the text ends may be the start of a longer number.
        if not problem and len(buffer.text) - end >= 4:
            break
        start = buffer.at  # where reading on moves to 0
        # Doubling what is held keeps the repeated attempts linear in the element's length.
        held = len(buffer.text) - buffer.at
        if held > LONGEST:
            raise ArrayError(f"an element is longer than {LONGEST:,} characters, at character {buffer.where}")
        if not buffer.more(max(1, held)):
            if problem:
                raise ArrayError(f"the JSON array {problem}, in the element at character {buffer.where}")
            end -= start
            break
    buffer.at = end
    return value
