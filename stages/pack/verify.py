"""Checks of a packed folder: every checksum, every invariant, each problem in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from stages import hashing
from stages.pack.adopt import HELD_OUT, adopted_build_id
from stages.pack.allocate import rotate_positions
from stages.pack.best_fit import best_fit
from stages.pack.format import ROWS
from stages.recipe import Recipe
from stages.schemas import table_digest
from stages.sources.questions import EvalConfig
from stages.tokenizer.spec import BOS, PAD
from train.data.evalset import read_evalset
from train.data.format import FORMAT_VERSION, check_shard, read_index, read_shard, shard_bytes
from train.data.manifest import Manifest, ManifestError, PackedFile, Shard, Source
from train.data.tokens import Tokens, token_dtype
from train.files import sha256_file
from train.tokenizer.pieces import TokenizerError
from train.tokenizer.vocabulary import read_vocabulary


@dataclass
class Totals:
    """What the rows of all shards add up to. A split is train, val, or "val of SOURCE" for that source's own shard."""

    tokens: Counter[tuple[str, str, int]] = field(default_factory=Counter)  # by split, source and copy
    documents: Counter[tuple[str, str]] = field(default_factory=Counter)  # by split and source
    truncated: Counter[tuple[str, str]] = field(default_factory=Counter)  # documents, by split and source
    last_position: int = -1  # the highest in the training shards so far

    def add(self, split: str, rows: pa.Table) -> None:
        """Add the rows of one shard."""
        groups = rows.group_by(["source", "copy"]).aggregate(
            [("token_count", "sum"), ("token_count", "count"), ("truncated", "sum")]
        )
        for row in groups.to_pylist():
            self.tokens[split, row["source"], row["copy"]] += row["token_count_sum"]
            self.documents[split, row["source"]] += row["token_count_count"]
            self.truncated[split, row["source"]] += row["truncated_sum"]

    def tokens_and_documents(self, split: str, source: str | None = None) -> tuple[int, int]:
        """Return the tokens and documents of a split, of one source or of all."""
        tokens = sum(n for (s, name, _), n in self.tokens.items() if s == split and source in (None, name))
        documents = sum(n for (s, name), n in self.documents.items() if s == split and source in (None, name))
        return tokens, documents


def verify(manifest: Manifest) -> Iterator[str]:
    """Yield every difference between the manifest and what lies beside it, in a line.

    What came before packing (rows in, kept and dropped, origin, revision, license, versions, the hash of the
    source tree, the recipe's other keys, the second half of the build id) cannot be known from the folder: for
    these only the manifest's own digest speaks, which is compared when it is read.
    """
    if not manifest.adopted and (fault := recipe_fault(manifest)):
        yield f"manifest: {fault}"
        return  # what follows reads it
    yield from verify_adopted_manifest(manifest) if manifest.adopted else verify_manifest(manifest)
    damaged: set[str] = set()
    for file in manifest.packed_files():
        if fault := file_fault(manifest, file):
            damaged.add(file.path)
            yield f"{file.path}: {fault}"
    if manifest.tokenizer.path not in damaged:
        yield from verify_tokenizer(manifest)
    for evalset in manifest.evals:
        if evalset.path not in damaged:
            try:
                read_evalset(manifest.file(evalset.path), evalset, manifest.tokenizer.vocab_size)
            except ManifestError as error:
                yield str(error)
    if manifest.adopted:
        for shard in manifest.shards:
            if shard.path not in damaged:
                yield from verify_adopted(manifest, shard)
        return
    held_out: set[bytes] = set()
    if manifest.val_ids.path not in damaged:
        ids = read_ids(manifest)
        yield from verify_ids(manifest, ids)
        held_out.update(ids)
    totals = Totals()
    for shard in manifest.shards:
        if damaged.isdisjoint({shard.path, shard.index, shard.rows}):
            try:
                yield from verify_shard(manifest, shard, held_out, totals)
            except (ManifestError, pa.ArrowException, OSError) as error:
                yield f"{shard.path}: {error}"
    if not damaged:
        yield from verify_totals(manifest, totals)


def recipe_fault(manifest: Manifest) -> str:
    """Return what is wrong with the recipe in a manifest, "" where it is one and its mixtures are as resolved."""
    try:
        mixtures = Recipe.model_validate(manifest.recipe).to_dict()["mixtures"]
    except ValidationError as error:
        wrong = error.errors()[0]
        return f"recipe.{'.'.join(map(str, wrong['loc']))} is none that a recipe has: {str(wrong['input'])[:80]!r}"
    written = manifest.recipe.get("mixtures", {})
    changed = [name for name, keys in written.items() if mixtures[name] | keys != mixtures[name]]
    return f"recipe.mixtures.{changed[0]} is not as a recipe is resolved" if changed else ""


