"""What is known of a build that is published: from its manifest, its records, and the files beside it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from pipeline.commands.open_build import open_build
from pipeline.commands.stored_records import records_beside
from pipeline.errors import UserError
from stages.registry import STAGES
from train.checkpoint.load_model import TrainedModel, open_trained_model
from train.config import TrainError
from train.data.manifest import Manifest, ManifestError, Source

CURATED = "curated"


@dataclass(frozen=True)
class Facts:
    """A build, the curated text beside it, and when its sources were fetched."""

    manifest: Manifest
    text: Mapping[str, Path]  # name -> file of curated documents; empty where they are gone
    documents: dict[str, int]  # source -> curated documents; of `text`
    text_bytes: int  # of the files of `text`
    fetched: tuple[datetime.date, datetime.date] | None  # first and last day; None where the records are gone

    @property
    def sources(self) -> list[Source]:
        """Return the sources that gave tokens, the largest first."""
        return sorted((s for s in self.manifest.sources if s.tokens), key=lambda s: (-s.tokens, s.name))


def gather(address: str) -> Facts:
    """Return what is known of the build whose manifest is at `address`.

    Raises UserError where nothing is known of it, or where the text beside it is of another build; ManifestError.
    """
    manifest = open_build(address)
    if manifest.adopted:
        raise UserError(
            f"{address}: these shards were made elsewhere and adopted: there are no records to publish from"
        )
    text = manifest.beside(CURATED)
    documents: dict[str, int] = {}
    for name, path in text.items():
        of = name.rpartition("-")[0]
        documents[of] = documents.get(of, 0) + pq.read_metadata(path).num_rows
    for source in manifest.sources:
        if text and documents.get(source.name, 0) != source.rows_kept:
            raise UserError(
                f"{address}: {CURATED}/ beside it has {documents.get(source.name, 0):,} documents of {source.name}, "
                f"this build kept {source.rows_kept:,}: it is another build's; bring it back: {manifest.pack_command()}"
            )
    return Facts(manifest, text, documents, sum(path.stat().st_size for path in text.values()), days_of(manifest))


def days_of(manifest: Manifest) -> tuple[datetime.date, datetime.date] | None:
    """Return the first and the last day on which a build's sources were read; None where the records are gone."""
    stored = records_beside(manifest)
    readers = [name for name, stage in STAGES.items() if stage.reads_files]
    finished = [record.finished for name in readers for record in stored.records(name)]
    days = [datetime.datetime.fromtimestamp(seconds, datetime.UTC).date() for seconds in finished]
    return (min(days), max(days)) if days else None


@dataclass(frozen=True)
class Training:
    """How the weights of a model came to be: its phases, the first one first, and what they began from."""

    phases: list[TrainedModel]
    began_from: str  # "" for random weights; else weights of which nothing more is known

    @property
    def model(self) -> TrainedModel:
        """Return the model that came out of the last phase."""
        return self.phases[-1]


def trace_training(run: str) -> Training:
    """Return the phases behind a run, each by its `train.init_from`. Raises TrainError and ManifestError for `run`."""
    phases, seen = [open_trained_model(run)], set()
    while began := str(phases[0].point.state["identity"]["train"].get("init_from") or ""):
        if began in ("", "none"):
            return Training(phases, "")
        try:
            if began in seen:
                break
            seen.add(began)
            phases.insert(0, open_trained_model(began))
        except (TrainError, ManifestError, OSError):
            break
    return Training(phases, Path(began).name)


def tokens_read(phase: TrainedModel) -> int:
    """Return the tokens that a phase's steps read, repeats included."""
    train = phase.point.state["identity"]["train"]
    return int(phase.point.step * train["batch_size"] * train["seq_len"])
