"""From tokens back to documents, and the proof: the tokens decode to the curated text, and the source row gives it too.

The rows table beside each shard says which document every stretch of tokens came from. This module reads it both
ways, and holds what it says against two witnesses: `curated/` beside the manifest, and the row of the source file,
read again through the code that a download runs. Work is done by shard and by file, so a thousand traces open each
of them once.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import TypeAdapter

from stages.decontaminate.cut import cut_out
from stages.errors import DataError
from stages.filter.document import Document
from stages.filter.edits import apply_edits, parse_edits
from stages.filter.rules import EDITING, apply_rules, parse_rules
from stages.lineage.reread import moved, read_again
from stages.pack.format import ROWS
from stages.schemas import ID, document_id
from stages.sources.base import BadRow
from stages.sources.registry import SourceConfig, pin
from train.data.format import read_shard
from train.data.manifest import Manifest, Shard

Span: TypeAlias = tuple[str, int, int]  # shard, and [start, stop) of its tokens
Key: TypeAlias = tuple[str, str, bytes, int]  # split-and-source of the shard, source, document id, copy


@dataclass(frozen=True)
class Piece:
    """One row of a rows table: a document, or a part of one that is longer than a shard, where it lies."""

    shard: str
    token_start: int
    token_count: int
    document_id: bytes
    source: str
    source_file: str
    source_row: int
    url: str | None
    copy: int
    part: int
    truncated: bool

    @property
    def stop(self) -> int:
        """One past its last token."""
        return self.token_start + self.token_count

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self) | {"document_id": self.document_id.hex()}


@dataclass(frozen=True)
class Verdict:
    """What one witness says. `status`: equal; prefix (cut, to make the mixture exact); part (of it, the rest is not in
    this mixture); differs; absent (the witness is not at hand)."""

    status: str
    detail: str


@dataclass(frozen=True)
class Trace:
    """A piece, the text its tokens decode to, and what the curated text and the source row say to that."""

    piece: Piece
    text: str
    curated: Verdict
    origin: Verdict

    @property
    def proven(self) -> bool:
        """Whether no witness contradicts."""
        return "differs" not in (self.curated.status, self.origin.status)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        witnesses = {"curated": asdict(self.curated), "origin": asdict(self.origin)}
        return {**self.piece.to_dict(), "text": self.text, **witnesses}


def find_shard(manifest: Manifest, name: str) -> Shard:
    """A shard by its number in the manifest or its file name. Raises DataError that says what there is."""
    if name.isdigit() and int(name) < len(manifest.shards):
        return manifest.shards[int(name)]
    for shard in manifest.shards:
        if shard.path == name:
            return shard
    names = f"{manifest.shards[0].path} ... {manifest.shards[-1].path}" if manifest.shards else "none"
    raise DataError(f"no shard {name}: there are {len(manifest.shards)}, numbered from 0 ({names})")


def pieces_in(manifest: Manifest, spans: Sequence[Span]) -> list[list[Piece]]:
    """The pieces that hold any token of each span, in their order; none where it is all padding."""
    by_shard: dict[str, list[int]] = defaultdict(list)
    for i, (shard, _, _) in enumerate(spans):
        by_shard[shard].append(i)
    found: list[list[Piece]] = [[] for _ in spans]
    for name, members in by_shard.items():
        table = rows_table(manifest, find_shard(manifest, name))
        starts = table["token_start"].to_numpy()
        ends = starts + table["token_count"].to_numpy()
        ranges = [
            (np.searchsorted(ends, spans[i][1], "right"), np.searchsorted(starts, spans[i][2], "left")) for i in members
        ]
        needed = np.unique(np.concatenate([np.arange(a, b) for a, b in ranges]))
        picked = pieces_of(name, table.take(pa.array(needed)))
        at = dict(zip(needed.tolist(), picked, strict=True))
        for i, (a, b) in zip(members, ranges, strict=True):
            found[i] = [at[row] for row in range(int(a), int(b))]
    return found


def rows_table(manifest: Manifest, shard: Shard, columns: list[str] | None = None) -> pa.Table:
    """The rows of one shard. Raises DataError when the file is not there."""
    try:
        return pq.read_table(manifest.file(shard.rows), columns=columns, partitioning=None)
    except FileNotFoundError:
        raise DataError(f"{manifest.file(shard.rows)} is missing; pack again") from None


def pieces_of(shard: str, table: pa.Table) -> list[Piece]:
    """The rows of a table as pieces."""
    return [Piece(shard, **row) for row in table.select(ROWS.names).to_pylist()]


def pieces_where(manifest: Manifest, wanted: Iterable[bytes], shards: Iterable[Shard]) -> list[Piece]:
    """All pieces of the documents `wanted` in some shards, in their order."""
    values = pa.array(sorted(set(wanted)), ID)
    found: list[Piece] = []
    for shard in shards:
        table = rows_table(manifest, shard)
        found += pieces_of(shard.path, table.filter(pc.is_in(table["document_id"], value_set=values)))
    return found


class Decoder:
    """Tokens of a manifest's shards back to bytes: exact also where a cut falls inside a character."""

    def __init__(self, manifest: Manifest):
        self.manifest = manifest
        self.table = id_bytes(manifest.file(manifest.tokenizer.path))
        self._open: dict[str, np.ndarray] = {}

    def tokens(self, shard: str) -> np.ndarray:
        """The tokens (n,) of a shard, mapped."""
        if shard not in self._open:
            self._open[shard] = read_shard(self.manifest.file(shard))[1]
        return self._open[shard]

    def pieces(self, shard: str, start: int, stop: int) -> list[bytes]:
        """The bytes of each token of [start, stop)."""
        table = self.table
        return [table[i] for i in self.tokens(shard)[start:stop].tolist()]

    def decode(self, piece: Piece) -> bytes:
        """The bytes of a piece; special tokens have none."""
        return b"".join(self.pieces(piece.shard, piece.token_start, piece.stop))


