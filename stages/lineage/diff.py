"""What differs between two manifests: sources, recipe, tokenizer, mixture, code, and the documents themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.hashing import id_words
from stages.lineage.trace import rows_table
from train.data.manifest import Manifest, SourceFile

BUCKET_ROWS = 20_000_000  # rows compared at a time, about 2 GB; more are split by the first bits of their id
ABSENT = "absent"
SOURCE_FACTS = (
    *("kind", "origin", "revision", "license", "rows_in", "rows_kept", "quarantined", "dropped", "files_lost"),
    *("available_tokens", "ratio_asked", "ratio_got", "tokens", "documents", "epochs", "max_epochs"),
    *("val_tokens", "val_documents"),
)

Change = tuple[str, Any, Any]  # dotted name, and both values


@dataclass(frozen=True)
class Moved:
    """Documents (parts of long ones count) and their training tokens, all copies together."""

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
        """As JSON values."""
        return asdict(self)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Leaves of nested mappings by dotted name."""
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    return {k: v for key, item in value.items() for k, v in flat(item, f"{name}.{key}" if name else str(key)).items()}


def changes(a: Any, b: Any) -> list[Change]:
    """Leaves that differ, by name; ABSENT where one side has none."""
    left, right = flat(a), flat(b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        left, right = ({k: v for k, v in side.items() if k} for side in (left, right))
    names = sorted({*left, *right})
    pairs = [(name, left.get(name, ABSENT), right.get(name, ABSENT)) for name in names]
    return [(name, x, y) for name, x, y in pairs if x != y]


def diff(a: Manifest, b: Manifest) -> Difference:
    """Compare two manifests and the rows tables beside them."""
    facts = ("name", "phase", "mixture", "seed", "build_id", "tokens", "val_tokens", "documents")
    vocabulary = {"sha256", "vocab_size", "bos_id", "pad_id", "special_ids"}
    return Difference(
        build=changes(*({name: getattr(m, name) for name in facts} for m in (a, b))),
        recipe=changes(a.recipe, b.recipe),
        sources=changes(*({s.name: {f: getattr(s, f) for f in SOURCE_FACTS} for s in m.sources} for m in (a, b))),
        files=changed_files(a.files_read(), b.files_read()),
        tokenizer=changes(*({k: v for k, v in asdict(m.tokenizer).items() if k in vocabulary} for m in (a, b))),
        versions=changes(a.versions, b.versions),
        code=changes(a.code, b.code),
        training=moved(a, b, "train"),
        held_out=moved(a, b, "val"),
    )


def changed_files(a: Mapping[str, list[SourceFile]], b: Mapping[str, list[SourceFile]]) -> list[Change]:
    """`source: file` with the first digits of both digests."""
    sides = [{f"{name}: {f.name}": f.digest[:16] for name, files in side.items() for f in files} for side in (a, b)]
    names = sorted({*sides[0], *sides[1]})
    pairs = [(name, sides[0].get(name, ABSENT), sides[1].get(name, ABSENT)) for name in names]
    return [(name, x, y) for name, x, y in pairs if x != y]


def moved(a: Manifest, b: Manifest, split: str) -> dict[str, Moved]:
    """By source, documents and tokens only in A, only in B, and in both. A document is (source, id, part)."""
    names = sorted({s.name for m in (a, b) for s in m.sources})
    rows = sum(s.documents for m in (a, b) for s in m.split(split))
    of = 1 << max(0, -(-rows // BUCKET_ROWS) - 1).bit_length()
    total = np.zeros((7, len(names)), np.int64)
    for bucket in range(of):
        total += compare(load(a, split, names, bucket, of), load(b, split, names, bucket, of), len(names))
    return {name: Moved(*map(int, total[:, i])) for i, name in enumerate(names)}


def load(manifest: Manifest, split: str, names: list[str], bucket: int, of: int) -> npt.NDArray[np.uint64]:
    """(rows, 4): both words of the id, source and part in one, tokens; of the bucket's documents."""
    number = {name: i for i, name in enumerate(names)}
    found = [np.zeros((0, 4), np.uint64)]
    for shard in manifest.split(split):
        table = rows_table(manifest, shard, ["document_id", "source", "part", "token_count"])
        low, high = id_words(table["document_id"])
        codes = table["source"].combine_chunks().dictionary_encode()
        back = np.array([number[n] for n in codes.dictionary.to_pylist()], np.uint64)
        group = back[codes.indices.to_numpy()] << np.uint64(32) | table["part"].to_numpy().astype(np.uint64)
        mine = (low & np.uint64(of - 1)) == bucket
        columns = (low, high, group, table["token_count"].to_numpy().astype(np.uint64))
        found.append(np.stack([c[mine] for c in columns], axis=1))
    return np.concatenate(found)


def compare(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64], sources: int) -> npt.NDArray[np.int64]:
    """The seven figures of Moved by source, int64 [7, sources]."""
    rows = np.concatenate([a, b])
    if not len(rows):
        return np.zeros((7, sources), np.int64)
    from_a = np.arange(len(rows)) < len(a)
    order = np.lexsort((rows[:, 0], rows[:, 1], rows[:, 2]))
    rows, from_a = rows[order], from_a[order]
    first = np.flatnonzero(np.r_[True, (np.diff(rows[:, :3].astype(np.int64), axis=0) != 0).any(axis=1)])
    tokens = rows[:, 3].astype(np.int64)
    tokens_a, tokens_b = (np.add.reduceat(np.where(side, tokens, 0), first) for side in (from_a, ~from_a))
    in_a, in_b = (np.logical_or.reduceat(side, first) for side in (from_a, ~from_a))
    source = (rows[first, 2] >> np.uint64(32)).astype(np.int64)
    only_a, only_b, both = in_a & ~in_b, in_b & ~in_a, in_a & in_b
    weights = [only_a, only_a * tokens_a, only_b, only_b * tokens_b, both, both * tokens_a, both * tokens_b]
    return np.stack([np.bincount(source, w.astype(np.float64), sources).astype(np.int64) for w in weights])
