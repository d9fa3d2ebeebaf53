"""Which source each document of a training shard is of: what the rows table beside it says, which pyarrow reads."""

from __future__ import annotations

import importlib.util

import numpy as np
from numpy.typing import NDArray

from train.data.manifest import Manifest, ManifestError, Shard
from train.data.remote import RemoteManifest


def sources_to_tell(manifest: Manifest) -> tuple[list[str], str]:
    """Return the sources whose losses can be told apart, none where there is one alone, and why there is none.

    The reason is empty where there is nothing to tell apart.
    """
    names = [source.name for source in manifest.sources if source.tokens]
    if len(names) < 2 or manifest.adopted:
        return [], ""
    if importlib.util.find_spec("pyarrow") is None:
        return [], "the package pyarrow, which reads whose tokens these are, is not installed"
    if not isinstance(manifest, RemoteManifest):
        missing = [s.rows for s in manifest.split("train") if not manifest.path(s.rows).exists()]
        if missing:
            return [], f"{manifest.path(missing[0])}, which says whose tokens these are, is not there"
    return names, ""


def source_numbers(manifest: Manifest, shard: Shard, names: list[str]) -> NDArray[np.int16]:
    """Return the source of each document of a shard, (documents,), as its place in `names`.

    Raises ManifestError where the rows table is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = manifest.file(shard.rows)
    try:
        column = pq.read_table(path, columns=["source"], partitioning=None)["source"].combine_chunks()
        column = column.dictionary_encode()
        place_of = {name: place for place, name in enumerate(names)}
        places = np.array([place_of[name] for name in column.dictionary.to_pylist()], np.int16)
        if len(column) != shard.documents:
            raise ValueError(f"{len(column):,} documents, the manifest says {shard.documents:,}")
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ManifestError(
            f"{path}: damaged ({reason}); mend it with `{manifest.pack_command()} --force`, or delete it to train "
            "without losses by source"
        ) from None
    numbers: NDArray[np.int16] = places[column.indices.to_numpy()]
    return numbers
