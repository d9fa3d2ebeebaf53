"""Train the tokenizer: byte-level BPE on a capped sample of the curated text, every source by its share.

The trainer is Hugging Face's, whose merges are the reference. Documents enter the sample in the order of a
hash of their id, so the sample does not depend on how the corpus is cut into units; validation documents
never enter. A source's share of the sample is its share of the curated bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from stages.base import Artifact, DataError, Record, Stage, Task
from stages.encoder import MAX_VOCAB, hostile
from stages.ids import is_validation, sample
from stages.tables import ID
from stages.text_encoder import SPECIALS, load_text_encoder, special_ids, token_bytes

# Llama 3's spelling of the GPT-4 split: every fast tokenizer knows it.
GPT4_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {"gpt4": GPT4_SPLIT}
SAMPLE_IDS = pa.schema([("document_id", ID), ("source", pa.string()), ("text_bytes", pa.int64())])
CHECKED = 200  # documents of the sample whose round trip is asserted


def work(task: Task) -> None:
    """Train on curated parts. Params: vocab_size, split, sample (bytes), sources ([name, number of parts]).

    Outputs: `tokenizer` (tokenizer.json), `report` (JSON) and `sample` (which documents). Raises DataError
    when the text does not support the vocabulary.
    """
    params = task.params
    chosen = [
        (name, list(sample_source(task, inputs, quota)))
        for (name, inputs), quota in zip(by_source(task), quotas(task), strict=True)
    ]
    texts = [text for _, documents in chosen for _, text in documents]
    task.count("documents", len(texts))
    if not texts:
        raise DataError("the tokenizer's sample is empty: no document outside validation; add text")
    tokenizer = train(texts, params["vocab_size"], params["split"])
    path = task.output("tokenizer.json")
    Path(path).write_text(canonical(tokenizer), encoding="utf-8")
    check(path, texts, params["vocab_size"])
    task.add("tokenizer", path)
    report_path = task.output("tokenizer_report.json")
    report = describe(path, chosen)
    Path(report_path).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    task.add("report", report_path)
    task.count("text_bytes", report["sample_bytes"])
    task.count("tokens", report["sample_tokens"])
    with task.table("sample", SAMPLE_IDS) as writer:
        for name, documents in chosen:
            ids = pa.array([i for i, _ in documents], ID)
            sizes = pa.array([len(text.encode()) for _, text in documents], pa.int64())
            writer.write(pa.table([ids, pa.array([name] * len(ids), pa.string()), sizes], schema=SAMPLE_IDS))


def by_source(task: Task) -> list[tuple[str, list[Artifact]]]:
    """The unit's inputs, grouped as `sources` says."""
    inputs = iter(task.inputs)
    return [(name, [next(inputs) for _ in range(parts)]) for name, parts in task.params["sources"]]


