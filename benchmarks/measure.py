"""What every benchmark shares: a corpus of real text, repeated timing, and a dated JSON of what was seen.

Peers run in turn inside one round, several rounds, medians: on a shared machine only ratios of the same run mean
anything. Every result says what machine it is from.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# A folder of parquet files with a column `text`; beside a developer's checkout, not in a user's clone.
SHARED = ROOT.parent / "shared" / "data" / "web"


def corpus(megabytes: float, folder: str | None = None) -> list[str]:
    """Real documents, about so many MB of UTF-8: from parquet files in `folder` (default: shared text, else the
    docstrings of installed packages), from the start again when there is too little."""
    found, size, limit = [], 0, int(megabytes * 1e6)
    while size < limit:
        before = size
        for text in _documents(Path(folder) if folder else SHARED):
            found.append(text)
            size += len(text.encode())
            if size >= limit:
                break
        if size == before:
            raise SystemExit(f"error: no text in {folder or SHARED}; name a folder of parquet files with --data")
    return found


def _documents(folder: Path) -> Iterator[str]:
    files = sorted(folder.glob("**/*.parquet"))
    for file in files:
        if "text" in pq.read_schema(file).names:
            for batch in pq.ParquetFile(file).iter_batches(1000, columns=["text"]):
                yield from batch["text"].to_pylist()
    if not files:
        yield from _installed()


def _installed() -> Iterator[str]:
    """Source files of the standard library and the installed packages: text every clone has."""
    import sysconfig

    for key in ("stdlib", "purelib"):
        for file in sorted(Path(sysconfig.get_paths()[key]).glob("**/*.py")):
            try:
                yield file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue


def rounds(candidates: dict[str, Callable[[], Any]], repeats: int = 3) -> dict[str, list[float]]:
    """Wall seconds of each candidate, all of them in turn, `repeats` times."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median(values: Iterable[float]) -> float:
    """The middle value."""
    return statistics.median(values)


def machine(libraries: Iterable[str] = ()) -> dict[str, Any]:
    """What the figures depend on: processor, cores, memory, Python and the versions of `libraries`."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, StopIteration, ValueError):
        pages = 0
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(pages / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in libraries},
    }


def save(name: str, result: dict[str, Any]) -> Path:
    """Write `results/<date>-<name>.json`, print where, and return the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.date.today().isoformat()}-{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path.relative_to(ROOT)}")
    return path
