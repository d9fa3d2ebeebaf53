"""What an evaluation found, a row a document and a row a question: `evaluation.npz` in a run's folder.

Means of two runs say how far they are apart, and not how sure that is. For that `python -m pipeline compare` pairs runs
document by document and question by question. The file is numpy's, without pickle:

    about                  one string of JSON: what was scored, by which weights, and how
    documents/<shard>      (documents, 3) float64: nats, bytes and targets scored of each document of a shard held out
    ids/<shard>            (documents, 16) uint8: document ids; left out with the next two where pyarrow is not there
    parts/<shard>          (documents,) int32: which piece of a document longer than a shard, from 0
    clusters/<shard>       (documents,) uint64: equal for documents that are of one work
    items/<set>            (questions, 4) float64: right, right by acc_norm, choice_nats, bits per byte of the answer
    names/<set>            (questions,) ids of the questions, as text
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.data.index import read_shard_index
from train.data.manifest import Manifest, ManifestError, Shard

FILE = "evaluation.npz"
LINE_OF_FILE = re.compile(r"L\d+$")  # an address of GitHub: lines of a file of data have nothing to do with each other


@dataclass(frozen=True)
class ScoredDocuments:
    """The documents of one validation shard, in its order."""

    shard: Shard
    first: int  # place of its first document among those of all shards
    starts: NDArray[np.int64]  # (documents,): first token of each
    sizes: NDArray[np.int64]  # (documents, 2): bytes and targets that are scored


def document_starts(manifest: Manifest) -> dict[str, NDArray[np.int64]]:
    """Return where documents begin in each shard that is held out, by its path; none where one's index is not whole."""
    if manifest.adopted:
        return {}
    try:
        return {s.path: read_shard_index(manifest, s).starts for s in manifest.shards if s.split == "val"}
    except ManifestError:
        return {}


def cluster_of(identity: bytes, url: str | None) -> int:
    """Return the number of the work that a document is of: equal for equal addresses up to `#`, and for its parts."""
    work, _, place = (url or "").partition("#")
    name = identity if not work or LINE_OF_FILE.match(place) else work.encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little")


def identities(manifest: Manifest, shard: Shard) -> dict[str, NDArray[Any]]:
    """Return `ids`, `parts` and `clusters` of a shard's documents; nothing where its rows cannot be read here."""
    try:
        import pyarrow.parquet as pq

        columns = ["document_id", "part", "url"]
        rows = pq.read_table(manifest.file(shard.rows), columns=columns, partitioning=None).to_pylist()
    except (ImportError, OSError, ValueError, ManifestError):  # pyarrow's errors are ValueErrors and OSErrors
        return {}
    return {
        "ids": np.frombuffer(b"".join(row["document_id"] for row in rows), np.uint8).reshape(-1, 16),
        "parts": np.array([row["part"] for row in rows], np.int32),
        "clusters": np.array([cluster_of(row["document_id"], row["url"]) for row in rows], np.uint64),
    }


def write_evaluation(
    path: Path,
    manifest: Manifest,
    documents: list[ScoredDocuments],
    nats: NDArray[np.float64],
    items: dict[str, tuple[list[str], NDArray[np.float64]]],
    about: dict[str, Any],
) -> None:
    """Write the file.

    nats: of all documents, shard after shard. items: ids and rows of each evaluation set. about: weights and windows.
    """
    arrays: dict[str, NDArray[Any]] = {}
    shards = {}
    for scored in documents:
        name, count = scored.shard.path, len(scored.starts)
        own = nats[scored.first : scored.first + count]
        arrays[f"documents/{name}"] = np.column_stack([own, scored.sizes.astype(np.float64)])
        arrays |= {f"{kind}/{name}": values for kind, values in identities(manifest, scored.shard).items()}
        shards[name] = {"source": scored.shard.source, "sha256": scored.shard.sha256}
    for name, (ids, rows) in items.items():
        arrays[f"items/{name}"], arrays[f"names/{name}"] = rows, np.array(ids)
    data = {
        **about,
        "build_id": manifest.build_id,
        "tokenizer_sha256": manifest.tokenizer.sha256,
        "sets": {entry.name: entry.sha256 for entry in manifest.evals if entry.name in items},
        "shards": shards,
    }
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        np.savez_compressed(file, about=np.array(json.dumps(data)), **arrays)  # type: ignore[arg-type]  # their names
    part.replace(path)


def read_evaluation(path: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return what the file is about, and its arrays by name. Raises ValueError and OSError where it is none."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files if name != "about"}
        about = json.loads(str(file["about"]))
    if not isinstance(about, dict) or not isinstance(about.get("shards"), dict):
        raise ValueError("not an evaluation of ours")
    return about, arrays
