"""Curated parquet to shuffled, packed, indexed, checksummed shards with row tables, against its peers.

100 MB of real text in 8 parquet files; all that comes before `tokenize` is built beforehand and not timed, and so
is the tokenizer. Timed in turn, several rounds, on the same machine: `run pack_pretrain` as a whole process and
on workers that are warm, from one source and from three; datatrove's tokenizing alone; llm.c's fineweb.py; and
the bare limit, two processes that only encode. What was packed is then verified and decoded back to its text.
With `--no-peers` only ours are timed, and nothing is saved.

    python -m benchmarks.pack [--megabytes 100] [--rounds 3] [--no-peers] [--data FOLDER]
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from benchmarks import measure
from benchmarks.processes import counters, forget_cache, observed, processor, records, run_pipeline
from pipeline.engine.context import Context, drive
from pipeline.engine.progress import Progress
from pipeline.engine.store import open_store
from pipeline.executors.local import LocalExecutor
from pipeline.recipe import parse_recipe
from stages.pack.verify import verify
from stages.registry import STAGES
from stages.stage import Record
from train.data.manifest import load_manifest

WORKERS = 2
FILES = 8
SHARD_TOKENS = 5_000_000
# Our names of the counters in /proc/PID/io.
MOVED = {"disk_read": "read_bytes", "disk_written": "write_bytes", "calls_read": "rchar", "calls_written": "wchar"}
PEERS = ("datatrove", "fineweb", "bare")
# Source -> which of the 8 files; the mixture repeats one source and leaves some of the others out.
LAYOUTS = {
    "one": ({"web": range(8)}, {"web": "100%"}),
    "three": (
        {"web": range(4), "code": range(4, 7), "books": range(7, 8)},
        {"web": "60%", "code": "30%", "books": "10%"},
    ),
}


@dataclass
class Case:
    """One recipe over the corpus, built up to `tokenize`."""

    name: str
    raw: dict[str, Any]
    base: Path  # where all before `tokenize` is built
    warm: Path  # a copy in which the warm workers build
    tokens: int  # training tokens of all sources


class Kept(LocalExecutor):
    """A local pool that outlives the drives that use it: `close` is the engine's, `end` is ours."""

    def close(self) -> None:
        """Nothing: the next drive finds the workers warm."""

    def end(self) -> None:
        """Stop the workers."""
        super().close()


def write_corpus(folder: Path, megabytes: float, data: str | None) -> float:
    """The corpus as FILES parquet files, documents dealt out in turn. Returns its MB of text."""
    texts = measure.corpus(megabytes, data)
    folder.mkdir()
    for i in range(FILES):
        pq.write_table(pa.table({"text": texts[i::FILES]}), folder / f"part_{i:03d}.parquet", compression="zstd")
    return measure.megabytes(texts)


def prepare(folder: Path, corpus: Path, name: str) -> Case:
    """Build case `name` as far as `tokenize`, in two copies, and let its mixture hold as much as there is."""
    files, ratios = LAYOUTS[name]
    raw: dict[str, Any] = {
        "name": name,
        "seed": 1,
        "sources": {
            source: {"from": "parquet", "path": [str(corpus / f"part_{i:03d}.parquet") for i in numbers]}
            for source, numbers in files.items()
        },
        "dedup": {"exact": False},  # the peers keep every document too
        "tokenizer": {"vocab_size": 8192, "sample": "20MB"},
        "shard_tokens": SHARD_TOKENS,
        "mixtures": {"pretrain": {"tokens": 1, "ratios": ratios, "max_epochs": 2}},
    }
    out, pool = folder / name, Kept(WORKERS)
    try:
        build(raw, out / "counted", pool, "tokenize")
        copy_store(out / "counted", out / "base", leave="tokenize")
        copy_store(out / "base", out / "warm")
    finally:
        pool.end()
    tokens = sum(r.counts["train_tokens"] for r in records(out / "counted") if r.stage == "tokenize")
    shutil.rmtree(out / "counted")
    raw["mixtures"]["pretrain"]["tokens"] = tokens
    return Case(name, raw, out / "base", out / "warm", tokens)


