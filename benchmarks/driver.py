"""The driver alone, on a million units that do nothing: its speed, its memory, what it sends and what it asks.

A graph of the shape of a real run (download, filter, dedup and tokenize of each part, then shards that read slices
of 128 merged files) goes through the real `Context`; only the two ends are fake. The executor has 200 slots, turns
each spec into JSON as a pool does, and answers with a record of the size a worker writes. The store keeps records in
an SQLite file: a look costs 20 to 40 microseconds, as on a warm local disk; the requests that a real store would
get are counted. `--disk` makes a real store of real (empty) outputs instead.

    python -m benchmarks.driver [--units 1000000] [--disk]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks import measure
from pipeline.engine.context import Context, drive
from pipeline.engine.local_store import LocalStore
from pipeline.engine.progress import Progress
from pipeline.engine.store import RECORD
from pipeline.recipe import parse_recipe
from stages.dedup import work as dedup
from stages.filter import measure as measuring
from stages.filter import work as apply_rules
from stages.pack import shard as pack_shard
from stages.registry import STAGES
from stages.sources import parquet
from stages.stage import Record, Unit
from stages.task import Artifact
from stages.tokenize import work as tokenize
from stages.tokenize.stage import TokenizedUnit

SOURCES = ("web", "code", "books", "maths")
SLOTS = 200  # two cores on each of 100 nodes
UNIT_BYTES = 128 << 20
MERGED = 128  # merged files that a shard reads a slice of: U / g of 1.3 T tokens is 430 for all four sources
FILE_UNITS = 16  # units that read one file: 2 GB of it
TEXT = ("download", "dedup")  # whose outputs say how much text they hold
# Stage -> outputs of a unit, and its counters.
OUTPUTS = {
    "download": (("part-000",), ("rows_in", "rows_out", "text_bytes")),
    "measure": (("measures",), ("documents", "text_bytes")),
    "filter": (
        ("kept", "ruled-out"),
        ("rows_in", "kept", "text_bytes", "dropped.gopher_short_doc", "dropped.duplicate_line"),
    ),
    "dedup": (("docs",), ("rows_in", "kept", "text_bytes", "dropped.duplicate", "duplicate_of.web")),
    "tokenize": (("tokens", "docs", "histogram"), ("tokens", "train_tokens", "val_tokens", "documents", "text_bytes")),
    "pack_pretrain": (("bin", "idx", "rows"), ("tokens", "documents", "tokens.web", "documents.web")),
}


class LogStore(LocalStore):
    """A store whose records lie in one SQLite file. Outputs are taken to be there."""

    def __init__(self, out: str):
        super().__init__(out)
        Path(out).mkdir(parents=True, exist_ok=True)
        self.base = sqlite3.connect(f"{out}/records.sqlite", isolation_level=None)
        self.base.execute("pragma journal_mode=off")
        self.base.execute("pragma synchronous=off")
        self.base.execute("create table if not exists records (key text primary key, record blob) without rowid")
        self.base.execute("begin")
        self.asked: Counter[str] = Counter()

    def look(self, stage: str, key: str) -> tuple[Record | None, bool]:
        """The record, and the requests that reading it from a disk would be."""
        self.asked["open"] += 1
        row = self.base.execute("select record from records where key = ?", (key,)).fetchone()
        if row is None:
            return None, False
        record = Record.from_dict(json.loads(row[0]))
        self.asked["stat"] += len({a.path for a in record.outputs})
        return record, True

    def keep(self, spec: dict[str, Any], text: bytes) -> None:
        """Put a record, as a worker does."""
        self.base.execute("insert or replace into records values (?, ?)", (spec["key"], text))

    def close(self) -> None:
        """Leave all on disk."""
        self.base.execute("commit")


class DiskStore(LocalStore):
    """The real store; outputs are empty files and nothing is synced, which are the worker's costs."""

    def __init__(self, out: str):
        super().__init__(out)
        self.asked: Counter[str] = Counter()

    def keep(self, spec: dict[str, Any], text: bytes) -> None:
        """Put a record and its outputs."""
        folder = Path(self.folder(spec["stage"], spec["key"]))
        folder.mkdir(parents=True)
        value = json.loads(text)
        for output in value["outputs"]:
            path = Path(f"{self.root}/{output['path']}")
            path.touch()
            output |= {"bytes": 0, "meta": {**output["meta"], "stamp": str(path.stat().st_mtime_ns)}}
        (folder / RECORD).write_text(json.dumps(value))

    def close(self) -> None:
        """Nothing is open."""


