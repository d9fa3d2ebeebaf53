"""The unit that measures a tokenizer on the sample of parts of a source."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stages.task import Task
from stages.tokenizer.encoder import open_encoder
from stages.tokenizer.sample import sampled_tables

PROOF = 20  # documents on which the encoder is proven


class Sizes(NamedTuple):
    """Sizes of a sample; words are between blanks."""

    documents: int
    text_bytes: int
    words: int
    tokens: int


def work(task: Task) -> None:
    """Encode the sample in parts of a source. Inputs: the tokenizer, the parts. Params: taken (of each), vocab_size.

    Output: `measured` (.npy, int64): Sizes, then how often each id occurs. Counts the engine that encoded.
    """
    tokenizer, *parts = task.inputs
    documents = text_bytes = words = tokens = 0
    times = np.zeros(task.params["vocab_size"], np.int64)
    encoder = None
    for table in sampled_tables(task, parts, task.params["taken"]):
        texts = table["text"].to_pylist()
        encoder = encoder or open_encoder(task.path(tokenizer), texts[:PROOF])
        ids, _ = encoder.encode(texts)
        documents, tokens = documents + len(texts), tokens + len(ids)
        text_bytes += sum(len(text.encode()) for text in texts)
        words += sum(len(text.split()) for text in texts)
        times += np.bincount(ids, minlength=len(times))
    path = task.output("measured.npy")
    np.save(path, np.concatenate([np.array([documents, text_bytes, words, tokens]), times]))
    task.add("measured", path)
    if encoder:
        task.count(f"encoded_by.{encoder.note}")


def read_measured(path: str) -> tuple[Sizes, NDArray[np.int64]]:
    """Return what `work` wrote: sizes, and how often each id occurs."""
    numbers: NDArray[np.int64] = np.load(path)
    size = len(Sizes._fields)
    return Sizes(*numbers[:size].tolist()), numbers[size:]
