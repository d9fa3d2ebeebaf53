"""Packing: from tokenised units to shards in a global random order, with an exact mixture, and their manifest.

The driver's part. It solves the mixture from the histograms of the tokenised units, decides where everything goes,
then runs a unit a shard, and one that writes the manifest.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.base import Artifact, DataError, Record, Stage
from stages.pack.allocate import CANDIDATES, Cut, Part, candidates, cut_bin, find_cut, shard_borders, turn
from stages.pack.manifest import contents, describe_evals, describe_tokenizer, manifest, warn_of_training_files
from stages.pack.mixture import largest_remainder, solve
from stages.pack.shard import shard
from stages.tokenize.regroup import ABOVE, Ranged, held, ranged, total_histogram
from stages.tokenize.token_file import BY_POSITION, HELD_BY_TAKE, Tokenised, ring
from train.data.format import FORMAT_VERSION
from train.data.manifest import Tokenizer


@dataclass(frozen=True)
class Layout:
    """Where the documents of a mixture go. By source, in the mixture's order."""

    available: dict[str, int]  # training tokens that the mixture may take
    targets: dict[str, int]  # that it takes, exactly
    parts: dict[str, Part]
    units: list[Ranged]
    held: dict[str, list[Record]]  # see `stages.tokenize.regroup.held_out`
    held_tokens: dict[str, int]  # in all
    borders: list[int]  # of positions, between training shards
    inputs: list[str]  # digests of all that decides the bytes


async def lay_out(context: Any, name: str) -> Layout:
    """Solve `recipe.mixtures[name]` and decide where each document goes.

    Raises DataError when the recipe has no such mixture or a source falls short.
    """
    recipe = context.recipe
    if name not in recipe.mixtures:
        raise DataError(f"recipe {recipe.name} has no mixtures.{name}; add it, or run another stage")
    mixture = recipe.mixtures[name]
    tokenised: dict[str, list[Tokenised]] = await context.stage("tokenize")
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
        cut = await find(context, STAGE_OF[name], source, tokenised[source], histograms[source], part)
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


async def find(context: Any, stage: str, source: str, units: list[Tokenised], histogram: np.ndarray, part: Part) -> Cut:
    """Where the partial epoch of a source ends."""
    params = {"seed": context.recipe.seed, "draw": part.draw, "bin": cut_bin(histogram, part)}
    groups = [units[i : i + ABOVE] for i in range(0, len(units), ABOVE)]
    done = await context.gather(
        context.run(stage, candidates, params, [unit.output("docs") for unit in group], f"cut {i:04d}", source)
        for i, group in enumerate(groups)
    )
    tables = [pq.read_table(context.artifact_path(r.output("candidates"))) for r in done]
    return find_cut(histogram, part, pa.concat_tables([CANDIDATES.empty_table(), *tables]))


async def build_mixture(context: Any, name: str) -> dict[str, Any]:
    """Solve and pack `recipe.mixtures[name]`: {"files": name -> Artifact, "manifest", "build_id", "folder"}.

    Raises DataError when the recipe has no such mixture, a source falls short, or the tokenizer has no padding that
    best-fit packing needs.
    """
    stage, recipe = STAGE_OF[name], context.recipe
    layout, asked = await context.gather([lay_out(context, name), context.stage("encode_evals")])
    tokenizer: Record = await context.stage("build_tokenizer")
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
        **contents(context, name, packed, layout.targets, layout.available),
    }
    evals = [describe_evals(context, s, record) for s, record in asked.items()]
    warn_of_training_files(context, evals)
    if evals:
        value["evals"] = [asdict(e) for e in evals]
    assert value["tokens"] == mixture.tokens, f"packed {value['tokens']:,} tokens where {mixture.tokens:,} were asked"
    ids = [record.output("ids") for records in layout.held.values() for record in records]
    final = await context.run(stage, manifest, {"manifest": value}, ids, "manifest")
    files = {
        "tokenizer.json": tokenizer.output("tokenizer"),
        "manifest.json": final.output("manifest"),
        "val_ids.bin": final.output("val_ids"),
    }
    for base, _, _, record in packed:
        files |= {f"{base}.bin": record.output("bin"), f"{base}.idx": record.output("idx")}
        files[f"{base}.rows.parquet"] = record.output("rows")
    files |= {e.path: asked[e.name].output("encoded") for e in evals}
    return {"files": files, "manifest": value, "build_id": build_id, "folder": name}


def identify(recipe: Any, name: str, tokenizer: Tokenizer, layout: Layout) -> str:
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


async def training_shards(context: Any, stage: str, common: dict[str, Any], layout: Layout) -> list[Record]:
    """The records of the training shards that hold anything, in order."""
    parts = {source: part.to_dict() for source, part in layout.parts.items()}
    per_shard = sum(layout.targets.values()) // max(1, len(layout.borders) - 1)
    jobs = []
    for low, high in zip(layout.borders, layout.borders[1:], strict=False):
        units = [u for u in layout.units if low < high and meets(u, layout.parts[u.source], low, high)]
        params = {**common, "parts": parts, "low": str(low), "high": str(high), "units": [u.source for u in units]}
        jobs.append((params, [a for u in units for a in (u.docs, u.tokens)]))
    records = await context.gather(
        context.run(stage, shard, params, inputs, f"train {number:06d}", weight=2 * per_shard)
        for number, (params, inputs) in enumerate(jobs)
    )
    return [record for record in records if record.counts["documents"]]


def meets(unit: Ranged, part: Part, low: int, high: int) -> bool:
    """Whether a shard of positions [low, high) reads from `unit` for any copy."""
    copies = part.copies + (1 if part.cut else 0)
    return any(
        start < unit.high and unit.low < stop
        for copy in range(copies)
        for start, stop in ring(low - turn(copy), high - turn(copy))
    )


async def validation_shards(
    context: Any, stage: str, common: dict[str, Any], layout: Layout, mixture: Any
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
    records = await context.gather(
        context.run(stage, shard, params, inputs, f"val {source}".strip(), weight=2 * sum(params["limits"].values()))
        for source, params, inputs in jobs
    )
    return [(source, record) for (source, _, _), record in zip(jobs, records, strict=True)]


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
        after=("tokenize", "build_tokenizer", "encode_evals"),
        libraries=("numpy", "pyarrow"),
        publish=published,
    )
    for name, build in (("pretrain", _pretrain), ("anneal", _anneal))
)
