"""AI2 ARC: multiple-choice science questions in parquet, written out as text with the right answer.

    Question: Which of these is a mineral?
    A. wood
    B. quartz
    Answer: B. quartz

Labels are A to E in most rows and 1 to 4 in some; both are kept as they are. The same rows are an evaluation set where
the recipe's `evals` names them (`items`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from stages.sources.base import (
    LICENSE_KEYS,
    Addresses,
    BadRow,
    FieldError,
    FilesConfig,
    Identify,
    Row,
    SourceUnit,
    common_params,
)
from stages.sources.files import files_of
from stages.sources.parquet import convert_rows, decode, units_over
from stages.sources.questions import Question, write_items
from stages.sources.writer import write_parts
from stages.task import Task

COLUMNS = ["question", "choices", "answerKey"]


class Config(FilesConfig):
    """AI2 ARC's parquet files: `from: ai2_arc`."""

    suffixes: ClassVar = (".parquet",)
    kind: Literal["ai2_arc"] = Field(alias="from", description="The kind of source.")
    path: Addresses = Field(
        default="hf://datasets/allenai/ai2_arc/ARC-*/train-*.parquet",
        description="A file, a folder, a glob, or a list of them; local or a URI. Leave test splits out.",
    )
    license: str = Field(
        default="CC-BY-SA-4.0",
        validation_alias=LICENSE_KEYS,
        description="License of the text; not interpreted.",
    )


def units(config: Config, identify: Identify) -> list[SourceUnit]:
    """Cut the files as parquet is cut. Raises DataError when they lack question, choices or answerKey."""
    # The template only names the columns to the cutter; `work` builds the text itself.
    template = "{question}{choices}{answerKey}"
    params = {"text": "", "template": template, "url": None, "meta": config.wanted_columns()}
    specs = units_over(files_of(config), {**params, **common_params(config)}, identify, config.cut_bytes())
    keep = {"meta", "files", "groups", *common_params(config)}
    return [SourceUnit(s.name, s.inputs, {k: v for k, v in s.params.items() if k in keep}, s.weight) for s in specs]


def work(task: Task) -> None:
    """Read one unit. Params: meta, files, groups (a [start, stop) for each input)."""
    write_parts(task, rows(task))


def rows(task: Task) -> Iterator[Row | BadRow]:
    """Return each question as a row. Raises DataError when a file is damaged."""
    return convert_rows(task, to_row, [*COLUMNS, *task.params["meta"]])


def to_row(record: dict[str, Any], file: str, number: int, params: dict[str, Any]) -> Row | BadRow:
    """Return one question as text. A row whose answer is not among its choices is bad."""
    item = to_question(record, file, number, params)
    if isinstance(item, BadRow):
        return item
    try:
        meta = decode({column: record[column] for column in params["meta"]})
    except FieldError as error:
        return BadRow(file, number, str(error))
    return Row(file, number, item.text, None, tuple(meta.values()))


def items(task: Task) -> None:
    """Read an evaluation set. Params: files, groups, as of `work`. Raises DataError at a row that is no question."""
    write_items(task, convert_rows(task, to_question, COLUMNS))


def to_question(record: dict[str, Any], file: str, number: int, params: dict[str, Any]) -> Question | BadRow:
    """Return one record as a question. One whose answer is not among its choices is bad."""
    try:
        values = decode({column: record[column] for column in COLUMNS})
    except FieldError as error:
        return BadRow(file, number, str(error))
    question, choices, key = values.values()
    if not (isinstance(question, str) and isinstance(choices, dict) and isinstance(key, str)):
        return BadRow(file, number, "question, choices or answerKey is null or of a wrong type")
    labels, texts = choices.get("label") or [], choices.get("text") or []
    if len(labels) != len(texts) or key not in labels or not all(isinstance(t, str) for t in texts):
        return BadRow(file, number, f"answerKey {key!r} is not among the labels {labels}", question)
    return Question(file, number, question, texts, labels, labels.index(key))
