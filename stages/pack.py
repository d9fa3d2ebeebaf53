"""Packing: from tokenised units to shards in a global random order, with an exact mixture, and their manifest.

Three kinds of units: `layout` decides (stages/layout.py), `shard` writes one shard, `manifest` proves the whole
and describes it. The driver's part, `build_mixture`, solves the mixture first, from the counts in the records.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages import ids
from stages.base import Artifact, DataError, Record, Stage, Task
from stages.layout import Unit, apply_cut, layout, selected, units_of
from stages.mixture import solve
from stages.shards import ROWS, write_index, write_shard
from train.manifest import FORMAT_VERSION, SCHEMA_VERSION, Header, Shard, Source, Tokenizer


def shard(task: Task) -> None:
    """Write one shard: `.bin`, `.idx` and `.rows.parquet`.

    params: seed, units, split, low, high (positions as text), tokens (expected), build_id, vocab_size, bos_id.
    inputs: (docs, tokens) per unit, then the layout.
    """
    params = task.params
    plan = json.loads(Path(task.path(task.inputs[-1])).read_text())
    picked: list[tuple[Unit, int, np.ndarray, np.ndarray, np.ndarray]] = []
    for unit in units_of(task):
        if params["split"] == "val":
            rows = np.flatnonzero(unit.val)
            counts, cut_off = unit.token_count[rows].astype(np.int64), np.zeros(len(rows), bool)
            if plan["val"]["cut"]:
                rows, counts, cut_off = apply_cut(unit, rows, plan["val"]["cut"], params["seed"])
            picked.append((unit, 0, rows, counts, cut_off))
        else:
            low, high = int(params["low"]), int(params["high"])
            picked += [(unit, *s) for s in selected(unit, plan["sources"][unit.source], params["seed"], low, high)]
    rows_table, tokens = assemble([p for p in picked if len(p[2])], params["seed"])
    if len(tokens) != params["tokens"]:
        raise AssertionError(f"packed {len(tokens):,} tokens where the layout counted {params['tokens']:,}")
    write_outputs(task, rows_table, tokens)


def assemble(
    picked: list[tuple[Unit, int, np.ndarray, np.ndarray, np.ndarray]], seed: int
) -> tuple[pa.Table, np.ndarray]:
    """Order the picked documents by the in-shard hash and copy their tokens together."""
    tables, starts, maps, which = [], [], [], []
    for number, (unit, copy, rows, counts, truncated) in enumerate(picked):
        table = pq.read_table(unit.docs_path, columns=["document_id", "source_file", "source_row", "url", "part"])
        table = table.take(pa.array(rows))
        hashes = ids.order(seed, table["document_id"].combine_chunks(), table["part"].to_numpy(), copy)
        extra = {
            "order": pa.array(hashes),
            "token_count": pa.array(counts, pa.int32()),
            "source": pa.array([unit.source] * len(rows), pa.string()),
            "copy": pa.array(np.full(len(rows), copy), pa.int32()),
            "truncated": pa.array(truncated),
        }
        for name, column in extra.items():
            table = table.append_column(name, column)
        tables.append(table)
        starts.append(unit.token_start[rows])
        maps.append(unit.tokens())
        which.append(np.full(len(rows), number))
    table = pa.concat_tables(tables)
    keys = [("order", "ascending"), ("document_id", "ascending"), ("part", "ascending"), ("copy", "ascending")]
    order = pc.sort_indices(table, sort_keys=keys).to_numpy()
    table = table.take(pa.array(order))
    counts = table["token_count"].to_numpy().astype(np.int64)
    start_in_shard = np.zeros(len(counts), np.int64)
    np.cumsum(counts[:-1], out=start_in_shard[1:])
    tokens = np.empty(int(counts.sum()), np.uint16)
    unit_of, start_in_unit = np.concatenate(which)[order], np.concatenate(starts)[order]
    for unit_number, source_start, start, n in zip(
        unit_of.tolist(), start_in_unit.tolist(), start_in_shard.tolist(), counts.tolist(), strict=True
    ):
        tokens[start : start + n] = maps[unit_number][source_start : source_start + n]
    table = table.append_column("token_start", pa.array(start_in_shard))
    return table.select(ROWS.names).cast(ROWS), tokens


def write_outputs(task: Task, rows: pa.Table, tokens: np.ndarray) -> None:
    """The shard's three files."""
    params = task.params
    header = Header(len(tokens), params["vocab_size"], params["bos_id"], rows.num_rows, params["build_id"])
    path = task.output("bin")
    write_shard(path, tokens, header)
    task.add("bin", path, tokens=len(tokens), rows=rows.num_rows)
    path = task.output("idx")
    write_index(path, rows["token_count"].to_numpy())
    task.add("idx", path, rows=rows.num_rows)
    with task.table("rows", ROWS) as table:
        table.write(rows)
    task.count("tokens", len(tokens))
    task.count("documents", rows.num_rows)
    for source in sorted(set(rows["source"].to_pylist())):
        mine = rows.filter(pc.equal(rows["source"], source))
        task.count(f"tokens.{source}", int(pc.sum(mine["token_count"]).as_py()))
        task.count(f"documents.{source}", mine.num_rows)


