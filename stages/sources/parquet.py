"""Parquet files: cut by row groups, read one row group and only the needed columns at a time.

arrow does not check that a string column holds valid UTF-8, so strings are read as bytes and decoded here;
a row that does not decode is quarantined and its neighbours are kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any, ClassVar, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from stages.errors import DataError, TransientError
from stages.paths import escaped, is_remote
from stages.sources.base import (
    BadRow,
    FieldError,
    Identify,
    Row,
    SourceUnit,
    TextConfig,
    coerce,
    excerpt,
    pick,
    template_fields,
    text_of,
    text_params,
)
from stages.sources.contents import HEAD, foreign
from stages.sources.files import files_of, identify_file, open_source
from stages.sources.predicates import matching_rows, may_match
from stages.sources.writer import write_parts
from stages.task import Artifact, Task

T = TypeVar("T")
DAMAGE = (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError)  # what arrow raises of a damaged file
FOOTERS = 8  # read at a time
FOOTER_BYTES = 64 << 10  # asked for at once, as arrow does
SIGNATURE_BYTES = 12 + 16  # a nonce and a tag of AES-GCM
MOST_BYTES = 2 << 30  # of rows decoded at a time, at the worst
MOST_ROWS = 256  # of which the largest that no estimate foresees, values of 8 MB, are MOST_BYTES; fewer are slower
BATCH_BYTES = 32 << 20  # text decoded at a time, about; rows of a book each would fill the memory otherwise


class Config(TextConfig):
    """Rows of parquet files: `from: parquet`."""

    suffixes: ClassVar = (".parquet",)
    kind: Literal["parquet"] = Field(alias="from", description="The kind of source.")
    where: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="Rows to read, by columns: {int_score: {min: 3}}, as the rule `metadata` has it. Others are not "
        "documents of the source at all, and row groups without any are not fetched.",
    )


@dataclass(frozen=True)
class RowGroups:
    """Row groups [start, stop) of one file; stop -1 means all, where the footer could not be read."""

    artifact: Artifact
    start: int
    stop: int
    size: int


def units(config: Config, identify: Identify, unit_bytes: int = 0) -> list[SourceUnit]:
    """Cut the source into units of about `unit_bytes` of text: row-group ranges, small files batched.

    Raises DataError when nothing matches `path` or a file lacks a column, naming those it has. A file whose
    footer cannot be read becomes a unit of its own, which will fail with the reason.
    """
    params = text_params(config)
    if config.where:
        params["where"] = dict(sorted(config.where.items()))
    return units_over(files_of(config), params, identify, unit_bytes or config.cut_bytes())


def columns_of(params: dict[str, Any], there: list[str]) -> list[str]:
    """Return the top-level columns that a unit reads, some of which a file may lack.

    `url` is read where it is there, unless another one is named.
    """
    fields = template_fields(params["template"]) if params["template"] is not None else [params["text"]]
    fields += [*params["meta"], *params.get("where", {}), *([params["url"]] if params["url"] else [])]
    if params["url"] is None and "url" in there:
        fields.append("url")
    return list(dict.fromkeys(f if f in there else f.split(".")[0] for f in fields))


def found_columns(params: dict[str, Any], there: list[str], path: str) -> list[str]:
    """Return `columns_of` a file that has the columns `there`. Raises DataError where one is missing or there twice."""
    wanted = columns_of(params, there)
    if missing := sorted(set(wanted) - set(there)):
        raise DataError(
            f"{escaped(path)} has no column {' or '.join(map(repr, missing))}; its columns are {', '.join(there)}"
        )
    if twice := [name for name in wanted if there.count(name) > 1]:
        raise DataError(f"{escaped(path)} has several columns called {twice[0]!r}; give each a name of its own")
    return wanted


def units_over(
    files: list[tuple[str, str]], params: dict[str, Any], identify: Identify, unit_bytes: int
) -> list[SourceUnit]:
    """Return units over `files`, for any source that reads parquet; see `units`."""
    source_units: list[SourceUnit] = []
    batch: list[RowGroups] = []
    artifacts = []
    for full, name in files:
        digest, size = identify_file(full, params, identify)
        artifacts.append(Artifact(full, digest, name=name, bytes=size))
    with ThreadPoolExecutor(FOOTERS) as pool:
        found = list(pool.map(lambda artifact: list(row_group_ranges(artifact, params, unit_bytes)), artifacts))
    for several in found:
        for piece in several:
            if batch and sum(p.size for p in batch) + piece.size > unit_bytes:
                source_units.append(unit_over(batch, params))
                batch = []
            batch.append(piece)
            if piece.stop < 0:  # a damaged file must not take its neighbours with it
                alone = batch.pop()
                source_units += [unit_over(batch, params)] if batch else []
                source_units.append(unit_over([alone], params))
                batch = []
    return [*source_units, unit_over(batch, params)] if batch else source_units


def row_group_ranges(artifact: Artifact, params: dict[str, Any], unit_bytes: int) -> Iterator[RowGroups]:
    """Yield row-group ranges of one file, each at most `unit_bytes` of the needed columns where row groups allow."""
    full, size = artifact.path, artifact.bytes
    try:
        with open_source(artifact, params.get("options")) as stream:
            footer = read_footer(stream)
            there = footer.schema.to_arrow_schema().names
    except TransientError as error:
        raise DataError(f"{error}; its footer is needed to cut it into units: try again later") from error
    except DAMAGE:
        yield RowGroups(artifact, 0, -1, size)
        return
    needed = found_columns(params, there, full)
    start = total = 0
    for group in range(footer.num_row_groups):
        info = footer.row_group(group)
        weight = sum(
            info.column(c).total_uncompressed_size
            for c in range(info.num_columns)
            if info.column(c).path_in_schema.split(".")[0] in needed
        )
        if group > start and total + weight > unit_bytes:
            yield RowGroups(artifact, start, group, total)
            start, total = group, 0
        total += weight
    yield RowGroups(artifact, start, footer.num_row_groups, total)


def read_footer(stream: IO[bytes]) -> pq.FileMetaData:
    """Return the footer of a parquet file. Raises what DAMAGE names, also where columns are encrypted.

    A readable footer beside encrypted columns is signed, which arrow does not say, and it ends the process when it is
    asked about such a column (apache/parquet-format, Encryption.md, "Plaintext footer mode").
    """
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - FOOTER_BYTES))
    tail = stream.read()
    length = int.from_bytes(tail[-8:-4], "little")
    if len(tail) < length + 8 <= size:
        stream.seek(size - length - 8)
        tail = stream.read()
    footer = pq.read_metadata(pa.BufferReader(tail))
    if length - footer.serialized_size == SIGNATURE_BYTES:
        raise OSError("no key to decrypt its columns")
    return footer


def unit_over(batch: list[RowGroups], params: dict[str, Any]) -> SourceUnit:
    """Return one unit over the row groups in `batch`."""
    first = batch[0]
    more = f"+{len(batch) - 1}" if len(batch) > 1 else ""
    groups = f"[{first.start}:{first.stop}]" if first.stop >= 0 else ""
    return SourceUnit(
        f"{first.artifact.name}{groups}{more}",
        [p.artifact for p in batch],
        {
            **params,
            "files": [p.artifact.name for p in batch],
            "groups": [[p.start, p.stop] for p in batch],
        },
        sum(p.size for p in batch),
    )


def what_is_wrong(artifact: Artifact, params: dict[str, Any], error: Exception) -> str:
    """Return why a file that arrow refused with `error` cannot be read, and what to do."""
    with open_source(artifact, params.get("options")) as stream:
        other = foreign(stream.read(HEAD), "parquet")
    if other or "decrypt" not in str(error):
        return other or f"is damaged ({first_line(error)}); fetch the file again"
    return "has encrypted columns; write it again without encryption"


def work(task: Task) -> None:
    """Read one unit. Params: text, template, url, meta, files, groups (a [start, stop) for each input)."""
    write_parts(task, rows(task))


def rows(task: Task) -> Iterator[Row | BadRow]:
    """Return the rows of a unit's row groups. Raises as `convert_rows` does."""
    return convert_rows(task, to_row)