def id_bytes(path: Path) -> list[bytes]:
    """The bytes that each id of a byte-level tokenizer stands for; none for special tokens.

    The inverse of GPT-2's bytes_to_unicode: printable bytes stand for themselves, the others for 256, 257, ...
    """
    definition = json.loads(path.read_text(encoding="utf-8"))
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    back = {chr(b): b for b in plain}
    back |= {chr(256 + i): b for i, b in enumerate(b for b in range(256) if b not in plain)}
    special = {t["id"] for t in definition["added_tokens"] if t["special"]}
    found = {t["id"]: t["content"].encode() for t in definition["added_tokens"] if not t["special"]}
    for text, i in definition["model"]["vocab"].items():
        if i not in special and i not in found:
            found[i] = bytes(back[c] for c in text)
    return [found.get(i, b"") for i in range(max([*found, *special]) + 1)]


# ---------------------------------------------------------------------------------------------------------------------
# Witnesses


def curated_folder(manifest: Manifest) -> Path | None:
    """`curated/` beside the manifest's folder, or None."""
    folder = Path(manifest.folder).parent / "curated"
    return folder if folder.is_dir() else None


def curated_files(folder: Path, source: str | None = None) -> list[Path]:
    """The parts of one source, or of all, in order."""
    return [f for f in sorted(folder.glob("*.parquet")) if source is None or f.name.rpartition("-")[0] == source]


def curated_texts(folder: Path, wanted: Mapping[str, set[bytes]]) -> dict[tuple[str, bytes], str]:
    """(source, document id) -> text, of the documents wanted by source. Reads ids, then only the row groups it must."""
    found: dict[tuple[str, bytes], str] = {}
    for source, identities in sorted(wanted.items()):
        values = pa.array(sorted(identities), ID)
        for path in curated_files(folder, source):
            file = pq.ParquetFile(path)
            for group in range(file.num_row_groups):
                column = file.read_row_group(group, columns=["document_id"])["document_id"]
                rows = np.flatnonzero(pc.is_in(column, value_set=values).to_numpy())
                if len(rows):
                    table = file.read_row_group(group, columns=["document_id", "text"]).take(pa.array(rows))
                    for identity, text in zip(*(c.to_pylist() for c in table.columns), strict=True):
                        found[source, identity] = text
    return found


