"""A manifest for shards that were made elsewhere, so that they are checked and trained on here.

The shards stay where they are, in llm.c's layout, as `<any>_train_<any>.bin` and `<any>_val_<any>.bin`; manifest and
tokenizer are written beside them, because a manifest opens files of its own folder alone. What documents the shards
hold is not known: the manifest has no sources, no index and no rows.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import DataError
from stages.recipe import Recipe
from stages.tokenizer.external import boundary_ids, check_accountable, limited, locate, own_bos, read_unchanged
from stages.tokenizer.spec import open_vocabulary
from train.data.format import HEADER_BYTES, read_shard
from train.data.manifest import SCHEMA_VERSION, Manifest, Shard, Tokenizer, ValidationIds, load_manifest
from train.data.tokens import token_dtype
from train.files import sha256_file, write_atomic
from train.tokenizer.pieces import SUFFIX

MIXTURE = "pretrain"
HELD_OUT = ValidationIds(path="", sha256="", count=0, rule="files named *_val_*.bin")
BLOCK_BYTES = 16 << 20  # read at a time


def adopt(
    folder: Path, tokenizer: str, bos: str | None, recipe: Recipe | None, vocab_size: int | None = None
) -> Manifest:
    """Write `folder`/manifest.json for the shards that lie there, and the tokenizer beside it; return what it says.

    recipe: whose model and training it shall have; None: the defaults. vocab_size: ids of the model, where the
    tokenizer has special ones beyond. Raises DataError and ManifestError naming the file that cannot be used.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; name the one that the shards are in")
    if (folder / "manifest.json").exists():
        raise DataError(f"{folder / 'manifest.json'}: is there already; delete it to adopt these shards again")
    paths = {split: sorted(folder.glob(f"*_{split}_*.bin")) for split in ("train", "val")}
    for split, found in paths.items():
        if not found:
            raise DataError(f"{folder}: has no file named *_{split}_*.bin; rename the shards to train on and held out")
    if both := sorted({*paths["train"]} & {*paths["val"]}):
        raise DataError(f"{both[0]}: is named as one to train on and as one held out; rename it")
    file = locate(tokenizer)
    data, copy = read_unchanged(file), folder / f"tokenizer{SUFFIX if tokenizer.endswith(SUFFIX) else '.json'}"
    if copy.exists() and copy.read_bytes() != data:
        raise DataError(f"{copy}: is there already, and is another tokenizer than {tokenizer}; move it away")
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / copy.name).write_bytes(data)
        described = describe_tokenizer(Path(scratch) / copy.name, tokenizer, bos, own_bos(file), vocab_size)
    shards = [read_foreign(path, split, described) for split, found in paths.items() for path in found]
    check_held_out(folder, shards)
    tokens = {split: sum(shard.tokens for shard in shards if shard.split == split) for split in paths}
    name = recipe.name if recipe else folder.resolve().name
    phase = recipe.phase_of(MIXTURE) if recipe else MIXTURE
    manifest = Manifest(
        schema_version=SCHEMA_VERSION,
        build_id=adopted_build_id(described, shards),
        name=name,
        phase=phase,
        mixture=MIXTURE,
        seed=0,
        tokens=tokens["train"],
        val_tokens=tokens["val"],
        documents=0,
        tokenizer=described,
        shards=shards,
        sources=[],
        val_ids=HELD_OUT,
        recipe={"name": name, **training_keys(recipe, phase)},
        source_tree="",
        adopted=True,
    )
    copy.write_bytes(data)
    write_atomic(folder / "manifest.json", manifest.to_json())
    return load_manifest(folder)


def check_held_out(folder: Path, shards: Sequence[Shard]) -> None:
    """Raise DataError where a split has no token, or a shard that is trained on is held out as well."""
    for split in ("train", "val"):
        if not any(shard.tokens for shard in shards if shard.split == split):
            raise DataError(f"{folder}: its files named *_{split}_*.bin hold no token; copy them again")
    trained_on = {shard.sha256: shard.path for shard in shards if shard.split == "train"}
    for shard in shards:
        if shard.split == "val" and shard.tokens and shard.sha256 in trained_on:
            raise DataError(
                f"{folder / shard.path}: holds what {trained_on[shard.sha256]} does, which is trained on; its score "
                "would say nothing; move one of them away"
            )


def adopted_build_id(tokenizer: Tokenizer, shards: Sequence[Shard]) -> str:
    """Return the build id: a hash of all that training reads."""
    identity = [tokenizer.sha256, [[shard.path, shard.split, shard.sha256] for shard in shards]]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def training_keys(recipe: Recipe | None, phase: str) -> dict[str, Any]:
    """Return the groups `model` and `train` of a recipe, as a manifest has them."""
    if recipe is None:
        return {"model": {}, "train": {phase: {}}}
    value = recipe.to_dict()
    return {"model": value["model"], "train": value["train"] or {phase: {}}}


def describe_tokenizer(path: Path, source: str, bos: str | None, own: str | None, vocab_size: int | None) -> Tokenizer:
    """Return the manifest's entry for the tokenizer at `path`, which `source` names.

    own: the token that it says begins a document. Raises DataError when it cannot be accounted for.
    """
    if path.suffix != SUFFIX:  # nothing is encoded with it here, so such a model may change texts
        check_accountable(str(path), source, [])
    vocabulary = limited(open_vocabulary(path), source, vocab_size)
    bos_id, pad_id = boundary_ids(vocabulary, source, bos, own)
    return Tokenizer(
        path=path.name,
        sha256=sha256_file(path),
        vocab_size=vocabulary.size,
        bos_id=bos_id,
        pad_id=bos_id if pad_id is None else pad_id,
        special_ids=vocabulary.special_ids,
        token_bytes=vocabulary.token_bytes,
        space_ids=vocabulary.space_ids,
    )


def read_foreign(path: Path, split: str, tokenizer: Tokenizer) -> Shard:
    """Read a whole shard and describe it. Raises ManifestError, and DataError where it does not fit the tokenizer."""
    if not path.resolve().is_relative_to(path.parent.resolve()):
        raise DataError(f"{path}: is a link that leads out of the folder, which no manifest follows; copy the file")
    header, _ = read_shard(path)
    wanted = token_dtype(tokenizer.vocab_size)
    if header.dtype != wanted:
        raise DataError(
            f"{path}: has ids of {header.dtype.itemsize} bytes, those of a vocabulary of {tokenizer.vocab_size:,} have "
            f"{wanted.itemsize}; name the tokenizer that it was made with"
        )
    digest, top = hashlib.sha256(), -1
    with path.open("rb") as file:
        digest.update(file.read(HEADER_BYTES))
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            top = max(top, int(np.frombuffer(block, header.dtype).max()))
    if top >= tokenizer.vocab_size:
        raise DataError(
            f"{path}: holds token {top:,}, the vocabulary has {tokenizer.vocab_size:,} ids; the file is damaged, or of "
            "another tokenizer"
        )
    return Shard(
        path=path.name,
        split=split,
        tokens=header.tokens,
        documents=0,
        bytes=path.stat().st_size,
        sha256=digest.hexdigest(),
        index="",
        index_sha256="",
        rows="",
        rows_sha256="",
        rows_digest="",
    )
