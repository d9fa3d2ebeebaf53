"""What differs between two manifests: sources, recipe, tokenizer, mixture, code, and the documents themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from stages.hashing import id_words
from stages.lineage.rows import rows_table
from train.data.manifest import Manifest, SourceFile

BUCKET_ROWS = 20_000_000  # rows compared at a time, about 2 GB; more are split by the first bits of their id
ABSENT = "absent"
BUILD_FACTS = ("name", "phase", "mixture", "seed", "build_id", "tokens", "val_tokens", "documents")
TOKENIZER_FACTS = ("sha256", "vocab_size", "bos_id", "pad_id", "special_ids")
SOURCE_FACTS = (
    *("kind", "origin", "revision", "license", "rows_in", "rows_kept", "quarantined", "dropped", "files_lost"),
    *("available_tokens", "ratio_asked", "ratio_got", "tokens", "documents", "epochs", "max_epochs"),
    *("val_tokens", "val_documents"),
)

Change: TypeAlias = tuple[str, Any, Any]  # dotted name, and both values


@dataclass(frozen=True)
class Moved:
    """Documents (parts of long ones count) and their tokens in one split of A and B, all copies together."""

    documents_a: int  # only in A
    tokens_a: int
    documents_b: int  # only in B
    tokens_b: int
    documents_both: int
    tokens_both_a: int  # of documents in both, what A has of them
    tokens_both_b: int


@dataclass
class Difference:
    """All that two manifests do not share; every list is empty where they agree."""

    build: list[Change] = field(default_factory=list)
    recipe: list[Change] = field(default_factory=list)
    sources: list[Change] = field(default_factory=list)
    files: list[Change] = field(default_factory=list)
    tokenizer: list[Change] = field(default_factory=list)
    versions: list[Change] = field(default_factory=list)
    code: list[Change] = field(default_factory=list)
    training: dict[str, Moved] = field(default_factory=dict)  # by source
    held_out: dict[str, Moved] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)


def diff(a: Manifest, b: Manifest) -> Difference:
    """Compare two manifests and the rows tables beside them."""
    return Difference(
        build=changes(facts_of(a, BUILD_FACTS), facts_of(b, BUILD_FACTS)),
        recipe=changes(a.recipe, b.recipe),
        sources=changes(source_facts(a), source_facts(b)),
        files=changes_by_name(file_digests(a.files_read()), file_digests(b.files_read())),
        tokenizer=changes(facts_of(a.tokenizer, TOKENIZER_FACTS), facts_of(b.tokenizer, TOKENIZER_FACTS)),
        versions=changes(a.versions, b.versions),
        code=changes(a.code, b.code),
        training=moved_documents(a, b, "train"),
        held_out=moved_documents(a, b, "val"),
    )


def facts_of(value: object, names: Sequence[str]) -> dict[str, Any]:
    """Return attributes of `value` by name."""
    return {name: getattr(value, name) for name in names}


def source_facts(manifest: Manifest) -> dict[str, dict[str, Any]]:
    """Return what a manifest says of each source, but for the files it was read from."""
    return {source.name: facts_of(source, SOURCE_FACTS) for source in manifest.sources}


def file_digests(files: Mapping[str, Sequence[SourceFile]]) -> dict[str, str]:
    """Return the first digits of each file's digest, by `source: file`."""
    return {f"{source}: {file.name}": file.digest[:16] for source, group in files.items() for file in group}


def changes(a: Any, b: Any) -> list[Change]:
    """Return leaves of nested mappings that differ, by dotted name; ABSENT where one side has none."""
    a_leaves, b_leaves = leaves(a), leaves(b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):  # an empty mapping is no leaf
        a_leaves.pop("", None)
        b_leaves.pop("", None)
    return changes_by_name(a_leaves, b_leaves)