def verify_adopted_manifest(manifest: Manifest) -> Iterator[str]:
    """The manifest of adopted shards agrees with itself, and claims no more of them than is known."""
    unknown = ("documents", "index", "index_sha256", "rows", "rows_sha256", "rows_digest", "source", "padding")
    for shard in manifest.shards:
        if any(getattr(shard, name) for name in unknown):
            yield f"manifest: {shard.path} was adopted, and of its documents nothing is known"
        if shard.split not in ("train", "val") or f"_{shard.split}_" not in shard.path:
            yield f"manifest: {shard.path} is not named as a shard of split {shard.split!r} is"
        if shard.bytes != shard_bytes(shard.tokens, token_dtype(manifest.tokenizer.vocab_size)):
            yield f"manifest: {shard.path} cannot have {shard.bytes:,} bytes and {shard.tokens:,} tokens"
    facts: dict[str, tuple[object, object]] = {
        "build_id": (manifest.build_id, adopted_build_id(manifest.tokenizer, manifest.shards)),
        "tokens": (manifest.tokens, sum(shard.tokens for shard in manifest.split("train"))),
        "val_tokens": (manifest.val_tokens, sum(shard.tokens for shard in manifest.split("val"))),
        "documents": (manifest.documents, 0),
        "val_ids": (manifest.val_ids, HELD_OUT),
        "name": (manifest.name, manifest.recipe.get("name")),
    }
    for name, (said, wanted) in facts.items():
        if said != wanted:
            yield f"manifest: {name} is {said!r}, and should be {wanted!r}"
    if manifest.sources or manifest.evals or manifest.files:
        yield "manifest: it was adopted, and of its sources nothing is known"


def verify_adopted(manifest: Manifest, shard: Shard) -> Iterator[str]:
    """Header and ids of a shard that was made elsewhere; of its documents nothing is known."""
    try:
        _, tokens = read_shard(manifest.file(shard.path))
        check_shard(manifest, shard)
    except ManifestError as error:
        yield str(error)
        return
    yield from foreign_ids(manifest, shard, tokens)


def file_fault(manifest: Manifest, file: PackedFile) -> str:
    """Say what is wrong with a file as a whole; nothing where its bytes are the manifest's."""
    if Path(file.path).is_absolute() or ".." in Path(file.path).parts:
        return "leads out of the manifest's folder"
    if not manifest.file(file.path).is_file():
        return "missing"
    if sha256_file(manifest.file(file.path)) != file.sha256:
        return "sha256 differs from the manifest's"
    return ""


def verify_manifest(manifest: Manifest) -> Iterator[str]:
    """The manifest agrees with itself: names, numbers and what its recipe asked for."""
    numbers, dtype = Counter[str](), token_dtype(manifest.tokenizer.vocab_size)
    for shard in manifest.shards:
        stem = f"{manifest.name}_{manifest.mixture}_{shard.split}_{numbers[shard.split]:06d}"
        numbers[shard.split] += 1
        if (shard.path, shard.index, shard.rows) != (f"{stem}.bin", f"{stem}.idx", f"{stem}.rows.parquet"):
            yield f"manifest: the files of {shard.path} are not named {stem}"
        if shard.split not in ("train", "val"):
            yield f"manifest: {shard.path} is of split {shard.split!r}"
        if shard.bytes != shard_bytes(shard.tokens, dtype):
            yield f"manifest: {shard.path} cannot have {shard.bytes:,} bytes and {shard.tokens:,} tokens"
    recipe = manifest.recipe
    mixture = recipe.get("mixtures", {}).get(manifest.mixture) or {}
    shares = {source.name: source.ratio_asked for source in manifest.sources}
    facts: dict[str, tuple[object, object]] = {
        "name": (manifest.name, recipe.get("name")),
        "seed": (manifest.seed, recipe.get("seed")),
        "tokens": (manifest.tokens, mixture.get("tokens")),
        "sources": (shares, mixture.get("ratios") or shares),  # without ratios they follow from counts
    }
    for name, (said, wanted) in facts.items():
        if said != wanted:
            yield f"manifest: {name} is {said!r}, its recipe says {wanted!r}"
    evals = {e.name: (e.path, e.kind, e.prompt, e.origin, e.revision, e.license) for e in manifest.evals}
    expected = {name: expected_evals(name, value) for name, value in recipe.get("evals", {}).items()}
    if evals != expected:
        yield f"manifest: evals are {evals}, its recipe says {expected}"
    caps = mixture.get("max_epochs", 1.0)
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
    """Return what a manifest should say of an evaluation set: path, kind, prompt, origin, revision, license."""
    config = EvalConfig.model_validate(value)
    return f"eval_{name}.json", config.kind, config.prompt, config.where, config.revision, config.license