def convert_rows(
    task: Task, convert: Callable[[dict[str, Any], str, int, dict[str, Any]], T], columns: list[str] | None = None
) -> Iterator[T]:
    """Yield the rows of a unit's row groups, each turned by `convert(record, file, row, params)`.

    Raises DataError when a file is damaged, TransientError when its remote file system fails.
    """
    params, where = task.params, task.params.get("where", {})
    for artifact, name, (start, stop) in zip(task.inputs, params["files"], params["groups"], strict=True):
        try:
            with open_source(artifact, params.get("options")) as stream:
                footer = read_footer(stream)
                # Of a remote file, what a row group's columns need is asked for in as few ranges as they lie in.
                remote = is_remote(artifact.path)
                file = pq.ParquetFile(stream, metadata=footer, pre_buffer=remote, page_checksum_verification=True)
                last = file.num_row_groups if stop < 0 else stop
                wanted = columns or columns_of(params, file.schema_arrow.names)
                first = sum(footer.row_group(g).num_rows for g in range(start))
                for group in range(start, last):
                    rows = footer.row_group(group).num_rows
                    number, first = first, first + rows
                    if not may_match(footer.row_group(group), where):
                        task.count("where", rows)
                        continue
                    size = batch_rows(footer.row_group(group))
                    for batch in file.iter_batches(size, [group], columns=wanted):
                        places, chosen = matching_rows(batch, where)
                        if where:
                            task.count("where", batch.num_rows - chosen.num_rows)
                        for place, record in zip(places, records(chosen), strict=True):
                            yield convert(record, name, number + place, params)
                        number += batch.num_rows
        except MemoryError as error:  # arrow's too, of which one is both
            raise too_large(artifact.path, error) from error
        except DAMAGE as error:  # of a remote file, OSError has become TransientError
            raise DataError(f"{artifact.path} {what_is_wrong(artifact, params, error)}") from error