def build(raw: dict[str, Any], out: Path, pool: LocalExecutor, stage: str, seed: int = 1) -> None:
    """Drive `stage` on the workers of `pool`."""
    context = Context(parse_recipe({**raw, "seed": seed}, "bench"), open_store(str(out)), lambda: pool, Progress(True))
    drive(context, context.stage(STAGES[stage]))


def copy_store(source: Path, target: Path, leave: str = "") -> None:
    """The store of `source` at `target`, by hard links, without stage `leave`."""
    shutil.copytree(
        source / "store", target / "store", copy_function=os.link, ignore=shutil.ignore_patterns(leave or " ")
    )


def phases(units: list[Record], start: float, end: float) -> dict[str, Any]:
    """Where the time between `start` and `end` went: seconds after `start` at which each kind of unit ran.

    `busy` is the sum over units, which run side by side; `before` and `after` are the driver's and the workers'
    start and the publishing.
    """
    groups: dict[str, list[Record]] = {}
    for unit in units:
        kind = unit.stage if unit.stage == "tokenize" else unit.label.split()[0]
        groups.setdefault(kind, []).append(unit)
    out: dict[str, Any] = {"before": units[0].started - start}
    for kind, of_kind in groups.items():
        out[kind] = {
            "units": len(of_kind),
            "from": min(unit.started for unit in of_kind) - start,
            "to": max(unit.finished for unit in of_kind) - start,
            "busy": sum(unit.finished - unit.started for unit in of_kind),
            "peak_mb": max(unit.peak_mb for unit in of_kind),
        }
    out["after"] = end - max(unit.finished for unit in units)
    rounded: dict[str, Any] = measure.rounded(out, 3)
    return rounded


class Bench:
    """The candidates over one corpus, and what each left behind."""

    def __init__(self, folder: Path, corpus: Path, cases: list[Case]):
        self.folder, self.corpus, self.cases = folder, corpus, cases
        self.pools = {case.name: Kept(WORKERS) for case in cases}
        self.seeds = itertools.count(100)
        self.timed: dict[str, list[float]] = {}  # seconds measured inside
        self.seen: dict[str, list[dict[str, Any]]] = {}
        self.cpu: dict[str, list[float]] = {}  # seconds of processor
        self.peaks: dict[str, list[float]] = {}  # MB of the whole process tree
        self.workers: dict[str, list[float]] = {}  # peak MB of one worker, from the records
        self.tokens: dict[str, int] = {}

    def whole(self, case: Case) -> None:
        """`python -m pipeline run pack_pretrain` over a fresh copy of the store."""
        out = self.folder / case.name / "whole"
        shutil.rmtree(out, ignore_errors=True)
        copy_store(case.base, out)
        start = time.time()
        seen = run_pipeline("pack_pretrain", case.raw, out, "--workers", str(WORKERS))
        self.note(f"whole {case.name}", out, start, time.time(), seen.waited, seen.peak_mb)

    def warm(self, case: Case) -> None:
        """`drive` alone, on workers that did the same with another seed."""
        pids = [os.getpid(), *(w.pid for w in self.pools[case.name].workers)]
        seed, cpu, start = next(self.seeds), processor(pids), time.time()
        build(case.raw, case.warm, self.pools[case.name], "pack_pretrain", seed)
        self.note(f"warm {case.name}", case.warm, start, time.time(), processor(pids) - cpu)

    def note(self, name: str, out: Path, start: float, end: float, cpu: float, peak: float = 0.0) -> None:
        """Remember a round of ours. Raises SystemExit when something else than tokenising and packing had to run."""
        units = records(out, start)
        others = {unit.stage for unit in units} - {"tokenize", "pack_pretrain"}
        if others:
            raise SystemExit(
                f"error: {', '.join(sorted(others))} ran inside a timed round; was the code edited meanwhile?"
            )
        self.timed.setdefault(name, []).append(end - start)
        self.seen.setdefault(name, []).append(phases(units, start, end))
        self.peaks.setdefault(name, []).append(peak)
        self.cpu.setdefault(name, []).append(cpu)
        self.workers.setdefault(name, []).append(max(unit.peak_mb for unit in units))

    def peer(self, name: str) -> None:
        """A peer as a whole process; `bare` times itself."""
        out = self.folder / "peer"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        tokenizer = next(self.cases[0].base.glob("store/build_tokenizer/??/*/*tokenizer.json"))
        paths = [str(self.corpus), str(tokenizer), str(out), str(WORKERS)]
        start = time.time()
        seen = observed([sys.executable, "-m", "benchmarks.pack_peers", name, *paths])
        seconds = time.time() - start
        answer = json.loads(seen.out.splitlines()[-1])
        self.timed.setdefault(name, []).append(answer.get("seconds", seconds))
        self.peaks.setdefault(name, []).append(seen.peak_mb)
        self.cpu.setdefault(name, []).append(seen.waited)
        self.tokens[name] = answer["tokens"]


