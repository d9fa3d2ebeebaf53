"""The search of decontamination: n-grams of evaluation sets listed, looked up in each part, common ones left out.

Apart from `stages.decontaminate.stage`, so that a change in what is done about a document searches nothing again.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.comparable import comparable_texts, source_ranges
from stages.decontaminate.cut import merge_ranges
from stages.decontaminate.ngrams import (
    frequent_words,
    has_words,
    is_whole_in,
    ngram_columns,
    ngram_words,
    passages_of,
    sieve_words,
)
from stages.schemas import ID, table_digest
from stages.task import Artifact, Task

if TYPE_CHECKING:
    from stages.kernels.ngrams import NgramSearch

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
HITS = pa.schema(
    [
        ("row", pa.int64()),
        ("gram", pa.int64()),
        ("start", pa.int64()),
        ("stop", pa.int64()),
        ("whole", pa.bool_()),  # whether all of a passage stands here
    ]
)

Columns = dict[str, npt.NDArray[Any]]  # of n-grams; `item` and `holder` beside those of GRAMS
NO_NGRAMS: Columns = {
    "hash": np.zeros(0, np.uint64),
    "size": np.zeros(0, np.int64),
    "last": np.zeros(0, np.uint64),
    "offset": np.zeros(0, np.int64),
    "skips": np.zeros(0, np.bool_),
    "passage": np.zeros(0, np.int64),
    "item": np.zeros(0, np.int64),
    "holder": np.zeros(0, np.int64),
}


def index_ngrams(task: Task) -> None:
    """List the n-grams of some sets. Inputs: their items. Params: sets (names), ngram, short, common.

    Outputs: `passages` (PASSAGES), `grams` (GRAMS). Counts items.<set>, and unsearched.<set>: items of which nothing
    is looked for; an item that a set has twice counts once. An n-gram that more than `common` items of different text
    share is left out, and one of words that more items of its set than that, and than one in a hundred, use.
    """
    params = task.params
    last_words = sieve_words(params["short"])
    passage_rows: list[dict[str, Any]] = []
    pieces = [NO_NGRAMS]
    holders: dict[str, int] = {}  # numbers of the texts that `Passage.holder` is
    known_words: dict[str, tuple[int, int]] = {}
    set_of_item: list[str] = []
    for name, artifact in zip(params["sets"], task.inputs, strict=True):
        items = read_items(task.path(artifact))
        passages_by_item = [list(passages_of(item, params["ngram"], params["short"])) for item in items]
        frequent = frequent_words(itertools.chain.from_iterable(passages_by_item), params["common"])
        for item, passages in zip(items, passages_by_item, strict=True):
            for passage in passages:
                numbers = {
                    "passage": len(passage_rows),
                    "item": len(set_of_item),
                    "holder": holders.setdefault(passage.holder, len(holders)),
                }
                for columns in ngram_columns(passage, last_words, known_words, frequent):
                    repeated = {column: np.full(len(columns.hash), number) for column, number in numbers.items()}
                    pieces.append(columns._asdict() | repeated)
                passage_rows.append(
                    {
                        "set": name,
                        "item": numbers["item"],
                        "item_id": item["item_id"],
                        "passage": passage.name,
                        "words": " ".join(passage.words),
                    }
                )
            set_of_item.append(name)
    columns_of_all = {name: np.concatenate([piece[name] for piece in pieces]) for name in NO_NGRAMS}
    grams = number_ngrams(columns_of_all, params["common"])
    searched_items = {passage_rows[number]["item"] for number in pc.unique(grams["passage"]).to_pylist()}
    for item_number, name in enumerate(set_of_item):
        task.count(f"items.{name}")
        task.count(f"unsearched.{name}", item_number not in searched_items)
    with task.table("passages", PASSAGES) as writer:
        writer.write(pa.Table.from_pylist(passage_rows, schema=PASSAGES))
    with task.table("grams", GRAMS) as writer:
        writer.write(grams)


def read_items(path: str) -> list[dict[str, Any]]:
    """Return the items of a set, each once, wherever in it they stand."""
    table = pq.read_table(path, partitioning=None).drop_columns(["source_file", "source_row"])
    once = {tuple(row.values()): row for row in table.to_pylist()}
    return list(once.values())


def number_ngrams(columns: Columns, common: int) -> pa.Table:
    """Return n-grams as a table (GRAMS), numbered by hash and size, without those that too many items share.

    Of several places in one item the first is kept. common: items of different text that may share an n-gram.
    """
    order = np.lexsort([columns[name] for name in ("offset", "passage", "item", "size", "hash")])
    columns = {name: values[order] for name, values in columns.items()}
    number = np.cumsum(differs_from_previous(columns, "hash", "size")) - 1
    is_first_in_item = differs_from_previous(columns, "hash", "size", "item")
    holders = 1 + int(columns["holder"].max(initial=0))
    number_and_holder = np.unique(number * holders + columns["holder"])
    is_shared = np.bincount(number_and_holder // holders, minlength=len(number)) > common
    kept = is_first_in_item & ~is_shared[number]
    columns = {name: values[kept] for name, values in columns.items()}
    _, columns["gram"] = np.unique(number[kept], return_inverse=True)
    return pa.table([columns[name] for name in GRAMS.names], schema=GRAMS)


def differs_from_previous(columns: Columns, *names: str) -> npt.NDArray[np.bool_]:
    """Return which rows differ in any of the columns named from the row before; the first does."""
    differs = np.ones(len(columns[names[0]]), bool)
    differs[1:] = np.any([columns[name][1:] != columns[name][:-1] for name in names], axis=0)
    return differs


class NgramIndex:
    """The outputs of `index_ngrams`, open."""

    def __init__(self, passages: str, grams: str):
        self.grams = pq.read_table(grams)
        self.passages = pq.read_table(passages)
        self.item_of_passage = self.passages["item"].to_numpy()
        self.lengths = pc.count_substring(self.passages["words"], " ").to_numpy() + 1  # words
        numbers = self.grams["gram"].to_numpy()
        # The row where each n-gram begins, and the end.
        self.first_row = np.searchsorted(numbers, np.arange(numbers.max(initial=-1) + 2))

    def words(self, row: int) -> list[str]:
        """Return the words of the n-gram of a row."""
        passage, size, offset, skips = (self.grams[c][row].as_py() for c in ("passage", "size", "offset", "skips"))
        return ngram_words(self.words_of(passage), offset, size, skips)

    def items(self, gram: int) -> Iterator[tuple[int, int]]:
        """Yield (row of the n-gram, number of a passage that holds it), one for each item."""
        for row in range(int(self.first_row[gram]), int(self.first_row[gram + 1])):
            yield row, self.grams["passage"][row].as_py()

    def passages_of(self, item: int) -> range:
        """Return the numbers of the passages of an item."""
        return range(*np.searchsorted(self.item_of_passage, [item, item + 1]).tolist())

    def words_of(self, passage: int) -> list[str]:
        """Return the words of a passage."""
        words: str = self.passages["words"][passage].as_py()
        return words.split(" ")

    def search(self, short: int) -> NgramSearch:
        """Return the compiled search for all n-grams; those of `short` words are found with a word more, too."""
        from stages.kernels.ngrams import NgramSearch

        first_rows = pa.array(self.first_row[:-1])
        hashes, sizes, lasts = (self.grams[name].take(first_rows).to_numpy() for name in ("hash", "size", "last"))
        return NgramSearch(hashes, sizes, lasts, sieve_words(short), short)


def find_hits(task: Task) -> None:
    """Search one part. Params: ngram, short. Inputs: the part, `passages`, `grams`. Output: `hits` (HITS).

    What a hash found counts only where the words are the same.
    """
    part, passages, grams = map(task.path, task.inputs)
    index = NgramIndex(passages, grams)
    search = index.search(task.params["short"])
    file = pq.ParquetFile(part)
    first_row = 0
    with task.table("hits", HITS) as writer:
        for group in range(file.num_row_groups):
            texts = file.read_row_group(group, columns=["text"])["text"].combine_chunks()
            forms, changed_rows = comparable_texts(texts)
            hits = true_hits(forms, search.find(forms), index)
            whole = whole_hits(forms, hits, index, **task.params)
            put_source_ranges(texts, changed_rows, hits)
            hits[:, 0] += first_row
            if len(hits):
                writer.write(pa.table([*hits.T, whole], schema=HITS))
            first_row += len(texts)


def put_source_ranges(texts: pa.Array, changed_rows: npt.NDArray[np.int64], hits: npt.NDArray[np.int64]) -> None:
    """Make the ranges of hits in comparable forms those in the texts, in place, where the two differ."""
    for row in np.intersect1d(hits[:, 0], changed_rows).tolist():
        in_row = hits[:, 0] == row
        hits[in_row, 2:] = source_ranges(texts[row].as_py(), hits[in_row, 2:].tolist())


def true_hits(texts: pa.Array, hits: npt.NDArray[np.int64], index: NgramIndex) -> npt.NDArray[np.int64]:
    """Return those of the hits (row, n-gram, start, stop) whose text has the words of the n-gram."""
    is_true = [
        has_words(text_between(texts, row, start, stop), index.words(int(index.first_row[gram])))
        for row, gram, start, stop in hits.tolist()
    ]
    return hits[np.array(is_true, bool)]


def whole_hits(
    texts: pa.Array, hits: npt.NDArray[np.int64], index: NgramIndex, ngram: int, short: int
) -> npt.NDArray[np.bool_]:
    """Return which of the hits (row, n-gram, start, stop) stand in a copy of a passage that holds their n-gram.

    What is compared with the passages of an item is each stretch of a text that has hits of it no farther apart than
    the longest of them is long.
    """
    from stages.kernels.words import split_words

    is_whole = np.zeros(len(hits), bool)
    hits_by_item: dict[tuple[int, int], list[int]] = defaultdict(list)  # by row and item
    for number, (row, gram, *_) in enumerate(hits.tolist()):
        for item in {int(index.item_of_passage[passage]) for _, passage in index.items(gram)}:
            hits_by_item[row, item].append(number)
    for (row, item), numbers in hits_by_item.items():
        passages = [passage for passage in index.passages_of(item) if index.lengths[passage] >= ngram]
        if not passages:
            continue
        reach = max(len(index.passages["words"][passage].as_buffer()) for passage in passages)
        of_item = np.array(numbers)
        places = hits[of_item, 2:]
        for start, stop in merge_ranges((max(0, a - reach), b + reach) for a, b in places.tolist()):
            stretch = split_words(bytes(texts[row].as_buffer()[start:stop]).decode(errors="ignore"))
            fitting = (passage for passage in passages if index.lengths[passage] < len(stretch) + short)
            if any(is_whole_in(index.words_of(passage), stretch, ngram, short) for passage in fitting):
                is_whole[of_item[(places[:, 0] >= start) & (places[:, 1] <= stop)]] = True
    return is_whole


def text_between(texts: pa.Array, row: int, start: int, stop: int) -> str:
    """Return the bytes [start, stop) of a text of a column."""
    return bytes(texts[row].as_buffer()[start:stop]).decode()


def weigh_hits(task: Task) -> None:
    """Leave out n-grams that more than `common` documents hold without the passage. Inputs: `hits` of parts.

    Params: common. What stands in a copy of a passage stays. Outputs: `hits-00000`, ...: a slice of one table (HITS)
    for each input. Counts common: n-grams left out.
    """
    paths = [task.path(artifact) for artifact in task.inputs]
    is_common = documents_by_ngram(paths) > task.params["common"]
    path = task.output("hits.parquet")
    start = 0
    with pq.ParquetWriter(path, HITS, compression="zstd") as writer:
        for i, hits_path in enumerate(paths):
            table = pq.read_table(hits_path, schema=HITS)
            is_evidence = ~is_common[table["gram"].to_numpy()] | table["whole"].to_numpy()
            table = table.filter(pa.array(is_evidence))
            writer.write_table(table)
            stop = start + len(table)
            task.outputs.append(
                Artifact(
                    path,
                    table_digest(table),
                    name=f"hits-{i:05d}",
                    rows=len(table),
                    rows_from=start,
                    rows_to=stop,
                )
            )
            start = stop
    task.count("common", int(is_common.sum()))


def documents_by_ngram(paths: list[str]) -> npt.NDArray[np.int64]:
    """Return how many documents hold each n-gram, by its number, but for those that hold a whole passage with it.

    paths: tables of hits.
    """
    documents = np.zeros(0, np.int64)
    for path in paths:
        table = pq.read_table(path, columns=["row", "gram", "whole"])
        once = table.group_by(["row", "gram"]).aggregate([("whole", "max")])
        without = np.where(once["whole_max"].to_numpy(), 0, 1)
        in_part = np.bincount(once["gram"].to_numpy(), without, len(documents)).astype(np.int64)
        in_part[: len(documents)] += documents
        documents = in_part
    return documents
