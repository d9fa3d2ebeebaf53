"""The unit that tokenizes a slice of a curated part: one file of uint16 tokens and a table that accounts for every one.

Documents are stored in the order of their `position` in the mixture, so that a shard reads one contiguous
slice of every unit. One longer than a shard is cut into parts, each with a position of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.hashing import is_validation, position, take
from stages.task import Task
from stages.tokenize.token_file import (
    BINS,
    TOKENIZED,
    after,
    full_order,
    slices,
    write_docs,
    write_histogram,
    write_joined,
)
from stages.tokenizer.encoder import open_encoder

BATCH_BYTES = 8 << 20  # text encoded at a time
LINEAGE = ("document_id", "source_file", "source_row", "url")


@dataclass(frozen=True)
class Encoded:
    """A slice's tokens, without BOS, in its own order."""

    lineage: pa.Table  # LINEAGE, a row a document
    tokens: np.ndarray  # (all tokens,) uint16
    counts: np.ndarray  # (documents,) int64
    text_bytes: int


def work(task: Task) -> None:
    """Tokenise a slice of a part. Inputs: the curated part, the tokenizer. Params: seed, shard_tokens, bos_id, slice.

    Outputs: `tokens` (raw little-endian uint16), `docs` (TOKENIZED, in the same order) and `histogram` (.npy,
    int64 [4, 4096], see BY_POSITION). Counts tokens, train_tokens, val_tokens, documents, text_bytes and the engine
    that encoded.
    """
    seed = task.params["seed"]
    encoded = encode(task)
    lengths = encoded.counts + 1  # with the BOS
    document, part, start, count = cut(lengths, task.params["shard_tokens"])
    table = encoded.lineage.take(pa.array(document)).append_column("part", pa.array(part, pa.int32()))
    places = position(seed, table["document_id"], part)
    rank = full_order(table, places)
    table, document, part, start, count = table.take(pa.array(rank)), *(x[rank] for x in (document, part, start, count))
    places, val = places[rank], is_validation(table["document_id"])
    # Part 0 opens with the BOS, which the encoder's output does not hold.
    opens = part == 0
    offsets = np.cumsum(encoded.counts) - encoded.counts
    pieces = slices(
        encoded.tokens.view(np.uint8).data, offsets[document] + np.where(opens, 0, start - 1), count - opens
    )
    bos = np.array([task.params["bos_id"]], "<u2").tobytes()
    path = task.output("tokens.bin")
    sha256 = write_joined(path, after(bos, opens, pieces))
    total, trained = int(count.sum()), int(count[~val].sum())
    task.counts.update(tokens=total, train_tokens=trained, val_tokens=total - trained)
    task.counts.update(documents=len(lengths), text_bytes=encoded.text_bytes)
    task.add("tokens", path, tokens=total, sha256=sha256)
    columns = {"position": places, "token_start": np.cumsum(count) - count, "token_count": count, "val": val}
    for name, column in columns.items():
        table = table.append_column(name, pa.array(column, TOKENIZED.field(name).type))
    write_docs(task, table.select(TOKENIZED.names))
    write_histogram(task, histogram(seed, table, val))


def encode(task: Task) -> Encoded:
    """The documents of the row groups of the task's slice (number, of how many), BATCH_BYTES of text at a time."""
    encoder = None
    lineage, tokens, counts, size = [], [np.zeros(0, "<u2")], [np.zeros(0, np.int64)], 0
    with pq.ParquetFile(task.path(task.inputs[0])) as file:
        schema = pa.schema([file.schema_arrow.field(name) for name in LINEAGE])
        number, of = task.params["slice"]
        groups = file.num_row_groups
        for group in range(number * groups // of, (number + 1) * groups // of):
            table = file.read_row_group(group, columns=[*LINEAGE, "text"], use_threads=False)
            lineage.append(table.select(LINEAGE))
            for column in batches(table["text"].combine_chunks()):
                texts = column.to_pylist()
                encoder = encoder or open_encoder(task.path(task.inputs[1]), texts[:100])
                ids, sizes = encoder.encode(texts)
                tokens.append(ids)
                counts.append(sizes)
                size += text_bytes(column)
    table = pa.concat_tables([schema.empty_table(), *lineage])
    if encoder:
        task.count(f"encoded_by.{encoder.note}")
    return Encoded(table, np.concatenate(tokens), np.concatenate(counts), size)


def batches(column: pa.StringArray) -> Iterator[pa.StringArray]:
    """Consecutive slices of about BATCH_BYTES of text."""
    ends = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
    at = 0
    while at < len(column):
        end = max(at + 1, int(np.searchsorted(ends, int(ends[at]) + BATCH_BYTES, "right")) - 1)
        yield column.slice(at, end - at)
        at = end


def text_bytes(column: pa.StringArray) -> int:
    """UTF-8 bytes of the texts."""
    ends = np.frombuffer(column.buffers()[1], np.int32)
    return int(ends[column.offset + len(column)]) - int(ends[column.offset])


def cut(lengths: np.ndarray, shard_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(document, part, start in the document, tokens) of each piece of at most `shard_tokens` tokens."""
    pieces = -(-lengths // shard_tokens)
    document = np.repeat(np.arange(len(lengths)), pieces)
    part = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = part * shard_tokens
    return document, part, start, np.minimum(lengths[document] - start, shard_tokens)


def histogram(seed: int, table: pa.Table, val: np.ndarray) -> np.ndarray:
    """Tokens by the top 12 bits of each draw, int64 [4, BINS]; rows as BY_POSITION and so on name them."""
    ids, counts = table["document_id"], table["token_count"].to_numpy()
    first = take(seed, ids)
    draws = (table["position"].to_numpy(), first, take(seed, ids, 1), first)
    weights = [np.where(val, 0, counts)] * 3 + [np.where(val, counts, 0)]
    found = [
        np.bincount((draw >> np.uint64(52)).astype(np.int64), weight, BINS)  # float64, exact below 2^53
        for draw, weight in zip(draws, weights, strict=True)
    ]
    return np.array(found).astype(np.int64)