def source_config(manifest: Manifest, name: str, places: Mapping[str, str]) -> Any:
    """The configuration of a source as the manifest's recipe has it, its files at `places[name]` if given."""
    config: Any = TypeAdapter(SourceConfig).validate_python(manifest.recipe_value("sources", name))
    pin(config, next((s.revision for s in manifest.sources if s.name == name), ""))
    return moved(config, places[name]) if name in places else config


def source_rows(
    manifest: Manifest, pieces: Iterable[Piece], places: Mapping[str, str]
) -> dict[tuple[str, str, int], Any]:
    """(source, file, row) -> the Row read again, or a BadRow that says why it is not at hand."""
    wanted: dict[str, dict[str, set[int]]] = defaultdict(lambda: defaultdict(set))
    for piece in pieces:
        wanted[piece.source][piece.source_file].add(piece.source_row)
    found = {}
    for source, files in sorted(wanted.items()):
        for row in read_again(source_config(manifest, source, places), files):
            found[source, row.file, row.row] = row
    return found


def trace(manifest: Manifest, pieces: Sequence[Piece], places: Mapping[str, str] | None = None) -> list[Trace]:
    """Prove the lineage of some pieces. `places`: where the files of a source are now, if not where they were.

    Raises DataError when a source named in `places` is not in the manifest.
    """
    places = places or {}
    if unknown := sorted(set(places) - set(manifest.recipe_value("sources"))):
        raise DataError(f"no source {unknown[0]!r}; the manifest has {', '.join(manifest.recipe_value('sources'))}")
    decoder, folder = Decoder(manifest), curated_folder(manifest)
    by_source: dict[str, set[bytes]] = defaultdict(set)
    for piece in pieces:
        by_source[piece.source].add(piece.document_id)
    curated = curated_texts(folder, by_source) if folder else {}
    rows = source_rows(manifest, pieces, places)
    whole, gone = Documents(manifest, decoder), cuts(manifest, by_source)

    def left(piece: Piece, original: str) -> str:
        stretches = gone.get(piece.source, {}).get(piece.document_id)
        text = transformed(manifest, piece.source, original)
        return cut_out(text, stretches) if stretches else text

    references = []
    for piece in pieces:
        text, row = (
            curated.get((piece.source, piece.document_id)),
            rows[piece.source, piece.source_file, piece.source_row],
        )
        original = None if isinstance(row, BadRow) or not isinstance(row.text, str) else row.text
        references.append((piece, text, original, row))
        expected = text if text is not None or original is None else left(piece, original)
        whole.expect(piece, expected)
    whole.read()
    found = []
    for piece, text, original, row in references:
        if text is not None:
            kept = whole.compare(piece, text)
        else:
            kept = Verdict("absent", "curated/ does not hold it" if folder else "no curated/ beside the manifest")
        if original is None:
            read = Verdict("absent", f"source file not at hand: {getattr(row, 'reason', 'its text is no text')}")
        elif document_id(original) != piece.document_id:
            read = Verdict("differs", "the row holds another text now: its id is " + document_id(original).hex())
        else:
            read = whole.compare(piece, left(piece, original))
            if stretches := gone.get(piece.source, {}).get(piece.document_id):
                read = replace(read, detail=f"{read.detail}; {len(stretches)} stretches cut, see contaminated/")
            elif read.status == "differs" and piece.source not in gone:
                read = Verdict("absent", "some of it may have been cut, and no contaminated/ is beside the manifest")
        shown = decoder.decode(piece).decode("utf-8", "replace")
        found.append(Trace(piece, shown, kept, read))
    return found


