"""A tiny engine for these tests: it runs one work function on local files and returns its record.

The real engine adds keys, reuse and processes; the functions must not need any of it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter

from stages.decontaminate.config import Decontaminate
from stages.dedup.config import Dedup
from stages.exclude.config import Exclude
from stages.registry import STAGES
from stages.sources.registry import SourceConfig
from stages.stage import Record, Stage, Unit
from stages.task import Artifact, Task
from stages.tokenizer.config import TokenizerConfig

REPO = Path(__file__).resolve().parent.parent.parent
SHARED = REPO / "../shared/data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason=f"no {SHARED}: the shared test data is not here")


def identify(path: str) -> tuple[str, int]:
    """Digest and size of a local file."""
    data = Path(path).read_bytes()
    return hashlib.sha256(data).hexdigest(), len(data)


def run_unit(
    folder: Path, work: Callable[[Task], None], params: dict[str, Any], inputs: Iterable[Artifact] = ()
) -> Record:
    """Run `work` in `folder` and seal its outputs as the engine does."""
    folder.mkdir(parents=True, exist_ok=True)
    task = Task(params, list(inputs), folder, f"a{len(list(folder.iterdir()))}", lambda a: a.path)
    work(task)
    outputs = []
    for output in task.outputs:
        digest, size = identify(output.path)
        outputs.append(replace(output, sha256=digest, bytes=size, digest=output.digest or digest))
    return Record("", "", "", [a.digest for a in inputs], outputs, dict(task.counts), 0, 0, {}, 0, 0, task.attempt)


class MiniContext:
    """What `build` needs of the engine's context, one unit after another, each once."""

    def __init__(self, folder: Path, recipe: Any):
        self.folder, self.recipe = folder, recipe
        self.ran: list[tuple[str, str]] = []
        self.dry, self.warnings = False, list[str]()
        self.records: dict[str, Record] = {}
        self.building: dict[str, Any] = {}
        self.listed: dict[str, Any] = {}
        self.counted: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def identify(self, path: str) -> tuple[str, int]:
        return identify(path)

    def counts(self, stage: Stage[Any], source: str) -> Counter[str]:
        """The sum of a stage's counters over a source."""
        return self.counted[stage.name, source]

    def warn(self, text: str) -> None:
        """Keep a line for people."""
        self.warnings.append(text)

    def artifact_path(self, artifact: Artifact) -> str:
        """Where a result lies."""
        return artifact.path

    def check_quarantine(self) -> None:
        """The engine's affair."""

    async def stage(self, stage: Stage[Any]) -> Any:
        if stage.name not in self.building:
            self.building[stage.name] = asyncio.ensure_future(self._build(stage))
        return await self.building[stage.name]

    async def _build(self, stage: Stage[Any]) -> Any:
        result = await stage.build(self)
        if stage.check:
            stage.check(self, result)
        return result

    async def gather(self, awaitables: Iterable[Awaitable[Any]]) -> list[Any]:
        return [await a for a in awaitables]

    async def map(self, stage: Stage[Any], units: Iterable[Unit]) -> list[Record]:
        return [await self.run(stage, unit) for unit in units]

    async def run(self, stage: Stage[Any], unit: Unit) -> Record:
        inputs = [artifact.digest for artifact in unit.inputs]
        key = repr((stage.name, unit.work.__module__, unit.work.__name__, unit.params, inputs))
        if key not in self.records:
            self.ran.append((stage.name, f"{unit.source} {unit.label}"))
            self.records[key] = run_unit(self.folder / stage.name, unit.work, unit.params, unit.inputs)
            self.counted[stage.name, unit.source].update(self.records[key].counts)
        return self.records[key]


def build(context: MiniContext, stage: str) -> Any:
    """Build a stage and all it needs."""
    return asyncio.run(context.stage(STAGES[stage]))


def recipe(sources: dict[str, dict[str, Any]], **keys: Any) -> SimpleNamespace:
    """The part of a recipe that these stages read."""
    adapter = TypeAdapter(SourceConfig)
    defaults: dict[str, Any] = {
        "seed": 0,
        "sources": {name: adapter.validate_python(value) for name, value in sources.items()},
        "dedup": Dedup(),
        "evals": {},
        "decontaminate": Decontaminate(),
        "exclude": Exclude(),
        "tokenizer": TokenizerConfig(vocab_size=300, sample=1_000_000),
        "shard_tokens": 1000,
    }
    return SimpleNamespace(**{**defaults, **keys})


def rows_of(artifacts: Iterable[Artifact]) -> list[dict[str, Any]]:
    """All rows of some tables."""
    return [row for a in artifacts for row in pq.read_table(a.path).to_pylist()]
