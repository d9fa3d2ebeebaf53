"""The search of decontamination: n-grams of evaluation sets listed, looked up in each part, common ones left out.

Apart from `stages.decontaminate.stage`, so that a change in what is done about a document searches nothing again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.decontaminate.ngrams import COLUMNS, Array, chosen, frequent_words, grams_of, passages_of, says, sieved
from stages.schemas import ID, table_digest
from stages.task import Artifact, Task

PASSAGES = pa.schema(
    [
        ("set", pa.string()),
        ("item", pa.int64()),  # its number among all items
        ("item_id", ID),
        ("passage", pa.string()),
        ("words", pa.string()),  # with one blank between them
    ]
)
GRAMS = pa.schema(
    [
        ("gram", pa.int64()),  # its number, in a row for each item that holds it
        ("passage", pa.int64()),
        ("hash", pa.uint64()),
        ("size", pa.int64()),  # words
        ("last", pa.uint64()),  # hash of its last words, for the sieve
        ("offset", pa.int64()),  # words before it in the passage
        ("skips", pa.bool_()),  # the word behind its first half
    ]
)
HITS = pa.schema([("row", pa.int64()), ("gram", pa.int64()), ("start", pa.int64()), ("stop", pa.int64())])


def index(task: Task) -> None:
    """List the n-grams of some sets. Inputs: their items. Params: sets (names), ngram, short, common.

    Outputs: `passages` (PASSAGES), `grams` (GRAMS). Counts items.<set>, and unsearched.<set>: items of which nothing
    is looked for; an item that a set has twice counts once. An n-gram that more than `common` items of different text
    share is left out, and one of words that more items of its set than that, and than one in a hundred, use.
    """
    params, last = task.params, sieved(task.params["short"])
    rows: dict[str, list[Any]] = {name: [] for name in PASSAGES.names}
    kinds = (np.uint64, np.int64, np.uint64, np.int64, np.bool_, np.int64, np.int64, np.int64)
    pieces: list[list[Array]] = [[np.zeros(0, kind) for kind in kinds]]
    holders: dict[str, int] = {}
    known: dict[str, tuple[int, int]] = {}
    owners: list[str] = []  # of each item: its set
    for name, artifact in zip(params["sets"], task.inputs, strict=True):
        read = pq.read_table(task.path(artifact), partitioning=None).drop_columns(["source_file", "source_row"])
        items = list({tuple(row.values()): row for row in read.to_pylist()}.values())
        cut_up = [list(passages_of(row, params["ngram"], params["short"])) for row in items]
        frequent = frequent_words(itertools.chain.from_iterable(cut_up), params["common"])
        for row, passages in zip(items, cut_up, strict=True):
            for passage in passages:
                holder = holders.setdefault(passage.holder, len(holders))
                for found in grams_of(passage, last, known, frequent):
                    which = [np.full(len(found[0]), n) for n in (len(rows["set"]), len(owners), holder)]
                    pieces.append([*found, *which])
                values = (name, len(owners), row["item_id"], passage.name, " ".join(passage.words))
                for column, value in zip(rows.values(), values, strict=True):
                    column.append(value)
            owners.append(name)
    names, arrays = (*COLUMNS, "passage", "item", "holder"), map(np.concatenate, zip(*pieces, strict=True))
    table = listed(dict(zip(names, arrays, strict=True)), params["common"])
    searched = {rows["item"][i] for i in pc.unique(table["passage"]).to_pylist()}
    for item, name in enumerate(owners):
        task.count(f"items.{name}")
        task.count(f"unsearched.{name}", item not in searched)
    with task.table("passages", PASSAGES) as writer:
        writer.write(pa.table(rows, schema=PASSAGES))
    with task.table("grams", GRAMS) as writer:
        writer.write(table)


def listed(columns: dict[str, Array], common: int) -> pa.Table:
    """GRAMS of the n-grams, numbered by hash and size; of several places in one item the first."""
    order = np.lexsort([columns[name] for name in ("offset", "passage", "item", "size", "hash")])
    columns = {name: values[order] for name, values in columns.items()}

    def changes(*names: str) -> Array:
        fresh = np.ones(len(order), bool)
        fresh[1:] = np.any([columns[n][1:] != columns[n][:-1] for n in names], axis=0)
        return fresh

    gram = np.cumsum(changes("hash", "size")) - 1
    holders = 1 + int(columns["holder"].max(initial=0))
    shared = np.bincount(np.unique(gram * holders + columns["holder"]) // holders, minlength=len(gram)) > common
    keep = changes("hash", "size", "item") & ~shared[gram]
    _, columns["gram"] = np.unique(gram[keep], return_inverse=True)
    return pa.table([columns[n] if n == "gram" else columns[n][keep] for n in GRAMS.names], schema=GRAMS)


class Opened:
    """The outputs of `index`, open."""

    def __init__(self, passages: str, grams: str):
        self.grams = pq.read_table(grams)
        self.passages = pq.read_table(passages)
        numbers = self.grams["gram"].to_numpy()
        self.first = np.searchsorted(numbers, np.arange(numbers.max(initial=-1) + 2))  # row of each n-gram, and the end

    def words(self, row: int) -> list[str]:
        """The n-gram of a row."""
        passage, n, offset, skips = (self.grams[c][row].as_py() for c in ("passage", "size", "offset", "skips"))
        return chosen(self.passages["words"][passage].as_py().split(" "), offset, n, skips)

    def items(self, gram: int) -> Iterator[tuple[int, int]]:
        """(row of the n-gram, number of a passage that holds it), one for each item."""
        for row in range(int(self.first[gram]), int(self.first[gram + 1])):
            yield row, self.grams["passage"][row].as_py()


def look(task: Task) -> None:
    """Search one part. Params: short. Inputs: the part, `passages`, `grams`. Output: `hits` (HITS).

    What a hash found counts only where the words are the same.
    """
    from stages.kernels.ngrams import Index

    part, *known = map(task.path, task.inputs)
    opened = Opened(*known)
    first, short = pa.array(opened.first[:-1]), task.params["short"]
    hashes, sizes, lasts = (opened.grams[c].take(first).to_numpy() for c in ("hash", "size", "last"))
    search = Index(hashes, sizes, lasts, sieved(short), short)
    file, at = pq.ParquetFile(part), 0
    with task.table("hits", HITS) as writer:
        for group in range(file.num_row_groups):
            texts = file.read_row_group(group, columns=["text"])["text"].combine_chunks()
            found = search.look(texts)
            if len(found):
                found = found[[says(stretch(texts, *row), opened.words(int(first[row[1]]))) for row in found.tolist()]]
                found[:, 0] += at
            if len(found):
                writer.write(pa.table(list(found.T), schema=HITS))
            at += len(texts)


def stretch(texts: pa.Array, row: int, gram: int, start: int, stop: int) -> str:
    """The bytes [start, stop) of a text of a column."""
    return bytes(texts[row].as_buffer()[start:stop]).decode()


def evidence(task: Task) -> None:
    """Leave out n-grams that more than `common` documents hold. Inputs: `hits` of parts. Params: common.

    Outputs: `hits-00000`, ...: a slice of one table (HITS) for each input. Counts common: n-grams left out.
    """
    paths = [task.path(a) for a in task.inputs]
    times = np.zeros(0, np.int64)
    for path in paths:
        table = pq.read_table(path, columns=["row", "gram"])
        grams = table.group_by(["row", "gram"]).aggregate([])["gram"].to_numpy()
        found = np.bincount(grams, minlength=len(times))
        found[: len(times)] += times
        times = found
    ignored = times > task.params["common"]
    path, at = task.output("hits.parquet"), 0
    with pq.ParquetWriter(path, HITS, compression="zstd") as writer:
        for i, one in enumerate(paths):
            table = pq.read_table(one, schema=HITS)
            table = table.filter(pa.array(~ignored[table["gram"].to_numpy()]))
            writer.write_table(table)
            task.outputs.append(
                Artifact(
                    path,
                    table_digest(table),
                    name=f"hits-{i:05d}",
                    rows=len(table),
                    rows_from=at,
                    rows_to=at + len(table),
                )
            )
            at += len(table)
    task.count("common", int(ignored.sum()))
