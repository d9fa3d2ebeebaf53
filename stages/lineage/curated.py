"""The curated text of documents: `curated/`, beside a manifest's folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stages.schemas import ID
from train.data.manifest import Manifest


def curated_folder(manifest: Manifest) -> Mapping[str, Path]:
    """Return the files of `curated/` beside the manifest's folder, by name; none if it is not there."""
    return manifest.beside("curated")


def curated_files(folder: Mapping[str, Path], source: str | None = None) -> Iterator[Path]:
    """Yield the parts of one source, or of all, in order."""
    for name in sorted(folder):
        if name.endswith(".parquet") and (source is None or name.rpartition("-")[0] == source):
            yield folder[name]


def curated_texts(folder: Mapping[str, Path], ids: Mapping[str, set[bytes]]) -> dict[tuple[str, bytes], str]:
    """Return the text of documents by (source, document id). `ids`: which, by source.

    Reads ids, then only the row groups it must.
    """
    texts: dict[tuple[str, bytes], str] = {}
    for source, wanted in sorted(ids.items()):
        values = pa.array(sorted(wanted), ID)
        for path in curated_files(folder, source):
            file = pq.ParquetFile(path)
            for group in range(file.num_row_groups):
                column = file.read_row_group(group, columns=["document_id"])["document_id"]
                rows = np.flatnonzero(pc.is_in(column, value_set=values).to_numpy())
                if not len(rows):
                    continue
                table = file.read_row_group(group, columns=["document_id", "text"]).take(pa.array(rows))
                for identity, text in zip(*(column.to_pylist() for column in table.columns), strict=True):
                    texts[source, identity] = text
    return texts
