"""Filtering: the four rule sets of FineWeb, compiled, against datatrove's filters on the same documents; one core.

    python -m benchmarks.filter [--megabytes 150] [--peer-megabytes 2] [--rounds 3] [--data FOLDER]
    python -m benchmarks.filter --prove [--data FOLDER]

Timed in turn, several rounds, processor seconds of this process (what else the machine does is in neither figure): the
compiled rules over arrow columns; the readable rules and datatrove's four filters over a share of the same documents,
evenly spaced; the stage `filter`, parquet in and parquet out. Then, in new processes, the first call with nothing
cached and with machine code on disk. Beside the ratio stands how often ours and datatrove decide differently.

`--prove` compares compiled and readable rules on every document of every file and on 20,000 hostile strings, and exits
with 1 on any difference.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import measure
from stages.filter.document import Document
from stages.filter.rules import apply_rules, parse_rules
from stages.filter.work import apply_to_column, text_hashes, work
from stages.sources.base import Row
from stages.sources.writer import write_parts
from stages.task import Artifact, Task

RULES = ["gopher_repetition", "gopher_quality", "c4", "fineweb"]
GROUP = 1000  # documents in a column
LIBRARIES = ("numba", "numpy", "pyarrow", "datatrove", "spacy")
HOSTILE = 20_000
COLD = """
import time; start = time.process_time()
import pyarrow as pa
from stages.filter.rules import parse_rules
from stages.filter.work import apply_to_column, text_hashes
texts = pa.array(["The cat sat on the mat. "])
apply_to_column(texts, None, parse_rules(%r)); text_hashes(texts)
print(time.process_time() - start)
"""


def datatrove_filters() -> Callable[[str], tuple[str | None, str]]:
    """datatrove's four filters as FineWeb runs them: text -> (the name of the filter that drops it, the text left)."""
    from datatrove.data import Document as Theirs
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    filters = (
        GopherRepetitionFilter(),
        GopherQualityFilter(),
        C4QualityFilter(filter_no_terminal_punct=False),
        FineWebQualityFilter(),
    )

    def run(text: str) -> tuple[str | None, str]:
        document = Theirs(text=text, id="")
        for name, one in zip(RULES, filters, strict=True):
            found = one.filter(document)
            if found is not True and (not isinstance(found, tuple) or not found[0]):
                return name, document.text
        return None, document.text

    return run


def family(reason: str | None) -> str | None:
    """The rule set a reason of ours belongs to."""
    if not reason:
        return None
    if reason.startswith(("gopher_repeated", "gopher_top")):
        return "gopher_repetition"
    return "gopher_quality" if reason.startswith("gopher") else reason.split("_")[0]


def disagreements(texts: list[str], theirs: Callable[[str], tuple[str | None, str]]) -> dict[str, Any]:
    """How often ours and theirs decide differently: the four in a row, and each alone on the texts as they are."""
    ours, left = apply_to_column(pa.array(texts), None, parse_rules(RULES))
    pairs: Counter[str] = Counter()
    same_text = both = 0
    for text, reason, kept in zip(texts, ours, left.to_pylist(), strict=True):
        found, edited = theirs(text)
        pairs[f"ours {family(reason) or 'keeps'}, datatrove {found or 'keeps'}"] += 1
        if not reason and not found:
            both, same_text = both + 1, same_text + (kept == edited)
    differ = sum(n for pair, n in pairs.items() if ("ours keeps" in pair) != ("datatrove keeps" in pair))
    return {
        "documents": len(texts),
        "kept by one alone": differ,
        "kept by both": both,
        "of those with the same text": same_text,
        "pairs": dict(pairs.most_common()),
    }


def write_part(texts: list[str], folder: Path) -> Artifact:
    """The documents as a download leaves them."""
    task = Task({}, [], folder, "download", lambda a: a.path)
    write_parts(task, (Row("file", i, text) for i, text in enumerate(texts)))
    return next(a for a in task.outputs if a.name.startswith("part-"))


def stage(part: Artifact) -> None:
    """The whole stage on one part."""
    with tempfile.TemporaryDirectory() as folder:
        rules = {"rules": [list(rule) for rule in parse_rules(RULES)]}
        work(Task(rules, [part], Path(folder), "filter", lambda a: a.path))


def cold_start() -> dict[str, float]:
    """Processor seconds from the start of Python to the first decision: with nothing cached, and with machine code."""
    found = {}
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "NUMBA_CACHE_DIR": cache, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        for name in ("compiled anew", "cached"):
            command = [sys.executable, "-c", COLD % (RULES,)]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True, cwd=measure.ROOT
            )
            found[name] = round(float(done.stdout), 2)
    return found


def spread(texts: list[str], megabytes: float) -> list[str]:
    """About so many MB of the documents, evenly spaced."""
    size = sum(len(t.encode()) for t in texts)
    return texts[:: max(1, round(size / megabytes / 1e6))]


