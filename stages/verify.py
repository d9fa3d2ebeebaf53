"""Checks of a packed folder: every checksum, every invariant, each problem in one line."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages import ids
from stages.shards import ROWS, open_shard, read_index
from stages.tables import table_digest
from train.manifest import HEADER_BYTES, Manifest, ManifestError, Shard


def sha256(path: Path) -> str:
    """sha256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(manifest: Manifest) -> Iterator[str]:
    """Every difference between the manifest and what lies beside it."""
    named = [(manifest.tokenizer.path, manifest.tokenizer.sha256)]
    named.append((manifest.val_ids.path, manifest.val_ids.sha256))
    for shard in manifest.shards:
        named += [(shard.path, shard.sha256), (shard.index, shard.index_sha256), (shard.rows, shard.rows_sha256)]
    damaged = set()
    for path, expected in named:
        if Path(path).is_absolute() or ".." in Path(path).parts:
            yield f"{path}: leads out of the manifest's folder"
        elif not manifest.file(path).is_file():
            yield f"{path}: missing"
        elif sha256(manifest.file(path)) != expected:
            yield f"{path}: sha256 differs from the manifest's"
        else:
            continue
        damaged.add(path)
    held = set() if manifest.val_ids.path in damaged else set(read_ids(manifest))
    if manifest.val_ids.rule != ids.VALIDATION_RULE:
        yield f"validation rule {manifest.val_ids.rule!r} is not this program's {ids.VALIDATION_RULE!r}"
    totals: dict[tuple[str, str], int] = {}
    for shard in manifest.shards:
        if damaged.isdisjoint({shard.path, shard.index, shard.rows}):
            try:
                yield from verify_shard(manifest, shard, held, totals)
            except (ManifestError, pa.ArrowInvalid) as error:
                yield f"{shard.path}: {error}"
    if not damaged:
        yield from verify_totals(manifest, totals)


def read_ids(manifest: Manifest) -> list[bytes]:
    """The sorted 16-byte ids of all documents held out."""
    raw = manifest.file(manifest.val_ids.path).read_bytes()
    return [raw[i : i + 16] for i in range(0, len(raw), 16)]


def verify_shard(
    manifest: Manifest, shard: Shard, held: set[bytes], totals: dict[tuple[str, str], int]
) -> Iterator[str]:
    """Header, index, rows and tokens of one shard agree with each other and with the manifest."""
    name, bos = shard.path, manifest.tokenizer.bos_id
    header, tokens = open_shard(manifest.file(shard.path))
    if header.build_id != manifest.build_id[:16]:
        yield f"{name}: header is of build {header.build_id}, the manifest of {manifest.build_id[:16]}"
    facts = (header.tokens, header.documents, header.vocab_size, header.bos_id)
    if facts != (shard.tokens, shard.documents, manifest.tokenizer.vocab_size, bos):
        yield f"{name}: header says {facts}, the manifest otherwise"
    rows = pq.read_table(manifest.file(shard.rows))
    if rows.schema.names != ROWS.names:
        yield f"{shard.rows}: columns are {rows.schema.names}"
        return
    if table_digest(rows.cast(ROWS)) != shard.rows_digest:
        yield f"{shard.rows}: logical digest differs from the manifest's"
    starts, counts = rows["token_start"].to_numpy(), rows["token_count"].to_numpy().astype(np.int64)
    expected = np.concatenate([[0], np.cumsum(counts)])
    if len(rows) != shard.documents or not np.array_equal(starts, expected[:-1]) or expected[-1] != len(tokens):
        yield f"{shard.rows}: rows do not tile the shard's {len(tokens):,} tokens"
        return
    lengths, pointers = read_index(manifest.file(shard.index))
    if not np.array_equal(lengths, counts) or not np.array_equal(pointers, HEADER_BYTES + 2 * starts):
        yield f"{shard.index}: does not agree with {shard.rows}"
    if len(tokens) and int(tokens.max()) >= manifest.tokenizer.vocab_size:
        yield f"{name}: token {int(tokens.max())} is not in the vocabulary"
    heads = starts[(rows["part"].to_numpy() == 0) & (counts > 0)]
    if not np.array_equal(np.flatnonzero(tokens == bos), heads):
        yield f"{name}: BOS does not stand in front of each document and nowhere else"
    reserved = [i for i in manifest.tokenizer.special_ids.values() if i != bos]
    if np.isin(tokens, reserved).any():
        yield f"{name}: holds special ids other than BOS"
    yield from verify_split(shard, rows, held)
    for source in pc.unique(rows["source"]).to_pylist():
        mine = int(counts[np.asarray(pc.equal(rows["source"], source).to_numpy())].sum())
        totals[shard.split, source] = totals.get((shard.split, source), 0) + mine


def verify_split(shard: Shard, rows: pa.Table, held: set[bytes]) -> Iterator[str]:
    """No training document is held out, and every validation document is."""
    found = rows["document_id"].to_pylist()
    inside = held.intersection(found)
    if shard.split == "train" and inside:
        yield f"{shard.path}: holds {len(inside)} validation documents, such as {min(inside).hex()}"
    if shard.split == "val" and len(inside) != len(set(found)):
        yield f"{shard.path}: holds documents that are not in val_ids.bin"
    rule = ids.is_validation(rows["document_id"])
    if bool(rule.any()) != (shard.split == "val") or (shard.split == "val" and not bool(rule.all())):
        yield f"{shard.path}: documents are not on the side of the split that their id puts them"


def verify_totals(manifest: Manifest, totals: dict[tuple[str, str], int]) -> Iterator[str]:
    """Counts of the manifest are the sums of what the shards hold."""
    for split, expected in (("train", manifest.tokens), ("val", manifest.val_tokens)):
        found = sum(n for (s, _), n in totals.items() if s == split)
        if found != expected:
            yield f"manifest: {split} tokens are {found:,}, not {expected:,}"
    for source in manifest.sources:
        found = totals.get(("train", source.name), 0)
        if found != source.tokens:
            yield f"manifest: source {source.name} gave {found:,} tokens, not {source.tokens:,}"
        if source.epochs > source.max_epochs + 1e-9:
            yield f"manifest: source {source.name} is repeated {source.epochs:.3f} times, above its cap"
