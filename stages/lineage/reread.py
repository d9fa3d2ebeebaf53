"""Single rows of a source read again, through the very code that a download runs.

For lineage: `units` cuts the file that holds a row, `rows` reads it, so what comes back is what the download saw,
template and all. Nothing here is imported by a unit's work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.errors import DataError, TransientError
from stages.sources import installed_docs
from stages.sources.base import BadRow, BaseConfig, Row, SourceUnit
from stages.sources.files import files_of, opened
from stages.sources.registry import SOURCES
from stages.task import Task


def moved(config: Any, path: str) -> Any:
    """`config` with its files at `path` instead. Raises DataError for a source that has no path."""
    if not hasattr(config, "path"):
        raise DataError(f"a source of kind {config.kind} has no path to replace; install its packages instead")
    return config.model_copy(update={"path": path})


def read_again(config: BaseConfig, wanted: Mapping[str, set[int]]) -> Iterator[Row | BadRow]:
    """The wanted rows ({source_file: row numbers}), file by file, each file read once and no further than needed.

    A file that is not there, or that cannot be read, gives a BadRow with the reason for each row wanted of it.
    """
    kind: str = config.kind
    module = SOURCES[kind]
    try:
        places = locate(config, module)
    except DataError as error:
        yield from (BadRow(file, row, str(error)) for file in sorted(wanted) for row in sorted(wanted[file]))
        return
    for file, numbers in sorted(wanted.items()):
        left = set(numbers)
        try:
            for found in rows_of(config, module, file, places.get(file), left):
                left.discard(found.row)
                yield found._replace(file=file)
            reason = "the file has no such row"
        except (DataError, TransientError, OSError, pa.ArrowException) as error:
            reason = str(error)
        yield from (BadRow(file, row, reason) for row in sorted(left))


def locate(config: Any, module: ModuleType) -> dict[str, str]:
    """Full path of each file by its name in the lineage; empty for a source without paths. Raises DataError."""
    if not hasattr(config, "path"):
        return {}
    suffixes: tuple[str, ...] = module.SUFFIXES
    return {name: full for full, name in files_of(config, suffixes)}


def rows_of(config: Any, module: ModuleType, file: str, path: str | None, numbers: set[int]) -> Iterator[Row | BadRow]:
    """The rows `numbers` of one file. Raises DataError when it is not there."""
    if isinstance(config, installed_docs.Config):
        package, _, name = file.partition("/")
        root = installed_docs.package_folder(package)
        specs = [installed_docs.spec_of(config, package, root, [(name, "", 0)])]
    elif not hasattr(config, "path"):
        specs = [spec for spec in module.units(config, lambda _: ("", 0)) if file in spec.params["files"]]
    elif path is None:
        raise DataError(f"no file {file} at {config.path}")
    else:
        specs = narrowed(module.units(moved(config, path), lambda _: ("", 0)), numbers)
    last = max(numbers)
    for spec in specs:
        for row in module.rows(Task(spec.params, spec.inputs, Path(), "", lambda artifact: artifact.path)):
            if row.row in numbers:
                yield row
            if row.row >= last:
                return


def narrowed(specs: list[SourceUnit], numbers: set[int]) -> list[SourceUnit]:
    """Units that hold the rows: of parquet only the row groups that do, of anything else all."""
    if not all("groups" in spec.params for spec in specs):
        return specs
    with opened(specs[0].inputs[0], specs[0].params.get("options")) as stream:
        footer = pq.ParquetFile(stream).metadata
    found, start = [], 0
    for group in range(footer.num_row_groups):
        stop = start + footer.row_group(group).num_rows
        if any(start <= n < stop for n in numbers):
            params = {**specs[0].params, "groups": [[group, group + 1]]}
            found.append(replace(specs[0], params=params))
        start = stop
    return found