def compare(texts: list[str], peer_megabytes: float, rounds: int) -> dict[str, Any]:
    """MB/s of each, medians over rounds, and the ratios."""
    rules = parse_rules(RULES)
    columns = [pa.array(texts[i : i + GROUP]) for i in range(0, len(texts), GROUP)]
    some = spread(texts, peer_megabytes)
    alone = {name: parse_rules([name]) for name in RULES}
    theirs = datatrove_filters()
    with tempfile.TemporaryDirectory() as folder:
        part = write_part(texts, Path(folder))
        candidates: dict[str, tuple[list[str], Callable[[], Any]]] = {
            "compiled": (texts, lambda: [apply_to_column(column, None, rules) for column in columns]),
            **{
                f"compiled, {name} alone": (
                    texts,
                    lambda name=name: [apply_to_column(c, None, alone[name]) for c in columns],
                )
                for name in RULES
            },
            "text hash": (texts, lambda: [text_hashes(column) for column in columns]),
            "stage filter, parquet to parquet": (texts, lambda: stage(part)),
            "readable": (some, lambda: [apply_rules(Document(text), rules) for text in some]),
            "datatrove": (some, lambda: [theirs(text) for text in some]),
        }
        apply_to_column(columns[0], None, rules), text_hashes(columns[0]), theirs(texts[0])
        speeds: dict[str, list[float]] = {name: [] for name in candidates}
        for _ in range(rounds):
            for name, (used, run) in candidates.items():
                start = time.process_time()
                run()
                spent = time.process_time() - start
                speeds[name].append(round(sum(len(t.encode()) for t in used) / spent / 1e6, 3))
    rates = {name: measure.median(values) for name, values in speeds.items()}
    ratios = [a / b for a, b in zip(speeds["compiled"], speeds["datatrove"], strict=True)]
    return {
        "MB/s": rates,
        "rounds, MB/s": speeds,
        "compiled / datatrove": round(measure.median(ratios), 1),
        "stage / datatrove": round(rates["stage filter, parquet to parquet"] / rates["datatrove"], 1),
        "decisions": disagreements(some, theirs),
    }


def every_text(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(file, some of its strings): every string of every parquet, jsonl and json file under `folder`."""
    import zstandard

    def strings(value: Any) -> Iterator[str]:
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict | list):
            for one in value.values() if isinstance(value, dict) else value:
                yield from strings(one)

    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        if file.suffix == ".parquet":
            for batch in pq.ParquetFile(file).iter_batches(GROUP):
                yield file.name, list(strings(batch.to_pylist()))
        elif file.name.endswith((".jsonl.zst", ".jsonl")):
            data = file.read_bytes()
            if file.suffix == ".zst":
                data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
            yield file.name, [s for line in data.decode().split("\n") if line for s in strings(json.loads(line))]
        elif file.suffix == ".json":
            yield file.name, list(strings(json.loads(file.read_text(encoding="utf-8"))))


def prove(folder: Path) -> bool:
    """Compare compiled and readable rules on everything; print what was compared. True if nothing differs."""
    sys.path.append(str(measure.ROOT / "tests" / "stages"))
    from rules_harness import PARSED, differences, hostile

    rng = random.Random(1)
    faults = compared = size = 0
    for start in range(0, HOSTILE, GROUP):
        faults += len(differences([hostile(rng) for _ in range(min(GROUP, HOSTILE - start))], PARSED))
    print(f"{HOSTILE:,} hostile strings under {len(PARSED)} programs: {faults} differences")
    programs = [parse_rules([name]) for name in RULES] + [parse_rules(RULES)]
    for name, texts in every_text(folder):
        found = differences(texts, programs)
        faults, compared = faults + len(found), compared + len(texts)
        size += sum(len(t.encode()) for t in texts)
        for rules, text, *both in found[:3]:
            print(f"differs: {name}: {rules}: {text[:80]!r}: {both}")
    print(f"{compared:,} strings, {size / 1e6:.1f} MB, of {folder}: {faults} differences in all")
    return not faults


def main() -> None:
    """Run the benchmark or the proof."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=150)
    parser.add_argument("--peer-megabytes", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data")
    parser.add_argument("--prove", action="store_true")
    options = parser.parse_args()
    if options.prove:
        sys.exit(not prove(Path(options.data) if options.data else measure.SHARED.parent))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    machine = measure.machine(LIBRARIES)
    texts = measure.corpus(options.megabytes, options.data)
    result = compare(texts, options.peer_megabytes, options.rounds)
    result = {"machine": machine, "cold start, processor seconds": cold_start(), **result}
    print(json.dumps({k: v for k, v in result.items() if k != "rounds, MB/s"}, indent=1))
    measure.save("filter", result)


if __name__ == "__main__":
    main()
