"""Evaluation sets that a corpus is searched for (`decontaminate.against`): questions, or named columns of any file.

A set of questions with choices is read as `evals` reads it. Of other files each row is an item, and each of the named
columns a passage of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from stages.errors import DataError
from stages.schemas import ID, document_id
from stages.sources import jsonl, parquet
from stages.sources.base import Addresses, BadRow, FieldError, excerpt, pick
from stages.task import Task

PASSAGES_OF = pa.schema(
    [
        ("item_id", ID),  # the document id of the passages, a line each
        ("passages", pa.string()),  # a JSON object: column -> text
        ("source_file", pa.string()),
        ("source_row", pa.int64()),
    ]
)


class AgainstConfig(BaseModel):
    """A set whose items must not be in the corpus. It is read for that alone."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    kind: Literal["ai2_arc", "jsonl", "parquet"] = Field(
        alias="from",
        description="ai2_arc, or jsonl without `fields`: questions with choices, as `evals` has them. parquet, or "
        "jsonl with `fields`: named columns.",
    )
    path: Addresses = Field(description="A file, a folder, a glob, or a list of them; local or a URI.")
    fields: list[str] = Field(
        default_factory=list, description="Columns with text (a.b descends), each a passage of its own."
    )
    revision: str = Field("", description="Of files on the hub: the branch, tag or commit to read.")

    def addresses(self) -> list[str]:
        """Return the paths, as the recipe has them."""
        return [self.path] if isinstance(self.path, str) else self.path

    @model_validator(mode="after")
    def _fits(self) -> AgainstConfig:
        if self.kind == "parquet" and not self.fields:
            raise ValueError("from: parquet needs `fields`, the columns that hold the items' text: [question, answer]")
        if self.kind == "ai2_arc" and self.fields:
            raise ValueError("from: ai2_arc knows its own columns; leave `fields` out, or write from: parquet")
        return self


class Item(NamedTuple):
    """One row of a set with named columns."""

    file: str
    row: int
    passages: dict[str, str]


def from_parquet(task: Task) -> None:
    """Read a set of parquet files. Params: fields, files, groups. Output: `items` (PASSAGES_OF)."""

    def convert(record: dict[str, Any], file: str, row: int, params: dict[str, Any]) -> Item | BadRow:
        try:
            return to_item(parquet.decode(record), file, row, params)
        except FieldError as error:
            return BadRow(file, row, str(error))

    template = "".join(f"{{{name}}}" for name in task.params["fields"])
    task.params |= {"template": template, "text": "", "url": "", "meta": {}}
    write_passages(task, parquet.convert_rows(task, convert))


def from_jsonl(task: Task) -> None:
    """Read a set of JSON-lines files. Params: fields, files. Output: `items` (PASSAGES_OF)."""
    write_passages(task, jsonl.convert_lines(task, to_item))


def to_item(record: Any, file: str, row: int, params: dict[str, Any]) -> Item | BadRow:
    """Return the columns of one record as texts; null is no text."""
    found = {}
    try:
        for name in params["fields"]:
            value = pick(record, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, str | int | float)):
                return BadRow(file, row, f"field {name!r} is {type(value).__name__}, not text", excerpt(record))
            found[name] = "" if value is None else str(value)
    except FieldError as error:
        return BadRow(file, row, str(error))
    return Item(file, row, found)


def write_passages(task: Task, items: Iterable[Item | BadRow]) -> None:
    """Write `items`, and count them. Raises DataError at the first that cannot be read, and where there is no text."""
    columns: list[tuple[Any, ...]] = []
    named = ", ".join(task.params["fields"])
    for item in items:
        if isinstance(item, BadRow):
            raise DataError(f"{item.file} row {item.row}: {item.reason}; mend the row, or name other `fields`")
        try:
            identity = document_id("\n".join(item.passages.values()))
        except UnicodeEncodeError as error:
            raise DataError(f"{item.file} row {item.row}: a lone surrogate in its text; mend the row") from error
        columns.append((identity, json.dumps(item.passages, ensure_ascii=False), item.file, item.row))
    if not columns:
        raise DataError(f"no rows in {', '.join(task.params['files'])}; check what `path` points at")
    if not any(text.strip() for column in columns for text in json.loads(column[1]).values()):
        raise DataError(f"no text in {named} of {', '.join(task.params['files'])}; name other `fields`")
    arrays = [pa.array(list(c), f.type) for c, f in zip(zip(*columns, strict=True), PASSAGES_OF, strict=True)]
    with task.table("items", PASSAGES_OF) as writer:
        writer.write(pa.Table.from_arrays(arrays, schema=PASSAGES_OF))
    task.count("items", len(columns))