def verify_tokenizer(manifest: Manifest) -> Iterator[str]:
    """What the manifest says of the tokenizer is what its file says."""
    said = manifest.tokenizer
    try:
        vocabulary = read_vocabulary(manifest.file(said.path)).limited(said.vocab_size)
    except TokenizerError as error:
        yield f"manifest: {said.path}: {error}"
        return
    specials = vocabulary.special_ids
    # A tokenizer that was not trained here has other names.
    bos_id, pad_id = specials.get(BOS, said.bos_id), specials.get(PAD, said.pad_id)
    known = {bos_id, pad_id} <= {*specials.values()}
    if said.special_ids != specials or (said.bos_id, said.pad_id) != (bos_id, pad_id) or not known:
        yield f"manifest: special ids are not those of {said.path}"
    if (said.token_bytes, said.space_ids) != (vocabulary.token_bytes, vocabulary.space_ids):
        yield f"manifest: token_bytes or space_ids are not those of {said.path}"


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
    """Return the sorted 16-byte ids of all documents held out."""
    raw = manifest.file(manifest.val_ids.path).read_bytes()
    return [raw[i : i + 16] for i in range(0, len(raw), 16)]


def verify_shard(manifest: Manifest, shard: Shard, held_out: set[bytes], totals: Totals) -> Iterator[str]:
    """Header, index, rows and tokens of one shard agree with each other and with the manifest."""
    header, tokens = read_shard(manifest.file(shard.path))
    if header.build_id != manifest.build_id[:16]:
        yield f"{shard.path}: header is of build {header.build_id}, the manifest of {manifest.build_id[:16]}"
    dtype = token_dtype(manifest.tokenizer.vocab_size)
    facts = (header.tokens, header.documents, header.vocab_size, header.bos_id, header.dtype, header.format)
    expected = (shard.tokens, shard.documents, manifest.tokenizer.vocab_size, manifest.tokenizer.bos_id, dtype)
    if facts != (*expected, FORMAT_VERSION):
        yield f"{shard.path}: header says {facts}, the manifest otherwise"
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
    lengths, index_starts = read_index(manifest.file(shard.index), dtype)
    if not np.array_equal(lengths, counts) or not np.array_equal(index_starts, starts):
        yield f"{shard.index}: does not agree with {shard.rows}"
    yield from verify_tokens(manifest, shard, tokens, rows)
    yield from verify_split(shard, rows, held_out)
    if shard.split == "val" and shard.source and set(rows["source"].unique().to_pylist()) != {shard.source}:
        yield f"{shard.path}: holds other documents than those of {shard.source}"
    yield from verify_order(manifest, shard, rows, totals)
    totals.add(f"val of {shard.source}" if shard.source else shard.split, rows)


def verify_tokens(manifest: Manifest, shard: Shard, tokens: Tokens, rows: pa.Table) -> Iterator[str]:
    """Special tokens stand where `rows` say, and nowhere else."""
    tokenizer = manifest.tokenizer
    starts, counts = rows["token_start"].to_numpy(), rows["token_count"].to_numpy().astype(np.int64)
    padding = np.ones(len(tokens), bool)
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        padding[start : start + count] = False
    if shard.padding and (tokens[padding] != tokenizer.pad_id).any():
        yield f"{shard.path}: holds tokens between documents that are not padding"
    yield from foreign_ids(manifest, shard, tokens)
    document_starts = starts[(rows["part"].to_numpy() == 0) & (counts > 0)]
    if not np.array_equal(np.flatnonzero(tokens == tokenizer.bos_id), document_starts):
        yield f"{shard.path}: BOS does not stand in front of each document and nowhere else"
    reserved = [i for i in tokenizer.special_ids.values() if i != tokenizer.bos_id]
    if np.isin(tokens[~padding], reserved).any():
        yield f"{shard.path}: holds special ids other than BOS in its documents"


def foreign_ids(manifest: Manifest, shard: Shard, tokens: Tokens) -> Iterator[str]:
    """No token is beyond the vocabulary."""
    if len(tokens) and int(tokens.max()) >= manifest.tokenizer.vocab_size:
        yield f"{shard.path}: token {int(tokens.max())} is not in the vocabulary"


