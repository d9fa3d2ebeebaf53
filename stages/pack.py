"""Packing: from tokenised units to shards in a global random order, with an exact mixture, and their manifest.

The driver's part. It solves the mixture from the counts in the records, then runs three kinds of units: `layout`
decides where documents go, `shard` writes one shard, `manifest` proves the whole and describes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stages.base import Artifact, DataError, Record, Stage
from stages.describe import describe_shard, describe_source, describe_tokenizer, manifest
from stages.layout import layout
from stages.mixture import solve
from stages.pack_shard import shard
from train.manifest import FORMAT_VERSION, SCHEMA_VERSION, Tokenizer


async def build_mixture(context: Any, name: str) -> dict[str, Any]:
    """Solve and pack `recipe.mixtures[name]`: {"files": name -> Artifact, "manifest", "build_id", "folder"}.

    Raises DataError when the recipe has no such mixture or a source falls short.
    """
    stage, recipe = STAGE_OF[name], context.recipe
    if name not in recipe.mixtures:
        raise DataError(f"recipe {recipe.name} has no mixtures.{name}; add it, or run another stage")
    mixture = recipe.mixtures[name]
    tokenised: dict[str, list[Record]] = await context.stage("tokenize")
    tokenizer: Record = await context.stage("build_tokenizer")
    context.check_quarantine()
    available = {s: sum(r.counts["train_tokens"] for r in tokenised[s]) for s in mixture.sources}
    targets = solve(mixture, available)
    units = [(s, r) for s in mixture.sources for r in tokenised[s]]
    pairs = [a for _, r in units for a in (r.output("docs"), r.output("tokens"))]
    common: dict[str, Any] = {"seed": recipe.seed, "units": [s for s, _ in units]}
    laid = await context.run(
        stage,
        layout,
        {**common, "shard_tokens": recipe.shard_tokens, "val_tokens": mixture.val_tokens, "targets": targets},
        [*pairs, *(r.output("histogram") for _, r in units)],
        "layout",
    )
    inputs = [*pairs, laid.output("layout")]
    described = describe_tokenizer(context, tokenizer)
    build_id = identify(recipe, name, described, inputs)
    common |= {"build_id": build_id, "vocab_size": described.vocab_size, "bos_id": described.bos_id}
    plan = json.loads(Path(context.artifact_path(laid.output("layout"))).read_text())
    packed = await write_shards(context, stage, common, inputs, plan)
    value = {
        "build_id": build_id,
        "tokenizer": asdict(described),
        "source_tree": context.code_digest(stage),
        "versions": context.versions(stage),
        "code": context.modules(stage),
        **contents(context, name, packed, targets, available),
    }
    assert value["tokens"] == mixture.tokens
    train = [record.output("rows") for split, _, record in packed if split == "train"]
    docs = [r.output("docs") for _, r in units]
    final = await context.run(stage, manifest, {"manifest": value, "units": len(units)}, [*docs, *train], "manifest")
    files = {
        "tokenizer.json": tokenizer.output("tokenizer"),
        "manifest.json": final.output("manifest"),
        "val_ids.bin": final.output("val_ids"),
    }
    for split, number, record in packed:
        base = basename(recipe, name, split, number)
        files |= {f"{base}.bin": record.output("bin"), f"{base}.idx": record.output("idx")}
        files[f"{base}.rows.parquet"] = record.output("rows")
    return {"files": files, "manifest": value, "build_id": build_id, "folder": name}


def identify(recipe: Any, name: str, tokenizer: Tokenizer, inputs: list[Artifact]) -> str:
    """The build id: a hash of all that decides the bytes of the shards."""
    identity = {
        "format": FORMAT_VERSION,
        "name": recipe.name,
        "mixture": [name, recipe.mixtures[name].model_dump(mode="json")],
        "seed": recipe.seed,
        "shard_tokens": recipe.shard_tokens,
        "tokenizer": tokenizer.sha256,
        "inputs": [a.digest for a in inputs],
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def basename(recipe: Any, name: str, split: str, number: int) -> str:
    """What a shard's three files are called, without their endings."""
    return f"{recipe.name}_{name}_{split}_{number:06d}"


async def write_shards(
    context: Any, stage: str, common: dict[str, Any], inputs: list[Artifact], plan: dict[str, Any]
) -> list[tuple[str, int, Record]]:
    """(split, number, record) of every shard of the layout, training shards first."""
    jobs = [("train", i, s) for i, s in enumerate(plan["shards"])]
    if plan["val"]["tokens"]:
        jobs.append(("val", 0, {"low": "0", "high": "0", "tokens": plan["val"]["tokens"]}))
    records = await context.gather(
        context.run(
            stage,
            shard,
            {**common, "split": split, "low": s["low"], "high": s["high"], "tokens": s["tokens"]},
            inputs,
            f"{split} {number:06d}",
            weight=2 * s["tokens"],
        )
        for split, number, s in jobs
    )
    return [(split, number, r) for (split, number, _), r in zip(jobs, records, strict=True)]


def contents(
    context: Any,
    name: str,
    packed: list[tuple[str, int, Record]],
    targets: Mapping[str, int],
    available: Mapping[str, int],
) -> dict[str, Any]:
    """The manifest's account of what was packed: totals, shards, sources, and the recipe they came from."""
    recipe = context.recipe
    shards = [describe_shard(basename(recipe, name, split, number), split, r) for split, number, r in packed]
    train = [r for split, _, r in packed if split == "train"]
    val = [r for split, _, r in packed if split == "val"]
    mixture = recipe.mixtures[name]
    sources = [describe_source(context, s, mixture, targets, available, train, val) for s in mixture.sources]
    return {
        "schema_version": SCHEMA_VERSION,
        "name": recipe.name,
        "phase": recipe.phase_of(name),
        "mixture": name,
        "seed": recipe.seed,
        "tokens": sum(s.tokens for s in shards if s.split == "train"),
        "val_tokens": sum(s.tokens for s in shards if s.split == "val"),
        "documents": sum(s.documents for s in shards if s.split == "train"),
        "shards": [asdict(s) for s in shards],
        "sources": [asdict(s) for s in sources],
        "recipe": recipe.to_dict(),
    }


async def _pretrain(context: Any) -> dict[str, Any]:
    return await build_mixture(context, "pretrain")


async def _anneal(context: Any) -> dict[str, Any]:
    return await build_mixture(context, "anneal")


def published(result: dict[str, Any]) -> dict[str, dict[str, Artifact]]:
    """The folder people use: shards, indices, rows, tokenizer and manifest together."""
    return {result["folder"]: result["files"]}


STAGE_OF = {"pretrain": "pack_pretrain", "anneal": "pack_anneal_mix"}
PACK_PRETRAIN, PACK_ANNEAL = (
    Stage(
        name=STAGE_OF[name],
        reads="tokenised units, recipe.mixtures." + name,
        writes=f"{name}/: shards (.bin, .idx, .rows.parquet), val_ids.bin, manifest.json",
        build=build,
        after=("tokenize", "build_tokenizer"),
        libraries=("numpy", "pyarrow"),
        publish=published,
    )
    for name, build in (("pretrain", _pretrain), ("anneal", _anneal))
)
