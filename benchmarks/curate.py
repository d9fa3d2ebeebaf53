"""Local parquet to curated text, four rule sets, exact and near duplicates, on two cores: ours against datatrove.

    python -m benchmarks.curate [--megabytes 150] [--peer-megabytes 3] [--grown 10] [--rounds 1] [--data FOLDER]

Ours is `python -m pipeline run dedup --executor local --workers 2` in an empty folder, the whole command; machine code
is on disk beforehand. datatrove does the same with its LocalPipelineExecutor (`benchmarks.curate_peer`) on a share of
the same documents, evenly spaced, because it is so much slower; what it needs for two documents is taken for the part
that does not grow, the rest is scaled by bytes. Its fixed part counts once.

Then the corpus grown: so many copies of every document, about one word in a hundred of each changed, in as many files
as before, each so many times larger. The memory of the largest worker must stay, seen from outside and as the records
have it by step. Everything lies in a temporary folder, and its room on the disk is asked for first.
"""

from __future__ import annotations

import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure
from benchmarks.filter import RULES
from benchmarks.processes import Watched, observed, records, run_pipeline
from benchmarks.stages import rows

WORKERS, FILES = 2, 4
GROUP_BYTES = 8 << 20  # text in a row group of an input file
EVERY = 600  # characters between changed words: about a hundred words
NEEDED = 4  # bytes on disk for a byte of text: in all that a run writes, compressed
LIBRARIES = ("numba", "numpy", "pyarrow", "datatrove", "spacy")


def changed(text: str, rng: random.Random) -> str:
    """The text with a word in every EVERY characters changed."""
    parts, at = [], 0
    for place in range(rng.randrange(EVERY), len(text), EVERY):
        start = text.find(" ", place)
        end = text.find(" ", start + 1)
        if start < at or end < 0:
            continue
        parts += [text[at : start + 1], f"noise{rng.randrange(10**6)}"]
        at = end
    return "".join(parts) + text[at:]


def copies(texts: list[str], number: int) -> Iterator[str]:
    """Every text so many times, in rounds, the first time as it is."""
    for copy in range(number):
        rng = random.Random(copy)
        for text in texts:
            yield changed(text, rng) if copy else text


def write(texts: Iterable[str], folder: Path, files: int = FILES) -> float:
    """The texts in turn in so many parquet files; MB of text."""
    folder.mkdir(parents=True)
    schema = pa.schema([("text", pa.string()), ("id", pa.string())])
    paths = [folder / f"{i}.parquet" for i in range(files)]
    writers = [pq.ParquetWriter(path, schema, compression="zstd", compression_level=1) for path in paths]
    waiting: list[list[tuple[str, str]]] = [[] for _ in paths]
    sizes, total = [0] * files, 0

    def flush(i: int) -> None:
        columns = [pa.array(column, pa.string()) for column in zip(*waiting[i], strict=True)]
        if columns:
            writers[i].write_table(pa.table(columns, schema=schema), row_group_size=len(waiting[i]))
        waiting[i], sizes[i] = [], 0

    for number, text in enumerate(texts):
        i, size = number % files, len(text.encode())
        waiting[i].append((text, str(number)))
        sizes[i], total = sizes[i] + size, total + size
        if sizes[i] >= GROUP_BYTES:
            flush(i)
    for i, writer in enumerate(writers):
        flush(i)
        writer.close()
    return total / 1e6


def recipe(folder: Path) -> dict[str, Any]:
    """Four rule sets, exact and near duplicates: the defaults of `dedup`."""
    return {"name": "curate", "sources": {"web": {"from": "parquet", "path": f"{folder}/*.parquet", "rules": RULES}}}


def figures(seen: Watched, megabytes: float) -> dict[str, Any]:
    """What was seen of a command."""
    return {
        "MB": round(megabytes, 1),
        "seconds": round(seen.seconds, 2),
        "processor seconds": round(seen.sampled, 2),
        "MB/s": round(megabytes / seen.seconds, 3),
        "MB/s of processor": round(megabytes / seen.sampled, 3),
        "largest process, MB": round(seen.largest_mb),
        "all processes, MB": round(seen.peak_mb),
    }


