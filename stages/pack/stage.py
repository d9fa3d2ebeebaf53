"""Packing: from tokenized units to shards in a global random order, with an exact mixture, and their manifest.

The driver's part. It solves the mixture from the histograms of the tokenized units, decides where everything goes,
then runs a unit a shard, and one each that writes the ids held out and the manifest.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from stages.encode_evals.stage import ENCODE_EVALS
from stages.errors import DataError, NotBuilt
from stages.pack.allocate import Allocation, copy_ranges
from stages.pack.config import Mixture
from stages.pack.describe import PackedShard, describe_tokenizer, manifest_values, mixture_table
from stages.pack.layout import Layout, lay_out
from stages.pack.manifest import write_manifest, write_val_ids
from stages.pack.mixture import largest_remainder
from stages.pack.shard import shard
from stages.recipe import Recipe
from stages.stage import BuildContext, Record, ReportGroup, Stage, Unit
from stages.task import Artifact
from stages.tokenize.regroup import TokenRange
from stages.tokenize.stage import TOKENIZE
from stages.tokenizer.stage import BUILD_TOKENIZER
from train.data.format import FORMAT_VERSION
from train.data.manifest import Tokenizer
from train.data.tokens import token_dtype


@dataclass(frozen=True)
class Packed:
    """A packed mixture."""

    name: str  # of the mixture, and of its folder
    build_id: str
    manifest: dict[str, Any]
    files: dict[str, Artifact]  # by file name; in a dry run manifest.json may be missing


async def build_mixture(context: BuildContext, name: str) -> Packed:
    """Solve and pack `recipe.mixtures[name]`.

    Raises DataError when the recipe has no such mixture, a source falls short, or the tokenizer has no padding that
    best-fit packing needs.
    """
    stage, recipe = PACK[name], context.recipe
    results: list[Any] = await context.gather([lay_out(context, PACK, name), context.stage(ENCODE_EVALS)])
    layout: Layout = results[0]
    evalsets: Mapping[str, Record] = results[1]
    tokenizer_record = await context.stage(BUILD_TOKENIZER)
    tokenizer = describe_tokenizer(context, tokenizer_record)
    mixture = recipe.mixtures[name]
    if mixture.window and tokenizer.pad_id == tokenizer.bos_id:
        raise DataError(f"mixtures.{name}.packing: best_fit pads its windows, and this tokenizer has no padding token")
    build_id = identify(recipe, name, tokenizer, layout)
    params = {
        "seed": recipe.seed,
        "window": mixture.window,
        "pad_id": tokenizer.pad_id,
        "build_id": build_id,
        "vocab_size": tokenizer.vocab_size,
        "bos_id": tokenizer.bos_id,
    }
    shards = await pack_shards(context, name, params, layout)
    held_out_ids = [record.output("ids") for records in layout.held_out.values() for record in records]
    val_ids = (await context.run(stage, Unit(write_val_ids, {}, held_out_ids, "held-out ids"))).output("val_ids")
    values = manifest_values(context, stage, name, build_id, tokenizer, evalsets, shards, val_ids, layout)
    if values["tokens"] != mixture.tokens:
        raise AssertionError(f"packed {values['tokens']:,} tokens where {mixture.tokens:,} were asked")
    files = {tokenizer.path: tokenizer_record.output("tokenizer"), "val_ids.bin": val_ids}
    for packed in shards:
        files |= packed.files()
    for evalset in values.get("evals", []):
        files[evalset["path"]] = evalsets[evalset["name"]].output("encoded")
    with contextlib.suppress(NotBuilt):  # a dry run goes on: what trains on the mixture does not depend on this file
        written = await context.run(stage, Unit(write_manifest, {"manifest": values}, [], "manifest"))
        files["manifest.json"] = written.output("manifest")
    return Packed(name, build_id, values, files)


def identify(recipe: Recipe, name: str, tokenizer: Tokenizer, layout: Layout) -> str:
    """Return the build id: a hash of all that decides the bytes of the shards."""
    identity = {
        "format": FORMAT_VERSION,
        "name": recipe.name,
        "mixture": [name, recipe.mixtures[name].model_dump(mode="json")],
        "seed": recipe.seed,
        "shard_tokens": recipe.shard_tokens,
        "tokenizer": tokenizer.sha256,
        "inputs": layout.inputs,
        "parts": {source: allocation.to_dict() for source, allocation in layout.allocations.items()},
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


async def pack_shards(context: BuildContext, name: str, params: dict[str, Any], layout: Layout) -> list[PackedShard]:
    """Write all shards of a mixture: those to train on, then those held out. `params` are common to their units."""
    stage, mixture = PACK[name], context.recipe.mixtures[name]
    train_records, val_records = await asyncio.gather(
        training_shards(context, stage, params, layout), validation_shards(context, stage, params, layout, mixture)
    )
    base = f"{context.recipe.name}_{name}"
    shards = [
        PackedShard(f"{base}_train_{number:06d}", "train", "", record) for number, record in enumerate(train_records)
    ]
    shards += [
        PackedShard(f"{base}_val_{number:06d}", "val", source, record)
        for number, (source, record) in enumerate(val_records)
    ]
    return shards


async def training_shards(
    context: BuildContext, stage: Stage[Packed], params: dict[str, Any], layout: Layout
) -> list[Record]:
    """Write the training shards; return the records of those that hold anything, in order."""
    allocations = {source: allocation.to_dict() for source, allocation in layout.allocations.items()}
    shard_tokens = sum(layout.targets.values()) // max(1, len(layout.borders) - 1)
    itemsize = token_dtype(params["vocab_size"]).itemsize
    work = []
    for number, (low, high) in enumerate(pairwise(layout.borders)):
        ranges = [r for r in layout.units if low < high and meets(r, layout.allocations[r.source], low, high)]
        shard_params = {
            **params,
            "allocations": allocations,
            "low": str(low),
            "high": str(high),
            "units": [r.source for r in ranges],
        }
        inputs = [artifact for r in ranges for artifact in (r.docs, r.tokens)]
        work.append(Unit(shard, shard_params, inputs, f"train {number:06d}", weight=itemsize * shard_tokens))
    records = await context.map(stage, work)
    return [record for record in records if record.counts["documents"]]


def meets(token_range: TokenRange, allocation: Allocation, low: int, high: int) -> bool:
    """Tell whether a shard of positions [low, high) reads from `token_range` for any copy."""
    return any(
        start < token_range.high and token_range.low < stop
        for copy in range(allocation.num_copies)
        for start, stop in copy_ranges(copy, low, high)
    )


async def validation_shards(
    context: BuildContext, stage: Stage[Packed], params: dict[str, Any], layout: Layout, mixture: Mixture
) -> list[tuple[str, Record]]:
    """Write the validation shards that hold anything: first the mixture's (source ""), then one a source.

    Return (source, record) of each. The mixture's has the shares of the mixture, and is as large as `val_tokens` and
    the source that holds out least for its share allow; a source that holds out nothing is left out.
    """
    most = {source: min(mixture.val_tokens, n) for source, n in layout.held_out_tokens.items()}
    limits_of = [("", mixture_val_tokens(layout.targets, most, mixture.val_tokens))]
    limits_of += [(source, {source: n} if n else {}) for source, n in most.items()]
    sources, work = [], []
    for name, limits in limits_of:
        if not limits:
            continue
        units = [(source, record) for source in limits for record in layout.held_out[source]]
        shard_params = {**params, "limits": limits, "units": [source for source, _ in units]}
        inputs = [record.output(file) for _, record in units for file in ("docs", "tokens")]
        weight = token_dtype(params["vocab_size"]).itemsize * sum(limits.values())
        sources.append(name)
        work.append(Unit(shard, shard_params, inputs, f"val {name}".strip(), weight=weight))
    records = await context.map(stage, work)
    return list(zip(sources, records, strict=True))


def mixture_val_tokens(targets: Mapping[str, int], most: Mapping[str, int], val_tokens: int) -> dict[str, int]:
    """Return the tokens of each source in the mixture's validation shard; without the sources that have none there.

    `targets`: training tokens by source. `most`: held-out tokens that each can give. `val_tokens`: the most in all.
    """
    taken = {source: n for source, n in targets.items() if n and most[source]}
    room = min((most[source] * sum(taken.values()) // n for source, n in taken.items()), default=0)
    shares = largest_remainder(min(room, val_tokens), taken)
    limits = {source: min(n, most[source]) for source, n in shares.items()}
    return {source: n for source, n in limits.items() if n}


def publish(packed: Packed) -> dict[str, dict[str, Artifact]]:
    """Publish the folder people use: shards, indices, rows, tokenizer and manifest together."""
    return {packed.name: packed.files}


def report(context: BuildContext, packed: Packed) -> list[ReportGroup]:
    """Report the shares asked and got."""
    return [[mixture_table(packed.manifest, context.recipe.window_of(packed.name))]]


def pack_stage(stage: str, name: str) -> Stage[Packed]:
    """Return the stage that packs `recipe.mixtures[name]`."""
    return Stage(
        name=stage,
        reads=f"tokenized units, recipe.mixtures.{name}",
        writes=f"{name}/: shards (.bin, .idx, .rows.parquet), val_ids.bin, manifest.json",
        build=functools.partial(build_mixture, name=name),
        after=(TOKENIZE, BUILD_TOKENIZER, ENCODE_EVALS),
        libraries=("numpy", "pyarrow"),
        publish=publish,
        report=report,
    )


# mixture -> the stage that packs it
PACK = {"pretrain": pack_stage("pack_pretrain", "pretrain"), "anneal": pack_stage("pack_anneal_mix", "anneal")}
