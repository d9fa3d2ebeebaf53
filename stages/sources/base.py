"""What all sources share: the keys of their configuration, the rows they yield, the units they are cut into.

`SourceModule` says what a source module has. This module imports no rule and no other stage: editing those must not
make a download run again.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from string import Formatter
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

from stages.errors import DataError
from stages.quantities import quantity
from stages.task import Artifact, Task
from train.redact import is_secret

Identify = Callable[[str], tuple[str, int]]  # path or URI -> (digest of the contents, bytes)

Address = Annotated[str, Field(min_length=1)]  # an empty one would mean the folder that one stands in
Addresses = Address | Annotated[list[Address], Field(min_length=1)]
Budget = Annotated[int, BeforeValidator(quantity), Field(gt=0)] | None

UNIT_BYTES = 128 << 20  # text in a unit or a part, about; between 64 and 256 MB where the input allows it
LEAST_BYTES = 1 << 20  # of a unit or a part of a source with a small budget
BUDGET_UNITS = 16  # at least so many fill a budget, which ends at a whole one
DOCUMENT_BYTES = 4096  # of a document, about, to size the units of a budget in documents
LARGEST = 128 << 20  # bytes of a document that no source's key says otherwise of
MAX_RATIO = 200.0  # bytes that a compressed file may unpack to, by its own
LICENSE_KEYS = AliasChoices("license", "licence")  # recipes may spell it either way


class BaseConfig(BaseModel):
    """Keys that every source understands."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    kind: str = Field(alias="from", description="The kind of source, or a dataset by name.")
    rules: list[str | dict[str, dict[str, Any]]] = Field(
        default_factory=list,
        description="Filter rules in the order they are tried: a name, or {name: {threshold: value}}.",
    )
    words: Literal["punctuation", "blanks"] = Field(
        default="punctuation",
        description="What the rules count as words. `blanks`: what white space separates, as Gopher's paper has it; "
        "`punctuation`: marks at its ends and hyphens between letters are words too, as FineWeb counts.",
    )
    edit: list[Literal["mojibake", "control_characters", "pii"]] = Field(
        default_factory=list, description="Edits made before the rules: see `stages/filter/edits.py`. None by default."
    )
    license: str = Field(
        default="",
        validation_alias=LICENSE_KEYS,
        description="License of the text, repeated in the manifest; not interpreted.",
    )
    origin: str = Field(default="", description="Where the text comes from, for the manifest.")
    revision: str = Field(
        default="",
        description="Which version of it, for the manifest; of a dataset on the hub the branch, tag or commit to read, "
        "where its path names none.",
    )
    max_documents: Budget = Field(
        default=None,
        description="Budget in documents kept by the filter. Whole units count, so it may be exceeded by one, which is "
        "a sixteenth of it or less (but 1 MiB of text, or a row group).",
    )
    max_bytes: Budget = Field(default=None, description="Budget in bytes of text kept by the filter (UTF-8).")
    max_tokens: Budget = Field(default=None, description="Budget in tokens kept by the filter, estimated as bytes / 4.")

    @property
    def has_budget(self) -> bool:
        """Return whether the source is cut short, so that its units are taken in hash order."""
        return not (self.max_documents is None and self.max_bytes is None and self.max_tokens is None)

    def addresses(self) -> list[str]:
        """Return the paths and URIs that the source is read from, as the recipe has them; none of a source without."""
        return []

    def described(self) -> dict[str, str]:
        """Return origin, revision and license of the text, for the manifest; empty where nothing is known."""
        return {
            "origin": self.origin or ", ".join(self.addresses()),
            "revision": self.revision,
            "license": self.license,
        }

    def cut_bytes(self) -> int:
        """Return the bytes of text in a unit or a part, about.

        They are a power of two, so that a budget raised a little reuses the units and parts.
        """
        limits = [self.max_bytes, self.max_tokens and 4 * self.max_tokens]
        limits.append(self.max_documents and DOCUMENT_BYTES * self.max_documents)
        least = min((limit for limit in limits if limit is not None), default=UNIT_BYTES * BUDGET_UNITS)
        return min(UNIT_BYTES, max(LEAST_BYTES, 1 << (least // BUDGET_UNITS).bit_length() >> 1))

    def wanted_columns(self) -> dict[str, str]:
        """Return the metadata columns that the rules read: column -> `number` or `string`.

        Thresholds stay out of it, so that changing one re-runs the filter and not the download.
        """
        wanted: dict[str, str] = {}
        for rule in self.rules:
            for column, test in (rule.get("metadata", {}) if isinstance(rule, dict) else {}).items():
                wanted[column] = "string" if "in" in test else "number"
        return dict(sorted(wanted.items()))


class FilesConfig(BaseConfig):
    """Keys of sources that are files."""

    suffixes: ClassVar[tuple[str, ...]] = ()  # endings of the files that are taken from a folder

    path: Addresses = Field(
        description="A file, a folder, a glob, or a list of them; local, hf://datasets/OWNER/NAME[@REVISION]/PATH, or "
        "any URI that fsspec opens."
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict,
        description="Passed on to fsspec for a URI, such as {anon: true}. No secrets: manifests repeat it.",
    )
    follow_links: bool = Field(
        default=False, description="Read files that a link in a folder leads to outside of it, as hub caches have them."
    )

    def addresses(self) -> list[str]:
        """Return the paths, as the recipe has them."""
        return [self.path] if isinstance(self.path, str) else self.path

    @field_validator("storage_options")
    @classmethod
    def _no_secrets(cls, value: dict[str, Any]) -> dict[str, Any]:
        secret = next(filter(is_secret, keys_of(value)), None)
        if secret:
            raise ValueError(f"{secret!r} looks like a secret, and manifests repeat the recipe; use the environment")
        return value


class RecordConfig(BaseConfig):
    """Keys of sources whose rows are records with named fields."""

    text: str = Field(
        default="text",
        validation_alias=AliasChoices("text", "text_column"),
        description="Field that holds the text (`text_column` is the same); `a.b` reaches into nested ones.",
    )
    template: str | None = Field(
        default=None,
        description='Builds the text from several fields: "Question: {question}\\nAnswer: {answer}".',
    )
    url: str | None = Field(
        default=None, description="Field that holds the address; by default `url`, else `meta.url`, where it is there."
    )
    largest_document: Annotated[int, BeforeValidator(quantity), Field(gt=0, le=1 << 30)] = Field(
        default=LARGEST, description="Bytes of a document (UTF-8) beyond which it goes to the quarantine."
    )


class TextConfig(FilesConfig, RecordConfig):
    """Keys of files of records."""


class StreamConfig(TextConfig):
    """Keys of files that may be compressed and cannot be entered in the middle."""

    max_ratio: float = Field(
        default=MAX_RATIO,
        gt=1,
        description="Bytes that a compressed file may unpack to, by its own bytes, beyond the first 64 MiB.",
    )


def keys_of(value: Any) -> list[str]:
    """Return all keys of nested dicts and lists."""
    if isinstance(value, dict):
        return [*map(str, value), *(key for inner in value.values() for key in keys_of(inner))]
    return [key for inner in value for key in keys_of(inner)] if isinstance(value, list) else []


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
class SourceUnit:
    """One download unit before it runs."""

    name: str  # file and range, unique in the source; its hash orders units of a source with a budget
    inputs: list[Artifact]
    params: dict[str, Any]
    weight: int = 0  # bytes of input, for progress
    file_bytes: Sequence[int] = ()  # of each of `params["files"]`, where one input stands for them all

    order: str = field(init=False, default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", hashlib.blake2b(self.name.encode(), digest_size=8).hexdigest())


class SourceModule(Protocol):
    """A module that reads one kind of source: these names, and a line in `stages.sources.registry`.

    `units` runs in the driver, `work` in workers; `rows` is what `work` writes, for whoever reads rows again. A unit's
    parameter `files` has the name of each of its files as rows have it, so that a unit can be narrowed to one of them.
    """

    @property
    def Config(self) -> type[BaseConfig]:  # noqa: N802 - a class
        """Return the keys of such a source; the field `kind` is a Literal with the name of the kind."""

    def units(self, config: Any, identify: Identify) -> list[SourceUnit]:
        """List what `config`, a `Config`, names, and cut it into units. Raises DataError."""

    def work(self, task: Task) -> None:
        """Read one unit and hand its rows to `stages.sources.writer.write_parts`. Raises DataError, TransientError."""

    def rows(self, task: Task) -> Iterator[Row | BadRow]:
        """Yield the rows of one unit. Raises DataError, TransientError."""


class QuestionModule(SourceModule, Protocol):
    """A source module whose rows can be questions with choices, for the recipe's `evals`."""

    def items(self, task: Task) -> None:
        """Read one unit and hand its questions to `stages.sources.questions.write_items`. Raises DataError."""


class HugeNumber:
    """What stands in a record for a number of more digits than Python reads."""

    def __repr__(self) -> str:
        return "<a number of thousands of digits>"


HUGE = HugeNumber()


def parse_number(digits: str) -> int | HugeNumber:
    """Return the whole number that JSON has, or HUGE."""
    try:
        return int(digits)
    except ValueError:
        return HUGE


# Of a record with a number of thousands of digits the other fields can be used, so only this reader is given those.
PATIENT = json.JSONDecoder(parse_int=parse_number)


def template_fields(template: str) -> list[str]:
    """Return the fields that `template` names, in order. Raises DataError when it has none or is malformed."""
    try:
        parts = [part for part in Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        raise DataError(f"template {template!r}: {error}; write {{{{ for a brace") from error
    fields = [str(name) for _, name, _, _ in parts]
    if formatted := next((name for _, name, form, conversion in parts if form or conversion), None):
        raise DataError(
            f"template {template!r}: {{{formatted}}} has a format, and fields are written as they are; "
            f"write {{{formatted}}} alone"
        )
    if not fields or "" in fields:
        raise DataError(f'template {template!r} names no field; write one such as "{{question}}"')
    return list(dict.fromkeys(fields))


def pick(record: dict[str, Any], path: str) -> Any:
    """Return the value at `path` (`a.b` descends). Raises FieldError naming the fields that are there."""
    value: Any = record
    for name in [path] if path in record else path.split("."):
        if not isinstance(value, dict) or name not in value:
            there = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            raise FieldError(f"no field {path!r} (there: {there[:200]})")
        value = value[name]
    return value


def text_of(record: dict[str, Any], text: str, template: str | None) -> Any:
    """Return the text of a record: the field `text`, or `template` with its fields filled in. Raises FieldError."""
    if template is None:
        return pick(record, text)
    out = []
    for literal, name, _, _ in Formatter().parse(template):
        out.append(literal)
        if name is not None:
            value = pick(record, name)
            if not isinstance(value, str | int | float | Decimal) or isinstance(value, bool):
                raise FieldError(f"field {name!r} is {type_name(value)}, not text")
            try:
                out.append(str(value))
            except ValueError as error:
                raise FieldError(f"field {name!r} is a number of more digits than can be written") from error
    return "".join(out)


def row_of(record: Any, file: str, number: int, params: dict[str, Any]) -> Row | BadRow:
    """Return a Row from a JSON record, under the unit's `text`, `template`, `url` and `meta` parameters."""
    if not isinstance(record, dict):
        return BadRow(file, number, f"the row is {type(record).__name__}, not an object", excerpt(record))
    try:
        text = text_of(record, params["text"], params["template"])
        meta = tuple(coerce(pick(record, c), kind, c) for c, kind in params["meta"].items())
        url = pick(record, params["url"]) if params["url"] else record.get("url") or meta_url(record)
    except FieldError as error:
        return BadRow(file, number, str(error), excerpt(record))
    return Row(file, number, text, url if isinstance(url, str) else None, meta)


def meta_url(record: dict[str, Any]) -> Any:
    """Return the address as RedPajama and proof-pile have it, or None."""
    meta = record.get("meta")
    return meta.get("url") if isinstance(meta, dict) else None


def excerpt(record: Any) -> str:
    """Return a little of a record; deep or huge ones are not written out whole for it."""
    return reprlib.repr(record)[:200]


def coerce(value: Any, kind: str, column: str) -> float | str | None:
    """Return a metadata value as `number` (float) or `string`; null and NaN are None. Raises FieldError on another.

    True is 1 and False is 0.
    """
    if value is None or (kind == "string" and isinstance(value, str)):
        return value
    if kind == "number" and isinstance(value, int | float | Decimal):
        try:
            number = float(value)
        except OverflowError as error:
            raise FieldError(f"field {column!r} is a number too large for a rule") from error
        return None if math.isnan(number) else number
    raise FieldError(f"field {column!r} is {type_name(value)}, the rule needs a {kind}")


def type_name(value: Any) -> str:
    """Return what a person calls the type of a value."""
    if isinstance(value, HugeNumber):
        return "a number of more digits than can be read"
    return "null" if value is None else type(value).__name__


def text_params(config: RecordConfig) -> dict[str, Any]:
    """Return the parameters that decide how a record becomes a row. Raises DataError on a bad template."""
    if config.template is not None:
        template_fields(config.template)
    return {
        "text": config.text,
        "template": config.template,
        "url": config.url,
        "meta": config.wanted_columns(),
        "largest": config.largest_document,
        **common_params(config),
    }


def common_params(config: BaseConfig) -> dict[str, Any]:
    """Return the parameters that only some sources of files need, so that the others' units keep their keys."""
    options = config.storage_options if isinstance(config, FilesConfig) else {}
    found: dict[str, Any] = {"options": options} if options else {}
    if config.has_budget:
        found["part_bytes"] = config.cut_bytes()
    return found


def stream_params(config: StreamConfig) -> dict[str, Any]:
    """Return `text_params` and the bound on what unpacks."""
    return {**text_params(config), "max_ratio": config.max_ratio}
