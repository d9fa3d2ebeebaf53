"""Training runs that a benchmark compares: each made once and kept in a file as soon as it is there."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from train.model.transformer import count_parameters
from train.overrides import configs

Settings = tuple[str, ...]


class TimeIsOverError(Exception):
    """Runs were left for another time."""


class Runs:
    """Runs by their settings, each made once and kept in a file with what `about` says of all of them."""

    def __init__(
        self,
        file: Path,
        about: dict[str, Any],
        same: Iterable[str],
        make: Callable[[Settings], dict[str, Any]],
        deadline: float,
    ) -> None:
        """same: what must be the same in `about` for runs to be compared. make: makes a run, returns its result.

        Raises SystemExit where the file holds runs of which that is not so.
        """
        self.file, self.about, self.make, self.deadline = file, about, make, deadline
        self.lock = threading.Lock()
        self.known: dict[Settings, dict[str, Any]] = {}
        if file.exists():
            before = json.loads(file.read_text(encoding="utf-8"))
            for name in same:
                if before.get(name) != about[name]:
                    raise SystemExit(
                        f"error: {file} has runs with {name} = {before.get(name)}, not {about[name]}, which cannot be "
                        "compared: name another file with --out"
                    )
            self.known = {tuple(run["settings"]): run for run in before["runs"]}

    def all(self, jobs: int, wanted: list[list[str]]) -> list[dict[str, Any]]:
        """Return the results of runs with these settings, made `jobs` at a time.

        Raises TimeIsOverError where one would begin behind the deadline.
        """
        new = list(dict.fromkeys(tuple(settings) for settings in wanted if tuple(settings) not in self.known))
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(self._run, new))
        if any(settings not in self.known for settings in new):
            raise TimeIsOverError
        return [self.known[tuple(settings)] for settings in wanted]

    def _run(self, settings: Settings) -> None:
        if time.monotonic() > self.deadline:
            return
        begun = time.monotonic()
        result = {"settings": list(settings), **self.make(settings)}
        result["seconds"] = round(time.monotonic() - begun)
        print(f"{result['bits_per_byte']:.4f}  {result['seconds']:4} s  {' '.join(settings)}", flush=True)
        with self.lock:
            self.known[settings] = result
            self.save()

    def save(self, **more: Any) -> None:
        """Write all that is known."""
        text = json.dumps({**self.about, **more, "runs": list(self.known.values())}, indent=1)
        beside = self.file.with_suffix(".tmp")
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(self.file)


def level(recipe: dict[str, Any], base: list[str], settings: list[str], vocab: int) -> list[str]:
    """Return what to set for `settings` to have as many parameters as `base`, to within one hidden unit: a width.

    Parameters are those that are exported. recipe: a model, and one phase of training.
    """
    phase = next(iter(recipe["train"]))

    def model(*more: str) -> Any:
        return configs(recipe, phase, [*more], "level")[0]

    def count(*more: str) -> int:
        return count_parameters(model(*more).without_training_parts(), vocab)

    hidden = model(*base).hidden
    unit = count(*settings, f"model.mlp_hidden={hidden + 1}") - count(*settings, f"model.mlp_hidden={hidden}")
    more = round((count(*base) - count(*settings, f"model.mlp_hidden={hidden}")) / unit)
    return [f"model.mlp_hidden={hidden + more}"] if more else []


def web_source(data: Path) -> dict[str, Any]:
    """Return the source of web text in `data` (laid out as the shared text), else of installed packages' text."""
    if data.is_dir():
        return {"from": "parquet", "path": f"{data}/web/*.parquet"}
    return {"from": "installed_docs", "packages": ["stdlib", "numpy", "torch"]}


def digest_of(manifest: Path) -> str:
    """Return a hash of the tokens of a mixture, those held out included."""
    shards = json.loads(manifest.read_text(encoding="utf-8"))["shards"]
    return hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest()[:16]


def difference_rows(table: dict[str, dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return the rows to print of what `benchmarks.paired.compare` gave, the best first; see DIFFERENCES."""
    return [
        (
            name,
            f"{row['mean']:+.4f}",
            "-" if row["half_width"] is None else f"{row['half_width']:.4f}",
            len(row["differences"]),
            "-" if row["p_holm"] is None else f"{row['p_holm']:.3f}",
            row["verdict"],
        )
        for name, row in sorted(table.items(), key=lambda item: item[1]["mean"])
    ]


DIFFERENCES = ("bits/byte - baseline's", "+- 95 %", "seeds", "p, Holm", "verdict")
