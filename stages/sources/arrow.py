"""Arrow files and streams, `from: arrow`: what `datasets` saves to disk, and Feather of version 2.

A file is read as the stream of record batches that it holds. In a folder that `save_to_disk` made, the files that its
`state.json` names are read, and not the caches beside them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import IO, ClassVar, Literal

import pyarrow as pa
from pydantic import Field

from stages.errors import DataError
from stages.paths import escaped
from stages.sources.base import BadRow, Identify, Row, SourceUnit, TextConfig, text_params
from stages.sources.contents import CHUNK, HEAD, check_format
from stages.sources.files import ListedFile, files_of, open_source, whole_file_units
from stages.sources.parquet import DAMAGE, first_line, found_columns, records, to_row, too_large
from stages.sources.writer import write_parts
from stages.task import Task

MAGIC = b"ARROW1\0\0"  # before the stream that a file holds
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
STATE = ("state.json", "dataset_dict.json", "dataset_info.json")  # what save_to_disk puts beside the data
SLICE = 1 << 10  # rows converted at a time


class Config(TextConfig):
    """Rows of Arrow files, such as a folder of `save_to_disk`: `from: arrow`."""

    suffixes: ClassVar = (".arrow", ".feather", *STATE)
    kind: Literal["arrow"] = Field(alias="from", description="The kind of source.")


def units(config: Config, identify: Identify) -> list[SourceUnit]:
    """Return one unit a file, small neighbours batched. Raises DataError when nothing matches `path`."""
    return whole_file_units(data_files(files_of(config), config), text_params(config), identify, config.cut_bytes())


def data_files(files: list[ListedFile], config: Config) -> list[ListedFile]:
    """Return the files with data: where a `state.json` lies beside them, those that it names.

    Raises DataError at a folder of several splits, one of which must be named, and at one that lacks a file.
    """
    named: dict[str, set[str]] = {}  # folder -> its files
    for full, _ in files:
        folder, _, base = full.rpartition("/")
        if base == "dataset_dict.json":
            raise DataError(f"{folder} holds several splits; name those to train on: {config.addresses()[0]}/train")
        if base == "state.json":
            with open_source(full, config.storage_options) as stream:
                try:
                    named[folder] = {str(file["filename"]) for file in json.load(stream)["_data_files"]}
                except (ValueError, KeyError, TypeError, RecursionError) as error:
                    raise DataError(f"{full} is no state of save_to_disk ({error}); name the .arrow files") from error
    there = {full for full, _ in files}
    for folder, wanted in named.items():
        if missing := sorted(base for base in wanted if f"{folder}/{base}" not in there):
            raise DataError(f"{folder}/state.json names {missing[0]}, which is not there; fetch the folder again")
    chosen = []
    for full, name in files:
        folder, _, base = full.rpartition("/")
        if base not in STATE and (folder not in named or base in named[folder]):
            chosen.append((full, name))
    if not chosen:
        raise DataError(f"no Arrow files at {', '.join(config.addresses())}")
    return chosen


def work(task: Task) -> None:
    """Read one unit. Params: text, template, url, meta, largest, files (a name for each input)."""
    write_parts(task, rows(task))


def rows(task: Task) -> Iterator[Row | BadRow]:
    """Yield each row of each file. Raises DataError on a damaged file, and where a column is missing."""
    for artifact, name in zip(task.inputs, task.params["files"], strict=True):
        with open_source(artifact, task.params.get("options")) as stream:
            buffered = io.BufferedReader(stream, CHUNK)  # type: ignore[type-var]
            head = buffered.peek(HEAD)[:HEAD]
            check_format(head, artifact.path, "arrow")
            if head.startswith(MAGIC):
                buffered.read(len(MAGIC))
            number = 0
            try:
                reader = pa.ipc.open_stream(buffered)
                wanted = found_columns(task.params, reader.schema.names, artifact.path)
                for batch in reader:
                    chosen = checked(batch.select(wanted))
                    for start in range(0, batch.num_rows, SLICE):
                        for record in records(chosen.slice(start, SLICE)):
                            yield to_row(record, name, number, task.params)
                            number += 1
            except MemoryError as error:
                raise too_large(artifact.path, error) from error
            except DAMAGE as error:
                raise DataError(
                    f"{escaped(artifact.path)} is damaged ({first_line(error)}); fetch the file again"
                ) from error
            check_end(stream, MAGIC[:6] if head.startswith(MAGIC) else END_OF_STREAM, artifact.path)


def checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return a batch whose offsets stay inside of it, which a damaged file's need not. Raises ArrowInvalid.

    Text that is no UTF-8 is let through: it costs its row.
    """
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            if "UTF8" not in str(error):
                raise
    return batch


def complete_batches(head: bytes) -> tuple[int, int]:
    """Return (record batches that are whole in the first bytes of a file, bytes up to the end of the last of them)."""
    source = pa.BufferReader(head)
    source.seek(len(MAGIC) if head.startswith(MAGIC) else 0)
    batches = end = 0
    try:
        while message := pa.ipc.read_message(source):
            batches += message.type == "record batch"
            end = source.tell()
    except (pa.ArrowException, EOFError, OSError):
        pass  # the cut
    return batches, end


def check_end(stream: IO[bytes], end: bytes, path: str) -> None:
    """Raise DataError when a file that can be entered anywhere does not end with `end`: cut off between two batches."""
    if not stream.seekable():
        return
    stream.seek(0, io.SEEK_END)
    stream.seek(-min(8, stream.tell()), io.SEEK_END)
    if not stream.read(8).endswith(end):
        raise DataError(f"{escaped(path)} is cut off; fetch the file again")
