"""JSON lines, plain or packed (see `contents`): streamed, one unit a file or a batch of small ones.

A compressed file cannot be entered in the middle, so it is one streaming unit that writes parts.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Literal, TypeVar

from pydantic import Field

from stages.sources.base import (
    LARGEST,
    MAX_RATIO,
    PATIENT,
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
from stages.sources.questions import question_of, write_items
from stages.sources.writer import write_parts
from stages.task import Task

T = TypeVar("T")

SPARE = 1 << 20  # bytes of a line beside its text
ESCAPED = 2  # bytes of a line for one of text, in which few characters are escaped


class Config(StreamConfig):
    """Rows of JSON-lines files: `from: jsonl`."""

    suffixes: ClassVar = tuple(kind + packed for kind in (".jsonl", ".ndjson") for packed in PACKED)
    kind: Literal["jsonl"] = Field(alias="from", description="The kind of source.")


def units(config: Config, identify: Identify) -> list[SourceUnit]:
    """Return one unit a file, small neighbours batched. Raises DataError when nothing matches `path`."""
    return whole_file_units(files_of(config), stream_params(config), identify, config.cut_bytes())


def work(task: Task) -> None:
    """Read one unit. Params: text, template, url, meta, largest, max_ratio, files (a name for each input)."""
    write_parts(task, rows(task))


def rows(task: Task) -> Iterator[Row | BadRow]:
    """Return each line of each file as a row; blank lines are not rows. Raises DataError on a damaged file."""
    return convert_lines(task, row_of)


def items(task: Task) -> None:
    """Read an evaluation set. Params: files. Raises DataError at a line that is no question."""
    write_items(task, convert_lines(task, question_of))


def convert_lines(task: Task, convert: Callable[[Any, str, int, dict[str, Any]], T]) -> Iterator[T | BadRow]:
    """Yield each line, turned by `convert(record, file, row, params)`."""
    for artifact, name in zip(task.inputs, task.params["files"], strict=True):
        longest = ESCAPED * task.params.get("largest", LARGEST) + SPARE
        with open_source(artifact, task.params.get("options")) as stream:
            number = 0
            data = chunks(stream, artifact.path, task.params.get("max_ratio", MAX_RATIO))
            for line in lines(recognized(data, artifact.path, "jsonl"), longest):
                if line is None:
                    yield BadRow(name, number, f"the line has more than {longest:,} bytes; see largest_document")
                    number += 1
                elif line.strip():
                    record = parse(line, name, number)
                    yield record if isinstance(record, BadRow) else convert(record, name, number, task.params)
                    number += 1


def lines(source: Iterable[bytes], longest: int = 1 << 40) -> Iterator[bytes | None]:
    """Yield lines without their ends, from chunks cut anywhere; None for one of more than `longest` bytes, not held."""
    rest: list[bytes] = []
    held = 0
    for chunk in source:
        *whole, tail = chunk.split(b"\n")
        for line in whole:
            yield b"".join([*rest, line]) if held + len(line) <= longest else None
            rest, held = [], 0
        held += len(tail)
        if held <= longest:
            rest.append(tail)
        else:
            rest = []
    if held:
        yield b"".join(rest) if held <= longest else None


def parse(line: bytes, file: str, number: int) -> Any:
    """Return what one line holds, or as a BadRow the reason why it cannot be read."""
    try:
        text = line.removeprefix(codecs.BOM_UTF8).decode("utf-8")
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            raise
        except ValueError:  # a number with thousands of digits
            return PATIENT.decode(text)
    except UnicodeDecodeError as error:
        return BadRow(file, number, f"not valid UTF-8 at byte {error.start}", line[:200].decode("utf-8", "replace"))
    except (ValueError, RecursionError) as error:
        return BadRow(file, number, f"broken JSON: {error}", line[:200].decode("utf-8", "replace"))