def traffic(bench: Bench, case: Case) -> dict[str, Any]:
    """Bytes that the workers write and read, by stage, each a multiple of the token bytes packed.

    `disk_read` starts from a cold cache, so it counts maps as well as calls, and a file that is read back while
    it is still cached counts once, when it is written. `calls` counts every byte through read() and write().
    """
    pool, seed = bench.pools[case.name], next(bench.seeds)
    found: dict[str, Any] = {}
    for stage in ("tokenize", "pack_pretrain"):
        forget_cache(case.warm / "store")
        pids = [os.getpid(), *(w.pid for w in pool.workers)]
        before = counters(pids)
        build(case.raw, case.warm, pool, stage, seed)
        spent = counters(pids)
        spent.subtract(before)
        found[stage] = {ours: round(spent[theirs] / (2 * case.tokens), 2) for ours, theirs in MOVED.items()}
    found["disk_total"] = round(sum(s[k] for s in found.values() for k in ("disk_read", "disk_written")), 2)
    return found


def check(bench: Bench, case: Case) -> dict[str, Any]:
    """Raises SystemExit unless the packed folder verifies; of one source, unless it decodes to the curated text."""
    out = bench.folder / case.name / "whole" / case.name
    manifest = load_manifest(str(out / "pretrain"))
    problems = list(verify(manifest))
    if problems:
        raise SystemExit("error: what was packed is wrong: " + "; ".join(problems[:5]))
    held = sum(s.tokens for s in manifest.shards if s.split == "val" and not s.source)
    facts: dict[str, Any] = {"tokens": manifest.tokens + held, "shards": len(manifest.shards)}
    if case.name == "one":
        packed = Counter(documents(manifest))
        curated = Counter(
            hashlib.sha256(text.encode()).digest()
            for file in sorted((out / "curated").glob("*.parquet"))
            for text in pq.read_table(file, columns=["text"])["text"].to_pylist()
        )
        if packed != curated:
            raise SystemExit(
                f"error: {sum((packed - curated).values())} packed documents are not of the corpus, "
                f"{sum((curated - packed).values())} of the corpus are not packed"
            )
        facts["documents_equal"] = sum(packed.values())
        if {facts["tokens"]} != {facts["tokens"], *bench.tokens.values()}:
            raise SystemExit(f"error: {facts['tokens']:,} tokens packed, the peers have {bench.tokens}")
    return facts


