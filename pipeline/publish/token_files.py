"""Tokens and ends of documents in the files of other trainers: nanoGPT, OLMo-core, nanotron.

Here a document is BOS and then its text. They end each one with a token, so BOS goes from the front of a document to
its end; a further part of a document longer than a shard had none in front, and ends with one all the same. Padding
belongs to no document and is left out. Sources of the layouts:

    nanoGPT     train.py: data/NAME/train.bin and val.bin are np.memmap'ed uint16; meta.pkl has the vocabulary
    OLMo-core   olmo_core/data/utils.py: NAME.npy is tokens without numpy's header; NAME.csv.gz has a line a document,
                its start and its end, and what else one likes
    nanotron    reads datatrove's files (datatrove/pipeline/tokens/tokenizer.py): NAME.ds is tokens, NAME.ds.index the
                ends of documents as uint64, NAME.ds.metadata three lines: tokenizer|bytes a token, tokens, and a text
"""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from stages.lineage.rows import mend, rows_table
from stages.pack.verify import file_fault
from stages.tokenizer.spec import open_vocabulary
from train.data.format import check_shard, read_index, read_shard
from train.data.manifest import Manifest, PackedFile, Shard
from train.data.tokens import Tokens, token_dtype
from train.monitor.text import printable

BATCH_TOKENS = 1 << 22  # that are in memory at a time, where no document is longer by itself
SPLITS = ("train", "val")

Int64s = NDArray[np.int64]


class Stretch(NamedTuple):
    """Some documents in a row, each with its end token."""

    tokens: Tokens  # (n,)
    ends: Int64s  # (k,), one past the end token of each document


def stretches(tokens: Tokens, counts: Int64s, starts: Int64s, bos: int) -> Iterator[Stretch]:
    """Yield the documents of a shard, those at `starts` (k,) with `counts` (k,) tokens, `BATCH_TOKENS` at a time."""
    opens = tokens[starts] == bos
    starts, stops = starts + opens, starts + counts
    batch_of = np.cumsum(counts) // BATCH_TOKENS
    borders = [0, *(np.flatnonzero(np.diff(batch_of)) + 1), len(counts)]
    for first, behind in itertools.pairwise(borders):
        if first == behind:
            continue
        here, there = starts[first:behind], stops[first:behind]
        ends = np.cumsum(there - here + 1)
        out = np.full(ends[-1], bos, tokens.dtype)
        is_text = np.ones(len(out), bool)
        is_text[ends - 1] = False
        out[is_text] = tokens[here[0] : there[-1]][inside(here - here[0], there - here[0])]
        yield Stretch(out, ends)


def inside(starts: Int64s, stops: Int64s) -> NDArray[np.bool_]:
    """Return which of the places below the last of `stops` (k,) lie in one of [starts, stops), which do not overlap."""
    steps = np.zeros(stops[-1] + 1, np.int8)
    np.add.at(steps, starts, 1)
    np.add.at(steps, stops, -1)
    return np.cumsum(steps[:-1], dtype=np.int8).astype(bool)


def open_documents(manifest: Manifest, shard: Shard) -> Iterator[Stretch]:
    """Yield the documents of a shard whose files are what the manifest says. Raises UserError and ManifestError."""
    for file in (PackedFile(shard.path, shard.sha256), PackedFile(shard.index, shard.index_sha256)):
        if fault := file_fault(manifest, file):
            raise UserError(f"{manifest.folder}: {file.path}: {fault}; {mend(manifest)}")
    check_shard(manifest, shard)
    _, tokens = read_shard(manifest.file(shard.path))
    counts, starts = read_index(manifest.file(shard.index), token_dtype(manifest.tokenizer.vocab_size))
    return stretches(tokens, counts.astype(np.int64), starts, manifest.tokenizer.bos_id)


# ---------------------------------------------------------------------------------------------------------------------
# One shard into each layout. All return how many tokens and documents they wrote


class Written(NamedTuple):
    """What a shard came to."""

    tokens: int
    documents: int


def write_raw(manifest: Manifest, shard: Shard, out: Path, tokenizer: str) -> Written:
    """Append a shard to the .bin of its split."""
    count = documents = 0
    with (out / f"{shard.split}.bin").open("ab") as file:
        for stretch in open_documents(manifest, shard):
            file.write(stretch.tokens.tobytes())
            count, documents = count + len(stretch.tokens), documents + len(stretch.ends)
    return Written(count, documents)


def write_ds(manifest: Manifest, shard: Shard, out: Path, tokenizer: str) -> Written:
    """Write a shard's .ds, .ds.index and .ds.metadata; `tokenizer` is what the last one names."""
    path = out / shard.split / f"{Path(shard.path).stem}.ds"
    count = documents = 0
    with path.open("wb") as file, path.with_name(f"{path.name}.index").open("wb") as index:
        for stretch in open_documents(manifest, shard):
            file.write(stretch.tokens.tobytes())
            index.write((count + stretch.ends).astype("<u8").tobytes())
            count, documents = count + len(stretch.tokens), documents + len(stretch.ends)
    width = token_dtype(manifest.tokenizer.vocab_size).itemsize
    lines = (f"{tokenizer}|{width}", str(count), f"{count / 1e6:.3g} MT")
    path.with_name(f"{path.name}.metadata").write_text("\n".join(lines), encoding="utf-8")
    return Written(count, documents)


def write_olmo(manifest: Manifest, shard: Shard, out: Path, tokenizer: str) -> Written:
    """Write a shard's .npy and .csv.gz: start, end, id, source file and row of each document, as Dolma's are."""
    path = out / shard.split / f"{Path(shard.path).stem}.npy"
    table = rows_table(manifest, shard, ["document_id", "source_file", "source_row"])
    count = documents = 0
    with path.open("wb") as file, path.with_suffix(".csv.gz").open("wb") as packed:
        zipped = gzip.GzipFile("", "wb", fileobj=packed, mtime=0)  # the same bytes at any time, under any name
        with zipped, io.TextIOWrapper(zipped, "utf-8", newline="") as text:
            lines = csv.writer(text, lineterminator="\n")
            for stretch in open_documents(manifest, shard):
                file.write(stretch.tokens.tobytes())
                ends = (count + stretch.ends).tolist()
                rows = table.slice(documents, len(ends)).to_pylist()
                for start, end, row in zip([count, *ends], ends, rows, strict=False):
                    name = printable(row["source_file"]).replace("\n", "\\n")  # their reader goes by lines
                    lines.writerow((start, end, row["document_id"].hex(), name, row["source_row"]))
                count, documents = ends[-1], documents + len(ends)
    return Written(count, documents)


def write_vocabulary(manifest: Manifest, path: Path) -> None:
    """Write nanoGPT's meta.pkl: how many ids there are, and what its sample.py reads and writes text by.

    That one encodes character by character, so only characters that are tokens by themselves can stand in a prompt.
    """
    vocabulary = open_vocabulary(manifest.file(manifest.tokenizer.path))
    texts = {i: name for name, i in vocabulary.special_ids.items()}
    texts |= {i: text.decode("utf-8", "replace") for i, text in vocabulary.texts.items()}
    whole = {text: i for i, text in texts.items() if vocabulary.texts.get(i) == text.encode()}
    itos = {i: texts.get(i, "") for i in range(manifest.tokenizer.vocab_size)}
    value = {"vocab_size": manifest.tokenizer.vocab_size, "itos": itos, "stoi": whole}
    path.write_bytes(pickle.dumps(value, protocol=4))
