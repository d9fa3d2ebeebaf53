"""What all sources share: the keys of their configuration, the rows they yield, the units they are cut into.

A source module has three parts: a `Config` (pydantic, discriminated by `from:`), `units(config, identify)`,
which lists and cuts in the driver, and `work(task)`, which reads one unit and hands its rows to
`stages.sources.parts.write_parts`. This module imports no rule and no other stage: editing those must not make a
download run again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from string import Formatter
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from stages.base import Artifact, DataError
from stages.quantities import quantity

Identify = Callable[[str], tuple[str, int]]  # path or URI -> (digest of the contents, bytes)

Budget = Annotated[int, BeforeValidator(quantity), Field(gt=0)] | None

UNIT_BYTES = 128 << 20  # text in a unit, about; units stay between 64 and 256 MB where the input allows it


class BaseConfig(BaseModel):
    """Keys that every source understands."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    rules: list[str | dict[str, dict[str, Any]]] = Field(
        default_factory=list,
        description="Filter rules in the order they are tried: a name, or {name: {threshold: value}}.",
    )
    edit: list[Literal["mojibake", "control_characters", "pii"]] = Field(
        default_factory=list, description="Edits made before the rules: see `stages/edits.py`. None by default."
    )
    licence: str = Field(default="", description="Licence of the text, repeated in the manifest; not interpreted.")
    origin: str = Field(default="", description="Where the text comes from, for the manifest.")
    revision: str = Field(default="", description="Which version of it, for the manifest.")
    max_documents: Budget = Field(
        default=None,
        description="Budget in documents kept by the filter. Whole units count, so it may be exceeded by one.",
    )
    max_bytes: Budget = Field(default=None, description="Budget in bytes of text kept by the filter (UTF-8).")
    max_tokens: Budget = Field(default=None, description="Budget in tokens kept by the filter, estimated as bytes / 4.")

    @property
    def has_budget(self) -> bool:
        """Whether the source is cut short, so that its units are taken in hash order."""
        return not (self.max_documents is None and self.max_bytes is None and self.max_tokens is None)

    def wanted_columns(self) -> dict[str, str]:
        """Metadata columns the rules read: column -> `number` or `string`.

        Thresholds stay out of it, so that changing one re-runs the filter and not the download.
        """
        wanted: dict[str, str] = {}
        for rule in self.rules:
            for column, test in (rule.get("metadata", {}) if isinstance(rule, dict) else {}).items():
                wanted[column] = "string" if "in" in test else "number"
        return dict(sorted(wanted.items()))


class TextConfig(BaseConfig):
    """Keys of sources whose rows are records with named fields."""

    path: str | list[str] = Field(
        description="A file, a folder, a glob, or a list of them; local or a URI that fsspec opens."
    )
    text: str = Field(default="text", description="Field that holds the text; `a.b` reaches into nested ones.")
    template: str | None = Field(
        default=None,
        description='Builds the text from several fields: "Question: {question}\\nAnswer: {answer}".',
    )
    url: str | None = Field(
        default=None, description="Field that holds the address; by default `url` where there is one."
    )


class Row(NamedTuple):
    """One row as the source has it. `text` is checked by `write_parts`, so it may be anything here."""

    file: str  # relative to the source's root
    row: int  # from 0, in the file
    text: Any
    url: str | None = None
    meta: tuple[Any, ...] = ()  # in the order of the unit's `meta` parameter


class BadRow(NamedTuple):
    """A row that cannot be used, with the reason that a person will read in the quarantine."""

    file: str
    row: int
    reason: str
    excerpt: str = ""


class FieldError(Exception):
    """A field is missing or of the wrong type. The message is the reason for the quarantine."""


@dataclass(frozen=True)
class UnitSpec:
    """One download unit before it runs."""

    name: str  # file and range, unique in the source; its hash orders units of a source with a budget
    inputs: list[Artifact]
    params: dict[str, Any]
    weight: int = 0  # bytes of input, for progress

    order: str = field(init=False, default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", hashlib.blake2b(self.name.encode(), digest_size=8).hexdigest())


def template_fields(template: str) -> list[str]:
    """The fields that `template` names, in order. Raises DataError when it has none or is malformed."""
    try:
        fields = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise DataError(f"template {template!r}: {error}; write {{{{ for a brace") from error
    if not fields or "" in fields:
        raise DataError(f'template {template!r} names no field; write one such as "{{question}}"')
    return list(dict.fromkeys(fields))


def pick(record: dict[str, Any], path: str) -> Any:
    """The value at `path` (`a.b` descends). Raises FieldError naming the fields that are there."""
    value: Any = record
    for name in [path] if path in record else path.split("."):
        if not isinstance(value, dict) or name not in value:
            there = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            raise FieldError(f"no field {path!r} (there: {there[:200]})")
        value = value[name]
    return value


def text_of(record: dict[str, Any], text: str, template: str | None) -> Any:
    """The text of a record: the field `text`, or `template` with its fields filled in. Raises FieldError."""
    if template is None:
        return pick(record, text)
    out = []
    for literal, name, _, _ in Formatter().parse(template):
        out.append(literal)
        if name is not None:
            value = pick(record, name)
            if not isinstance(value, str | int | float) or isinstance(value, bool):
                what = "null" if value is None else type(value).__name__
                raise FieldError(f"field {name!r} is {what}, not text")
            out.append(str(value))
    return "".join(out)


def row_of(record: Any, file: str, number: int, params: dict[str, Any]) -> Row | BadRow:
    """A Row from a JSON record, under the unit's `text`, `template`, `url` and `meta` parameters."""
    if not isinstance(record, dict):
        return BadRow(file, number, f"the row is {type(record).__name__}, not an object", repr(record)[:200])
    try:
        text = text_of(record, params["text"], params["template"])
        meta = tuple(coerce(pick(record, c), kind, c) for c, kind in params["meta"].items())
        url = pick(record, params["url"]) if params["url"] else record.get("url")
    except FieldError as error:
        return BadRow(file, number, str(error), repr(record)[:200])
    return Row(file, number, text, url if isinstance(url, str) else None, meta)


def coerce(value: Any, kind: str, column: str) -> float | str | None:
    """A metadata value as `number` (float) or `string`; null stays null. Raises FieldError on another type."""
    if value is None or (kind == "string" and isinstance(value, str)):
        return value
    if kind == "number" and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise FieldError(f"field {column!r} is {type(value).__name__}, the rule needs a {kind}")


def text_params(config: TextConfig) -> dict[str, Any]:
    """The parameters that decide how a record becomes a row. Raises DataError on a bad template."""
    if config.template is not None:
        template_fields(config.template)
    return {
        "text": config.text,
        "template": config.template,
        "url": config.url,
        "meta": config.wanted_columns(),
    }
