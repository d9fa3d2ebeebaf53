"""What became of a document that is not in the corpus: the records of the build that is in the store say it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.engine.changes import KeyHistory
from pipeline.engine.store import UNITS, open_store
from stages.filter.document import Document
from stages.filter.edits import apply_edits, parse_edits
from stages.filter.rules import apply_rules, parse_rules
from stages.filter.work import META
from stages.lineage.find import Found, Key, Query
from stages.schemas import ID
from stages.stage import Record
from stages.task import Artifact
from train.data.manifest import Manifest

SHOWN = 120  # characters of a stretch that contaminates


class Build:
    """The units of the last build of the manifest's recipe, where its store is still beside it."""

    def __init__(self, manifest: Manifest):
        out = Path(manifest.folder).parent.parent
        self.manifest, self.store = manifest, open_store(str(out)) if (out / "store").is_dir() else None

    def records(self, stage: str) -> Iterator[tuple[str, Record]]:
        """(label, record) of each unit of a stage that is there, by label."""
        if self.store is None:
            return
        units = KeyHistory(self.store.read_state(self.manifest.name, f"{UNITS}/{stage}.json"))
        for label in sorted(units.rows):
            record = self.store.find(stage, units.key(label))
            if record is not None:
                yield label, record

    def table(self, artifact: Artifact, columns: list[str] | None = None) -> pa.Table:
        """Columns of an output, or of the slice that it is."""
        assert self.store is not None
        table = pq.read_table(self.store.absolute(artifact), columns=columns, partitioning=None)
        return (
            table if artifact.rows_from < 0 else table.slice(artifact.rows_from, artifact.rows_to - artifact.rows_from)
        )


def fates(manifest: Manifest, query: Query) -> dict[Key, Found]:
    """Documents that were read from the sources and that `query` means, each with why it is not in the corpus.

    Those that are in it say so too (status `curated`): the caller knows more of them. Empty without a store.
    """
    build = Build(manifest)
    found: dict[Key, Found] = {}
    texts: dict[Key, dict[str, Any]] = {}
    columns = [*dict.fromkeys([*query.columns, "source_file", "source_row"])]
    for label, record in build.records("download"):
        source = label.partition(" ")[0]
        for part in record.named("part-"):
            mask = query.mask(build.table(part, columns))
            if mask.any():
                whole = build.table(part).filter(pa.array(mask))
                for row in whole.to_pylist():
                    identity = row["document_id"].hex()
                    one = Found(identity, source, row["source_file"], row["source_row"], row["url"])
                    found[source, identity], texts[source, identity] = one, row
    if found:
        judge(build, found, texts)
    return found


def judge(build: Build, found: dict[Key, Found], rows: dict[Key, dict[str, Any]]) -> None:
    """Fill in status and note: what the rules say, what later stages dropped, what was excluded."""
    for key, one in found.items():
        rules = parse_rules(build.manifest.recipe_value("sources", one.source, "rules"))
        row = rows[key]
        meta = {name.removeprefix(META): value for name, value in row.items() if name.startswith(META)}
        text = apply_edits(row["text"], parse_edits(build.manifest.recipe_value("sources", one.source).get("edit", [])))
        reason, _ = apply_rules(Document(text, meta), rules)
        one.status, one.note = ("dropped", f"by the rule {reason}") if reason else ("curated", "")
    wanted = pa.array(sorted({bytes.fromhex(one.document_id) for one in found.values()}), ID)
    for identity, kept_id, kept_source, near in dropped(build, wanted):
        for (source, name), one in found.items():
            if name == identity and one.status == "curated" and (source != kept_source or name != kept_id):
                kind = "a near-duplicate" if near else "a duplicate"
                one.status, one.note = "dropped", f"{kind} of {kept_id} in {kept_source}, which was kept"
    for row in contaminated(build, wanted):
        one = found.get((row["source"], row["document_id"].hex()), Found("", "", "", 0, None))
        if one.status == "curated" and not one.note:
            text = row["text"] if len(row["text"]) <= SHOWN else row["text"][:SHOWN] + "…"
            one.status = "dropped" if row["done"] == "dropped" else one.status
            cut = "a piece was cut out, " if row["done"] == "cut" else ""
            one.note = f"{cut}contaminated by {row['set']} item {row['item_id'].hex()}: {text!r}"
    gone = {i.hex() for a in artifacts(build, "exclude", "excluded") for i in named(build, a, wanted)}
    for one in found.values():
        if one.document_id in gone:
            one.status, one.note = "excluded", "by the recipe's `exclude`, by name or as a copy of what it names"


def artifacts(build: Build, stage: str, name: str) -> Iterator[Artifact]:
    """All outputs of a stage whose name starts with `name`."""
    for _, record in build.records(stage):
        yield from record.named(name)


def dropped(build: Build, wanted: pa.Array) -> Iterator[tuple[str, str, str, bool]]:
    """(id, id kept, its source, whether nearly the same) of duplicates that were dropped, of the documents wanted."""
    seen = set()
    for artifact in artifacts(build, "dedup", "drops-"):
        if artifact.path not in seen:  # all slices of one file
            seen.add(artifact.path)
            whole = Artifact(artifact.path, "")
            table = build.table(whole, ["document_id", "kept_id", "kept_source", "near"])
            for row in table.filter(pc.is_in(table["document_id"], value_set=wanted)).to_pylist():
                yield row["document_id"].hex(), row["kept_id"].hex(), row["kept_source"], row["near"]


def contaminated(build: Build, wanted: pa.Array) -> Iterator[dict[str, Any]]:
    """The evidence against each of the documents wanted that was dropped or cut for it."""
    for artifact in artifacts(build, "decontaminate", "evidence-"):
        table = build.table(artifact)
        yield from table.filter(pc.is_in(table["document_id"], value_set=wanted)).to_pylist()


def named(build: Build, artifact: Artifact, wanted: pa.Array) -> list[bytes]:
    """Which of the documents wanted a table of ids holds."""
    column = build.table(artifact, ["document_id"])["document_id"]
    return list(column.filter(pc.is_in(column, value_set=wanted)).to_pylist())