def documents(manifest: Any) -> Iterator[bytes]:
    """sha256 of each packed document's text, decoded from its tokens."""
    tokenizer = Tokenizer.from_file(str(manifest.file(manifest.tokenizer.path)))
    for shard in manifest.shards:
        if shard.source:  # held-out documents of one source: the mixture's own validation shard has them too
            continue
        tokens = np.fromfile(manifest.file(shard.path), "<u2", offset=1024)
        rows = pq.read_table(manifest.file(shard.rows), columns=["token_start", "token_count"])
        starts, counts = (rows[name].to_numpy() for name in ("token_start", "token_count"))
        streams = [tokens[s + 1 : s + n].tolist() for s, n in zip(starts, counts, strict=True)]
        for text in tokenizer.decode_batch(streams, skip_special_tokens=False):
            yield hashlib.sha256(text.encode()).digest()


def table(bench: Bench, megabytes: float) -> list[dict[str, Any]]:
    """One row a candidate."""
    datatrove = measure.median(bench.timed.get("datatrove", [float("nan")]))
    rows = []
    for name, seconds in bench.timed.items():
        middle = measure.median(seconds)
        rows.append(
            {
                "name": name,
                "seconds": round(middle, 3),
                "all": [round(s, 3) for s in seconds],
                "cpu_seconds": round(measure.median(bench.cpu[name]), 2),
                "mb_per_s": round(megabytes / middle, 1),
                "times_datatrove": round(datatrove / middle, 1),
                "peak_tree_mb": round(max(bench.peaks[name])),
                "peak_worker_mb": round(max(bench.workers.get(name, [0]))),
            }
        )
    return rows


def show(bench: Bench, rows: list[dict[str, Any]]) -> None:
    """The table, and where the time of the last round went."""
    measure.show(list(rows[0]), [list(row.values()) for row in rows])
    for name, seen in bench.seen.items():
        for phase, value in seen[-1].items():
            print(f"{name:12} {phase:9} {json.dumps(value)}")


def main() -> None:
    """Run, print, save."""
    options = measure.parser(__doc__, megabytes=100.0, rounds=3, no_peers=False, data=None).parse_args()
    with tempfile.TemporaryDirectory(prefix="shardmill-bench-") as name:
        run(Path(name), options)


def run(folder: Path, options: argparse.Namespace) -> None:
    """The benchmark inside `folder`."""
    missing = {"datatrove", "tiktoken"} - set(measure.installed("datatrove", "tiktoken"))
    if missing and not options.no_peers:
        raise SystemExit(
            f"error: {' and '.join(sorted(missing))} not installed; pip install -e '.[bench]', or --no-peers"
        )
    before = measure.machine(("pyarrow", "numpy", "tokenizers", "fastokens"))
    corpus = folder / "corpus"
    megabytes = write_corpus(corpus, options.megabytes, options.data)
    cases = [prepare(folder, corpus, name) for name in LAYOUTS]
    bench = Bench(folder, corpus, cases)
    candidates: dict[str, Callable[[], None]] = {}
    for case in cases:
        build(case.raw, case.warm, bench.pools[case.name], "pack_pretrain", seed=99)  # warms the workers
        candidates[f"whole {case.name}"] = partial(bench.whole, case)
        candidates[f"warm {case.name}"] = partial(bench.warm, case)
    if not options.no_peers:
        candidates |= {name: partial(bench.peer, name) for name in PEERS}
    try:
        measure.rounds(candidates, options.rounds)
        rows = table(bench, megabytes)
        show(bench, rows)
        moved = {case.name: traffic(bench, case) for case in cases}
        checked = {case.name: check(bench, case) for case in cases}
    finally:
        for pool in bench.pools.values():
            pool.end()
    for name, value in moved.items():
        print(f"traffic {name:5} {json.dumps(value)}")
    print(f"checked {json.dumps(checked)}; peers' tokens {json.dumps(bench.tokens)}")
    if not options.no_peers:
        result = {
            "machine": before,
            "megabytes": megabytes,
            "rows": rows,
            "phases": bench.seen,
            "traffic": moved,
            "checked": checked,
            "peers_tokens": bench.tokens,
        }
        measure.save("pack", result)


if __name__ == "__main__":
    main()
