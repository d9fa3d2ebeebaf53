"""CSV and TSV with a header, `from: csv`: streamed, one unit a file or a batch of small ones. Packed or not."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from stages.errors import DataError
from stages.paths import escaped
from stages.sources.base import BadRow, Identify, Row, SourceUnit, StreamConfig, excerpt, row_of, stream_params
from stages.sources.contents import PACKED, chunks, recognized
from stages.sources.files import files_of, open_source, whole_file_units
from stages.sources.json_array import decoded
from stages.sources.writer import write_parts
from stages.task import Task


class Config(StreamConfig):
    """Rows of CSV files with a header: `from: csv`."""

    suffixes: ClassVar = tuple(kind + packed for kind in (".csv", ".tsv") for packed in PACKED)
    kind: Literal["csv"] = Field(alias="from", description="The kind of source.")
    delimiter: str = Field(
        default="", max_length=1, description="What separates fields; by default a tab in .tsv files, else a comma."
    )


def units(config: Config, identify: Identify) -> list[SourceUnit]:
    """Return one unit a file, small neighbours batched. Raises DataError when nothing matches `path`."""
    params = {**stream_params(config), "delimiter": config.delimiter}
    return whole_file_units(files_of(config), params, identify, config.cut_bytes())


def work(task: Task) -> None:
    """Read one unit. Params: those of jsonl, and delimiter."""
    write_parts(task, rows(task))


def rows(task: Task) -> Iterator[Row | BadRow]:
    """Yield each row after the header of each file. Raises DataError on a damaged file."""
    params = task.params
    csv.field_size_limit(max(params["largest"], 1 << 17))
    for artifact, name in zip(task.inputs, params["files"], strict=True):
        delimiter = params["delimiter"] or ("\t" if ".tsv" in name.lower().rpartition("/")[2] else ",")
        with open_source(artifact, params.get("options")) as stream:
            data = recognized(chunks(stream, artifact.path, params["max_ratio"]), artifact.path, "csv")
            reader = csv.reader(text_lines(decoded(data)), delimiter=delimiter, strict=True)
            header: list[str] = []
            number = -1
            while True:
                before = reader.line_num
                try:
                    values = next(reader)
                except StopIteration:
                    break
                except csv.Error as error:
                    if not header:
                        raise DataError(f"{escaped(artifact.path)}: its header cannot be read ({error})") from error
                    number += 1
                    hint = "; see largest_document" if "limit" in str(error) else ""
                    read = reader.line_num - before  # a quote that is not closed takes what follows with it
                    yield BadRow(
                        name, number, f"broken CSV: {error}{hint}", f"({read:,} lines, from line {before + 1:,})"
                    )
                    continue
                if not values:
                    continue  # a blank line
                if not header:
                    header = checked_header(values, artifact.path)
                    continue
                number += 1
                yield record_row(header, values, name, number, params)


def checked_header(values: list[str], path: str) -> list[str]:
    """Return the names of the columns. Raises DataError when two have one name."""
    name, times = Counter(values).most_common(1)[0]
    if times > 1:
        raise DataError(f"{escaped(path)} has several columns called {name!r}; its first row must name the columns")
    return values


def record_row(header: list[str], values: list[str], file: str, number: int, params: dict[str, Any]) -> Row | BadRow:
    """Return a Row of as many fields as the header has. Numbers that a rule reads are converted."""
    record: dict[str, Any] = dict(zip(header, values, strict=False))
    if len(values) != len(header):
        return BadRow(file, number, f"the row has {len(values)} fields, the header {len(header)}", excerpt(record))
    for column, kind in params["meta"].items():
        if kind == "number" and isinstance(record.get(column), str):
            try:
                record[column] = float(record[column]) if record[column] else None
            except ValueError:
                reason = f"field {column!r} is {record[column][:50]!r}, the rule needs a number"
                return BadRow(file, number, reason, excerpt(record))
    return row_of(record, file, number, params)


def text_lines(pieces: Iterator[str]) -> Iterator[str]:
    """Yield lines with their ends, from text cut anywhere."""
    rest: list[str] = []
    for piece in pieces:
        *whole, tail = io.StringIO(piece, newline="").readlines() or [""]
        if whole:
            yield "".join([*rest, whole[0]])
            yield from whole[1:]
            rest = []
        rest.append(tail)
    if any(rest):
        yield "".join(rest)
