"""The proof of lineage: tokens decode to the curated text, and the row of the source file gives that text too.

What the rows table beside a shard says of its tokens is held against two witnesses: `curated/` beside the manifest, and
the row of the source file, read again through the code that a download runs. Work is done by shard and by file, so a
thousand traces open each of them once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from stages.decontaminate.cut import cut_out
from stages.errors import DataError
from stages.filter.document import Document
from stages.filter.edits import apply_edits, parse_edits
from stages.filter.parse import parse_rules
from stages.filter.rules import EDITING, apply_rules
from stages.lineage.curated import curated_folder, curated_texts
from stages.lineage.inputs import check_protocols
from stages.lineage.reread import read_again, with_path
from stages.lineage.rows import Decoder, ShardRow, rows_of_documents
from stages.schemas import ID, document_id
from stages.sources.base import BadRow, Row
from stages.sources.registry import SourceConfig, pin
from train.data.manifest import Manifest

DocumentKey: TypeAlias = tuple[str, str, bytes, int]  # split-and-source of the shard, source, document id, copy
SourceRows: TypeAlias = dict[tuple[str, str, int], Row | BadRow]  # by source, file and number of the row
Stretches: TypeAlias = dict[bytes, list[tuple[int, int]]]  # by document id, the bytes that were taken out of its text


@dataclass(frozen=True)
class Comparison:
    """What one witness says of a document.

    `status`: equal; prefix (cut, to make the mixture exact); part (of it, the rest is not in this mixture); differs;
    absent (the witness is not at hand).
    """

    status: str
    detail: str


@dataclass(frozen=True)
class Trace:
    """A row of a shard, the text its tokens decode to, and what curated text and source row say to that."""

    row: ShardRow
    text: str
    curated: Comparison
    origin: Comparison

    @property
    def proven(self) -> bool:
        """Whether no witness contradicts."""
        return "differs" not in (self.curated.status, self.origin.status)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        witnesses = {"curated": asdict(self.curated), "origin": asdict(self.origin)}
        return {**self.row.to_dict(), "text": self.text, **witnesses}


def trace(manifest: Manifest, rows: Sequence[ShardRow], source_paths: Mapping[str, str] | None = None) -> list[Trace]:
    """Prove the lineage of some rows. `source_paths`: where the files of a source are now, if not where they were.

    Raises DataError when a source named in `source_paths` is not in the manifest.
    """
    source_paths = source_paths or {}
    if unknown := sorted(set(source_paths) - set(manifest.recipe_value("sources"))):
        raise DataError(f"no source {unknown[0]!r}; the manifest has {', '.join(manifest.recipe_value('sources'))}")
    ids: dict[str, set[bytes]] = defaultdict(set)
    for row in rows:
        ids[row.source].add(row.document_id)
    folder = curated_folder(manifest)
    curated = curated_texts(folder, ids)
    origin = Origin(manifest, read_source_rows(manifest, rows, source_paths), taken_out(manifest, ids))
    documents = PackedDocuments(manifest, Decoder(manifest))
    for row in rows:
        text = curated.get((row.source, row.document_id))
        documents.expect(row, origin.text(row) if text is None else text)
    documents.read_other_parts()

    traces = []
    for row in rows:
        text = curated.get((row.source, row.document_id))
        if text is not None:
            from_curated = documents.compare(row, text)
        else:
            where = "curated/ does not hold it" if folder else "no curated/ beside the manifest"
            from_curated = Comparison("absent", where)
        decoded = documents.decoder.decode(row).decode("utf-8", "replace")
        traces.append(Trace(row, decoded, from_curated, origin.compare(row, documents)))
    return traces


class PackedDocuments:
    """Documents put together from the rows of shards: one longer than a shard lies in several parts."""

    def __init__(self, manifest: Manifest, decoder: Decoder):
        self.manifest, self.decoder = manifest, decoder
        self.groups = {shard.path: f"{shard.split}/{shard.source}" for shard in manifest.shards}
        self.parts: dict[DocumentKey, dict[int, ShardRow]] = {}
        self.incomplete: set[DocumentKey] = set()
        mixture = manifest.recipe_value("mixtures", manifest.mixture)
        # Tokens of a part that is not the last.
        self.full_parts = {manifest.recipe_value("shard_tokens"), mixture.get("window")}

    def key(self, row: ShardRow) -> DocumentKey:
        """Return what the parts of one document in one mixture share."""
        return self.groups[row.shard], row.source, row.document_id, row.copy

    def expect(self, row: ShardRow, text: str | None) -> None:
        """Note a row; if it alone is not `text`, its document's other parts are looked for later."""
        key = self.key(row)
        self.parts.setdefault(key, {})[row.part] = row
        if text is None:
            return
        if row.part or (
            not row.truncated and self.decoder.decode(row) != self.decoder.vocabulary.as_stored(text).encode()
        ):
            self.incomplete.add(key)

    def read_other_parts(self) -> None:
        """Find the other parts of all incomplete documents, in one pass over the rows tables."""
        if not self.incomplete:
            return
        groups = {group for group, *_ in self.incomplete}
        shards = [shard for shard in self.manifest.shards if self.groups[shard.path] in groups]
        for row in rows_of_documents(self.manifest, {key[2] for key in self.incomplete}, shards):
            if self.key(row) in self.incomplete:
                self.parts[self.key(row)][row.part] = row

    def compare(self, row: ShardRow, text: str) -> Comparison:
        """Compare the row's document, as far as it is in the mixture, with a text."""
        expected = self.decoder.vocabulary.as_stored(text).encode()
        parts = [part for _, part in sorted(self.parts[self.key(row)].items())]
        packed = b"".join(self.decoder.decode(part) for part in parts)
        many = f", in {len(parts)} parts" if len(parts) > 1 else ""
        from_start = [part.part for part in parts] == list(range(len(parts)))
        if from_start and packed == expected:
            return Comparison("equal", f"the same {len(expected):,} bytes{many}")
        # The mixture's count is made exact inside a document, or between two of its parts.
        cut_short = parts[-1].truncated or parts[-1].token_count in self.full_parts
        if from_start and cut_short and expected.startswith(packed):
            return Comparison("prefix", f"its first {len(packed):,} of {len(expected):,} bytes{many}: cut short")
        of_row = self.decoder.decode(row)
        if not from_start and of_row in expected:
            detail = f"{len(of_row):,} of its {len(expected):,} bytes; its first part is not in this mixture"
            return Comparison("part", detail)
        return Comparison("differs", f"{len(packed):,} bytes{many} where it has {len(expected):,}, or other ones")