def verify_order(manifest: Manifest, shard: Shard, rows: pa.Table, totals: Totals) -> Iterator[str]:
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
        positions = hashing.position(manifest.seed, identities, part)
        for number in np.unique(copy):
            positions[copy == number] = rotate_positions(positions[copy == number], int(number))
        if int(positions.min()) <= totals.last_position:
            yield f"{shard.path}: holds documents that belong into an earlier shard"
        totals.last_position = int(positions.max())


def verify_windows(shard: Shard, rows: pa.Table, order: npt.NDArray[np.uint64], window: int) -> Iterator[str]:
    """Best-fit packing: no document crosses a window that it would fit into, and it can be done again."""
    starts, counts = rows["token_start"].to_numpy(), rows["token_count"].to_numpy().astype(np.int64)
    crossing = (counts <= window) & (starts // window != (starts + counts - 1) // window)
    crossing |= (counts > window) & (starts % window != 0)
    if crossing.any():
        yield f"{shard.rows}: {int(crossing.sum())} documents cross windows of {window} tokens that would hold them"
    counts_in_order = counts[np.argsort(order, kind="stable")]
    placed, expected_starts, total = best_fit(counts_in_order, window)
    if total != shard.tokens or not np.array_equal(np.sort(counts_in_order[placed]), np.sort(counts)):
        yield f"{shard.path}: best-fit packing of its documents takes {total:,} tokens, not {shard.tokens:,}"
    elif not np.array_equal(expected_starts, starts):
        yield f"{shard.rows}: documents do not lie where best-fit packing puts them"


def verify_split(shard: Shard, rows: pa.Table, held_out: set[bytes]) -> Iterator[str]:
    """No training document is held out, and every validation document is."""
    ids = rows["document_id"].to_pylist()
    inside = held_out.intersection(ids)
    if shard.split == "train" and inside:
        yield f"{shard.path}: holds {len(inside)} validation documents, such as {min(inside).hex()}"
    if shard.split == "val" and len(inside) != len(set(ids)):
        yield f"{shard.path}: holds documents that are not in val_ids.bin"
    by_rule = hashing.is_validation(rows["document_id"])
    misplaced = not (len(ids) and by_rule.all()) if shard.split == "val" else by_rule.any()
    if misplaced:
        yield f"{shard.path}: documents are not on the side of the split that their id puts them"


def verify_totals(manifest: Manifest, totals: Totals) -> Iterator[str]:
    """Counts of the manifest are the sums of what the shards hold, and repeats are as it says."""
    known = {source.name for source in manifest.sources}
    unknown = {name for _, name in totals.documents} - known
    if unknown:
        yield f"manifest: shards hold documents of {', '.join(sorted(unknown))}, which it does not list"
    count = totals.tokens_and_documents
    facts: list[tuple[str, object, object]] = [
        ("training tokens and documents", (manifest.tokens, manifest.documents), count("train")),
        ("validation tokens", manifest.val_tokens, count("val")[0]),
    ]
    for source in manifest.sources:
        said_train, said_val = (source.tokens, source.documents), (source.val_tokens, source.val_documents)
        facts.append((f"tokens and documents of {source.name}", said_train, count("train", source.name)))
        facts.append((f"held out of {source.name}", said_val, count("val", source.name)))
    for what, said, counted in facts:
        if said != counted:
            yield f"manifest: {what} are {counted}, not {said}"
    for source in manifest.sources:
        yield from verify_copies(source, totals)
    for (split, name), n in totals.truncated.items():
        if split != "train" and n > 1:
            yield f"manifest: {n} held-out documents of {name} are cut in the {split} shard, not one at most"


def verify_copies(source: Source, totals: Totals) -> Iterator[str]:
    """A source is repeated whole, but for the last copy, in which one document at most is truncated."""
    copies, rest = divmod(source.tokens, source.available_tokens) if source.available_tokens else (0, source.tokens)
    by_copy = {copy: n for (split, name, copy), n in totals.tokens.items() if (split, name) == ("train", source.name)}
    wanted = dict.fromkeys(
        range(min(copies, len(by_copy) + 1)), source.available_tokens
    )  # one more is enough to differ
    if rest:
        wanted[copies] = rest
    if by_copy != wanted:
        yield f"manifest: tokens of {source.name} by copy are {by_copy}, not {wanted}"
    truncated = totals.truncated["train", source.name]
    if truncated > 1:
        yield f"manifest: {truncated} training documents of {source.name} are cut, not one at most"
