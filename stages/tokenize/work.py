"""The unit that tokenizes a slice of a curated part: one file of tokens and a table that accounts for every one.

Documents are stored in the order of their `position` in the mixture, so that a shard reads one contiguous
slice of every unit. One longer than a shard is split into parts, each with a position of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages.hashing import is_validation, position, take
from stages.schemas import utf8_bytes
from stages.task import Task
from stages.tokenize.token_file import (
    BINS,
    TOKENIZED,
    Chunk,
    Histogram,
    bins_of,
    token_chunks,
    total_order,
    write_chunks,
    write_docs,
    write_histogram,
)
from stages.tokenizer.encoder import open_encoder
from train.data.tokens import UINT16, Tokens, token_dtype

BATCH_BYTES = 8 << 20  # text encoded at a time
LINEAGE = ("document_id", "source_file", "source_row", "url")

Mask = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """A slice's tokens, without BOS, in its own order."""

    lineage: pa.Table  # LINEAGE, a row a document
    tokens: Tokens  # of all documents
    counts: Int64s  # tokens of each document
    text_bytes: int


@dataclass(frozen=True)
class DocumentParts:
    """The parts that documents are split into; each array is of shape (parts,)."""

    document: Int64s  # its number
    part: Int64s  # from 0
    start: Int64s  # in the document's tokens, its BOS included
    count: Int64s  # of tokens

    def take(self, rows: Int64s) -> DocumentParts:
        """Return the parts `rows`, in that order."""
        return DocumentParts(self.document[rows], self.part[rows], self.start[rows], self.count[rows])


def work(task: Task) -> None:
    """Tokenize a slice of a part. Inputs: the curated part, the tokenizer.

    Params: seed, shard_tokens, bos_id, vocab_size, slice. Outputs: `tokens` (raw, little-endian), `docs` (TOKENIZED, in
    the same order) and `histogram` (.npy, int64 [4, 4096], see BY_POSITION). Counts tokens, train_tokens, val_tokens,
    documents, text_bytes and the engine that encoded.
    """
    seed = task.params["seed"]
    encoded = encode_slice(task)
    parts = split_long_documents(encoded.counts + 1, task.params["shard_tokens"])  # each document opens with a BOS
    rows = encoded.lineage.take(pa.array(parts.document)).append_column("part", pa.array(parts.part, pa.int32()))
    positions = position(seed, rows["document_id"], parts.part)

    order = total_order(rows, positions)
    rows, positions, parts = rows.take(pa.array(order)), positions[order], parts.take(order)
    val = is_validation(rows["document_id"])

    path = task.output("tokens.bin")
    sha256 = write_chunks(path, document_chunks(encoded, parts, task.params["bos_id"]))
    tokens, train_tokens = int(parts.count.sum()), int(parts.count[~val].sum())
    task.add("tokens", path, tokens=tokens, sha256=sha256, itemsize=encoded.tokens.dtype.itemsize)
    columns = {
        "position": positions,
        "token_start": np.cumsum(parts.count) - parts.count,
        "token_count": parts.count,
        "val": val,
    }
    for name, column in columns.items():
        rows = rows.append_column(name, pa.array(column, TOKENIZED.field(name).type))
    write_docs(task, rows.select(TOKENIZED.names))
    write_histogram(task, histogram(seed, rows, val))
    task.counts.update(tokens=tokens, train_tokens=train_tokens, val_tokens=tokens - train_tokens)
    task.counts.update(documents=len(encoded.counts), text_bytes=encoded.text_bytes)


def encode_slice(task: Task) -> Encoded:
    """Encode the documents of the task's slice (number, of how many), BATCH_BYTES of text at a time."""
    encoder = None
    lineage: list[pa.Table] = []
    tokens: list[Tokens] = [np.zeros(0, UINT16)]
    counts = [np.zeros(0, np.int64)]
    text_bytes = 0
    with pq.ParquetFile(task.path(task.inputs[0])) as file:
        schema = pa.schema([file.schema_arrow.field(name) for name in LINEAGE])
        number, of = task.params["slice"]
        first, stop = number * file.num_row_groups // of, (number + 1) * file.num_row_groups // of
        for group in range(first, stop):
            table = file.read_row_group(group, columns=[*LINEAGE, "text"], use_threads=False)
            lineage.append(table.select(LINEAGE))
            for column in text_batches(table["text"].combine_chunks()):
                texts = column.to_pylist()
                encoder = encoder or open_encoder(task.path(task.inputs[1]), texts[:100])
                batch_tokens, batch_counts = encoder.encode(texts)
                tokens.append(batch_tokens.astype(token_dtype(task.params["vocab_size"])))
                counts.append(batch_counts)
                text_bytes += utf8_bytes(column)
    if encoder:
        task.count(f"encoded_by.{encoder.note}")
    table = pa.concat_tables([schema.empty_table(), *lineage])
    return Encoded(table, np.concatenate(tokens), np.concatenate(counts), text_bytes)


def text_batches(column: pa.StringArray) -> Iterator[pa.StringArray]:
    """Yield consecutive slices of about BATCH_BYTES of text."""
    ends = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
    start = 0
    while start < len(column):
        stop = max(start + 1, int(np.searchsorted(ends, int(ends[start]) + BATCH_BYTES, "right")) - 1)
        yield column.slice(start, stop - start)
        start = stop


def split_long_documents(lengths: Int64s, shard_tokens: int) -> DocumentParts:
    """Split documents of `lengths` tokens (n,) into parts of at most `shard_tokens` tokens."""
    parts_of = -(-lengths // shard_tokens)
    document = np.repeat(np.arange(len(lengths)), parts_of)
    part = np.arange(len(document)) - np.repeat(np.cumsum(parts_of) - parts_of, parts_of)
    start = part * shard_tokens
    return DocumentParts(document, part, start, np.minimum(lengths[document] - start, shard_tokens))


def document_chunks(encoded: Encoded, parts: DocumentParts, bos_id: int) -> Iterator[Chunk]:
    """Yield the bytes of each part's tokens, the BOS before each part 0: the encoder's output does not hold it."""
    bos = np.array([bos_id], encoded.tokens.dtype).tobytes()
    opens = parts.part == 0
    document_starts = np.cumsum(encoded.counts) - encoded.counts
    starts = document_starts[parts.document] + np.where(opens, 0, parts.start - 1)
    memory = encoded.tokens.view(np.uint8).data
    itemsize = encoded.tokens.dtype.itemsize
    chunks = token_chunks([memory], np.zeros(len(starts), np.int64), starts, parts.count - opens, itemsize)
    for chunk, opens_document in zip(chunks, opens.tolist(), strict=True):
        if opens_document:
            yield bos
        yield chunk


def histogram(seed: int, rows: pa.Table, val: Mask) -> Histogram:
    """Return tokens by the top 12 bits of each draw; its rows are as BY_POSITION and so on name them."""
    ids, counts = rows["document_id"], rows["token_count"].to_numpy()
    train_counts, val_counts = np.where(val, 0, counts), np.where(val, counts, 0)
    first_take = take(seed, ids)
    weighted_draws = (
        (rows["position"].to_numpy(), train_counts),
        (first_take, train_counts),
        (take(seed, ids, 1), train_counts),
        (first_take, val_counts),
    )
    sums = [np.bincount(bins_of(draws), weights, BINS) for draws, weights in weighted_draws]  # exact below 2^53
    return np.array(sums).astype(np.int64)
