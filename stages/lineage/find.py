"""From a document to its tokens: by id, address, domain or a phrase of its text; and why it is not there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.hashing import is_validation
from stages.lineage.trace import Decoder, Piece, curated_files, curated_folder, pieces_of, pieces_where, rows_table
from stages.selectors import select_documents
from train.data.manifest import Manifest, Shard

SCAN_TOKENS = 4 << 20  # decoded at a time when shards are searched for a phrase
NO_TEXT = b"\xff"  # in no UTF-8 text: keeps a phrase from running across the border of two documents


@dataclass(frozen=True)
class Query:
    """Which documents: by id (hex), whole address or domain (see `stages.selectors`), or by a phrase, letter for
    letter.
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
        """Which rows of a table with `columns` are meant."""
        if self.text:
            return pc.match_substring(table["text"], self.text).to_numpy().astype(bool)
        mask, _ = select_documents(table["document_id"], table["url"], self.ids, self.urls, self.domains)
        return mask


@dataclass(frozen=True)
class Place:
    """A stretch of a shard that a document, or the phrase looked for in it, takes: tokens [start, stop)."""

    shard: str
    split: str
    start: int
    stop: int
    copy: int
    part: int


@dataclass
class Found:
    """A document, and what became of it. `status`: training; held out; not taken; dropped; excluded."""

    document_id: str
    source: str
    source_file: str
    source_row: int
    url: str | None
    status: str = ""
    note: str = ""
    places: list[Place] = field(default_factory=list)
    steps: list[int] | None = None  # of a run, from 1, that read any of `places`

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


Key = tuple[str, str]  # source, document id


def find(manifest: Manifest, query: Query) -> dict[Key, Found]:
    """The documents of this mixture and of the curated corpus beside it that `query` means, by source and id."""
    found = dict(curated_documents(manifest, query))
    shards, by_path = manifest.shards, {s.path: s for s in manifest.shards}
    if query.text:
        folder = curated_folder(manifest)
        wanted = {bytes.fromhex(i) for _, i in found} if folder else phrase_documents(manifest, query.text, shards)
        pieces = pieces_where(manifest, wanted, shards)
        places = phrase_places(Decoder(manifest), pieces, query.text, by_path)
    else:
        pieces = named_pieces(manifest, query, shards)
        places = [(p, Place(p.shard, by_path[p.shard].split, p.token_start, p.stop, p.copy, p.part)) for p in pieces]
    known = {(p.source, p.document_id.hex()): p for p in pieces}
    for piece, place in places:
        key = piece.source, piece.document_id.hex()
        if key not in found:
            found[key] = Found(key[1], piece.source, piece.source_file, piece.source_row, piece.url)
        found[key].places.append(place)
    for key, one in found.items():
        settle(manifest, one, key in known)
    return dict(sorted(found.items()))


def settle(manifest: Manifest, one: Found, packed: bool) -> None:
    """Say what became of a document of the curated corpus. `packed`: the mixture holds some of it."""
    held = bool(is_validation([bytes.fromhex(one.document_id)])[0])
    mixture = {s.name for s in manifest.sources}
    one.status = "held out" if held else "training" if one.places else "not taken"
    if held:
        one.note = "in validation shards" if one.places else "by the rule, and no validation shard has it"
    elif not one.places and packed:
        one.note = "this mixture cuts the document short, before the phrase"
    elif not one.places and one.source not in mixture:
        one.note = f"its source is not in the mixture {manifest.mixture}"
    elif not one.places:
        one.note = f"the mixture takes only a part of {one.source}, and not this document"


def curated_documents(manifest: Manifest, query: Query) -> Iterator[tuple[Key, Found]]:
    """The curated documents that `query` means; none where there is no curated/."""
    folder = curated_folder(manifest)
    columns = list(dict.fromkeys([*query.columns, "source", "source_file", "source_row"]))
    for path in curated_files(folder) if folder else []:
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns)
            mask = query.mask(table)
            if mask.any():
                rows = table.filter(pa.array(mask)).drop_columns(["text"] if query.text else []).to_pylist()
                for row in rows:
                    identity = row.pop("document_id").hex()
                    yield (row["source"], identity), Found(identity, **row)


