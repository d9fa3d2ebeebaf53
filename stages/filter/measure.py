"""The work of `measure` on one part: edits, what each rule measures, and the hash that deduplication compares.

It is the one pass over a source's text. What is kept of it, a row a document, is all that `stages.filter.work` looks
at: thresholds are no parameter here, so another threshold runs none of these units again. Rules that are compiled run
over whole batches; `stages.filter.rules.apply_rules` says what must come of them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.comparable import comparable_texts, put_texts
from stages.filter.document import META, SAID, Document, MeasuredRule
from stages.filter.edits import apply_edits
from stages.filter.rules import EDITING, RULES
from stages.schemas import DOCUMENTS, ID, utf8_bytes
from stages.task import TableWriter, Task

ROWS = 1 << 16  # documents in a row group of measures, at least


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


def measure_column(
    texts: pa.Array, metas: Sequence[Mapping[str, float | str | None]] | None, rules: Sequence[MeasuredRule]
) -> tuple[dict[str, pa.Array], pa.Array]:
    """Return what `rules` measure of each text of a column, by name, and the column as their edits leave it.

    metas: what the source says of each document, for rules that are not compiled. A measure is NaN where the document
    ended before its rule: it was empty, or a rule that edits left nothing. `bytes` are those of UTF-8 that are left.
    """
    from stages.kernels.rules import COMPILED, MEASURES_OF

    names = [f"{name}{end}" for rule, _, end in rules for name in MEASURES_OF.get(rule, ())]
    values = np.full((len(texts), len(names)), np.nan)
    ended: npt.NDArray[np.bool_] = pc.binary_length(texts).fill_null(0).to_numpy(zero_copy_only=False) == 0
    said: dict[str, pa.Array] = {}
    for is_compiled, group in groupby(rules, key=lambda rule: rule[0] in COMPILED):
        if is_compiled:
            texts = measure_forms(texts, ended, list(group), names, values)
            continue
        for name, thresholds, end in group:
            reasons: list[str | None] = [None] * len(texts)
            for i in np.flatnonzero(~ended).tolist():
                outcome = RULES[name](Document(texts[i].as_py(), metas[i] if metas else {}), **thresholds)
                reasons[i] = outcome if isinstance(outcome, str) else None
            said[f"{SAID}{name}{end}"] = pa.array(reasons, pa.string())
    values[np.isnan(values)] = np.nan  # of all the bits that mean it one: tables are compared by theirs
    measures = {name: pa.array(values[:, i]) for i, name in enumerate(names)}
    return {"bytes": pc.binary_length(texts).fill_null(0).cast(pa.int64()), **measures, **said}, texts


def measure_forms(
    texts: pa.Array,
    ended: npt.NDArray[np.bool_],
    rules: Sequence[MeasuredRule],
    names: Sequence[str],
    values: npt.NDArray[np.float64],
) -> pa.Array:
    """Run compiled rules over a column as `measure_compiled` does, on the comparable forms of texts; `length` on texts.

    Documents whose form is another than their text are measured by themselves, up to the next rule that edits at a
    time: it leaves texts whose forms are not known.
    """
    from stages.kernels.forms import other_forms
    from stages.kernels.rules import MEASURES_OF, measure_compiled

    def run(texts: pa.Array, ended: Any, some: Sequence[MeasuredRule], values: Any, forms: pa.Array | None) -> pa.Array:
        columns = [names.index(MEASURES_OF[name][0] + end) for name, _, end in some]
        return measure_compiled(texts, ended, [rule[:2] for rule in some], columns, values, forms)

    rows, forms = other_forms(texts)
    is_open = ~ended[rows]
    if not is_open.any():
        return run(texts, ended, rules, values, None)
    if not is_open.all():
        rows, forms = rows[is_open], forms.filter(pa.array(is_open))
    measured = left = texts
    if len(rows) < len(texts):
        left = texts.take(pa.array(rows))
        ended[rows] = True
        measured = run(texts, ended, rules, values, None)
    left_ended, left_values = np.zeros(len(rows), bool), values[rows]
    for some in parts_that_end_in_edits(rules):
        if forms is None:
            forms, _ = comparable_texts(left)
        left, forms = run(left, left_ended, some, left_values, forms), None
    ended[rows], values[rows] = left_ended, left_values
    edits = any(name in EDITING for name, _, _ in rules)
    return put_texts(measured, rows, left) if edits else texts


def parts_that_end_in_edits(rules: Sequence[MeasuredRule]) -> Iterator[Sequence[MeasuredRule]]:
    """Yield rules in their order, those up to and with the next one that edits at a time."""
    start = 0
    for stop in range(1, len(rules) + 1):
        if stop == len(rules) or rules[stop - 1][0] in EDITING:
            yield rules[start:stop]
            start = stop


def work(task: Task) -> None:
    """Measure one part. Inputs: the part, then a model for each score. Params: rules, a list of MeasuredRule.

    And, where they are asked for: edit, a list of names; scores, a list of [name, label of a fastText model or ""];
    language, true; fasttext, the versions of its libraries.

    Outputs, a row a document of the part: `measures` (document_id, text_hash, what `measure_column` gives, whether the
    text was `edited`, scores, `language` and `language_score`, and the columns `meta.*` of the part); `docs`
    (DOCUMENTS) with the texts that edits leave, where any edit is asked for. Counts documents, and text_bytes as they
    were read.
    """
    file = pq.ParquetFile(task.path(task.inputs[0]))
    rules = [(name, settings, end) for name, settings, end in task.params["rules"]]
    edits = task.params.get("edit", [])
    scores = task.params.get("scores", [])
    models = [(*score, task.path(model)) for score, model in zip(scores, task.inputs[1:], strict=True)]
    writers = contextlib.ExitStack()
    with writers:
        docs: TableWriter | None = None
        if edits or any(name in EDITING for name, _, _ in rules):
            docs = writers.enter_context(task.table("docs", DOCUMENTS))
        measures: TableWriter | None = None
        tables: list[pa.Table] = []
        for group in range(file.num_row_groups):
            table = file.read_row_group(group).combine_chunks()
            task.count("documents", len(table))
            task.count("text_bytes", utf8_bytes(table["text"]))
            measured, texts = measure_table(table, rules, edits)
            for name, values in model_columns(texts, models, "language" in task.params):
                measured = measured.append_column(name, values)
            measures = measures or writers.enter_context(task.table("measures", measured.schema))
            if docs:
                with_texts = table.set_column(table.schema.get_field_index("text"), DOCUMENTS.field("text"), texts)
                docs.write(with_texts.select(DOCUMENTS.names))
            tables.append(measured)
            if sum(map(len, tables)) >= ROWS or group == file.num_row_groups - 1:
                measures.write(pa.concat_tables(tables).combine_chunks())
                tables = []


def measure_table(table: pa.Table, rules: Sequence[MeasuredRule], edits: Sequence[str]) -> tuple[pa.Table, pa.Array]:
    """Return the measures of documents of a part, and their texts as edits leave them."""
    meta_columns = [name for name in table.schema.names if name.startswith(META)]
    metas = None
    if meta_columns and rules:
        plain_names = [name.removeprefix(META) for name in meta_columns]
        metas = table.select(meta_columns).rename_columns(plain_names).to_pylist()
    source_texts = texts = one_array(table["text"])
    if edits:
        texts = pa.array([apply_edits(text or "", edits) for text in texts.to_pylist()], pa.string())
    columns, texts = measure_column(texts, metas, rules)
    hashes = pa.array(text_hashes(texts), ID)
    known = {"document_id": table["document_id"], "text_hash": hashes, "edited": pc.not_equal(source_texts, texts)}
    return pa.table({**known, **columns, **{name: table[name] for name in meta_columns}}), texts


def model_columns(
    texts: pa.Array, models: Sequence[tuple[str, str, str]], tells_language: bool
) -> Iterator[tuple[str, pa.Array]]:
    """Yield what models say of texts: of each (name, label or "", path) a column, and the language where asked for."""
    from stages.filter.fasttext import label_scores, languages
    from stages.kernels.linear import score

    for name, label, path in models:
        yield name, label_scores(texts, path, label) if label else pa.array(score(texts, weights_of(path)))
    if tells_language:
        yield from zip(("language", "language_score"), languages(texts), strict=True)


@functools.cache
def weights_of(path: str) -> npt.NDArray[np.float32]:
    """Return the weights in a file."""
    return np.load(path)


def one_array(column: pa.ChunkedArray) -> pa.Array:
    """Return a column in one piece."""
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
