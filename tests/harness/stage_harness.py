"""Stages without processes: one work function on local files, or a whole build by the engine in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.engine.context import Context, drive
from pipeline.engine.progress import Progress
from pipeline.engine.store import open_store
from pipeline.executors.inline import InlineExecutor
from stages.filter.stage import FilteredPart
from stages.kept import read_rows
from stages.recipe import Recipe
from stages.registry import STAGES
from stages.schemas import DOCUMENTS
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


class LocalContext(Context):
    """The engine's context, with units run in this process and results in `folder`.

    Records name their files by absolute paths. `ran` lists (stage, label) of the units that had to run, `records` what
    all units left.
    """

    def __init__(self, folder: Path, recipe: Recipe):
        super().__init__(recipe, open_store(str(folder)), InlineExecutor, Progress(quiet=True))
        self.ran: list[tuple[str, str]] = []
        self.records: list[Record] = []

    async def run(self, stage: Stage[Any], unit: Unit) -> Record:
        """Run one unit, or find its record."""
        record = await super().run(stage, unit)
        if not record.cached:
            self.ran.append((stage.name, f"{unit.source} {unit.label}"))
        record = replace(record, outputs=[replace(a, path=self.artifact_path(a)) for a in record.outputs])
        self.records.append(record)
        return record


def build(context: LocalContext, stage: str) -> Any:
    """Build a stage and all it needs."""
    return drive(context, context.stage(STAGES[stage]))


def recipe(sources: dict[str, dict[str, Any]], **keys: Any) -> Recipe:
    """A recipe of small sizes."""
    small = {"tokenizer": TokenizerConfig(vocab_size=300, sample=1_000_000), "shard_tokens": 1000}
    return Recipe(name="test", sources=sources, **{**small, **keys})


def kept_documents(parts: Iterable[FilteredPart]) -> list[dict[str, Any]]:
    """The documents that the rules kept, with the hash of each text."""
    found = []
    for part in parts:
        kept = pq.read_table(part.kept.path)
        for rows, table in read_rows(part.docs.path, kept["row"].to_numpy(), DOCUMENTS.names):
            found += table.append_column("text_hash", kept[rows]["text_hash"]).to_pylist()
    return found


def rows_of(artifacts: Iterable[Artifact]) -> list[dict[str, Any]]:
    """All rows of some tables."""
    return [row for a in artifacts for row in pq.read_table(a.path).to_pylist()]