# ---------------------------------------------------------------------------------------------------------------------
# The source's own rows


@dataclass(frozen=True)
class Origin:
    """The rows of source files, read again, and what curation did to their texts."""

    manifest: Manifest
    rows: SourceRows
    taken_out: dict[str, Stretches]  # by source; without the sources whose evidence is not at hand

    def original(self, row: ShardRow) -> str | None:
        """Return the text of the document's source row; None where it is not at hand."""
        source_row = self.rows[row.source, row.source_file, row.source_row]
        if isinstance(source_row, BadRow) or not isinstance(source_row.text, str):
            return None
        return source_row.text

    def stretches(self, row: ShardRow) -> list[tuple[int, int]]:
        """Return what decontamination took out of the document's text."""
        return self.taken_out.get(row.source, {}).get(row.document_id, [])

    def text(self, row: ShardRow) -> str | None:
        """Return the document's text as curation left it, made again from its source row; None where that is not."""
        original = self.original(row)
        if original is None:
            return None
        text = edited_text(self.manifest, row.source, original)
        stretches = self.stretches(row)
        return cut_out(text, stretches) if stretches else text

    def compare(self, row: ShardRow, documents: PackedDocuments) -> Comparison:
        """Compare the row's document with what its source row gives."""
        original, text = self.original(row), self.text(row)
        if original is None or text is None:
            source_row = self.rows[row.source, row.source_file, row.source_row]
            reason = source_row.reason if isinstance(source_row, BadRow) else "its text is no text"
            return Comparison("absent", f"source file not at hand: {reason}")
        identity = document_id(original)
        if identity != row.document_id:
            return Comparison("differs", f"the row holds another text now: its id is {identity.hex()}")
        comparison = documents.compare(row, text)
        if stretches := self.stretches(row):
            detail = f"{comparison.detail}; {len(stretches)} stretches cut, see contaminated/"
            return replace(comparison, detail=detail)
        if comparison.status == "differs" and row.source not in self.taken_out:
            detail = "some of it may have been cut, and no contaminated/ is beside the manifest"
            return Comparison("absent", detail)
        return comparison


