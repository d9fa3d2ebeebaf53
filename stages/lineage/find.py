"""From a document to its tokens: by id, address, domain or a phrase of its text; and why it is not there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.hashing import is_validation
from stages.lineage.curated import curated_files, curated_folder
from stages.lineage.rows import Decoder, ShardRow, check_lineage, rows_of_documents, rows_table, shard_rows
from stages.selectors import select_documents
from train.data.manifest import Manifest

SCAN_TOKENS = 4 << 20  # decoded at a time when shards are searched for a phrase
NO_TEXT = b"\xff"  # in no UTF-8 text: keeps a phrase from running across the border of two documents

DocumentName: TypeAlias = tuple[str, str]  # source, document id


@dataclass(frozen=True)
class Query:
    """Which documents are looked for.

    By id (hex), whole address or domain (see `stages.selectors`), or by a phrase, letter for letter.
    """

    ids: Sequence[str] = ()
    urls: Sequence[str] = ()
    domains: Sequence[str] = ()
    text: str = ""

    @property
    def columns(self) -> list[str]:
        """What `mask` must be given."""
        return ["document_id", "url", *(["text"] if self.text else [])]

    def mask(self, table: pa.Table) -> npt.NDArray[np.bool_]:
        """Return which rows of a table with `columns` are meant."""
        if self.text:
            contains: npt.NDArray[np.bool_] = pc.match_substring(table["text"], self.text).to_numpy().astype(bool)
            return contains
        selectors = [list(names) for names in (self.ids, self.urls, self.domains)]
        return select_documents(table["document_id"], table["url"], *selectors)[0]


@dataclass(frozen=True)
class Location:
    """A stretch of a shard that a document, or the phrase looked for in it, takes: tokens [start, stop)."""

    shard: str
    split: str
    start: int
    stop: int
    copy: int
    part: int


@dataclass
class FoundDocument:
    """A document, and what became of it. `status`: training; held out; not taken; dropped; excluded."""

    document_id: str
    source: str
    source_file: str
    source_row: int
    url: str | None
    status: str = ""
    note: str = ""
    places: list[Location] = field(default_factory=list)
    steps: list[int] | None = None  # of a run, from 1, that read any of `places`

    @property
    def name(self) -> DocumentName:
        """Its source and id."""
        return self.source, self.document_id

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def find(manifest: Manifest, query: Query) -> dict[DocumentName, FoundDocument]:
    """Return the documents of this mixture, and of the curated corpus beside it, that `query` means.

    Raises DataError where the shards were adopted.
    """
    check_lineage(manifest)
    documents = {document.name: document for document in curated_documents(manifest, query)}
    if query.text:
        if curated_folder(manifest):
            ids = {bytes.fromhex(document_id) for _, document_id in documents}
        else:
            ids = documents_with_phrase(manifest, query.text)
        rows = rows_of_documents(manifest, ids, manifest.shards)
        located = phrase_locations(manifest, rows, query.text)
    else:
        rows = selected_rows(manifest, query)
        splits = {shard.path: shard.split for shard in manifest.shards}
        located = [
            (row, Location(row.shard, splits[row.shard], row.token_start, row.stop, row.copy, row.part)) for row in rows
        ]
    for row, location in located:
        name = row.source, row.document_id.hex()
        if name not in documents:
            documents[name] = FoundDocument(name[1], row.source, row.source_file, row.source_row, row.url)
        documents[name].places.append(location)
    packed = {(row.source, row.document_id.hex()) for row in rows}
    for name, document in documents.items():
        document.status, document.note = status_of(manifest, document, name in packed)
    return dict(sorted(documents.items()))


def status_of(manifest: Manifest, document: FoundDocument, packed: bool) -> tuple[str, str]:
    """Return (status, note) of a document of the curated corpus. `packed`: the mixture holds some of it."""
    if is_validation([bytes.fromhex(document.document_id)])[0]:
        if document.places:
            return "held out", "in validation shards"
        return "held out", "by the rule, and no validation shard has it"
    if document.places:
        return "training", ""
    if packed:
        return "not taken", "this mixture cuts the document short, before the phrase"
    if document.source not in {source.name for source in manifest.sources}:
        return "not taken", f"its source is not in the mixture {manifest.mixture}"
    return "not taken", f"the mixture takes only a part of {document.source}, and not this document"


def curated_documents(manifest: Manifest, query: Query) -> Iterator[FoundDocument]:
    """Yield the curated documents that `query` means; none where there is no curated/."""
    folder = curated_folder(manifest)
    lineage = ["document_id", "url", "source", "source_file", "source_row"]
    columns = [*lineage, "text"] if query.text else lineage
    for path in curated_files(folder):
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns)
            mask = query.mask(table)
            if mask.any():
                for row in table.select(lineage).filter(pa.array(mask)).to_pylist():
                    yield FoundDocument(**{**row, "document_id": row["document_id"].hex()})


def selected_rows(manifest: Manifest, query: Query) -> list[ShardRow]:
    """Return the rows of the documents that `query` names, in the order of shards."""
    rows: list[ShardRow] = []
    for shard in manifest.shards:
        names = rows_table(manifest, shard, query.columns)
        mask = query.mask(names) if len(names) else np.zeros(0, bool)
        if mask.any():
            rows += shard_rows(shard.path, rows_table(manifest, shard).filter(pa.array(mask)))
    return rows


def documents_with_phrase(manifest: Manifest, phrase: str) -> set[bytes]:
    """Return ids of documents whose tokens decode to a text with `phrase`, and of all that lie in several parts.

    The way without curated/: every shard is decoded. A document in parts may hold the phrase across a border, and is
    for a closer look.
    """
    decoder, wanted = Decoder(manifest), phrase.encode()
    table = list(decoder.table)
    table[manifest.tokenizer.bos_id] = NO_TEXT
    sizes = np.array([len(token) for token in table])
    ids: set[bytes] = set()
    for shard in manifest.shards:
        rows = rows_table(manifest, shard, ["token_start", "token_count", "document_id", "part"])
        document_ids, starts = rows["document_id"], rows["token_start"].to_numpy()
        ids.update(pc.unique(document_ids.filter(pc.greater(rows["part"], 0))).to_pylist())
        tokens = decoder.tokens(shard.path)
        for first, stop in scan_ranges(starts, len(tokens)):
            chunk = tokens[first:stop]
            text = b"".join([table[token] for token in chunk.tolist()])
            ends = np.cumsum(sizes[chunk])
            for offset in occurrences(text, wanted):
                token = first + int(np.searchsorted(ends, offset, "right"))
                row = int(np.searchsorted(starts, token, "right")) - 1
                ids.add(document_ids[row].as_py())
    return ids


def scan_ranges(starts: npt.NDArray[np.int64], num_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of about SCAN_TOKENS tokens of a shard that hold whole rows, whose first tokens are `starts`."""
    first = 0
    while first < len(starts):
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + SCAN_TOKENS)))
        yield int(starts[first]), int(starts[last]) if last < len(starts) else num_tokens
        first = last


