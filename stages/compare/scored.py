"""Trained runs as comparisons read them: what they were made of, and what their last evaluation found, row by row."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from stages.errors import DataError
from stages.lineage.rows import rows_table
from train.data.manifest import Manifest, ManifestError, load_manifest
from train.eval.rows import FILE, cluster_of, read_evaluation
from train.sealed import read_run_file

Key: TypeAlias = tuple[bytes, int]  # a document's id, and which part of it
HELD_OUT = "held out"  # what the documents of a mixture of one source are called


@dataclass(frozen=True)
class Document:
    """One document that was held out, as one run scored it."""

    source: str
    cluster: int
    nats: float
    bytes: int
    shard: str
    ordinal: int  # in that shard


@dataclass(frozen=True)
class ScoredRun:
    """A run: `facts` of its run.json, what its evaluation is `about`, and the rows of that."""

    name: str
    folder: Path
    facts: dict[str, Any]
    about: dict[str, Any]
    documents: dict[Key, Document]
    items: dict[str, dict[str, npt.NDArray[np.float64]]]  # by set and id of the question; see train/eval/rows.py

    @property
    def recipe(self) -> dict[str, Any]:
        """What makes runs ones of the same recipe: all but seeds, places and pace."""
        identity = self.facts["identity"]
        train = {key: value for key, value in identity["train"].items() if key != "seed"}
        data = {key: value for key, value in identity.items() if key not in ("model", "train")}
        return {"model": identity["model"], "train": {**train, "steps": self.facts["steps"]}, "data": data}

    @property
    def manifest(self) -> Manifest | None:
        """The manifest that it was trained on, where that is at hand and still the same build."""
        place = self.folder / str(self.facts.get("manifest", ""))
        for path in (place, Path(os.path.normpath(place))):
            try:
                manifest = load_manifest(path)
            except ManifestError:
                continue
            if manifest.build_id == self.about["build_id"]:
                return manifest
        return None


def open_scored(name: str) -> ScoredRun:
    """Read the run in the folder `name`, or the one that was trained on the manifest in it.

    Raises DataError that says what is missing and which command makes it.
    """
    folder = run_folder(name)
    again = f"make it with `python -m train.score {name} --rows`"
    return read_scored(name, folder / "run.json", folder / FILE, again)


def read_scored(name: str, run_file: Path, rows_file: Path, again: str) -> ScoredRun:
    """Read a run from its run.json and the rows of its evaluation. `again`: how to have these made again.

    Raises DataError that says what is missing.
    """
    folder = run_file.parent
    try:
        facts = read_run_file(run_file)
        facts["identity"]["train"], facts["identity"]["model"], facts["steps"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{run_file}: not a run.json of ours ({error})") from None
    try:
        about, arrays = read_evaluation(rows_file)
    except FileNotFoundError:
        raise DataError(f"{folder}: has no {FILE}, a row a document of its last evaluation; {again}") from None
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{rows_file}: damaged ({error}); {again}") from None
    run = ScoredRun(name, folder, facts, about, {}, items_of(arrays))
    try:
        run.documents.update(documents_of(run, arrays, again))
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"{rows_file}: damaged ({error}); {again}") from None
    return run


def run_folder(name: str) -> Path:
    """Return the folder of a run, or of the one trained on a manifest. Raises DataError where there is none."""
    if "://" in name:
        raise DataError(f"{name}: runs are compared from folders of this machine: copy run.json and {FILE} to one")
    path = Path(name)
    if (path / "run.json").exists():
        return path
    file = path / "manifest.json" if path.is_dir() else path
    if not file.exists():
        raise DataError(f"{name}: neither the folder of a run nor a manifest")
    manifest = load_manifest(file)
    trained = file.absolute().parent.parent / "train" / manifest.phase
    if not (trained / "run.json").exists():
        raise DataError(
            f"{name}: no run was trained on it at {trained}, and scores are of runs\n"
            "`python -m pipeline run train` trains one; `python -m pipeline diff A B` compares the data alone"
        )
    return trained


def documents_of(run: ScoredRun, arrays: Mapping[str, npt.NDArray[Any]], again: str) -> dict[Key, Document]:
    """Return the documents of which every byte was scored or some were, by key: each source's own, else the mixture's.

    again: how to have the file made again. Raises DataError where which documents they are cannot be told.
    """
    shards: dict[str, dict[str, Any]] = run.about["shards"]
    by_source = {path: said for path, said in shards.items() if said["source"]} or shards
    manifest: Manifest | None = None
    found: dict[Key, Document] = {}
    for path, said in by_source.items():
        figures = arrays[f"documents/{path}"]
        if f"ids/{path}" in arrays:
            ids = [row.tobytes() for row in arrays[f"ids/{path}"]]
            parts, clusters = arrays[f"parts/{path}"].tolist(), arrays[f"clusters/{path}"].tolist()
        else:
            manifest = manifest or run.manifest
            if manifest is None:
                raise DataError(
                    f"{run.folder}: which documents were scored it does not say, as pyarrow was not installed, and the "
                    f"build that it names is not there any more; {again} where pyarrow is"
                )
            shard = next(shard for shard in manifest.shards if shard.path == path)
            rows = rows_table(manifest, shard, ["document_id", "part", "url"]).to_pylist()
            ids, parts = [row["document_id"] for row in rows], [row["part"] for row in rows]
            clusters = [cluster_of(row["document_id"], row["url"]) for row in rows]
        for ordinal, (nats, size, targets) in enumerate(figures.tolist()):
            if targets and size:
                key = (ids[ordinal], parts[ordinal])
                source = said["source"] or HELD_OUT
                found[key] = Document(source, clusters[ordinal], nats, int(size), path, ordinal)
    return found


def items_of(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """Return the rows of each evaluation set by the ids of its questions."""
    return {
        name.removeprefix("items/"): dict(zip(arrays[name.replace("items/", "names/", 1)].tolist(), rows, strict=True))
        for name, rows in arrays.items()
        if name.startswith("items/")
    }