class Fake:
    """An executor that answers at once with a record like a worker's."""

    name, slots = "ray", SLOTS

    def __init__(self, store: LogStore | DiskStore):
        self.store = store
        self.sent: Counter[str] = Counter()
        self.units: Counter[str] = Counter()

    async def submit(self, spec: dict[str, Any]) -> dict[str, Any]:
        """The record of a unit that took five seconds."""
        stage, key = spec["stage"], spec["key"]
        self.sent[stage] += len(json.dumps(spec))
        self.units[stage] += 1
        await asyncio.sleep(0)
        names, counters = OUTPUTS[stage]
        attempt = key[-12:]
        outputs = []
        for i, name in enumerate(names):
            digest = f"{i}{key}{key[:23]}"
            path = f"{stage}/{key[:2]}/{key}/{attempt}.{name}.parquet"
            meta = {"stamp": "1790000000000000000"} | ({"text_bytes": UNIT_BYTES} if stage in TEXT else {})
            outputs.append(Artifact(path, digest, name, 40_000_000, digest[::-1], 35_000, 30_000_000, meta=meta))
        counts = dict.fromkeys(counters, 35000)
        inputs = [a["digest"] for a in spec["inputs"]]
        versions = spec["versions"]
        record = Record(key, stage, spec["label"], inputs, outputs, counts, 5.0, 700.0, versions, 1.0, 6.0, attempt)
        text = json.dumps(record.to_dict()).encode()
        self.store.keep(spec, text)
        return {"record": json.loads(text)}

    def close(self) -> None:
        """Nothing runs."""


def download_unit(source: str, i: int) -> Unit:
    """Return the unit that reads row group `i` of a source of many files."""
    name = f"{i // FILE_UNITS:06d}.parquet"
    file = Artifact(f"/data/{source}/{name}", f"{source:>8}{i // FILE_UNITS:056x}", name, 2 << 30)
    params: dict[str, Any] = {
        "text": "text",
        "template": None,
        "url": None,
        "meta": {},
        "files": [file.name],
        "groups": [[i, i + 1]],
    }
    return Unit(parquet.work, params, [file], f"{name}[{i}:{i + 1}]", source, UNIT_BYTES)


