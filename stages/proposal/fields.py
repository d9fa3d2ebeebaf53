"""Which fields of records are the text: by their names where these are known, else by what stands in them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from stages.sources.base import FieldError, pick
from stages.sources.presets import QUESTION

TEXTS = (
    "text",
    "content",
    "body",
    "raw_content",
    "page_content",
    "document",
    "article",
    "markdown",
    "story",
    "passage",
)
PAIRS = (
    ("question", "answer"),
    ("question", "response"),
    ("question", "output"),
    ("query", "response"),
    ("query", "answer"),
    ("problem", "solution"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("input", "output"),
    ("input", "target"),
)
CHOICES = ({"question", "choices", "answerKey"}, {"question", "choices", "answer"})  # ARC's, and jsonl's of `evals`
WORDS = 4  # in the median value of a field, for it to be prose
ASKING = 0.5  # share of the values of a field that end with a question mark, for it to ask
LONGER = 1.5  # times as many characters as a known name's field, for another to be the text


class Choice(NamedTuple):
    """What a source takes of its records."""

    keys: dict[str, Any]  # of the recipe: text or template
    reason: str
    present: float  # share of the records that have it


class Column(NamedTuple):
    """A field with text in it."""

    name: str  # as the recipe reaches it: a.b
    present: float
    words: float  # in the median value
    characters: float  # in the mean one
    asks: float
    distinct: float  # share of the values


def choose(records: Sequence[dict[str, Any]]) -> Choice | None:
    """Return the field or the template that makes the text of such records, None where no field holds prose."""
    columns = {column.name: column for column in columns_of(records)}
    named = next((columns[name] for name in known(columns, TEXTS)), None)
    longest = max(prose(columns), key=lambda column: column.characters, default=None)
    much = named is not None and (longest is None or longest.characters < LONGER * named.characters)
    if named is not None and (much or named in prose(columns)):
        reason = others(f"called {named.name}, as text mostly is", named.name, columns)
        return Choice({"text": named.name}, reason, named.present)
    pair = known_pair(columns) or asking_pair(columns)
    if pair is not None:
        ask, answer = (columns[name] for name in pair)
        reason = others(f"{ask.name} and {answer.name} belong together", f"{ask.name} {answer.name}", columns)
        return Choice({"template": QUESTION % pair}, reason, min(ask.present, answer.present))
    if longest is None:
        return None
    reason = others(f"the longest prose, {longest.characters:,.0f} characters on average", longest.name, columns)
    return Choice({"text": longest.name}, reason, longest.present)


def columns_of(records: Sequence[dict[str, Any]]) -> Iterator[Column]:
    """Yield the fields with text, at the top and one level below."""
    names: dict[str, None] = {}
    for record in records:
        for name, value in record.items():
            inner = value if isinstance(value, dict) else {}
            names |= dict.fromkeys([f"{name}.{key}" for key in inner] if inner else [name])
    for name in names:
        values = [value for record in records if isinstance(value := got(record, name), str)]
        filled = [value for value in values if value.strip()]
        if filled and "{" not in name and "}" not in name:
            yield Column(
                name,
                len(values) / len(records),
                statistics.median(len(value.split()) for value in filled),
                statistics.fmean(len(value) for value in filled),
                sum(value.rstrip().endswith(("?", "？", "؟")) for value in filled) / len(filled),
                len(set(filled)) / len(filled),
            )


def got(record: dict[str, Any], name: str) -> Any:
    """Return the value of a field, None where the record has none."""
    try:
        return pick(record, name)
    except FieldError:
        return None


def prose(columns: dict[str, Column]) -> list[Column]:
    """Return the fields that hold running text: several words, not the same ones again and again."""
    return [column for column in columns.values() if column.words >= WORDS and column.distinct > 0.2]


def known(columns: dict[str, Column], names: Sequence[str]) -> list[str]:
    """Return those of `names`, in their order, that fields have, whatever their case."""
    lower = {name.lower(): name for name in columns}
    return [lower[name] for name in names if name in lower]


def known_pair(columns: dict[str, Column]) -> tuple[str, str] | None:
    """Return the two fields of the first pair of PAIRS that is there."""
    for pair in PAIRS:
        if len(found := known(columns, pair)) == 2:
            return found[0], found[1]
    return None


def asking_pair(columns: dict[str, Column]) -> tuple[str, str] | None:
    """Return a field that asks, and the longest of the fields that could answer, whatever they are called."""
    asking = [column for column in columns.values() if column.asks >= ASKING and column.words >= 3]
    if not asking:
        return None
    ask = max(asking, key=lambda column: column.distinct)
    rest = [column for column in columns.values() if column not in asking and column.distinct > 0.2]
    answer = max(rest, key=lambda column: column.characters, default=None)
    return None if answer is None else (ask.name, answer.name)


def others(reason: str, taken: str, columns: dict[str, Column]) -> str:
    """Return a reason, with the names of the other fields that hold prose."""
    left = [column.name for column in prose(columns) if column.name not in taken.split()]
    return f"{reason}; there are also {', '.join(left[:4])}" if left else reason
