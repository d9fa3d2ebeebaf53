"""Packing: from tokenised units to shards in a global random order, with an exact mixture, and their manifest.

The driver's part. It solves the mixture from the histograms of the tokenised units, decides where everything goes,
then runs a unit a shard, and one that writes the manifest.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.encode_evals.stage import ENCODE_EVALS
from stages.errors import DataError
from stages.pack.allocate import CANDIDATES, Cut, Part, candidates, cut_bin, find_cut, shard_borders, turn
from stages.pack.config import Mixture
from stages.pack.describe import contents, describe_evals, describe_tokenizer, warn_of_training_files
from stages.pack.manifest import manifest
from stages.pack.mixture import largest_remainder, solve
from stages.pack.shard import shard
from stages.recipe import Recipe
from stages.stage import BuildContext, Record, Stage, Unit
from stages.task import Artifact
from stages.tokenize.regroup import ABOVE, TokenRange, held, ranged, total_histogram
from stages.tokenize.stage import TOKENIZE, TokenizedUnit
from stages.tokenize.token_file import BY_POSITION, HELD_BY_TAKE, ring
from stages.tokenizer.stage import BUILD_TOKENIZER
from train.data.format import FORMAT_VERSION
from train.data.manifest import Tokenizer


@dataclass(frozen=True)
class Layout:
    """Where the documents of a mixture go. By source, in the mixture's order."""

    available: dict[str, int]  # training tokens that the mixture may take
    targets: dict[str, int]  # that it takes, exactly
    parts: dict[str, Part]
    units: list[TokenRange]
    held: dict[str, list[Record]]  # see `stages.tokenize.regroup.held_out`
    held_tokens: dict[str, int]  # in all
    borders: list[int]  # of positions, between training shards
    inputs: list[str]  # digests of all that decides the bytes


async def lay_out(context: BuildContext, name: str) -> Layout:
    """Solve `recipe.mixtures[name]` and decide where each document goes.

    Raises DataError when the recipe has no such mixture or a source falls short.
    """
    recipe = context.recipe
    if name not in recipe.mixtures:
        raise DataError(f"recipe {recipe.name} has no mixtures.{name}; add it, or run another stage")
    mixture = recipe.mixtures[name]
    tokenised = await context.stage(TOKENIZE)
    context.check_quarantine()
    found = await asyncio.gather(*(total_histogram(context, s, tokenised[s]) for s in mixture.sources))
    histograms: dict[str, np.ndarray] = dict(zip(mixture.sources, found, strict=True))
    shown: dict[str, Part] = {}
    if any(how == "exclude" for how in mixture.seen.values()):
        shown = (await lay_out(context, "pretrain")).parts
    empty = {s: empty_part(name, mixture.seen.get(s, "any"), shown.get(s)) for s in mixture.sources}
    totals = {s: int(histograms[s][BY_POSITION].sum()) for s in mixture.sources}
    available = {s: totals[s] - (totals[s] if part is None else part.shown) for s, part in empty.items()}
    targets = solve(mixture, available)

    async def part_of(source: str) -> Part:
        part = empty[source] or Part(0, 0, 0)
        copies, rest = divmod(targets[source], available[source]) if targets[source] else (0, 0)
        part = replace(part, copies=copies, rest=rest)
        if not rest:
            return part
        cut = await find(context, PACK[name], source, tokenised[source], histograms[source], part)
        return replace(part, cut=cut)

    parts = dict(zip(mixture.sources, await asyncio.gather(*map(part_of, mixture.sources)), strict=True))
    units = await asyncio.gather(*(ranged(context, s, tokenised[s]) for s in mixture.sources))
    kept = await asyncio.gather(
        *(held(context, s, tokenised[s], histograms[s], mixture.val_tokens) for s in mixture.sources)
    )
    return Layout(
        available,
        targets,
        parts,
        [unit for group in units for unit in group],
        dict(zip(mixture.sources, kept, strict=True)),
        {s: int(histograms[s][HELD_BY_TAKE].sum()) for s in mixture.sources},
        shard_borders([(parts[s], histograms[s]) for s in mixture.sources], recipe.shard_tokens),
        [a.digest for s in mixture.sources for unit in tokenised[s] for a in map(unit.output, ("docs", "tokens"))],
    )


