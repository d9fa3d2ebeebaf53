"""What every benchmark shares: options, real text, timing in rounds, tables, and a dated JSON of the figures.

Peers run in turn inside one round, several rounds, medians: on a shared machine only ratios of the same run mean
anything. Every result says what machine it is from.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# A folder of parquet files with a column `text`; beside a developer's checkout, not in a user's clone.
SHARED = ROOT.parent / "shared" / "data" / "web"
TEXT_ROWS = 1000  # rows of a parquet file that are read at once


# -- the command line ----------------------------------------------------------------------------------


def parser(docstring: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser that shows `docstring`, with one option for each of `defaults`: `peer_megabytes=2.0` is
    `--peer-megabytes`, a number. False makes a flag, None an option that takes text.
    """
    result = argparse.ArgumentParser(description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        option = f"--{name.replace('_', '-')}"
        if default is False:
            result.add_argument(option, action="store_true")
        else:
            result.add_argument(option, type=str if default is None else type(default), default=default)
    return result


def use_one_core() -> None:
    """Bind this process to its last core, where the system allows it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def import_harness() -> None:
    """Make the modules of `tests/harness` importable, as pytest does."""
    sys.path.append(str(ROOT / "tests" / "harness"))


def installed(*libraries: str) -> list[str]:
    """Return those of `libraries` that are installed."""
    return [name for name in libraries if importlib.util.find_spec(name) is not None]


# -- text ----------------------------------------------------------------------------------------------


def megabytes(texts: Iterable[str]) -> float:
    """Return the size of `texts` in MB of UTF-8."""
    return sum(len(text.encode()) for text in texts) / 1e6


def corpus(limit: float, folder: str | None = None) -> list[str]:
    """Return real documents, about `limit` MB of UTF-8.

    They are from parquet files in `folder` (default: shared text, else the source files of installed packages), from
    the start again when there is too little. Raises SystemExit when there is none.
    """
    texts: list[str] = []
    size = 0
    while size < limit * 1e6:
        size_before = size
        for text in _documents(Path(folder) if folder else SHARED):
            texts.append(text)
            size += len(text.encode())
            if size >= limit * 1e6:
                break
        if size == size_before:
            raise SystemExit(f"error: no text in {folder or SHARED}; name a folder of parquet files with --data")
    return texts


def spread(texts: list[str], limit: float) -> list[str]:
    """Return about `limit` MB of the documents, evenly spaced."""
    return texts[:: max(1, round(megabytes(texts) / limit))]


def _documents(folder: Path) -> Iterator[str]:
    files = sorted(folder.glob("**/*.parquet"))
    for file in files:
        if "text" in pq.read_schema(file).names:
            for batch in pq.ParquetFile(file).iter_batches(TEXT_ROWS, columns=["text"]):
                yield from batch["text"].to_pylist()
    if not files:
        yield from _installed_sources()


def _installed_sources() -> Iterator[str]:
    """Yield source files of the standard library and the installed packages: text every clone has."""
    import sysconfig

    for key in ("stdlib", "purelib"):
        for file in sorted(Path(sysconfig.get_paths()[key]).glob("**/*.py")):
            try:
                yield file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue


def rows_of(file: Path) -> Iterator[list[Any]]:
    """Yield the rows of a parquet, json or jsonl file as JSON values, some at a time; of any other file its text."""
    if file.suffix == ".parquet":
        for batch in pq.ParquetFile(file).iter_batches(TEXT_ROWS):
            yield batch.to_pylist()
        return
    data = file.read_bytes()
    if file.suffix == ".zst":
        import zstandard

        data = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    text = data.decode()
    if ".jsonl" in file.name:
        yield [json.loads(line) for line in text.split("\n") if line]
    else:
        yield [json.loads(text) if file.suffix == ".json" else text]


def strings(value: Any) -> Iterator[str]:
    """Yield every string inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from strings(inner)


def every_text(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (file, some of its strings) until every string of every file under `folder` has been seen."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        for rows in rows_of(file):
            yield file.name, list(strings(rows))


# -- timing --------------------------------------------------------------------------------------------


def rounds(
    candidates: dict[str, Callable[[], Any]], repeats: int = 3, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the seconds by `clock` of each candidate, all of them in turn, `repeats` times."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def rates(
    candidates: dict[str, tuple[float, Callable[[], Any]]],
    repeats: int = 3,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, list[float]]:
    """Return what each candidate does in a second, in every round. A candidate is (how much it does, a call)."""
    seconds = rounds({name: call for name, (_, call) in candidates.items()}, repeats, clock)
    return {name: [amount / s for s in seconds[name]] for name, (amount, _) in candidates.items()}


def median(values: Iterable[float]) -> float:
    """Return the middle value."""
    return statistics.median(values)


def medians(values: dict[str, list[float]], digits: int) -> dict[str, float]:
    """Return each candidate's middle value."""
    return {name: round(median(of_rounds), digits) for name, of_rounds in values.items()}


def ratio(above: Iterable[float], below: Iterable[float]) -> float:
    """Return the median of the rounds' ratios."""
    return median(a / b for a, b in zip(above, below, strict=True))


def rounded(value: Any, digits: int) -> Any:
    """Return a JSON value with all its fractions rounded."""
    if isinstance(value, dict):
        return {key: rounded(inner, digits) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner, digits) for inner in value]
    return round(value, digits) if isinstance(value, float) else value


def child(module: str, *arguments: Any, **environment: str) -> Any:
    """Run a module of this project in a process of its own. Returns the JSON of the last line that it prints."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


# -- results -------------------------------------------------------------------------------------------


def machine(libraries: Iterable[str] = ()) -> dict[str, Any]:
    """Return what the figures depend on: processor, cores, memory, load, Python and the versions of `libraries`."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, StopIteration, ValueError):
        memory = 0
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(memory / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in libraries},
    }


def show(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table: the first column and all text to the left, numbers to the right."""
    cells = [[str(cell) for cell in header]]
    numbers = [False] * len(header)
    for row in rows:
        numbers = [number or isinstance(cell, int | float) for number, cell in zip(numbers, row, strict=True)]
        cells.append([f"{cell:,}" if isinstance(cell, int | float) else str(cell) for cell in row])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        columns = zip(line, widths, numbers, strict=True)
        print("  ".join(cell.rjust(width) if number else cell.ljust(width) for cell, width, number in columns).rstrip())


def save(name: str, result: dict[str, Any]) -> Path:
    """Write `results/<date>-<name>.json`, print where, and return the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.date.today().isoformat()}-{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written: {path.relative_to(ROOT)}")
    return path


def report(name: str, result: dict[str, Any], without: str = "") -> None:
    """Print the result, but for its key `without`, and save it."""
    print(json.dumps({key: value for key, value in result.items() if key != without}, indent=1))
    save(name, result)