def manifest(task: Task) -> None:
    """Prove that no training shard holds a validation document; write `manifest.json` and `val_ids.bin`.

    params: manifest (all but shards' rows and val_ids), shards (train.manifest.Shard as dicts).
    inputs: docs tables of all units, then the rows tables of all training shards.
    """
    params = task.params
    units = task.inputs[: params["units"]]
    found = set()
    for artifact in units:
        table = pq.read_table(task.path(artifact), columns=["document_id"], filters=[("val", "==", True)])
        found.update(table["document_id"].to_pylist())
    held = sorted(found)
    for artifact in task.inputs[params["units"] :]:
        inside = pq.read_table(task.path(artifact), columns=["document_id"])["document_id"].to_pylist()
        leaked = found.intersection(inside)
        if leaked:
            raise AssertionError(f"training shard {artifact.path} holds validation document {min(leaked).hex()}")
    path = task.output("val_ids.bin")
    Path(path).write_bytes(b"".join(held))
    task.add("val_ids", path, rows=len(held))
    value = params["manifest"]
    value["val_ids"] = {
        "path": "val_ids.bin",
        "sha256": hashlib.sha256(b"".join(held)).hexdigest(),
        "count": len(held),
        "rule": ids.VALIDATION_RULE,
    }
    path = task.output("manifest.json")
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    Path(path).write_text(text, encoding="utf-8")
    task.add("manifest", path)


# -- the driver's part -----------------------------------------------------------------------------------