def empty_part(name: str, seen: str, shown: Part | None) -> Part | None:
    """The pool that a mixture takes from a source: a Part that takes nothing yet; None if nothing is left of it.

    `seen`: any, prefer or exclude what the mixture pretrain shows, which is `shown`.
    """
    if name == "pretrain" or seen == "prefer":
        return Part(0, 0, 0)
    if seen == "any" or shown is None:
        return Part(1, 0, 0)
    if shown.copies:
        return None
    if shown.cut is None:
        return Part(0, 0, 0)
    return Part(0, 0, 0, floor=shown.cut, shown=shown.rest - shown.cut.keep + shown.cut.count)


async def find(
    context: BuildContext,
    stage: Stage[Packed],
    source: str,
    units: list[TokenizedUnit],
    histogram: np.ndarray,
    part: Part,
) -> Cut:
    """Where the partial epoch of a source ends."""
    params = {"seed": context.recipe.seed, "draw": part.draw, "bin": cut_bin(histogram, part)}
    groups = [units[i : i + ABOVE] for i in range(0, len(units), ABOVE)]
    done = await context.map(
        stage,
        (
            Unit(candidates, params, [unit.output("docs") for unit in group], f"cut {i:04d}", source)
            for i, group in enumerate(groups)
        ),
    )
    tables = [pq.read_table(context.artifact_path(r.output("candidates"))) for r in done]
    return find_cut(histogram, part, pa.concat_tables([CANDIDATES.empty_table(), *tables]))


@dataclass(frozen=True)
class Packed:
    """A packed mixture."""

    name: str  # of the mixture, and of its folder
    build_id: str
    manifest: dict[str, Any]
    files: dict[str, Artifact]  # by file name


async def build_mixture(context: BuildContext, name: str) -> Packed:
    """Solve and pack `recipe.mixtures[name]`.

    Raises DataError when the recipe has no such mixture, a source falls short, or the tokenizer has no padding that
    best-fit packing needs.
    """
    stage, recipe = PACK[name], context.recipe
    needed: list[Any] = [lay_out(context, name), context.stage(ENCODE_EVALS)]
    layout: Layout
    layout, encoded = await context.gather(needed)
    tokenizer = await context.stage(BUILD_TOKENIZER)
    described = describe_tokenizer(context, tokenizer)
    mixture = recipe.mixtures[name]
    if mixture.window and described.pad_id == described.bos_id:
        raise DataError(f"mixtures.{name}.packing: best_fit pads its windows, and this tokenizer has no padding token")
    build_id = identify(recipe, name, described, layout)
    common = {
        "seed": recipe.seed,
        "window": mixture.window,
        "pad_id": described.pad_id,
        "build_id": build_id,
        "vocab_size": described.vocab_size,
        "bos_id": described.bos_id,
    }
    train, val = await asyncio.gather(
        training_shards(context, stage, common, layout), validation_shards(context, stage, common, layout, mixture)
    )
    bases = {
        split: [f"{recipe.name}_{name}_{split}_{number:06d}" for number in range(len(found))]
        for split, found in (("train", train), ("val", val))
    }
    packed = [(base, "train", "", r) for base, r in zip(bases["train"], train, strict=True)]
    packed += [(base, "val", source, r) for base, (source, r) in zip(bases["val"], val, strict=True)]
    value = {
        "build_id": build_id,
        "tokenizer": asdict(described),
        "source_tree": context.code_digest(stage),
        "code": context.modules(stage),
        "files": {
            s: [asdict(f) for f in context.source_files(s)] for s in [*recipe.sources, *recipe.decontaminate.against]
        },
        "versions": context.versions(stage),
        **contents(context, stage, name, packed, layout.targets, layout.available),
    }
    sets = [describe_evals(context, s, record) for s, record in encoded.items()]
    warn_of_training_files(context, sets)
    if sets:
        value["evals"] = [asdict(one) for one in sets]
    assert value["tokens"] == mixture.tokens, f"packed {value['tokens']:,} tokens where {mixture.tokens:,} were asked"
    ids = [record.output("ids") for records in layout.held.values() for record in records]
    final = await context.run(stage, Unit(manifest, {"manifest": value}, ids, "manifest"))
    files = {
        "tokenizer.json": tokenizer.output("tokenizer"),
        "manifest.json": final.output("manifest"),
        "val_ids.bin": final.output("val_ids"),
    }
    for base, _, _, record in packed:
        files |= {f"{base}.bin": record.output("bin"), f"{base}.idx": record.output("idx")}
        files[f"{base}.rows.parquet"] = record.output("rows")
    files |= {one.path: encoded[one.name].output("encoded") for one in sets}
    return Packed(name, build_id, value, files)