def changes_by_name(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[Change]:
    """Return what differs of two mappings, in the order of names; ABSENT where one side has none."""
    names = sorted({*a, *b})
    pairs = [(name, a.get(name, ABSENT), b.get(name, ABSENT)) for name in names]
    return [(name, x, y) for name, x, y in pairs if x != y]


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of nested mappings by dotted name."""
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    by_name: dict[str, Any] = {}
    for key, item in value.items():
        by_name |= leaves(item, f"{name}.{key}" if name else str(key))
    return by_name


def moved_documents(a: Manifest, b: Manifest, split: str) -> dict[str, Moved]:
    """Return by source documents and tokens only in A, only in B, and in both. A document is (source, id, part).

    Nothing where shards were adopted, whose documents nobody knows.
    """
    if a.adopted or b.adopted:
        return {}
    names = sorted({source.name for manifest in (a, b) for source in manifest.sources})
    rows = sum(shard.documents for manifest in (a, b) for shard in manifest.split(split))
    buckets = 1 << max(0, -(-rows // BUCKET_ROWS) - 1).bit_length()  # a power of two
    totals = np.zeros((7, len(names)), np.int64)
    for bucket in range(buckets):
        rows_a = bucket_rows(a, split, names, bucket, buckets)
        rows_b = bucket_rows(b, split, names, bucket, buckets)
        totals += compare_rows(rows_a, rows_b, len(names))
    return {name: Moved(*map(int, totals[:, i])) for i, name in enumerate(names)}


def bucket_rows(
    manifest: Manifest, split: str, names: Sequence[str], bucket: int, buckets: int
) -> npt.NDArray[np.uint64]:
    """Read the rows of the documents of one bucket, (rows, 4).

    Columns: both words of the id, source (its place in `names`) and part in one, tokens.
    """
    number_of = {name: i for i, name in enumerate(names)}
    tables = [np.zeros((0, 4), np.uint64)]
    for shard in manifest.split(split):
        table = rows_table(manifest, shard, ["document_id", "source", "part", "token_count"])
        low, high = id_words(table["document_id"])
        codes = table["source"].combine_chunks().dictionary_encode()
        numbers = np.array([number_of[name] for name in codes.dictionary.to_pylist()], np.uint64)
        source = numbers[codes.indices.to_numpy()]
        source_and_part = source << np.uint64(32) | table["part"].to_numpy().astype(np.uint64)
        in_bucket = (low & np.uint64(buckets - 1)) == bucket
        columns = (low, high, source_and_part, table["token_count"].to_numpy().astype(np.uint64))
        tables.append(np.stack([column[in_bucket] for column in columns], axis=1))
    return np.concatenate(tables)


def compare_rows(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64], sources: int) -> npt.NDArray[np.int64]:
    """Return the seven figures of Moved by source, (7, sources), of rows as `bucket_rows` reads them."""
    rows = np.concatenate([a, b])
    if not len(rows):
        return np.zeros((7, sources), np.int64)
    from_a = np.arange(len(rows)) < len(a)
    order = np.lexsort((rows[:, 0], rows[:, 1], rows[:, 2]))
    rows, from_a = rows[order], from_a[order]
    changes_document = (np.diff(rows[:, :3].astype(np.int64), axis=0) != 0).any(axis=1)
    first = np.flatnonzero(np.concatenate([[True], changes_document]))
    tokens = rows[:, 3].astype(np.int64)
    tokens_a, tokens_b = (np.add.reduceat(np.where(side, tokens, 0), first) for side in (from_a, ~from_a))
    in_a, in_b = (np.logical_or.reduceat(side, first) for side in (from_a, ~from_a))
    source = (rows[first, 2] >> np.uint64(32)).astype(np.int64)
    only_a, only_b, both = in_a & ~in_b, in_b & ~in_a, in_a & in_b
    figures = [only_a, only_a * tokens_a, only_b, only_b * tokens_b, both, both * tokens_a, both * tokens_b]
    return np.stack([np.bincount(source, f.astype(np.float64), sources).astype(np.int64) for f in figures])