def ours(folder: Path, out: Path, megabytes: float) -> dict[str, Any]:
    """One run in an empty folder, with what its records say by step."""
    raw = recipe(folder)
    found = figures(run_pipeline("dedup", raw, out, "--workers", str(WORKERS)), megabytes)
    units = records(out)
    kept = [r.counts for r in units if r.stage == "dedup" and "kept" in r.counts]
    steps = {
        f"{row.stage} {row.step}": {"units": row.units, "seconds": row.seconds, "peak MB": row.peak_mb}
        for row in rows(units, raw)
    }
    documents = {name: sum(c.get(key, 0) for c in kept) for name, key in (("filtered", "rows_in"), ("kept", "kept"))}
    disk = sum(file.stat().st_size for file in out.rglob("*") if file.is_file() and not file.is_symlink()) / 1e6
    shutil.rmtree(out)
    return {**found, "documents": documents, "MB on disk": round(disk), "by step, seconds of units": steps}


def theirs(folder: Path, out: Path, megabytes: float) -> dict[str, Any]:
    """datatrove, a new process."""
    command = [sys.executable, "-m", "benchmarks.curate_peer", str(folder), str(out), "--workers", str(WORKERS)]
    found = figures(observed(command), megabytes)
    files = sorted((out / "curated").glob("*.parquet"))
    found["documents"] = {"kept": sum(pq.read_metadata(file).num_rows for file in files)}
    shutil.rmtree(out)
    return found


def scaled(some: dict[str, Any], fixed: dict[str, Any], megabytes: float) -> dict[str, float]:
    """Seconds that datatrove would need for so many MB."""
    return {
        name: round(fixed[name] + max(0.0, some[name] - fixed[name]) * megabytes / some["MB"], 1)
        for name in ("seconds", "processor seconds")
    }


def compare(texts: list[str], peer_megabytes: float, rounds: int, scratch: Path) -> dict[str, Any]:
    """Ours and theirs on the same documents, in turn."""
    total = write(texts, scratch / "all")
    step = max(1, round(total / peer_megabytes))
    share = write(texts[::step], scratch / "share", WORKERS)
    two = write(sorted(texts, key=len)[len(texts) // 2 :][:2], scratch / "two", WORKERS)
    ours(scratch / "share", scratch / "out", share)  # machine code, file cache
    fixed = theirs(scratch / "two", scratch / "theirs", two)
    pairs = []
    for _ in range(rounds):
        mine = ours(scratch / "all", scratch / "out", total)
        peer = theirs(scratch / "share", scratch / "theirs", share)
        pairs.append((mine, peer, scaled(peer, fixed, total)))
    ratios = {
        name: [round(peer[name] / mine[name], 1) for mine, _, peer in pairs]
        for name in ("seconds", "processor seconds")
    }
    mine, peer, whole = pairs[-1]
    return {
        "datatrove, scaled, is": f"from {share:.1f} MB to {total:.1f} MB by bytes, but for what 2 documents take",
        "ours": mine,
        "datatrove": peer,
        "datatrove, two documents": fixed,
        "datatrove, scaled": whole,
        "rounds, datatrove / ours": ratios,
        "datatrove / ours": {name: measure.median(values) for name, values in ratios.items()},
    }


def main() -> None:
    """Run both parts."""
    parser = measure.parser(__doc__, megabytes=150.0, peer_megabytes=3.0, grown=10, rounds=1, data=None)
    options = parser.parse_args()
    machine = measure.machine(LIBRARIES)
    texts = measure.corpus(options.megabytes, options.data)
    random.Random(1).shuffle(texts)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        needed, free = options.megabytes * max(options.grown, 1) * NEEDED * 1e6, shutil.disk_usage(scratch).free
        if free < needed:
            raise SystemExit(f"error: {needed / 1e9:.0f} GB needed in {scratch}, {free / 1e9:.0f} free; set TMPDIR")
        result = {"machine": machine, **compare(texts, options.peer_megabytes, options.rounds, scratch)}
        if options.grown > 1:
            start = time.perf_counter()
            size = write(copies(texts, options.grown), scratch / "grown")
            print(f"{size:,.0f} MB written in {time.perf_counter() - start:.0f} s", flush=True)
            grown = ours(scratch / "grown", scratch / "out", size)
            largest = "largest process, MB"
            result["ours, grown"] = grown
            peer = scaled(result["datatrove"], result["datatrove, two documents"], size)
            result["datatrove, scaled / ours, grown"] = {k: round(v / grown[k], 1) for k, v in peer.items()}
            result["largest process, grown / not"] = round(grown[largest] / result["ours"][largest], 2)
    measure.report("curate", result)


if __name__ == "__main__":
    main()
