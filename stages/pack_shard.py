"""The unit that writes one shard: documents of a range of positions, in the order of the in-shard hash."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages import ids
from stages.base import Task
from stages.layout import Unit, apply_cut, selected, units_of
from stages.shards import ROWS, write_index, write_shard
from train.manifest import Header

# The hash decides; the others only make the order total where duplicates were left in.
SHARD_ORDER = ("order", "document_id", "part", "copy", "source", "source_file", "source_row")


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
    order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in SHARD_ORDER]).to_numpy()
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
    for source in sorted(pc.unique(rows["source"]).to_pylist()):
        mine = rows.filter(pc.equal(rows["source"], source))
        task.count(f"tokens.{source}", int(pc.sum(mine["token_count"]).as_py()))
        task.count(f"documents.{source}", mine.num_rows)