async def build_mixture(context: Any, name: str) -> dict[str, Any]:
    """Solve and pack `recipe.mixtures[name]`. Returns {"files": name -> Artifact, "manifest": Record, ...}.

    Raises DataError when the recipe has no such mixture or a source falls short.
    """
    stage, recipe = STAGE_OF[name], context.recipe
    if name not in recipe.mixtures:
        raise DataError(f"recipe {recipe.name} has no mixtures.{name}; add it, or run another stage")
    mixture = recipe.mixtures[name]
    tokenised: dict[str, list[Record]] = await context.stage("tokenize")
    tokenizer: Record = await context.stage("build_tokenizer")
    context.check_quarantine()
    records = {source: tokenised[source] for source in mixture.ratios}
    available = {s: sum(r.counts["train_tokens"] for r in rs) for s, rs in records.items()}
    caps = {s: mixture.cap(s) for s in mixture.ratios}
    targets = solve(mixture.tokens, mixture.ratios, available, caps)
    units = [(s, r) for s, rs in records.items() for r in rs]
    pairs = [a for _, r in units for a in (r.output("docs"), r.output("tokens"))]
    common = {"seed": recipe.seed, "units": [s for s, _ in units]}
    laid = await context.run(
        stage,
        layout,
        {**common, "shard_tokens": recipe.shard_tokens, "val_tokens": mixture.val_tokens, "targets": targets},
        [*pairs, *(r.output("histogram") for _, r in units)],
        "layout",
    )
    plan = json.loads(Path(context.artifact_path(laid.output("layout"))).read_text())
    described = describe_tokenizer(context, tokenizer)
    identity = {
        "format": FORMAT_VERSION,
        "name": recipe.name,
        "mixture": [name, mixture.model_dump(mode="json")],
        "seed": recipe.seed,
        "shard_tokens": recipe.shard_tokens,
        "tokenizer": described.sha256,
        "inputs": [a.digest for a in pairs],
        "layout": laid.output("layout").digest,
    }
    build_id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    common |= {"build_id": build_id, "vocab_size": described.vocab_size, "bos_id": described.bos_id}
    jobs = [("train", i, s) for i, s in enumerate(plan["shards"])]
    if plan["val"]["tokens"]:
        jobs.append(("val", 0, {"low": "0", "high": "0", "tokens": plan["val"]["tokens"]}))
    inputs = [*pairs, laid.output("layout")]
    packed = await context.gather(
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
    shards, files = [], {"tokenizer.json": tokenizer.output("tokenizer")}
    for (split, number, _), record in zip(jobs, packed, strict=True):
        base = f"{recipe.name}_{name}_{split}_{number:06d}"
        shards.append(describe_shard(base, split, record))
        files |= {f"{base}.bin": record.output("bin"), f"{base}.idx": record.output("idx")}
        files[f"{base}.rows.parquet"] = record.output("rows")
    train_records = [r for (split, _, _), r in zip(jobs, packed, strict=True) if split == "train"]
    val_records = [r for (split, _, _), r in zip(jobs, packed, strict=True) if split == "val"]
    value = {
        "schema_version": SCHEMA_VERSION,
        "build_id": build_id,
        "name": recipe.name,
        "phase": recipe.phase_of(name),
        "mixture": name,
        "seed": recipe.seed,
        "tokens": sum(s.tokens for s in shards if s.split == "train"),
        "val_tokens": sum(s.tokens for s in shards if s.split == "val"),
        "documents": sum(s.documents for s in shards if s.split == "train"),
        "tokenizer": asdict(described),
        "shards": [asdict(s) for s in shards],
        "sources": [
            asdict(describe_source(context, s, mixture, targets, available, train_records, val_records))
            for s in mixture.ratios
        ],
        "recipe": recipe.to_dict(),
        "source_tree": context.code_digest(stage),
        "versions": context.versions(stage),
    }
    assert value["tokens"] == mixture.tokens
    final = await context.run(
        stage,
        manifest,
        {"manifest": value, "units": len(units)},
        [*(r.output("docs") for _, r in units), *(r.output("rows") for r in train_records)],
        "manifest",
    )
    files |= {"manifest.json": final.output("manifest"), "val_ids.bin": final.output("val_ids")}
    return {"files": files, "manifest": value, "build_id": build_id, "folder": name}


def describe_tokenizer(context: Any, record: Record) -> Tokenizer:
    """The manifest's entry for the tokenizer."""
    artifact = record.output("tokenizer")
    report = json.loads(Path(context.artifact_path(record.output("report"))).read_text())
    specials = report["special_ids"]
    return Tokenizer(
        path="tokenizer.json",
        sha256=artifact.sha256,
        vocab_size=report["vocab_size"],
        bos_id=specials["<|bos|>"],
        pad_id=specials["<|pad|>"],
        special_ids=specials,
        token_bytes=report["token_bytes"],
    )


def describe_shard(base: str, split: str, record: Record) -> Shard:
    """The manifest's entry for one packed shard, under the names it is published as."""
    tokens, index, rows = record.output("bin"), record.output("idx"), record.output("rows")
    return Shard(
        path=f"{base}.bin",
        split=split,
        tokens=tokens.tokens,
        documents=tokens.rows,
        bytes=tokens.bytes,
        sha256=tokens.sha256,
        index=f"{base}.idx",
        index_sha256=index.sha256,
        rows=f"{base}.rows.parquet",
        rows_sha256=rows.sha256,
        rows_digest=rows.digest,
    )


def describe_source(
    context: Any,
    name: str,
    mixture: Any,
    targets: dict[str, int],
    available: dict[str, int],
    train: list[Record],
    val: list[Record],
) -> Source:
    """The manifest's entry for one source: what came in, what was dropped and why, what went into the mixture."""
    config = context.recipe.sources[name]
    downloaded, kept = context.counts("download", name), context.counts("dedup", name)
    dropped: dict[str, int] = {}
    for stage in ("filter", "dedup"):
        for what, n in context.counts(stage, name).items():
            if what.startswith("dropped."):
                dropped[what.removeprefix("dropped.")] = n
    total = lambda records, what: sum(r.counts.get(f"{what}.{name}", 0) for r in records)  # noqa: E731
    got = total(train, "tokens")
    return Source(
        name=name,
        kind=config.kind,
        **context.describe_source(name),
        rows_in=downloaded.get("rows_in", 0),
        rows_kept=kept.get("kept", 0),
        dropped=dict(sorted(dropped.items())),
        quarantined=downloaded.get("quarantined", 0),
        available_tokens=available[name],
        tokens=got,
        documents=total(train, "documents"),
        ratio_asked=mixture.ratios[name],
        ratio_got=got / mixture.tokens,
        epochs=targets[name] / available[name] if available[name] else 0.0,
        max_epochs=mixture.cap(name),
        val_tokens=total(val, "tokens"),
        val_documents=total(val, "documents"),
        files_lost=sum(1 for e in context.state("download").failed if e.label.split(" ")[0] == name),
    )


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