def identify(recipe: Recipe, name: str, tokenizer: Tokenizer, layout: Layout) -> str:
    """The build id: a hash of all that decides the bytes of the shards."""
    identity = {
        "format": FORMAT_VERSION,
        "name": recipe.name,
        "mixture": [name, recipe.mixtures[name].model_dump(mode="json")],
        "seed": recipe.seed,
        "shard_tokens": recipe.shard_tokens,
        "tokenizer": tokenizer.sha256,
        "inputs": layout.inputs,
        "parts": {source: part.to_dict() for source, part in layout.parts.items()},
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


async def training_shards(
    context: BuildContext, stage: Stage[Packed], common: dict[str, Any], layout: Layout
) -> list[Record]:
    """The records of the training shards that hold anything, in order."""
    parts = {source: part.to_dict() for source, part in layout.parts.items()}
    per_shard = sum(layout.targets.values()) // max(1, len(layout.borders) - 1)
    jobs = []
    for low, high in zip(layout.borders, layout.borders[1:], strict=False):
        units = [u for u in layout.units if low < high and meets(u, layout.parts[u.source], low, high)]
        params = {**common, "parts": parts, "low": str(low), "high": str(high), "units": [u.source for u in units]}
        jobs.append((params, [a for u in units for a in (u.docs, u.tokens)]))
    records = await context.map(
        stage,
        (
            Unit(shard, params, inputs, f"train {number:06d}", weight=2 * per_shard)
            for number, (params, inputs) in enumerate(jobs)
        ),
    )
    return [record for record in records if record.counts["documents"]]


def meets(unit: TokenRange, part: Part, low: int, high: int) -> bool:
    """Whether a shard of positions [low, high) reads from `unit` for any copy."""
    copies = part.copies + (1 if part.cut else 0)
    return any(
        start < unit.high and unit.low < stop
        for copy in range(copies)
        for start, stop in ring(low - turn(copy), high - turn(copy))
    )


async def validation_shards(
    context: BuildContext, stage: Stage[Packed], common: dict[str, Any], layout: Layout, mixture: Mixture
) -> list[tuple[str, Record]]:
    """(source, record): first the mixture's shard (source ""), then one a source; those that hold anything.

    The mixture's has the shares of the mixture, and is as large as `val_tokens` and the source that holds out least
    for its share allow; a source that holds out nothing is left out.
    """
    most = {s: min(mixture.val_tokens, layout.held_tokens[s]) for s in layout.targets}
    taken = {s: n for s, n in layout.targets.items() if n and most[s]}
    room = min((most[s] * sum(taken.values()) // n for s, n in taken.items()), default=0)
    shares = largest_remainder(min(room, mixture.val_tokens), taken)
    wanted = [("", {s: min(n, most[s]) for s, n in shares.items()}), *((s, {s: n}) for s, n in most.items())]
    jobs = []
    for source, limits in wanted:
        limits = {s: n for s, n in limits.items() if n}
        units = [(s, r) for s in limits for r in layout.held[s]]
        params = {**common, "limits": limits, "units": [s for s, _ in units]}
        if limits:
            jobs.append((source, params, [a for _, r in units for a in (r.output("docs"), r.output("tokens"))]))
    records = await context.map(
        stage,
        (
            Unit(shard, params, inputs, f"val {source}".strip(), weight=2 * sum(params["limits"].values()))
            for source, params, inputs in jobs
        ),
    )
    return [(source, record) for (source, _, _), record in zip(jobs, records, strict=True)]


def publish(packed: Packed) -> dict[str, dict[str, Artifact]]:
    """Publish the folder people use: shards, indices, rows, tokenizer and manifest together."""
    return {packed.name: packed.files}


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
    )


# mixture -> the stage that packs it
PACK = {"pretrain": pack_stage("pack_pretrain", "pretrain"), "anneal": pack_stage("pack_anneal_mix", "anneal")}