def occurrences(text: bytes, phrase: bytes) -> Iterator[int]:
    """Yield where `phrase` begins in `text`; those that overlap too."""
    offset = text.find(phrase)
    while offset >= 0:
        yield offset
        offset = text.find(phrase, offset + 1)


def phrase_locations(manifest: Manifest, rows: Sequence[ShardRow], phrase: str) -> list[tuple[ShardRow, Location]]:
    """Return where `phrase` lies in each document, to the token; from one part into the next it is in both."""
    decoder = Decoder(manifest)
    shards = {shard.path: shard for shard in manifest.shards}
    documents: dict[tuple[str, str, str, bytes, int], dict[int, ShardRow]] = defaultdict(dict)
    for row in rows:
        shard = shards[row.shard]  # a document held out may lie in the mixture's validation shard and its source's
        documents[shard.split, shard.source, row.source, row.document_id, row.copy][row.part] = row
    locations = []
    for parts in documents.values():
        for run in consecutive_parts(parts):
            for row, start, stop in phrase_stretches(decoder, run, phrase.encode()):
                location = Location(row.shard, shards[row.shard].split, start, stop, row.copy, row.part)
                locations.append((row, location))
    return locations


def phrase_stretches(decoder: Decoder, run: Sequence[ShardRow], phrase: bytes) -> Iterator[tuple[ShardRow, int, int]]:
    """Yield (row, tokens [start, stop) of its shard) where `phrase` lies in parts that follow one another."""
    tokens = [token for row in run for token in decoder.token_bytes(row.shard, row.token_start, row.stop)]
    ends = np.cumsum([len(token) for token in tokens])
    borders = np.cumsum([0, *(row.token_count for row in run)]).tolist()
    for offset in occurrences(b"".join(tokens), phrase):
        first = int(np.searchsorted(ends, offset, "right"))
        stop = int(np.searchsorted(ends, offset + len(phrase), "left")) + 1
        for row, border in zip(run, borders, strict=False):
            start_in_row, stop_in_row = max(first - border, 0), min(stop - border, row.token_count)
            if start_in_row < stop_in_row:
                yield row, row.token_start + start_in_row, row.token_start + stop_in_row


def consecutive_parts(parts: Mapping[int, ShardRow]) -> list[list[ShardRow]]:
    """Return parts that follow one another, together."""
    runs: list[list[ShardRow]] = []
    for number in sorted(parts):
        if number - 1 not in parts:
            runs.append([])
        runs[-1].append(parts[number])
    return runs