def named_pieces(manifest: Manifest, query: Query, shards: Sequence[Shard]) -> list[Piece]:
    """The pieces of the documents that `query` names, in the order of shards."""
    found = []
    for shard in shards:
        names = rows_table(manifest, shard, query.columns)
        if len(names):
            mask = query.mask(names)
            if mask.any():
                found += pieces_of(shard.path, rows_table(manifest, shard).filter(pa.array(mask)))
    return found


def phrase_documents(manifest: Manifest, phrase: str, shards: Sequence[Shard]) -> set[bytes]:
    """Ids of documents whose tokens decode to a text with `phrase`, and of all that lie in parts (for a closer look).

    The way without curated/: every shard is decoded.
    """
    decoder, wanted, found = Decoder(manifest), phrase.encode(), set[bytes]()
    table = [NO_TEXT if i == manifest.tokenizer.bos_id else b for i, b in enumerate(decoder.table)]
    sizes = np.array([len(b) for b in table])
    for shard in shards:
        rows = rows_table(manifest, shard, ["token_start", "token_count", "document_id", "part"])
        identities, starts = rows["document_id"], rows["token_start"].to_numpy()
        found.update(pc.unique(identities.filter(pc.greater(rows["part"], 0))).to_pylist())
        tokens, first = decoder.tokens(shard.path), 0
        while first < len(starts):
            last = max(first + 1, int(np.searchsorted(starts, starts[first] + SCAN_TOKENS)))
            stop = int(starts[last]) if last < len(starts) else len(tokens)
            chunk = tokens[int(starts[first]) : stop]
            joined = b"".join([table[t] for t in chunk.tolist()])
            ends = np.cumsum(sizes[chunk])
            at = joined.find(wanted)
            while at >= 0:
                token = int(starts[first]) + int(np.searchsorted(ends, at, "right"))
                found.add(identities[int(np.searchsorted(starts, token, "right")) - 1].as_py())
                at = joined.find(wanted, at + 1)
            first = last
    return found


def phrase_places(
    decoder: Decoder, pieces: Sequence[Piece], phrase: str, shards: Mapping[str, Shard]
) -> list[tuple[Piece, Place]]:
    """Where `phrase` lies in each document, to the token; from one part into the next it has a place in each."""
    documents: dict[tuple[str, str, str, bytes, int], dict[int, Piece]] = defaultdict(dict)
    for piece in pieces:
        shard = shards[piece.shard]  # a document held out may lie in the mixture's validation shard and its source's
        documents[shard.split, shard.source, piece.source, piece.document_id, piece.copy][piece.part] = piece
    found = []
    for parts in documents.values():
        for run in runs_of(parts):
            spans = [decoder.pieces(p.shard, p.token_start, p.stop) for p in run]
            ends = np.cumsum([len(b) for tokens in spans for b in tokens])
            joined, at = b"".join(b for tokens in spans for b in tokens), -1
            borders = np.cumsum([0, *(p.token_count for p in run)])
            while (at := joined.find(phrase.encode(), at + 1)) >= 0:
                low = int(np.searchsorted(ends, at, "right"))
                high = int(np.searchsorted(ends, at + len(phrase.encode()), "left")) + 1
                for piece, border in zip(run, borders.tolist(), strict=False):
                    a, b = max(low - border, 0), min(high - border, piece.token_count)
                    if a < b:
                        start, stop = piece.token_start + a, piece.token_start + b
                        split = shards[piece.shard].split
                        found.append((piece, Place(piece.shard, split, start, stop, piece.copy, piece.part)))
    return found


def runs_of(parts: Mapping[int, Piece]) -> list[list[Piece]]:
    """Parts that follow one another, together."""
    found: list[list[Piece]] = []
    for number in sorted(parts):
        if number - 1 not in parts:
            found.append([])
        found[-1].append(parts[number])
    return found
