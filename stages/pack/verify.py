"""Checks of a packed folder: every checksum, every invariant, each problem in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages import hashing
from stages.pack.allocate import rotate
from stages.pack.best_fit import best_fit
from stages.pack.format import ROWS
from stages.schemas import table_digest
from stages.sources.questions import EvalConfig
from stages.tokenizer.spec import BOS, PAD, special_ids, token_bytes
from train.data.evalset import read_evalset
from train.data.format import HEADER_BYTES, read_index, read_shard, shard_bytes
from train.data.manifest import Manifest, ManifestError, Shard
from train.files import sha256_file


@dataclass
class Tally:
    """What the rows of all shards add up to."""

    # By split (train, val, or "val of SOURCE" for that source's own shard), source and copy
    tokens: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    documents: Counter[tuple[str, str]] = field(default_factory=Counter)  # by split, source
    cuts: Counter[tuple[str, str]] = field(default_factory=Counter)
    border: int = -1  # the highest position in the training shards so far


def verify(manifest: Manifest) -> Iterator[str]:
    """Every difference between the manifest and what lies beside it.

    What came before packing (rows in, kept and dropped, origin, revision, license, versions, the hash of the
    source tree, the recipe's other keys, the second half of the build id) cannot be known from the folder: for
    these only the manifest's own digest speaks.
    """
    if not manifest.digest_matches():
        yield "manifest: its digest is not of what it says; it was changed after it was written"
    yield from verify_manifest(manifest)
    damaged = set()
    for path, expected in manifest.packed_files():
        if Path(path).is_absolute() or ".." in Path(path).parts:
            yield f"{path}: leads out of the manifest's folder"
        elif not manifest.file(path).is_file():
            yield f"{path}: missing"
        elif sha256_file(manifest.file(path)) != expected:
            yield f"{path}: sha256 differs from the manifest's"
        else:
            continue
        damaged.add(path)
    if manifest.tokenizer.path not in damaged:
        yield from verify_tokenizer(manifest)
    for asked in manifest.evals:
        if asked.path not in damaged:
            try:
                read_evalset(manifest.file(asked.path), asked, manifest.tokenizer.vocab_size)
            except ManifestError as error:
                yield str(error)
    held: set[bytes] = set()
    if manifest.val_ids.path not in damaged:
        listed = read_ids(manifest)
        yield from verify_ids(manifest, listed)
        held.update(listed)
    tally = Tally()
    for shard in manifest.shards:
        if damaged.isdisjoint({shard.path, shard.index, shard.rows}):
            try:
                yield from verify_shard(manifest, shard, held, tally)
            except (ManifestError, pa.ArrowException, OSError) as error:
                yield f"{shard.path}: {error}"
    if not damaged:
        yield from verify_totals(manifest, tally)


def verify_manifest(manifest: Manifest) -> Iterator[str]:
    """The manifest agrees with itself: names, numbers and what its recipe asked for."""
    numbers = Counter[str]()
    for shard in manifest.shards:
        stem = f"{manifest.name}_{manifest.mixture}_{shard.split}_{numbers[shard.split]:06d}"
        numbers[shard.split] += 1
        if (shard.path, shard.index, shard.rows) != (f"{stem}.bin", f"{stem}.idx", f"{stem}.rows.parquet"):
            yield f"manifest: the files of {shard.path} are not named {stem}"
        if shard.split not in ("train", "val"):
            yield f"manifest: {shard.path} is of split {shard.split!r}"
        if shard.bytes != shard_bytes(shard.tokens):
            yield f"manifest: {shard.path} cannot have {shard.bytes:,} bytes and {shard.tokens:,} tokens"
    recipe = manifest.recipe
    asked = recipe.get("mixtures", {}).get(manifest.mixture) or {}
    shares = asked.get("ratios") or {s.name: s.ratio_asked for s in manifest.sources}  # else they follow from counts
    facts = {
        "name": (manifest.name, recipe.get("name")),
        "seed": (manifest.seed, recipe.get("seed")),
        "tokens": (manifest.tokens, asked.get("tokens")),
        "sources": ({s.name: s.ratio_asked for s in manifest.sources}, shares),
    }
    for name, (said, wanted) in facts.items():
        if said != wanted:
            yield f"manifest: {name} is {said!r}, its recipe says {wanted!r}"
    said = {e.name: (e.path, e.kind, e.prompt, e.origin, e.revision, e.license) for e in manifest.evals}
    wished = {name: expected_evals(name, value) for name, value in recipe.get("evals", {}).items()}
    if said != wished:
        yield f"manifest: evals are {said}, its recipe says {wished}"
    caps = asked.get("max_epochs", 1.0)
    for source in manifest.sources:
        cap = caps.get(source.name, 1.0) if isinstance(caps, dict) else caps
        if source.max_epochs != cap:
            yield f"manifest: source {source.name} has a cap of {source.max_epochs}, its recipe says {cap}"
        if source.ratio_got != source.tokens / max(1, manifest.tokens):
            yield f"manifest: source {source.name} has ratio_got {source.ratio_got}, not tokens / all tokens"
        if source.epochs != (source.tokens / source.available_tokens if source.available_tokens else 0.0):
            yield f"manifest: source {source.name} has epochs {source.epochs}, not tokens / available_tokens"
        if source.epochs > source.max_epochs + 1e-9:
            yield f"manifest: source {source.name} is repeated {source.epochs:.3f} times, above its cap"


def expected_evals(name: str, value: dict[str, Any]) -> tuple[str, ...]:
    """What a manifest says of an evaluation set, by its recipe: path, kind, prompt, origin, revision, license."""
    config = EvalConfig.model_validate(value)
    return f"eval_{name}.json", config.kind, config.prompt, config.where, config.revision, config.license


def verify_tokenizer(manifest: Manifest) -> Iterator[str]:
    """What the manifest says of the tokenizer is what its file says."""
    said, path = manifest.tokenizer, str(manifest.file(manifest.tokenizer.path))
    specials, lengths = special_ids(path), token_bytes(path)
    # A tokenizer that was not trained here has other names.
    named = (specials.get(BOS, said.bos_id), specials.get(PAD, said.pad_id))
    if said.special_ids != specials or (said.bos_id, said.pad_id) != named or not {*named} <= {*specials.values()}:
        yield f"manifest: special ids are not those of {said.path}"
    if said.token_bytes != lengths or said.vocab_size != len(lengths):
        yield f"manifest: vocabulary size or token_bytes are not those of {said.path}"


def verify_ids(manifest: Manifest, listed: list[bytes]) -> Iterator[str]:
    """`val_ids.bin` is sorted, of the size promised, and holds only ids that the rule holds out."""
    name = manifest.val_ids.path
    if manifest.val_ids.rule != hashing.VALIDATION_RULE:
        yield f"validation rule {manifest.val_ids.rule!r} is not this program's {hashing.VALIDATION_RULE!r}"
    if len(listed) != manifest.val_ids.count or any(len(i) != 16 for i in listed[-1:]):
        yield f"{name}: does not hold {manifest.val_ids.count:,} ids of 16 bytes"
    elif listed != sorted(set(listed)) or not hashing.is_validation(listed).all():
        yield f"{name}: ids are not sorted, or not all held out by the rule"


def read_ids(manifest: Manifest) -> list[bytes]:
    """The sorted 16-byte ids of all documents held out."""
    raw = manifest.file(manifest.val_ids.path).read_bytes()
    return [raw[i : i + 16] for i in range(0, len(raw), 16)]


def verify_shard(manifest: Manifest, shard: Shard, held: set[bytes], tally: Tally) -> Iterator[str]:
    """Header, index, rows and tokens of one shard agree with each other and with the manifest."""
    name, bos = shard.path, manifest.tokenizer.bos_id
    header, tokens = read_shard(manifest.file(shard.path))
    if header.build_id != manifest.build_id[:16]:
        yield f"{name}: header is of build {header.build_id}, the manifest of {manifest.build_id[:16]}"
    facts = (header.tokens, header.documents, header.vocab_size, header.bos_id)
    if facts != (shard.tokens, shard.documents, manifest.tokenizer.vocab_size, bos):
        yield f"{name}: header says {facts}, the manifest otherwise"
    rows = pq.read_table(manifest.file(shard.rows), partitioning=None)
    if rows.schema.names != ROWS.names:
        yield f"{shard.rows}: columns are {rows.schema.names}"
        return
    if table_digest(rows.cast(ROWS)) != shard.rows_digest:
        yield f"{shard.rows}: logical digest differs from the manifest's"
    starts, counts = rows["token_start"].to_numpy(), rows["token_count"].to_numpy().astype(np.int64)
    gaps = np.append(starts, len(tokens)) - np.append(0, starts + counts)
    if len(rows) != shard.documents or (gaps < 0).any() or (counts <= 0).any() or gaps.sum() != shard.padding:
        yield f"{shard.rows}: rows and {shard.padding:,} tokens of padding do not tile the shard's {len(tokens):,}"
        return
    filler = np.ones(len(tokens), bool)
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        filler[start : start + count] = False
    if shard.padding and (tokens[filler] != manifest.tokenizer.pad_id).any():
        yield f"{name}: holds tokens between documents that are not padding"
    lengths, pointers = read_index(manifest.file(shard.index))
    if not np.array_equal(lengths, counts) or not np.array_equal(pointers, HEADER_BYTES + 2 * starts):
        yield f"{shard.index}: does not agree with {shard.rows}"
    if len(tokens) and int(tokens.max()) >= manifest.tokenizer.vocab_size:
        yield f"{name}: token {int(tokens.max())} is not in the vocabulary"
    heads = starts[(rows["part"].to_numpy() == 0) & (counts > 0)]
    if not np.array_equal(np.flatnonzero(tokens == bos), heads):
        yield f"{name}: BOS does not stand in front of each document and nowhere else"
    reserved = [i for i in manifest.tokenizer.special_ids.values() if i != bos]
    if np.isin(tokens[~filler], reserved).any():
        yield f"{name}: holds special ids other than BOS in its documents"
    yield from verify_split(shard, rows, held)
    if shard.split == "val" and shard.source and set(rows["source"].unique().to_pylist()) != {shard.source}:
        yield f"{name}: holds other documents than those of {shard.source}"
    yield from verify_order(manifest, shard, rows, tally)
    split = f"val of {shard.source}" if shard.source else shard.split
    groups = rows.group_by(["source", "copy"]).aggregate(
        [("token_count", "sum"), ("token_count", "count"), ("truncated", "sum")]
    )
    for row in groups.to_pylist():
        tally.tokens[split, row["source"], row["copy"]] += row["token_count_sum"]
        tally.documents[split, row["source"]] += row["token_count_count"]
        tally.cuts[split, row["source"]] += row["truncated_sum"]


def verify_order(manifest: Manifest, shard: Shard, rows: pa.Table, tally: Tally) -> Iterator[str]:
    """Documents lie where seed and id put them: in this shard, and (unless they fill windows) in this order there."""
    identities, part = rows["document_id"].combine_chunks(), rows["part"].to_numpy()
    copy = rows["copy"].to_numpy()
    order = hashing.order(manifest.seed, identities, part, copy)
    window = manifest.recipe.get("mixtures", {}).get(manifest.mixture, {}).get("window")
    if window:
        yield from verify_windows(shard, rows, order, window)
    elif (order[1:] < order[:-1]).any():
        yield f"{shard.rows}: documents are not in the order of seed {manifest.seed}"
    if shard.split == "train" and len(rows):
        places = hashing.position(manifest.seed, identities, part)
        for number in np.unique(copy):
            places[copy == number] = rotate(places[copy == number], int(number))
        if int(places.min()) <= tally.border:
            yield f"{shard.path}: holds documents that belong into an earlier shard"
        tally.border = int(places.max())


def verify_windows(shard: Shard, rows: pa.Table, order: np.ndarray, window: int) -> Iterator[str]:
    """Best-fit packing: no document crosses a window that it would fit into, and it can be done again."""
    starts, counts = rows["token_start"].to_numpy(), rows["token_count"].to_numpy().astype(np.int64)
    crossing = (counts <= window) & (starts // window != (starts + counts - 1) // window)
    crossing |= (counts > window) & (starts % window != 0)
    if crossing.any():
        yield f"{shard.rows}: {int(crossing.sum())} documents cross windows of {window} tokens that would hold them"
    again = np.argsort(order, kind="stable")
    placed, wanted, total = best_fit(counts[again], window)
    if total != shard.tokens or not np.array_equal(np.sort(counts[again][placed]), np.sort(counts)):
        yield f"{shard.path}: best-fit packing of its documents takes {total:,} tokens, not {shard.tokens:,}"
    elif not np.array_equal(wanted, starts):
        yield f"{shard.rows}: documents do not lie where best-fit packing puts them"


def verify_split(shard: Shard, rows: pa.Table, held: set[bytes]) -> Iterator[str]:
    """No training document is held out, and every validation document is."""
    found = rows["document_id"].to_pylist()
    inside = held.intersection(found)
    if shard.split == "train" and inside:
        yield f"{shard.path}: holds {len(inside)} validation documents, such as {min(inside).hex()}"
    if shard.split == "val" and len(inside) != len(set(found)):
        yield f"{shard.path}: holds documents that are not in val_ids.bin"
    rule = hashing.is_validation(rows["document_id"])
    if bool(rule.any()) != (shard.split == "val") or (shard.split == "val" and not bool(rule.all())):
        yield f"{shard.path}: documents are not on the side of the split that their id puts them"


def verify_totals(manifest: Manifest, tally: Tally) -> Iterator[str]:
    """Counts of the manifest are the sums of what the shards hold, and repeats are as it says."""
    known = {source.name for source in manifest.sources}
    strange = {name for _, name in tally.documents} - known
    if strange:
        yield f"manifest: shards hold documents of {', '.join(sorted(strange))}, which it does not list"

    def of(split: str, name: str | None = None) -> tuple[int, int]:
        tokens = sum(n for (s, source, _), n in tally.tokens.items() if s == split and name in (None, source))
        return tokens, sum(n for (s, source), n in tally.documents.items() if s == split and name in (None, source))

    facts = [
        ("training tokens and documents", (manifest.tokens, manifest.documents), of("train")),
        ("validation tokens", manifest.val_tokens, of("val")[0]),
    ]
    for s in manifest.sources:
        facts.append((f"tokens and documents of {s.name}", (s.tokens, s.documents), of("train", s.name)))
        facts.append((f"held out of {s.name}", (s.val_tokens, s.val_documents), of("val", s.name)))
    for what, said, found in facts:
        if said != found:
            yield f"manifest: {what} are {found}, not {said}"
    for s in manifest.sources:
        full, rest = divmod(s.tokens, s.available_tokens) if s.available_tokens else (0, s.tokens)
        wanted = dict.fromkeys(range(full), s.available_tokens) | ({full: rest} if rest else {})
        copies = {c: n for (split, name, c), n in tally.tokens.items() if (split, name) == ("train", s.name)}
        if copies != wanted:
            yield f"manifest: tokens of {s.name} by copy are {copies}, not {wanted}"
        if tally.cuts["train", s.name] > 1:
            yield f"manifest: {tally.cuts['train', s.name]} training documents of {s.name} are cut, not one at most"
    for (split, name), n in tally.cuts.items():
        if split != "train" and n > 1:
            yield f"manifest: {n} held-out documents of {name} are cut in the {split} shard, not one at most"