def source_config(manifest: Manifest, name: str, source_paths: Mapping[str, str]) -> Any:
    """Return a source's configuration as the manifest's recipe has it, its files at `source_paths[name]` if given.

    Raises DataError where it is no source's.
    """
    entry = manifest.recipe_value("sources", name)
    if name not in source_paths:
        check_protocols(name, entry)
    try:
        config: Any = TypeAdapter(SourceConfig).validate_python(entry)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise DataError(
            f"{manifest.folder}/manifest.json: recipe.sources.{name} is none that a recipe has "
            f"({'.'.join(map(str, wrong['loc'][1:]))} is {str(wrong['input'])[:80]!r}): it was edited; pack again"
        ) from None
    revisions = {source.name: source.revision for source in manifest.sources}
    pin(config, revisions.get(name, ""))
    return with_path(config, source_paths[name]) if name in source_paths else config


def read_source_rows(manifest: Manifest, rows: Iterable[ShardRow], source_paths: Mapping[str, str]) -> SourceRows:
    """Read the source rows of some documents again; a BadRow says why one is not at hand."""
    wanted: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        wanted[row.source][row.source_file].add(row.source_row)
    source_rows: SourceRows = {}
    for source, files in sorted(wanted.items()):
        for source_row in read_again(source_config(manifest, source, source_paths), files):
            source_rows[source, source_row.file, source_row.row] = source_row
    return source_rows


def taken_out(manifest: Manifest, ids: Mapping[str, set[bytes]]) -> dict[str, Stretches]:
    """Return what decontamination took out of documents `ids`, by source, for sources whose evidence is here.

    A source whose policy is to drop has nothing taken out.
    """
    policy = manifest.recipe.get("decontaminate", {}).get("policy", "drop")
    contaminated = manifest.beside("contaminated")
    by_source: dict[str, Stretches] = {}
    for source, wanted in ids.items():
        if (policy if isinstance(policy, str) else policy.get(source, "drop")) == "drop":
            by_source[source] = {}
            continue
        if f"{source}.parquet" not in contaminated:
            continue
        table = pq.read_table(
            contaminated[f"{source}.parquet"], columns=["document_id", "start", "stop", "done"], partitioning=None
        )
        is_wanted = pc.is_in(table["document_id"], pa.array(sorted(wanted), ID))
        evidence = table.filter(pc.and_(is_wanted, pc.equal(table["done"], "cut")))
        stretches = by_source.setdefault(source, {})
        for row in evidence.to_pylist():
            stretches.setdefault(row["document_id"], []).append((row["start"], row["stop"]))
    return by_source


def edited_text(manifest: Manifest, source: str, text: str) -> str:
    """Return a source's text after the edits that the recipe records: `edit`, and rules that edit."""
    config = manifest.recipe_value("sources", source)
    text = apply_edits(text, parse_edits(config.get("edit", [])))
    rules = [rule for rule in parse_rules(config["rules"]) if rule[0] in EDITING]
    return apply_rules(Document(text), rules)[1].text