def too_large(path: str, error: MemoryError) -> DataError:
    """Return the error about a file of which a page, the least that can be unpacked, is more than there is memory."""
    return DataError(
        f"{escaped(path)} cannot be unpacked in the memory that there is ({first_line(error)}): it has rows or pages "
        "as large as that, or is damaged; use fewer --workers, or write it again with smaller row groups"
    )


def batch_rows(group: pq.RowGroupMetaData) -> int:
    """Return how many rows of a group to decode at a time.

    They stay near BATCH_BYTES by the group's mean row, and below MOST_BYTES were each the longest value that one of its
    dictionaries is likely to hold: there a value is stored once, however often it stands.
    """
    mean = group.total_byte_size // max(1, group.num_rows)
    longest = max((longest_repeated(group.column(c)) for c in range(group.num_columns)), default=0)
    return max(1, min(MOST_ROWS, BATCH_BYTES // max(1, mean), MOST_BYTES // max(1, longest)))


def longest_repeated(column: pq.ColumnChunkMetaData) -> int:
    """Return about the most bytes of a value in the dictionary of a column, 0 where it has none."""
    if not column.has_dictionary_page or not column.total_compressed_size:
        return 0
    packed = max(0, column.data_page_offset - (column.dictionary_page_offset or 0))
    ratio = max(50, column.total_uncompressed_size // column.total_compressed_size)
    return min(column.total_uncompressed_size, packed * ratio)


def first_line(error: Exception) -> str:
    """Return the first line of a message, which for arrow is the one that says what is wrong."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def records(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    """Yield each row as a dict; strings at the top level arrive as bytes so that bad UTF-8 is seen row by row."""
    columns = []
    for column in batch.columns:
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_string(column.type):
            column = column.cast(pa.binary())
        elif pa.types.is_large_string(column.type):
            column = column.cast(pa.large_binary())
        elif pa.types.is_string_view(column.type):
            column = column.cast(pa.binary_view())
        try:
            values = column.to_pylist()
        except (ValueError, OverflowError):  # UTF-8 inside a nested value, a date beyond year 9999: one row is blamed
            values = list(column)
        if pa.types.is_float32(column.type):  # .65 is the number that was written, not .649999976
            values = [None if v is None else float(str(np.float32(v))) for v in values]
        columns.append(values)
    for values in zip(*columns, strict=True):
        yield dict(zip(batch.schema.names, values, strict=True))


def decode(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record with its strings decoded. Raises FieldError on invalid UTF-8 and on dates out of range."""
    out = {}
    for name, value in record.items():
        try:
            value = value.as_py() if isinstance(value, pa.Scalar) else value
            out[name] = value.decode("utf-8") if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            raise FieldError(f"field {name!r} is not valid UTF-8 at byte {error.start}") from error
        except (ValueError, OverflowError) as error:
            raise FieldError(f"field {name!r} cannot be read ({first_line(error)})") from error
    return out


def to_row(record: dict[str, Any], file: str, number: int, params: dict[str, Any]) -> Row | BadRow:
    """Return a Row from one record as `records` gives it."""
    try:
        values = decode(record)
        text = text_of(values, params["text"], params["template"])
        meta = tuple(coerce(pick(values, c), kind, c) for c, kind in params["meta"].items())
        url = pick(values, params["url"]) if params["url"] else values.get("url")
    except FieldError as error:
        return BadRow(file, number, str(error), excerpt(record))
    return Row(file, number, text, url if isinstance(url, str) else None, meta)