def cuts(manifest: Manifest, wanted: Mapping[str, set[bytes]]) -> dict[str, dict[bytes, list[tuple[int, int]]]]:
    """What decontamination cut out of the documents wanted (bytes), by source, of sources whose evidence is here.

    A source whose policy is to drop has nothing to cut.
    """
    policy = manifest.recipe.get("decontaminate", {}).get("policy", "drop")
    found: dict[str, dict[bytes, list[tuple[int, int]]]] = {}
    for source, identities in wanted.items():
        if (policy if isinstance(policy, str) else policy.get(source, "drop")) == "drop":
            found[source] = {}
            continue
        path = Path(manifest.folder).parent / "contaminated" / f"{source}.parquet"
        if path.is_file():
            table = pq.read_table(path, columns=["document_id", "start", "stop", "done"], partitioning=None)
            mask = pc.and_(
                pc.is_in(table["document_id"], pa.array(sorted(identities), ID)), pc.equal(table["done"], "cut")
            )
            mine = found.setdefault(source, {})
            for identity, start, stop, _ in zip(*(c.to_pylist() for c in table.filter(mask).columns), strict=True):
                mine.setdefault(identity, []).append((start, stop))
    return found


def transformed(manifest: Manifest, source: str, text: str) -> str:
    """The source's text after the edits that the recipe records: `edit`, and rules that edit."""
    config = manifest.recipe_value("sources", source)
    text = apply_edits(text, parse_edits(config.get("edit", [])))
    rules = [rule for rule in parse_rules(config["rules"]) if rule[0] in EDITING]
    return apply_rules(Document(text), rules)[1].text


class Documents:
    """Pieces put together: a document longer than a shard lies in several."""

    def __init__(self, manifest: Manifest, decoder: Decoder):
        self.manifest, self.decoder = manifest, decoder
        self.groups = {s.path: f"{s.split}/{s.source}" for s in manifest.shards}
        self.parts: dict[Key, dict[int, Piece]] = {}
        self.wanted: set[Key] = set()
        mixture = manifest.recipe_value("mixtures", manifest.mixture)
        self.longest = {
            manifest.recipe_value("shard_tokens"),
            mixture.get("window"),
        }  # tokens of a part that is not the last

    def key(self, piece: Piece) -> Key:
        """What the parts of one document in one mixture share."""
        return self.groups[piece.shard], piece.source, piece.document_id, piece.copy

    def expect(self, piece: Piece, text: str | None) -> None:
        """Note a piece; if it alone is not `text`, its document's other parts are looked for by `read`."""
        self.parts.setdefault(self.key(piece), {})[piece.part] = piece
        if text is not None and (piece.part or (not piece.truncated and self.decoder.decode(piece) != text.encode())):
            self.wanted.add(self.key(piece))

    def read(self) -> None:
        """Find the other parts, in one pass over the rows tables."""
        if self.wanted:
            groups = {group for group, *_ in self.wanted}
            shards = [s for s in self.manifest.shards if self.groups[s.path] in groups]
            for piece in pieces_where(self.manifest, {key[2] for key in self.wanted}, shards):
                if self.key(piece) in self.wanted:
                    self.parts[self.key(piece)][piece.part] = piece

    def compare(self, piece: Piece, text: str) -> Verdict:
        """The piece's document, as far as it is in the mixture, against a text."""
        parts, data = [p for _, p in sorted(self.parts[self.key(piece)].items())], text.encode()
        joined = b"".join(map(self.decoder.decode, parts))
        many = f", in {len(parts)} parts" if len(parts) > 1 else ""
        whole = [p.part for p in parts] == list(range(len(parts)))
        if whole and joined == data:
            return Verdict("equal", f"the same {len(data):,} bytes{many}")
        # The mixture's count is made exact inside a document, or between two of its parts.
        cut_short = parts[-1].truncated or parts[-1].token_count in self.longest
        if whole and cut_short and data.startswith(joined):
            return Verdict("prefix", f"its first {len(joined):,} of {len(data):,} bytes{many}: cut short")
        mine = self.decoder.decode(piece)
        if not whole and mine in data:
            return Verdict("part", f"{len(mine):,} of its {len(data):,} bytes; its first part is not in this mixture")
        return Verdict("differs", f"{len(joined):,} bytes{many} where it has {len(data):,}, or other ones")
