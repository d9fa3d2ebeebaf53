"""Documents that the rules kept: rows of the table that has their text, which is not written again for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from stages.schemas import ID

# A row a kept document, in the order of the table that has its text.
KEPT = pa.schema([("row", pa.int64()), ("document_id", ID), ("text_hash", ID)])  # `row`: of that table


def kept_rows(path: str) -> npt.NDArray[np.int64]:
    """Return the rows that a table (KEPT) names."""
    return pq.read_table(path, columns=["row"])["row"].to_numpy()


def read_rows(path: str, rows: npt.NDArray[np.int64], columns: Sequence[str]) -> Iterator[tuple[slice, pa.Table]]:
    """Yield some rows of a table of documents, a row group at a time, each with the slice of `rows` that it holds.

    rows: in order. A row group that has none of them is not read.
    """
    file = pq.ParquetFile(path)
    first = done = 0
    for group in range(file.num_row_groups):
        size = file.metadata.row_group(group).num_rows
        stop = int(np.searchsorted(rows, first + size))
        if stop > done:
            table = file.read_row_group(group, columns=list(columns))
            if stop - done < size:
                table = table.take(pa.array(rows[done:stop] - first))
            yield slice(done, stop), table
        first, done = first + size, stop
