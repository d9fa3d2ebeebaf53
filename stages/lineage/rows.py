"""The rows tables beside shards: which document every stretch of tokens came from, and its bytes back from tokens.

Shards are read one after another, so that a thousand look-ups open each of them once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.errors import DataError
from stages.pack.format import ROWS
from stages.schemas import ID
from stages.tokenizer.spec import open_vocabulary
from train.data.format import read_shard
from train.data.manifest import Manifest, Shard
from train.data.tokens import Tokens

Span: TypeAlias = tuple[str, int, int]  # shard, and [start, stop) of its tokens


@dataclass(frozen=True)
class ShardRow:
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
        """Return JSON values."""
        return asdict(self) | {"document_id": self.document_id.hex()}


def find_shard(manifest: Manifest, name: str) -> Shard:
    """Return a shard by its number in the manifest or its file name. Raises DataError that says what there is."""
    if name.isdigit() and int(name) < len(manifest.shards):
        return manifest.shards[int(name)]
    for shard in manifest.shards:
        if shard.path == name:
            return shard
    names = f"{manifest.shards[0].path} ... {manifest.shards[-1].path}" if manifest.shards else "none"
    raise DataError(f"no shard {name}: there are {len(manifest.shards)}, numbered from 0 ({names})")


def mend(manifest: Manifest) -> str:
    """Say how to mend a damaged file of a manifest."""
    if manifest.adopted:
        return "get the files again"
    return f"mend it with `{manifest.pack_command()} --force`"


def rows_table(manifest: Manifest, shard: Shard, columns: list[str] | None = None) -> pa.Table:
    """Read the rows table of one shard. Raises DataError when the file is missing or damaged, or the shard adopted."""
    check_lineage(manifest)
    path = manifest.file(shard.rows)
    try:
        table = pq.read_table(path, columns=columns, partitioning=None)
        table.validate(full=True)
        for name in columns or ROWS.names:
            if table.schema.field(name) != ROWS.field(name):
                raise ValueError(f"its column {name} is {table.schema.field(name).type}")
    except FileNotFoundError:
        raise DataError(f"{path} is missing; {mend(manifest)}") from None
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        raise DataError(f"{path} is damaged ({str(error).partition(chr(10))[0][:200]}); {mend(manifest)}") from None
    return table


def check_lineage(manifest: Manifest) -> None:
    """Raise DataError where nobody knows which documents the shards hold."""
    if manifest.adopted:
        raise DataError(
            f"{manifest.folder}: its lineage is unknown: the shards were made elsewhere and adopted, without a record "
            "of their documents"
        )


def shard_rows(shard: str, table: pa.Table) -> list[ShardRow]:
    """Return the rows of a table of ROWS, of one shard."""
    return [ShardRow(shard, **row) for row in table.select(ROWS.names).to_pylist()]


def rows_of_spans(manifest: Manifest, spans: Sequence[Span]) -> list[list[ShardRow]]:
    """Return the rows that hold any token of each span, in their order; none where it is all padding."""
    spans_of_shard: dict[str, list[int]] = defaultdict(list)
    for number, (shard, _, _) in enumerate(spans):
        spans_of_shard[shard].append(number)
    rows: list[list[ShardRow]] = [[] for _ in spans]
    for name, numbers in spans_of_shard.items():
        table = rows_table(manifest, find_shard(manifest, name))
        starts = table["token_start"].to_numpy()
        ends = starts + table["token_count"].to_numpy()
        firsts = np.searchsorted(ends, [spans[number][1] for number in numbers], "right").tolist()
        stops = np.searchsorted(starts, [spans[number][2] for number in numbers], "left").tolist()
        needed = sorted({i for first, stop in zip(firsts, stops, strict=True) for i in range(first, stop)})
        by_index = dict(zip(needed, shard_rows(name, table.take(pa.array(needed, pa.int64()))), strict=True))
        for number, first, stop in zip(numbers, firsts, stops, strict=True):
            rows[number] = [by_index[i] for i in range(first, stop)]
    return rows


def rows_of_documents(manifest: Manifest, ids: Iterable[bytes], shards: Iterable[Shard]) -> list[ShardRow]:
    """Return all rows of the documents `ids` in some shards, in their order."""
    values = pa.array(sorted(set(ids)), ID)
    rows: list[ShardRow] = []
    for shard in shards:
        table = rows_table(manifest, shard)
        rows += shard_rows(shard.path, table.filter(pc.is_in(table["document_id"], value_set=values)))
    return rows


class Decoder:
    """Tokens of a manifest's shards back to bytes: exact also where a document ends inside a character."""

    def __init__(self, manifest: Manifest):
        self.manifest = manifest
        path = manifest.file(manifest.tokenizer.path)
        try:
            self.vocabulary = open_vocabulary(path)
        except FileNotFoundError:
            raise DataError(f"{path} is missing; {mend(manifest)}") from None
        except DataError as error:
            raise DataError(f"{error}; {mend(manifest)}") from None
        self.table = [self.vocabulary.texts.get(i, b"") for i in range(manifest.tokenizer.vocab_size)]
        self._tokens: dict[str, Tokens] = {}

    def tokens(self, shard: str) -> Tokens:
        """Return the tokens (n,) of a shard, mapped. Raises ManifestError, DataError when it is missing or damaged."""
        if shard not in self._tokens:
            path = self.manifest.file(shard)
            _, tokens = read_shard(path)
            if len(tokens) != find_shard(self.manifest, shard).tokens or int(tokens.max(initial=0)) >= len(self.table):
                raise DataError(f"{path} is damaged: it has other tokens than the manifest says; {mend(self.manifest)}")
            self._tokens[shard] = tokens
        return self._tokens[shard]

    def token_bytes(self, shard: str, start: int, stop: int) -> list[bytes]:
        """Return the bytes of each token of [start, stop); special tokens have none."""
        tokens = self.tokens(shard)
        behind = int(tokens[start - 1]) if start else None  # a document whose BOS is not there goes on
        return self.vocabulary.spell(tokens[start:stop].tolist(), behind)

    def text(self, shard: str, start: int, stop: int) -> str:
        """Return tokens [start, stop) as text for people, special tokens by name."""
        names = {i: name.encode() for name, i in self.manifest.tokenizer.special_ids.items()}
        spelled = zip(self.tokens(shard)[start:stop].tolist(), self.token_bytes(shard, start, stop), strict=True)
        return b"".join(names.get(token, text) for token, text in spelled).decode("utf-8", "replace")

    def decode(self, row: ShardRow) -> bytes:
        """Return the bytes of a row's tokens."""
        return b"".join(self.token_bytes(row.shard, row.token_start, row.stop))
