"""The work of `filter` on one part: edits, rules, reasons counted, and what is kept hashed for deduplication.

Apart from `stages.filter.stage` so that a change in how units are chosen re-runs none of them. Rules that are compiled
run over whole batches; `stages.filter.rules.apply_rules` says what they must decide.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.comparable import comparable_texts, put_texts
from stages.filter.document import Document
from stages.filter.edits import apply_edits
from stages.filter.rules import EDITING, RULES, ParsedRule
from stages.filter.samples import DROPPED, Sample
from stages.schemas import DOCUMENTS, FILTERED, ID, utf8_bytes
from stages.task import TableWriter, Task

META = "meta."


def text_hash(text: str) -> bytes:
    """Return the 128-bit BLAKE2b of the text in NFC, lower case, with runs of white space made one blank.

    Two documents with the same hash are duplicates: they differ in nothing that a small model would learn.
    """
    composed = text if text.isascii() else unicodedata.normalize("NFC", text)
    return hashlib.blake2b(" ".join(composed.lower().split()).encode(), digest_size=16).digest()


def text_hashes(texts: pa.Array) -> list[bytes]:
    """Return `text_hash` of each text of a column."""
    from stages.kernels.text_hash import normalized_texts

    hashes = []
    for i, normalized in enumerate(normalized_texts(texts)):
        if normalized is None:
            hashes.append(text_hash(texts[i].as_py()))
        else:
            hashes.append(hashlib.blake2b(normalized, digest_size=16).digest())
    return hashes


def apply_to_column(
    texts: pa.Array, metas: Sequence[Mapping[str, float | str | None]] | None, rules: Sequence[ParsedRule]
) -> tuple[list[str], pa.Array]:
    """Return for each text of a column why it goes, or "", and the column as the rules leave it.

    metas: what the source says of each document, if it says anything. Equal to `apply_rules` of each document.
    """
    from stages.kernels.rules import COMPILED, REASONS

    is_empty = pc.binary_length(texts).fill_null(0).to_numpy(zero_copy_only=False) == 0
    codes: npt.NDArray[np.int64] = np.where(is_empty, REASONS.index("empty"), 0)
    other_reasons: dict[int, str] = {}  # of rules that are not compiled, by the document's number; its code is -1
    for is_compiled, group in groupby(rules, key=lambda rule: rule[0] in COMPILED):
        if is_compiled:
            texts = judge_forms(texts, codes, list(group))
            continue
        for name, thresholds in group:
            for i in np.flatnonzero(codes == 0).tolist():
                text = "" if name == "metadata" else texts[i].as_py()  # `metadata` reads no text: none is copied for it
                outcome = RULES[name](Document(text, metas[i] if metas else {}), **thresholds)
                if isinstance(outcome, str):
                    codes[i] = -1
                    other_reasons[i] = outcome
    reasons = [other_reasons[i] if code < 0 else REASONS[code] for i, code in enumerate(codes.tolist())]
    return reasons, texts


def judge_forms(texts: pa.Array, codes: npt.NDArray[np.int64], rules: Sequence[ParsedRule]) -> pa.Array:
    """Run compiled rules over a column as `apply_compiled` does, on the comparable forms of texts; `length` on texts.

    Documents whose form is another than their text are judged by themselves, up to the next rule that edits at a time:
    it leaves texts whose forms are not known.
    """
    from stages.kernels.forms import other_forms
    from stages.kernels.rules import EMPTY, apply_compiled

    rows, forms = other_forms(texts)
    is_open = codes[rows] == 0
    if not is_open.any():
        return apply_compiled(texts, codes, rules)
    if not is_open.all():
        rows, forms = rows[is_open], forms.filter(pa.array(is_open))
    judged = left = texts
    if len(rows) < len(texts):
        left = texts.take(pa.array(rows))
        codes[rows] = EMPTY
        judged = apply_compiled(texts, codes, rules)
    left_codes = np.zeros_like(rows)
    for some in parts_that_end_in_edits(rules):
        if forms is None:
            forms, _ = comparable_texts(left)
        left, forms = apply_compiled(left, left_codes, some, forms), None
    codes[rows] = left_codes
    edits = any(name in EDITING for name, _ in rules)
    return put_texts(judged, rows, left) if edits else texts


def parts_that_end_in_edits(rules: Sequence[ParsedRule]) -> Iterator[Sequence[ParsedRule]]:
    """Yield rules in their order, those up to and with the next one that edits at a time."""
    start = 0
    for stop in range(1, len(rules) + 1):
        if stop == len(rules) or rules[stop - 1][0] in EDITING:
            yield rules[start:stop]
            start = stop


def work(task: Task) -> None:
    """Filter one part. Params: rules, a list of [name, thresholds]; edit, a list of names. Outputs: `docs`, `dropped`.

    Counts rows_in, kept, edited (of what is kept), text_bytes (of what is kept) and dropped.<reason>. `dropped` is a
    sample (`stages.filter.samples`).
    """
    file = pq.ParquetFile(task.path(task.inputs[0]))
    meta_columns = [name for name in file.schema_arrow.names if name.startswith(META)]
    sample = Sample()
    with task.table("docs", FILTERED) as writer:
        for group in range(file.num_row_groups):
            filter_batch(task, file.read_row_group(group), meta_columns, sample, writer)
    with task.table("dropped", DROPPED) as writer:
        if sample.rows:
            writer.write(sample.table())


def filter_batch(task: Task, table: pa.Table, meta_columns: Sequence[str], sample: Sample, writer: TableWriter) -> None:
    """Filter the documents of `table`: write those that stay, add the others to `sample`, and count both."""
    metas = None
    if meta_columns:
        plain_names = [name.removeprefix(META) for name in meta_columns]
        metas = table.select(meta_columns).rename_columns(plain_names).to_pylist()
    table = table.select(DOCUMENTS.names).combine_chunks()
    source_texts = texts = one_array(table["text"])
    if edits := task.params.get("edit"):
        texts = pa.array([apply_edits(text or "", edits) for text in texts.to_pylist()], pa.string())
    rules = [(name, thresholds) for name, thresholds in task.params["rules"]]
    reasons, texts = apply_to_column(texts, metas, rules)
    kept = pa.array([i for i, reason in enumerate(reasons) if not reason], pa.int64())
    for reason in sorted({reason for reason in reasons if reason}):
        rows = [i for i, other in enumerate(reasons) if other == reason]
        task.count(f"dropped.{reason}", len(rows))
        sample.add(reason, table.take(pa.array(rows)))
    task.count("rows_in", len(reasons))
    task.count("kept", len(kept))
    if len(kept):
        write_kept(task, writer, table.take(kept), source_texts.take(kept), texts.take(kept))


def write_kept(task: Task, writer: TableWriter, table: pa.Table, source_texts: pa.Array, texts: pa.Array) -> None:
    """Write documents with their texts as the rules left them, and count. `table` has the source's texts."""
    edited = len(texts) - pc.sum(pc.equal(source_texts, texts)).as_py()
    if edited:
        task.count("edited", edited)
    task.count("text_bytes", utf8_bytes(texts))
    with_texts = table.set_column(table.schema.get_field_index("text"), DOCUMENTS.field("text"), texts)
    writer.write(with_texts.append_column(pa.field("text_hash", ID), pa.array(text_hashes(texts), ID)))


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column in one piece."""
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