def quotas(task: Task) -> list[int]:
    """Bytes each source may add: the sample divided in proportion to curated text."""
    sizes = [sum(int(a.meta["text_bytes"]) for a in inputs) for _, inputs in by_source(task)]
    total = max(1, sum(sizes))
    return [min(size, task.params["sample"] * size // total) for size in sizes]


def sample_source(task: Task, inputs: list[Artifact], quota: int) -> Iterator[tuple[bytes, str]]:
    """(id, text) of training documents in hash order until `quota` bytes; reads only the row groups it needs.

    The document that would pass the quota is left out, and the sample of the source ends there.
    """
    where = candidates(task, inputs)
    mean = max(1, sum(int(a.meta["text_bytes"]) for a in inputs) // max(1, len(where)))
    taken = at = 0
    while at < len(where) and taken < quota:
        batch = where[at : at + (quota - taken) * 5 // (4 * mean) + 16]
        texts = read_texts(task, inputs, batch)
        for part, group, row in batch:
            identity, text = texts[int(part), int(group), int(row)]
            taken += len(text.encode())
            if taken > quota:
                return
            yield identity, text
        at += len(batch)


def candidates(task: Task, inputs: list[Artifact]) -> np.ndarray:
    """[part, row group, row in it] of each training document, in the order of the hash of its id."""
    places, keys = [np.empty((0, 3), np.int64)], [np.empty(0, np.uint64)]
    for part, artifact in enumerate(inputs):
        file = pq.ParquetFile(task.path(artifact))
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=["document_id"])["document_id"]
            rows = np.flatnonzero(~is_validation(ids))
            places.append(np.stack([np.full_like(rows, part), np.full_like(rows, group), rows], axis=1))
            keys.append(sample(ids)[rows])
    place, key = np.concatenate(places), np.concatenate(keys)
    return place[np.lexsort((*place.T[::-1], key))]


def read_texts(task: Task, inputs: list[Artifact], places: np.ndarray) -> dict[tuple[int, int, int], tuple[bytes, str]]:
    """(id, text) at each place."""
    found: dict[tuple[int, int, int], tuple[bytes, str]] = {}
    for part, group in sorted({(int(p), int(g)) for p, g, _ in places}):
        file = pq.ParquetFile(task.path(inputs[part]))
        table = file.read_row_group(group, columns=["document_id", "text"])
        rows = places[(places[:, 0] == part) & (places[:, 1] == group), 2]
        picked = table.take(pa.array(rows))
        pairs = zip(picked["document_id"].to_pylist(), picked["text"].to_pylist(), strict=True)
        found.update(((part, group, int(row)), pair) for row, pair in zip(rows, pairs, strict=True))
    return found


def train(texts: list[str], vocab_size: int, split: str) -> Tokenizer:
    """A tokenizer with exactly `vocab_size` ids, special tokens first, then the 256 bytes, then merges.

    Raises DataError when `vocab_size` exceeds uint16 or the text runs out of pairs to merge.
    """
    if vocab_size > MAX_VOCAB:
        raise DataError(
            f"tokenizer.vocab_size {vocab_size:,} does not fit: shards store ids as uint16, "
            f"so it can be at most {MAX_VOCAB:,}; lower it"
        )
    least = len(SPECIALS) + 256
    if vocab_size < least:
        raise DataError(f"tokenizer.vocab_size must be at least {least} ({len(SPECIALS)} special tokens, 256 bytes)")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLITS[split]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    got = tokenizer.get_vocab_size()
    if got != vocab_size:
        raise DataError(
            f"the text supports only {got:,} ids; lower tokenizer.vocab_size (now {vocab_size:,}) to that, or add text"
        )
    return tokenizer


def canonical(tokenizer: Tokenizer) -> str:
    """The tokenizer as JSON, in one fixed layout."""
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False, indent=2) + "\n"


def check(path: str, texts: list[str], vocab_size: int) -> None:
    """Assert what every later stage relies on; a failure is a defect of this program, so AssertionError."""
    definition = json.loads(Path(path).read_text(encoding="utf-8"))
    assert list(special_ids(path).values()) == list(range(len(SPECIALS))), "special tokens do not come first"
    assert len(token_bytes(path)) == vocab_size
    made = {"".join(pair) for pair in definition["model"]["merges"]}
    assert made.isdisjoint(SPECIALS), "a merge produces a special token"
    encoder = load_text_encoder(path)
    strings = [*texts[:CHECKED], *hostile(SPECIALS)]
    for text, encoding in zip(strings, encoder.encode_batch(strings, add_special_tokens=False), strict=True):
        assert encoder.decode(encoding.ids, skip_special_tokens=False) == text, f"no round trip: {text[:80]!r}"
        assert min(encoding.ids, default=len(SPECIALS)) >= len(SPECIALS), f"special id from text: {text[:80]!r}"


def describe(path: str, chosen: list[tuple[str, list[tuple[bytes, str]]]]) -> dict[str, Any]:
    """What people want to know about a tokenizer, measured on its sample."""
    encoder, lengths = load_text_encoder(path), token_bytes(path)
    sizes: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for name, documents in chosen:
        for start in range(0, len(documents), 1000):
            batch = [text for _, text in documents[start : start + 1000]]
            sizes[name] += sum(len(text.encode()) for text in batch)
            encodings = encoder.encode_batch_fast(batch, add_special_tokens=False)
            tokens[name] += sum(len(e) for e in encodings)
    longest = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))[:20]
    return {
        "vocab_size": len(lengths),
        "special_ids": special_ids(path),
        "sample_bytes": sum(sizes.values()),
        "sample_tokens": sum(tokens.values()),
        "sample_documents": {name: len(documents) for name, documents in chosen},
        "bytes_per_token": {n: round(sizes[n] / tokens[n], 4) for n, _ in chosen if tokens[n]},
        "longest_tokens": [encoder.decode([i], skip_special_tokens=False) for i in longest],
        "token_bytes": lengths,
    }


async def build(context: Any) -> Record:
    """The one tokenizer of the recipe."""
    curated: dict[str, list[Artifact]] = await context.stage("dedup")
    context.check_quarantine()
    config = context.recipe.tokenizer
    params = {
        "vocab_size": config.vocab_size,
        "split": config.split,
        "sample": config.sample,
        "sources": [[name, len(parts)] for name, parts in curated.items()],
    }
    inputs = [part for parts in curated.values() for part in parts]
    weight = min(config.sample, sum(part.meta.get("text_bytes", 0) for part in inputs))
    record: Record = await context.run(
        "build_tokenizer", work, params, inputs, label=str(config.vocab_size), weight=weight
    )
    return record


def publish(record: Record) -> dict[str, dict[str, Artifact]]:
    """`tokenizer/tokenizer.json` and `tokenizer/report.json`."""
    return {"tokenizer": {"tokenizer.json": record.output("tokenizer"), "report.json": record.output("report")}}


STAGE = Stage(
    name="build_tokenizer",
    reads="a sample of dedup's documents, validation documents left out",
    writes="tokenizer/tokenizer.json and a report",
    build=build,
    after=("dedup",),
    libraries=("pyarrow", "numpy", "tokenizers"),
    publish=publish,
)
