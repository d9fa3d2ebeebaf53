"""A range of keys of many files: by bytes it is what a map gives, and files put together give the same drops."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stage_harness import LocalContext, build, recipe, rows_of
from test_minhash import corpus

from stages.dedup import exchange
from stages.dedup import keys as dedup_keys
from stages.dedup import stage as dedup
from stages.dedup.arrays import Range, read_ranges, save_runs
from stages.dedup.keys import EXACT, NEAR
from stages.dedup.stage import KeyFiles
from stages.stage import Record
from stages.task import Artifact, Task

SPACE = 1 << 64
UNITS = 12


class Remote:
    """Bytes of local files as a bucket gives them; what was asked for is counted."""

    def __init__(self) -> None:
        self.requests = self.bytes = 0

    def read(self, artifact: Artifact, start: int, stop: int) -> bytes:
        self.requests += 1
        self.bytes += stop - start
        return Path(artifact.path).read_bytes()[start:stop]


def file_of(folder: Path, runs: list[list[int]], dtype: Any = NEAR) -> tuple[Artifact, np.ndarray]:
    """A file of sorted runs of keys, whose entries are told apart by `row`."""
    task = Task({}, [], folder, f"t{len(list(folder.iterdir()))}", lambda a: a.path)
    arrays = [np.zeros(len(run), dtype) for run in runs]
    for array, run in zip(arrays, runs, strict=True):
        array["lo"] = sorted(run)
    flat = np.concatenate([np.empty(0, dtype), *arrays])
    flat["row"] = np.arange(len(flat))
    ends = np.cumsum([0, *map(len, runs)])
    save_runs(task, "keys", dtype, len(flat) + 1000, ([flat[a:b][:3], flat[a:b][3:]] for a, b in pairwise(ends)))
    (made,) = task.outputs
    size = Path(made.path).stat().st_size
    return Artifact(made.path, "", made.name, size, rows=made.rows, meta=made.meta), flat


def read(folder: Path, file: Artifact, low: int, high: int, remote: Remote | None) -> np.ndarray:
    task = Task({}, [], folder, "r", lambda a: a.path, read_bytes=remote.read if remote else None)
    return read_ranges(task, [file], Range(low, high, SPACE, lambda entry: int(entry["lo"]), NEAR))[0]


KEYS = st.one_of(st.integers(0, 20), st.integers(0, SPACE - 1), st.integers(SPACE - 9, SPACE - 1))


@settings(max_examples=150)
@given(st.lists(st.lists(KEYS, max_size=300), max_size=3), st.lists(KEYS, min_size=1, max_size=4))
def test_bytes_of_a_range_are_those_of_a_map(tmp_path_factory, runs, borders):
    """However the keys are spread: together they are everything, each once."""
    folder = tmp_path_factory.mktemp("ranges")
    file, flat = file_of(folder, runs)
    bounds = sorted({0, *borders, SPACE})
    found = []
    for low, high in pairwise(bounds):
        mapped = read(folder, file, low, high, None)
        fetched = read(folder, file, low, high, Remote())
        assert fetched.tolist() == mapped.tolist() and fetched.dtype == mapped.dtype
        found += fetched["row"].tolist()
    assert sorted(found) == list(range(len(flat)))


def test_of_hashes_a_range_is_one_request_of_little_more_than_its_bytes(tmp_path):
    rng = np.random.default_rng(5)
    file, _ = file_of(tmp_path, [rng.integers(0, SPACE, 400_000, np.uint64).tolist()])
    remote = Remote()
    of = 64
    for i in range(of):
        assert len(read(tmp_path, file, i * SPACE // of, (i + 1) * SPACE // of, remote)) > 5000
    assert remote.requests <= of + 2
    assert remote.bytes < 1.5 * file.bytes


def write_sources(folder: Path, texts: list[str]) -> dict[str, Any]:
    """Two sources of UNITS files each."""
    found: dict[str, Any] = {}
    for name in "ab":
        (folder / name).mkdir()
        for number in range(UNITS):
            lines = texts[(name == "b") + 2 * number :: 2 * UNITS]
            (folder / name / f"{number:02d}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in lines))
        found[name] = {"from": "jsonl", "path": str(folder / name)}
    return found


@pytest.mark.slow
def test_keys_put_together_drop_the_same_documents(tmp_path, monkeypatch):
    monkeypatch.setattr("stages.sources.base.UNIT_BYTES", 1)  # a unit a file
    found = write_sources(tmp_path, corpus(random.Random(8), 300))
    drops = {}
    for name, most in (("plain", 256), ("merged", 20)):
        monkeypatch.setattr(dedup, "MOST_PARTS", most), monkeypatch.setattr(dedup, "GROUP", 5)
        monkeypatch.setattr(dedup, "ENTRIES", 300), monkeypatch.setattr(dedup, "PAIRS", 100)
        for module in (exchange, dedup_keys):
            monkeypatch.setattr(module, "RUN", 200)
        context = LocalContext(tmp_path / name, recipe(found))
        drops[name] = [rows_of([part]) for part in build(context, "dedup").drops]
        merges = [label for _, label in context.ran if " merge " in label]
        assert len(merges) == (4 if name == "merged" else 0), "two full groups a source, and two parts of each are left"
    assert drops["merged"] == drops["plain"]
    assert sum(map(len, drops["plain"])) > 60


def test_runs_of_keys_put_together_are_sorted_and_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "RUN", 50)
    rng = np.random.default_rng(6)
    files = [file_of(tmp_path, [rng.integers(0, SPACE, n, np.uint64).tolist()], EXACT)[0] for n in (0, 30, 70, 1, 200)]
    rows = [artifact.rows for artifact in files]
    named = [Artifact(a.path, "", "exact", a.bytes, rows=a.rows, meta=a.meta) for a in files]
    ids = tmp_path / "ids.npy"
    np.save(ids, np.zeros((0, 16), np.uint8))
    task = Task({"rows": rows}, [*named, Artifact(str(ids), "", "ids")], tmp_path, "m", lambda a: a.path)
    exchange.merge_keys(task)
    made = next(artifact for artifact in task.outputs if artifact.name == "exact")
    merged, ends = np.load(made.path), made.meta["runs"]
    assert ends[-1] == len(merged) == sum(rows) and len(ends) > 3 and max(np.diff(ends)) <= 100
    for start, end in pairwise(ends):
        assert (np.diff(merged["lo"][start:end].astype(object)) >= 0).all()
    firsts = np.cumsum([0, *rows[:-1]]).tolist()
    wanted = [
        (int(e["lo"]), int(e["row"]) + first)
        for artifact, first in zip(files, firsts, strict=True)
        for e in np.load(artifact.path)
    ]
    assert sorted(zip(merged["lo"].tolist(), merged["row"].tolist(), strict=True)) == sorted(wanted)


def test_a_group_keeps_its_unit_when_its_source_grows():
    def files(number: int) -> list[KeyFiles]:
        records = [Record("", "dedup", f"web sign {i:05d}", [], [], {}, 0, 0, {}, 0, 0, "") for i in range(number)]
        return [KeyFiles("web", 7, record) for record in records]

    few, many = (dedup.merge_unit(files(n)[3:6]) for n in (6, 60))
    assert few == many and few.label == "merge 00003" and few.params == {"rows": [7, 7, 7]}
