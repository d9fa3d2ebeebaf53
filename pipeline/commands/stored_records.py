"""The records of the last build of a recipe, read from its store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.commands.open_build import BucketManifest
from pipeline.engine.changes import KeyHistory
from pipeline.engine.state import read_last_build
from pipeline.engine.store import Store, open_store
from stages.stage import Record
from stages.task import Artifact
from train.data.manifest import Manifest


class StoredRecords:
    """The `RecordReader` of a build; without a store there are no records."""

    def __init__(self, store: Store | None, recipe_name: str):
        self.store, self.recipe_name = store, recipe_name
        self.missing: set[tuple[str, str]] = set()  # stage and label of each unit that was looked for and is gone

    def records(self, stage: str) -> Iterator[Record]:
        """Yield the record of each unit of a stage that is there, by label."""
        if self.store is None:
            return
        last = read_last_build(self.store, self.recipe_name, stage)
        units = last.units if last else KeyHistory()
        self.store.list_outputs(stage)
        for label in sorted(units.rows):
            record = self.store.find(stage, units.key(label))
            if record is None:
                self.missing.add((stage, label))
            else:
                yield replace(record, label=label)  # the unit may be another's too, under that one's label

    def table(self, artifact: Artifact, columns: list[str] | None = None) -> pa.Table:
        """Read columns of an output, or of the slice that it is."""
        assert self.store is not None
        path = self.store.absolute(artifact)
        file = path if self.store.local else pa.BufferReader(self.store.read(path))  # of one unit at a time
        table = pq.read_table(file, columns=columns, partitioning=None)
        if artifact.rows_from < 0:
            return table
        return table.slice(artifact.rows_from, artifact.rows_to - artifact.rows_from)


def records_beside(manifest: Manifest) -> StoredRecords:
    """Return the records of a manifest's build, where its store is still beside it."""
    if isinstance(manifest, BucketManifest):
        return StoredRecords(manifest.store, manifest.name)
    out = Path(manifest.folder).parent.parent
    return StoredRecords(open_store(str(out)) if (out / "store").is_dir() else None, manifest.name)
