"""Plain text, `from: text`: each file a document, or each of its paragraphs. Compressed or not, as JSON lines are."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from stages.quantities import quantity
from stages.sources.base import LARGEST, MAX_RATIO, BadRow, FilesConfig, Identify, Row, SourceUnit, common_params
from stages.sources.contents import HEAD, PACKED, chunks, foreign
from stages.sources.files import files_of, open_source, whole_file_units
from stages.sources.jsonl import lines
from stages.sources.writer import write_parts
from stages.task import Task


class Config(FilesConfig):
    """Files of plain text: `from: text`."""

    suffixes: ClassVar = tuple(kind + packed for kind in (".txt", ".md") for packed in PACKED)
    kind: Literal["text"] = Field(alias="from", description="The kind of source.")
    document: Literal["file", "paragraph"] = Field(
        default="file", description="What is one document: a whole file, or lines up to a blank one."
    )
    largest_document: Annotated[int, BeforeValidator(quantity), Field(gt=0, le=1 << 30)] = Field(
        default=LARGEST, description="Bytes of a document (UTF-8) beyond which it goes to the quarantine."
    )
    max_ratio: float = Field(
        default=MAX_RATIO,
        gt=1,
        description="Bytes that a file may unpack to, by its own bytes, beyond the first 64 MiB.",
    )


def units(config: Config, identify: Identify) -> list[SourceUnit]:
    """Return one unit a file, small neighbours batched. Raises DataError when nothing matches `path`."""
    params = {
        "document": config.document,
        "largest": config.largest_document,
        "max_ratio": config.max_ratio,
        "meta": config.wanted_columns(),
        **common_params(config),
    }
    return whole_file_units(files_of(config), params, identify, config.cut_bytes())


def work(task: Task) -> None:
    """Read one unit. Params: document, largest, max_ratio, files (a name for each input)."""
    write_parts(task, rows(task))


def rows(task: Task) -> Iterator[Row | BadRow]:
    """Yield each document of each file as a row; they have no metadata. Raises DataError on a damaged file."""
    params = task.params
    cut = whole if params["document"] == "file" else paragraphs
    nothing = (None,) * len(params["meta"])
    for artifact, name in zip(task.inputs, params["files"], strict=True):
        with open_source(artifact, params.get("options")) as stream:
            data = chunks(stream, artifact.path, params["max_ratio"])
            for number, document in enumerate(cut(data, params["largest"])):
                if document is None:
                    reason = f"the {params['document']} has more than {params['largest']:,} bytes; see largest_document"
                    yield BadRow(name, number, reason)
                    continue
                if not number:
                    document = document.removeprefix(codecs.BOM_UTF8)
                try:
                    yield Row(name, number, document.decode("utf-8"), None, nothing)
                except UnicodeDecodeError as error:
                    shown = document[:200].decode("utf-8", "replace")
                    what = foreign(document[:HEAD], "text") if not number else ""
                    reason = f"the file {what}" if what else f"not valid UTF-8 at byte {error.start}"
                    yield BadRow(name, number, reason, shown)


def whole(source: Iterable[bytes], largest: int) -> Iterator[bytes | None]:
    """Yield all bytes as one document; None when there are more than `largest`, and the rest is left unread."""
    held, size = [], 0
    for chunk in source:
        size += len(chunk)
        if size > largest:
            yield None
            return
        held.append(chunk)
    yield b"".join(held)


def paragraphs(source: Iterable[bytes], largest: int) -> Iterator[bytes | None]:
    """Yield runs of lines that are not blank, joined as they were; None for one of more than `largest` bytes."""
    held: list[bytes] = []
    size = 0
    for line in chain(lines(source, largest), [b""]):
        if line is not None and not line.strip():
            if size:
                yield b"\n".join(held) if size <= largest else None
            held, size = [], 0
            continue
        size += largest + 1 if line is None else len(line) + 1
        if line is not None and size <= largest:
            held.append(line)
