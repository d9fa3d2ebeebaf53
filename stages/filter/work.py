"""The work of `filter` on one part: edits, rules, reasons counted, and what is kept hashed for deduplication.

Apart from `stages.filter.stage` so that a change in how units are chosen re-runs none of them. Rules that are compiled
run over whole batches; `stages.filter.rules.judge` says what they must decide.
"""

from __future__ import annotations

import hashlib
import unicodedata
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.filter.edits import edited
from stages.filter.rules import RULES, Document
from stages.filter.samples import DROPPED, Sample
from stages.schemas import DOCUMENTS, FILTERED, ID
from stages.task import Task

META = "meta."
Rules = list[tuple[str, dict[str, Any]]]


def text_hash(text: str) -> bytes:
    """128-bit BLAKE2b of the text in NFC, lower case, with runs of white space made one blank.

    Two documents with the same hash are duplicates: they differ in nothing that a small model would learn.
    """
    plain = text if text.isascii() else unicodedata.normalize("NFC", text)
    return hashlib.blake2b(" ".join(plain.lower().split()).encode(), digest_size=16).digest()


def text_hashes(texts: pa.Array) -> list[bytes]:
    """`text_hash` of each text of a column."""
    from stages.kernels.text_hash import normalised

    found = []
    for i, plain in enumerate(normalised(texts)):
        known = hashlib.blake2b(plain, digest_size=16).digest() if plain is not None else None
        found.append(known or text_hash(texts[i].as_py()))
    return found


def apply(texts: pa.Array, metas: list[dict[str, Any]] | None, rules: Rules) -> tuple[list[str], pa.Array]:
    """Run `rules` over a column of text: (the reason why each document goes, or an empty text; the texts they leave).

    Equal to `stages.filter.rules.judge` of each document.
    """
    from stages.kernels.rules import NAMES, REASONS, judge

    empty = pc.binary_length(texts).fill_null(0).to_numpy(zero_copy_only=False) == 0
    codes: NDArray[np.int64] = np.where(empty, REASONS.index("empty"), 0)
    said: dict[int, str] = {}  # by rules that are not compiled
    for fast, group in groupby(rules, key=lambda rule: rule[0] in NAMES):
        if fast:
            texts = judge(texts, codes, list(group))
            continue
        for name, thresholds in group:
            for i in np.flatnonzero(codes == 0).tolist():
                # Of all rules that are not compiled, `metadata` alone does without the text.
                text = "-" if name == "metadata" else texts[i].as_py()
                found = RULES[name](Document(text, metas[i] if metas else {}), **thresholds)
                if isinstance(found, str):
                    codes[i], said[i] = -1, found
    return [said[i] if code < 0 else REASONS[code] for i, code in enumerate(codes.tolist())], texts


def work(task: Task) -> None:
    """Filter one part. Params: rules, a list of [name, thresholds]; edit, a list of names. Outputs: `docs`, `dropped`.

    Counts rows_in, kept, edited (of what is kept), text_bytes (of what is kept) and dropped.<reason>. `dropped` is a
    sample (`stages.filter.samples`).
    """
    rules = [(name, thresholds) for name, thresholds in task.params["rules"]]
    edits = task.params.get("edit", [])
    file = pq.ParquetFile(task.path(task.inputs[0]))
    columns = [c for c in file.schema_arrow.names if c.startswith(META)]
    sample = Sample()
    with task.table("docs", FILTERED) as writer:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            metas = None
            if columns:
                renamed = table.select(columns).rename_columns([c.removeprefix(META) for c in columns])
                metas = renamed.to_pylist()
            table = table.select(DOCUMENTS.names).combine_chunks()
            texts = source = one_array(table["text"])
            if edits:
                texts = pa.array([edited(text or "", edits) for text in texts.to_pylist()], pa.string())
            reasons, texts = apply(texts, metas, rules)
            kept = pa.array([i for i, reason in enumerate(reasons) if not reason], pa.int64())
            for reason in sorted({reason for reason in reasons if reason}):
                rows = [i for i, found in enumerate(reasons) if found == reason]
                task.count(f"dropped.{reason}", len(rows))
                sample.add(reason, table.take(pa.array(rows)))
            task.count("rows_in", len(reasons))
            task.count("kept", len(kept))
            if len(kept):
                write(task, writer, table.take(kept), source.take(kept), texts.take(kept))
    with task.table("dropped", DROPPED) as writer:
        if sample.rows:
            writer.write(sample.table())


def write(task: Task, writer: Any, table: pa.Table, source: pa.Array, texts: pa.Array) -> None:
    """Write documents with their texts as the rules left them, and count."""
    moved = len(texts) - pc.sum(pc.equal(source, texts)).as_py()
    if moved:
        task.count("edited", moved)
    task.count("text_bytes", pc.sum(pc.binary_length(texts)).as_py())
    chosen = table.set_column(table.schema.get_field_index("text"), DOCUMENTS.field("text"), texts)
    writer.write(chosen.append_column(pa.field("text_hash", ID), pa.array(text_hashes(texts), ID)))


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """A column in one piece."""
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