async def graph(context: Context, units: int) -> None:
    """`units` units: one in a hundred a shard, the rest five stages of the same number of parts."""
    shards = units // 100
    each = (units - shards) // (5 * len(SOURCES))

    async def fetch_and_filter(source: str, i: int) -> list[Artifact]:
        download = download_unit(source, i)
        raw = await context.run(STAGES["download"], download)
        part = raw.output("part-000")
        label = f"{download.label} part-000"
        unit = Unit(measuring.work, {"rules": [["gopher_quality", {}, ""]]}, [part], label, source, UNIT_BYTES)
        measured = await context.run(STAGES["measure"], unit)
        rules = {"rules": [["gopher_quality", {}]]}
        unit = Unit(apply_rules.work, rules, [measured.output("measures")], label, source, 1)
        record = await context.run(STAGES["filter"], unit)
        return [record.output("kept"), part]

    async def source_of(source: str) -> list[TokenizedUnit]:
        """Make all units of a source up to its tokens; it keeps what the stages keep."""
        filtered = await context.gather(fetch_and_filter(source, i) for i in range(each))
        drops = [
            Artifact("dedup/x/drops.parquet", f"{source:>8}{i:056x}", "drops", 1, rows_from=i, rows_to=i + 9)
            for i in range(each)
        ]

        async def deduplicated(i: int, part: list[Artifact], drop: Artifact) -> Artifact:
            label = f"{i:05d}"
            unit = Unit(dedup.work, {"source": source}, [*part, drop], label, source, UNIT_BYTES)
            record = await context.run(STAGES["dedup"], unit)
            return record.output("docs")

        pairs = zip(filtered, drops, strict=True)
        curated = await context.gather(deduplicated(i, *pair) for i, pair in enumerate(pairs))
        tokenizer = Artifact("build_tokenizer/x/tokenizer.json", "f" * 64, "tokenizer", 1 << 20)
        params = {"seed": 0, "shard_tokens": 130_000_000, "bos_id": 0}

        async def tokenize_part(i: int, part: Artifact) -> TokenizedUnit:
            label = f"{i:05d}"
            unit = Unit(tokenize.work, params, [part, tokenizer], label, source, UNIT_BYTES)
            record = await context.run(STAGES["tokenize"], unit)
            return TokenizedUnit(record)

        return await context.gather(tokenize_part(i, part) for i, part in enumerate(curated))

    found = await asyncio.gather(*map(source_of, SOURCES))
    slices = [
        a
        for units_of in found
        for unit in units_of[: MERGED // len(SOURCES)]
        for a in map(unit.output, ("docs", "tokens"))
    ]
    await context.map(
        STAGES["pack_pretrain"],
        (Unit(pack_shard.shard, {"shard": i}, slices, f"train {i:06d}", weight=260_000_000) for i in range(shards)),
    )


def child(units: int, out: str, disk: bool) -> dict[str, Any]:
    """One run in this process."""
    store = DiskStore(out) if disk else LogStore(out)
    fake = Fake(store)
    raw = {"name": "fake", "sources": {s: {"from": "parquet", "path": f"/data/{s}"} for s in SOURCES}}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    context = Context(parse_recipe(raw, "fake"), store, lambda: fake, Progress(quiet=True))  # type: ignore[arg-type,return-value]
    drive(context, graph(context, units))
    built = time.perf_counter() - started
    if context.dispatcher.started:
        context.save_state()
    store.close()
    used = resource.getrusage(resource.RUSAGE_SELF)
    done = sum(s.done for s in context.states.values())
    return {
        "units": done,
        "ran": sum(fake.units.values()),
        "seconds": round(time.perf_counter() - started, 1),
        "state_seconds": round(time.perf_counter() - started - built, 1),
        "units_per_second": round(done / built),
        "peak_rss_mb": round(used.ru_maxrss / 1024),
        "rss_before_mb": round(before / 1024),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "bytes_sent_per_unit": {stage: round(n / fake.units[stage]) for stage, n in fake.sent.items()},
        "requests_per_unit": {what: round(n / done, 3) for what, n in store.asked.items()},
        "state_mb": round(sum(f.stat().st_size for f in Path(out).glob("fake/units/*")) / 1e6, 1),
    }


def main() -> None:
    """Run it, twice, each in a process of its own, and save what was seen."""
    parser = measure.parser(__doc__, units=1_000_000, disk=False)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.units, arguments.child, arguments.disk)))
        return
    machine = measure.machine(("pyarrow", "numpy"))
    out = tempfile.mkdtemp(prefix="driver-")
    found = {}
    try:
        flags = ["--units", arguments.units, "--child", out, *(["--disk"] if arguments.disk else [])]
        for name in ("first", "again"):
            found[name] = measure.child("benchmarks.driver", *flags)
            print(name, json.dumps(found[name], indent=1))
    finally:
        shutil.rmtree(out, ignore_errors=True)
    shown = ("units", "ran", "seconds", "units_per_second", "peak_rss_mb")
    measure.show(("run", *shown), [(name, *(run[key] for key in shown)) for name, run in found.items()])
    measure.save("driver-disk" if arguments.disk else "driver", {"machine": machine, **found})


if __name__ == "__main__":
    main()
