"""Questions with choices, and the recipe's `evals`: what a trained model is asked, never what it is trained on.

A source that can give them has `items(task)` beside its `work(task)`: it hands its questions to `write_items`. An
evaluation set is small and counts only whole, so it is one unit, and a row that cannot be used is an error, where a
source of text would put it into the quarantine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, field_validator

from stages.errors import DataError
from stages.paths import is_utf8
from stages.schemas import ID, document_id
from stages.sources.base import LICENSE_KEYS, Addresses, BadRow
from stages.task import Task

KINDS = ("ai2_arc", "jsonl")
PROMPT = "Question: {question}\nAnswer:"
LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"

ITEMS = pa.schema(
    [
        ("item_id", ID),  # the document id that the row's `text` has
        ("question", pa.string()),
        ("choices", pa.string()),  # a JSON list of texts
        ("answer", pa.int64()),  # which choice is right, from 0
        ("text", pa.string()),  # question, choices and answer, as `from: ai2_arc` writes a training document
        ("source_file", pa.string()),
        ("source_row", pa.int64()),
    ]
)


class EvalConfig(BaseModel):
    """Questions with choices that a model is scored on while it is trained. Reading them trains nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    kind: Literal["ai2_arc", "jsonl"] = Field(
        alias="from",
        description="ai2_arc: that data set's parquet files. jsonl: objects with `question`, `choices` (a list of "
        "texts) and `answer` (which of them is right: a number from 0, or a letter from A).",
    )
    path: Addresses = Field(description="A file, a folder, a glob, or a list of them; local or a URI.")
    prompt: str = Field(
        PROMPT,
        description="What a choice, after one blank, must follow: {question} is the question. The default is "
        "lm-evaluation-harness's for ARC.",
    )
    license: str = Field(
        "",
        validation_alias=LICENSE_KEYS,
        description="License of the questions, repeated in the manifest; not interpreted.",
    )
    origin: str = Field("", description="Where they come from, for the manifest; `path` by default.")
    revision: str = Field("", description="Which version of them, for the manifest.")

    def addresses(self) -> list[str]:
        """Return the paths, as the recipe has them."""
        return [self.path] if isinstance(self.path, str) else self.path

    @property
    def where(self) -> str:
        """Return where the questions come from, in one text."""
        return self.origin or ", ".join(self.addresses())

    @field_validator("kind", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if value not in KINDS:
            raise ValueError(f"a source of kind {value!r} gives no questions with choices; allowed: {', '.join(KINDS)}")
        return value

    @field_validator("prompt")
    @classmethod
    def _asks(cls, value: str) -> str:
        if value.count("{question}") != 1:
            raise ValueError(f"{value!r} must have {{question}} in it, once")
        if value != value.rstrip(" "):
            raise ValueError(f"{value!r} ends with a blank; leave it out, one stands before every choice")
        return value


class Question(NamedTuple):
    """One item of an evaluation set."""

    file: str  # relative to the set's root
    row: int  # from 0, in the file
    question: str
    choices: list[str]
    labels: list[str]
    answer: int  # index of the right choice

    @property
    def text(self) -> str:
        """Return the item as a training document, right answer and all."""
        options = "\n".join(f"{label}. {text}" for label, text in zip(self.labels, self.choices, strict=True))
        answer = f"{self.labels[self.answer]}. {self.choices[self.answer]}"
        return f"Question: {self.question}\n{options}\nAnswer: {answer}"


def question_of(record: Any, file: str, row: int, params: dict[str, Any]) -> Question | BadRow:
    """Return the Question of a JSON record with `question`, `choices` and `answer`, or the reason why it is none."""
    if not isinstance(record, dict):
        return BadRow(file, row, f"the row is {type(record).__name__}, not an object")
    question, choices, answer = (record.get(key) for key in ("question", "choices", "answer"))
    if not isinstance(question, str) or not isinstance(choices, list) or not all(isinstance(c, str) for c in choices):
        return BadRow(file, row, "needs `question`, a text, and `choices`, a list of texts")
    labels = list(LABELS[: len(choices)])
    if isinstance(answer, str) and answer in labels:
        answer = labels.index(answer)
    if type(answer) is not int or not 0 <= answer < len(labels):
        return BadRow(
            file, row, f"`answer` is {answer!r}; for {len(choices)} choices write a number from 0, or a letter from A"
        )
    return Question(file, row, question, choices, labels, answer)


def write_items(task: Task, questions: Iterable[Question | BadRow]) -> None:
    """Write `questions` as the table `items`, and count them. Raises DataError at the first that cannot be used."""
    columns: list[tuple[Any, ...]] = []
    for item in questions:
        if isinstance(item, BadRow):
            raise unusable(item, item.reason)
        if len(item.choices) < 2 or not item.question.strip() or not all(c.strip() for c in item.choices):
            raise unusable(item, "a question needs a text, and two choices or more that are not empty")
        text = item.text
        if not is_utf8(text):
            raise unusable(item, "a lone surrogate in its text: no valid UTF-8")
        identity = document_id(text)
        choices = json.dumps(item.choices, ensure_ascii=False)
        columns.append((identity, item.question, choices, item.answer, text, item.file, item.row))
    if not columns:
        raise DataError(f"no questions in {', '.join(task.params['files'])}; check what it points at")
    arrays = [pa.array(list(c), f.type) for c, f in zip(zip(*columns, strict=True), ITEMS, strict=True)]
    with task.table("items", ITEMS) as writer:
        writer.write(pa.Table.from_arrays(arrays, schema=ITEMS))
    task.count("items", len(columns))


def unusable(item: Question | BadRow, reason: str) -> DataError:
    """Return the error about one row."""
    return DataError(f"{item.file} row {item.row}: {reason}; an evaluation is scored whole, so mend the row")
