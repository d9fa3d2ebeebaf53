"""Training a tokenizer of 8192 ids: the stage in two processes, beside the trainer of `tokenizers` in its threads.

    python -m benchmarks.bpe [--megabytes 500] [--rounds 1] [--data FOLDER]

The stage draws the sample, counts words, finds the merges, encodes the sample and reports; `words and merges` is what
the other does. Both read the same parquet files and must give the same tokenizer. Text that is not enough is repeated,
with some consonants exchanged in one document of eight, others in each round, so that distinct words go on growing: the
result has their number. On a machine that others use, the ratios of processor seconds are the ones to go by: both keep
two cores busy, but for the merges, which take one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure
from stages.hashing import is_validation
from stages.schemas import CURATED, document_id
from stages.stage import Record, Unit
from stages.task import Artifact
from stages.tokenizer import stage as build_tokenizer
from stages.tokenizer.config import TokenizerConfig
from stages.tokenizer.work import train

measure.import_harness()
from stage_harness import run_unit  # noqa: E402
from tokenizer_harness import OnlyParts, reference_tokenizer  # noqa: E402

VOCAB = 8192
WORKERS = 2
PART_MB, GROUP_MB = 128, 4  # as `stages.sources.writer` cuts
EXCHANGED = "bdfgkmpvwz"
LIBRARIES = ("tokenizers", "numba", "numpy", "pyarrow")


def growing(limit: float, folder: str | None) -> Iterator[str]:
    """Yield `limit` MB of real text, repeated with other letters where there is too little."""
    texts = measure.corpus(min(limit, 150), folder)
    size = turn = 0
    while True:
        letters = EXCHANGED[turn % len(EXCHANGED) :] + EXCHANGED[: turn % len(EXCHANGED)]
        table = str.maketrans(EXCHANGED, letters)
        for number, text in enumerate(texts):
            changed = turn and zlib.crc32(b"%d %d" % (turn, number)) % 8 == 0
            yield text.translate(table) if changed else text
            size += len(text.encode())
            if size >= limit * 1e6:
                return
        turn += 1


def write_parts(texts: Iterable[str], folder: Path) -> list[Artifact]:
    """Write curated parts. Ids are of the text and its place, so that a text may come again; none is held out."""
    parts: list[Artifact] = []
    rows: list[tuple[Any, ...]] = []
    group = size = 0
    writer = None
    for number, text in enumerate(texts):
        if writer is None:
            path = folder / f"part-{len(parts):03d}.parquet"
            writer, size = pq.ParquetWriter(path, CURATED, compression="zstd", compression_level=1), 0
        identity = document_id(f"{number} {text}")
        if is_validation([identity])[0]:
            continue
        rows.append((identity, text, "a", number, None, "a"))
        group += len(text.encode())
        if group >= GROUP_MB << 20:
            write_group(writer, rows)
            rows, size, group = [], size + group, 0
            if size >= PART_MB << 20:
                parts.append(close(writer, path, size))
                writer = None
    if writer is not None:
        write_group(writer, rows)
        parts.append(close(writer, path, size + group))
    return parts


def write_group(writer: pq.ParquetWriter, rows: list[tuple[Any, ...]]) -> None:
    """Write a row group."""
    columns = zip(*rows, strict=True) if rows else [[] for _ in CURATED.names]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, CURATED, strict=True)]
    writer.write_table(pa.table(arrays, schema=CURATED))


def close(writer: pq.ParquetWriter, path: Path, size: int) -> Artifact:
    """Close a part."""
    writer.close()
    return Artifact(str(path), path.name, meta={"text_bytes": size})


def timed(folder: Path, unit: Unit) -> tuple[Record, float, float, float]:
    """Run a unit; return its record, when it began and ended, and the processor seconds that it took."""
    start, used = time.time(), time.process_time()
    record = run_unit(folder, unit.work, unit.params, unit.inputs)
    return record, start, time.time(), time.process_time() - used


class Pooled(OnlyParts):
    """A context whose units run in WORKERS processes; `spans` says when each did."""

    def __init__(self, folder: Path, parts: list[Artifact], config: TokenizerConfig, pool: ProcessPoolExecutor):
        super().__init__(folder, {"a": parts}, config)
        self.pool = pool
        self.spans: dict[str, list[tuple[float, ...]]] = {}
        self.counted: dict[str, int] = {}

    async def run(self, _: Any, unit: Unit) -> Record:
        """Run one unit in the pool."""
        folder = self.folder / unit.label.replace(" ", "-")
        record, *span = await asyncio.get_running_loop().run_in_executor(self.pool, timed, folder, unit)
        name = unit.label.split(" ")[0]
        self.spans.setdefault("merges" if name.isdigit() else name, []).append(tuple(span))
        self.counted |= record.counts
        return record

    async def map(self, stage: Any, units: Iterable[Unit]) -> list[Record]:
        """Run units side by side."""
        return await asyncio.gather(*(self.run(stage, unit) for unit in units))


def stage_once(folder: Path, parts: list[Artifact], pool: ProcessPoolExecutor) -> dict[str, Any]:
    """Run the whole stage; return its seconds, those of its steps, and the tokenizer."""
    config = TokenizerConfig(vocab_size=VOCAB, sample=1 << 50)
    context = Pooled(folder, parts, config, pool)
    start = time.time()
    record = asyncio.run(build_tokenizer.build(context))
    whole = time.time() - start
    steps = {name: max(s[1] for s in spans) - min(s[0] for s in spans) for name, spans in context.spans.items()}
    processor = {name: sum(span[2] for span in spans) for name, spans in context.spans.items()}
    return {
        "seconds": whole,
        "steps": steps,
        "processor": processor,
        "distinct_words": context.counted["words"],
        "tokenizer": Path(record.output("tokenizer").path).read_text(encoding="utf-8"),
    }


def reference_once(paths: list[str]) -> dict[str, Any]:
    """Train with `tokenizers` from the same files; return seconds, processor time and the tokenizer."""
    start, used = time.time(), time.process_time()
    texts = [text for path in paths for text in pq.read_table(path, columns=["text"])["text"].to_pylist()]
    read = time.time() - start
    tokenizer = reference_tokenizer(texts, VOCAB, "gpt4", None)
    return {
        "seconds": time.time() - start - read,
        "processor": time.process_time() - used,
        "model": json.loads(tokenizer.to_str())["model"],
    }


def compile_once() -> dict[str, float]:
    """Return the seconds of wall and processor that a first run compiles for: a child with a cache of its own."""
    with tempfile.TemporaryDirectory() as cache:
        cold = measure.child("benchmarks.bpe", "--compile", NUMBA_CACHE_DIR=cache)
        warm = measure.child("benchmarks.bpe", "--compile", NUMBA_CACHE_DIR=cache)
    return {"cold": cold, "warm": warm}


def used_by_training() -> None:
    """Print the processor seconds of a small training, imports aside."""
    start = time.process_time()
    train(["some words and some more"], 266, "gpt4")
    print(json.dumps(time.process_time() - start))


def speed(args: argparse.Namespace) -> None:
    """Time both, print and save the result."""
    compiling = compile_once()
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(WORKERS, context) as pool:
        folder = Path(name)
        parts = write_parts(growing(args.megabytes, args.data), folder)
        megabytes = sum(part.meta["text_bytes"] for part in parts) / 1e6
        stage_once(folder / "warm", parts[:1], pool)  # what a worker makes once
        for number in range(args.rounds):
            ours.append(stage_once(folder / f"stage-{number}", parts, pool))
            with ProcessPoolExecutor(1, context) as alone:
                theirs.append(alone.submit(reference_once, [part.path for part in parts]).result())
    for mine, other in zip(ours, theirs, strict=True):
        model = json.loads(mine.pop("tokenizer"))["model"]
        assert model == other.pop("model"), "the two tokenizers differ"
        mine["words_and_merges"] = mine["steps"]["words"] + mine["steps"]["merges"]
    ratios = {
        "words and merges over tokenizers": measure.ratio(
            [o["seconds"] for o in theirs], [m["words_and_merges"] for m in ours]
        ),
        "the whole stage over tokenizers": measure.ratio([o["seconds"] for o in theirs], [m["seconds"] for m in ours]),
        "words and merges over tokenizers, processor seconds": measure.ratio(
            [o["processor"] for o in theirs], [m["processor"]["words"] + m["processor"]["merges"] for m in ours]
        ),
        "the whole stage over tokenizers, processor seconds": measure.ratio(
            [o["processor"] for o in theirs], [sum(m["processor"].values()) for m in ours]
        ),
    }
    for mine, other in zip(ours, theirs, strict=True):
        print(f"{megabytes:.0f} MB, {mine['distinct_words']:,} distinct words; the same tokenizer")
        steps = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in mine["processor"].items())
        print(
            f"ours        {mine['seconds']:8.1f} s   {megabytes / mine['seconds']:6.1f} MB/s   (of processors: {steps})"
        )
        rate = megabytes / other["seconds"]
        print(f"tokenizers  {other['seconds']:8.1f} s   {rate:6.1f} MB/s   (of processors: {other['processor']:.1f} s)")
    for what, ratio in ratios.items():
        print(f"{what:52} {ratio:6.1f}")
    result = {"megabytes": megabytes, "ours": ours, "tokenizers": theirs, "compiling_processor_s": compiling}
    result = measure.rounded({**result, "ratios": ratios}, 2)
    measure.save("bpe", {**result, "machine": measure.machine(LIBRARIES)})


def main() -> None:
    """Parse the command line."""
    parser = measure.parser(__doc__, megabytes=500.0, rounds=1, data=None)
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile:
        used_by_training()
    else:
        speed(args)


if __name__ == "__main__":
    main()
