"""Counts of words, which are all that a byte-pair encoding is trained on.

A word is what the split leaves whole: a run of letters, of signs or of blanks, perhaps with a blank before it. Three
million times the same letter, DNA and base64 are such words. For counting, one longer than LONGEST_WORD is cut into
pieces of that; encoding never cuts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.kernels.text_columns import utf8_buffers
from stages.task import Artifact, Task
from stages.tokenizer.sample import sampled_tables
from stages.tokenizer.split import compiled_split

if TYPE_CHECKING:
    from stages.kernels.pretokens import WordCounts

WORDS = pa.schema([("word", pa.binary()), ("count", pa.int64())])
TEXTS_AT_A_TIME = 1000
WORDS_AT_A_TIME = 1 << 18


class LongWords(NamedTuple):
    """The words of a text, or of several, that are longer than LONGEST_WORD."""

    number: int
    longest: int  # bytes


def work(task: Task) -> None:
    """Count the words of the sample in parts of a source. Inputs: the parts. Params: taken, split, digits.

    Output: `words` (WORDS), in the order in which they are met. Its meta says how many were cut, and the longest.
    """
    from stages.kernels.pretokens import WordCounts

    words = WordCounts()
    split = compiled_split(task.params["split"], task.params["digits"])
    for table in sampled_tables(task, task.inputs, task.params["taken"]):
        words.count(*utf8_buffers(table["text"].combine_chunks()), split)
    with task.table("words", WORDS, cut=words.long.tolist()) as writer:
        for start in range(0, len(words), WORDS_AT_A_TIME):
            writer.write(word_table(words, start, min(len(words), start + WORDS_AT_A_TIME)))


def word_table(words: WordCounts, start: int, stop: int) -> pa.Table:
    """Return the words `start` to `stop` as WORDS."""
    offsets = words.starts[start : stop + 1]
    data = pa.py_buffer(words.text[offsets[0] : offsets[-1]].tobytes())
    buffers = [None, pa.py_buffer((offsets - offsets[0]).astype(np.int32).tobytes()), data]
    column = pa.Array.from_buffers(pa.binary(), stop - start, buffers)
    return pa.table([column, pa.array(words.counts[start:stop])], schema=WORDS)


def count_texts(texts: Iterable[str], split: str, digits: int | None) -> WordCounts:
    """Return the words of texts."""
    from stages.kernels.pretokens import WordCounts

    words, remaining = WordCounts(), list(texts)
    for start in range(0, len(remaining), TEXTS_AT_A_TIME):
        column = pa.array(remaining[start : start + TEXTS_AT_A_TIME], pa.string())
        words.count(*utf8_buffers(column), compiled_split(split, digits))
    return words


def read_words(task: Task, files: Iterable[Artifact]) -> WordCounts:
    """Return the sums of counts that units left."""
    from stages.kernels.pretokens import WordCounts

    words = WordCounts()
    for artifact in files:
        with pq.ParquetFile(task.path(artifact)) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, use_threads=False)
                words.add(*utf8_buffers(table["word"].combine_chunks()), table["count"].to_numpy().copy())
    return words


def long_words_line(count: int, longest: int) -> str:
    """Say, for people, how many words were cut."""
    from stages.kernels.pretokens import LONGEST_WORD

    words = "1 word" if count == 1 else f"{count:,} words"
    return (
        f"the tokenizer was trained with {words} of more than {LONGEST_WORD:,} bytes cut into pieces (the longest had "
        f"{longest:,}); if such text is not wanted, drop its documents with a rule"
    )
