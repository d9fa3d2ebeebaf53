"""Tokenise: each curated part becomes one file of uint16 tokens and a table that accounts for every one.

Documents are stored in the order of their `position` in the mixture, so that a shard reads one contiguous
slice of every unit. One longer than a shard is cut into parts, each with a position of its own.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stages.base import Artifact, Record, Stage, Task
from stages.ids import id_words, is_validation, position, take
from stages.tables import ID
from stages.text_encoder import BOS, load_text_encoder, special_ids

TOKENISED = pa.schema(
    [
        ("document_id", ID),
        ("part", pa.int32()),  # 0 but for documents longer than a shard
        ("position", pa.uint64()),
        ("token_start", pa.int64()),  # in this unit's token file
        ("token_count", pa.int32()),  # the BOS of part 0 included
        ("val", pa.bool_()),
        ("source_file", pa.string()),
        ("source_row", pa.int64()),
        ("url", pa.string()),
    ]
)
BINS = 4096  # of the histograms: the top 12 bits of a 64-bit draw
BATCH_BYTES = 8 << 20  # text encoded at a time
LINEAGE = ("document_id", "source_file", "source_row", "url")


def work(task: Task) -> None:
    """Tokenise one part. Inputs: the curated part, the tokenizer. Params: seed, shard_tokens.

    Outputs: `tokens` (raw little-endian uint16), `docs` (TOKENISED, in the same order) and `histogram` (.npy,
    int64 [2, 4096]: training tokens by the top 12 bits of position, and of take). Counts tokens,
    train_tokens, val_tokens, documents, text_bytes; the `docs` artifact's meta repeats them and adds
    max_document_tokens.
    """
    seed, shard_tokens = task.params["seed"], task.params["shard_tokens"]
    table, streams, text_bytes = encode(task)
    document, part, start, count = cut([len(s) for s in streams], shard_tokens)
    ids = table["document_id"].take(pa.array(document)).combine_chunks()
    places, val = position(seed, ids, part), is_validation(ids)
    # Ids sort as the bytes they are; the row breaks ties where duplicates were left in.
    lo, hi = id_words(ids)
    rank = np.lexsort((document, part, hi.byteswap(), lo.byteswap(), places))
    document, part, start, count = document[rank], part[rank], start[rank], count[rank]
    places, val, ids = places[rank], val[rank], ids.take(pa.array(rank))
    path = task.output("tokens.bin")
    with Path(path).open("wb") as out:
        for d, a, n in zip(document, start, count, strict=True):
            out.write(streams[d][a : a + n].data)  # not tofile, whose error on a full disk names no errno
    total, trained = int(count.sum()), int(count[~val].sum())
    facts = {
        "tokens": total,
        "train_tokens": trained,
        "val_tokens": total - trained,
        "documents": len(streams),
        "text_bytes": text_bytes,
    }
    task.counts.update(facts)
    longest = max((len(s) for s in streams), default=0)
    task.add("tokens", path, tokens=total)
    with task.table("docs", TOKENISED, **facts, max_document_tokens=longest) as writer:
        lineage = table.select(LINEAGE[1:]).take(pa.array(document))
        numbers = [part, places, np.cumsum(count) - count, count, val]
        arrays = [pa.array(n, f.type) for n, f in zip(numbers, list(TOKENISED)[1:6], strict=True)]
        if len(document):
            writer.write(pa.Table.from_arrays([ids, *arrays, *lineage.columns], schema=TOKENISED))
    histogram_path = task.output("histogram.npy")
    buffer = BytesIO()
    np.save(buffer, histograms(places, take(seed, ids), np.where(val, 0, count)))
    Path(histogram_path).write_bytes(buffer.getvalue())
    task.add("histogram", histogram_path)


def encode(task: Task) -> tuple[pa.Table, list[np.ndarray], int]:
    """(lineage columns, tokens of each document with its BOS, bytes of text), in the part's order."""
    tokenizer_path = task.path(task.inputs[1])
    encoder, bos = load_text_encoder(tokenizer_path), special_ids(tokenizer_path)[BOS]
    file = pq.ParquetFile(task.path(task.inputs[0]))
    lineage, streams, text_bytes = [], [], 0
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=[*LINEAGE, "text"])
        lineage.append(table.select(LINEAGE))
        for texts in batches(table["text"].to_pylist()):
            text_bytes += sum(len(text.encode()) for text in texts)
            for encoding in encoder.encode_batch_fast(texts, add_special_tokens=False):
                streams.append(np.array([bos, *encoding.ids], dtype="<u2"))
    empty = pa.schema([f for f in file.schema_arrow if f.name in LINEAGE]).empty_table().select(LINEAGE)
    return pa.concat_tables([empty, *lineage]), streams, text_bytes


def batches(texts: list[str]) -> list[list[str]]:
    """Consecutive texts, about BATCH_BYTES at a time."""
    found: list[list[str]] = []
    size = BATCH_BYTES
    for text in texts:
        if size + len(text) > BATCH_BYTES:
            found.append([])
            size = 0
        found[-1].append(text)
        size += len(text)
    return found


def cut(lengths: list[int], shard_tokens: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(document, part, start in the document, tokens) of each piece of at most `shard_tokens` tokens."""
    length = np.asarray(lengths, np.int64)
    pieces = -(-length // shard_tokens)
    document = np.repeat(np.arange(len(length)), pieces)
    part = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    start = part * shard_tokens
    return document, part, start, np.minimum(length[document] - start, shard_tokens)


def histograms(places: np.ndarray, takes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Tokens by the top 12 bits of each draw, int64 [2, BINS]."""
    out = np.zeros((2, BINS), np.int64)
    for row, draw in enumerate((places, takes)):
        np.add.at(out[row], (draw >> np.uint64(52)).astype(np.int64), weights)
    return out


async def build(context: Any) -> dict[str, list[Record]]:
    """The records of each source's parts, in order; every one has `tokens`, `docs` and `histogram`."""
    curated: dict[str, list[Artifact]] = await context.stage("dedup")
    tokenizer = (await context.stage("build_tokenizer")).output("tokenizer")
    params = {"seed": context.recipe.seed, "shard_tokens": context.recipe.shard_tokens}
    pairs = [(name, i, part) for name, parts in curated.items() for i, part in enumerate(parts)]
    records = await context.gather(
        context.run(
            "tokenize",
            work,
            params,
            [part, tokenizer],
            label=f"{i:05d}",
            source=name,
            weight=part.meta.get("text_bytes", 0),
        )
        for name, i, part in pairs
    )
    found: dict[str, list[Record]] = {name: [] for name in curated}
    for (name, _, _), record in zip(pairs, records, strict=True):
        found[name].append(record)
    return found


STAGE = Stage(
    name="tokenize",
    reads="dedup, build_tokenizer",
    writes="tokens of each part, in the order of the mixture, with their documents",
    build=build,
    after=("dedup", "build_tokenizer"),
    libraries=("pyarrow", "numpy", "tokenizers"),
)
