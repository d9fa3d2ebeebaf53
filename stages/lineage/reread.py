"""Single rows of a source read again, through the very code that a download runs.

For lineage: `units` cuts the file that holds a row, `rows` reads it, so what comes back is what the download saw,
template and all. Nothing here is imported by a unit's work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from stages.errors import DataError, TransientError
from stages.sources.base import BadRow, BaseConfig, FilesConfig, Row, SourceModule, SourceUnit
from stages.sources.files import files_of, open_source
from stages.sources.parquet import read_footer
from stages.sources.registry import SOURCES
from stages.task import Task

ConfigT = TypeVar("ConfigT", bound=BaseConfig)


def with_path(config: ConfigT, path: str) -> ConfigT:
    """Return `config` with its files at `path` instead. Raises DataError for a source that has no path."""
    if not isinstance(config, FilesConfig):
        raise DataError(f"a source of kind {config.kind} has no path to replace; install its packages instead")
    return config.model_copy(update={"path": path})


def read_again(config: BaseConfig, wanted: Mapping[str, set[int]]) -> Iterator[Row | BadRow]:
    """Yield the wanted rows ({source_file: row numbers}), file by file, each file read once and no further than needed.

    A file that is not there, or that cannot be read, gives a BadRow with the reason for each row wanted of it.
    """
    module = SOURCES[config.kind]
    try:
        units_of = unit_finder(config, module)
    except DataError as error:
        yield from (BadRow(file, row, str(error)) for file in sorted(wanted) for row in sorted(wanted[file]))
        return
    for file, numbers in sorted(wanted.items()):
        missing = set(numbers)
        try:
            for row in rows_of(module, units_of(file), numbers):
                missing.discard(row.row)
                yield row._replace(file=file)
            reason = "the file has no such row"
        except (DataError, TransientError, OSError, pa.ArrowException) as error:
            reason = str(error)
        yield from (BadRow(file, row, reason) for row in sorted(missing))


def unit_finder(config: BaseConfig, module: SourceModule) -> Callable[[str], list[SourceUnit]]:
    """Return a function from a file's name in the lineage to the units that read that file alone.

    It raises DataError for a file that is not there. Raises DataError when the source cannot be listed.
    """
    if isinstance(config, FilesConfig):
        path_of = {name: full for full, name in files_of(config)}

        def in_files(file: str) -> list[SourceUnit]:
            if file not in path_of:
                raise DataError(f"no file {file} at {config.path}")
            return module.units(with_path(config, path_of[file]), unidentified)

        return in_files
    units = module.units(config, unidentified)

    def in_units(file: str) -> list[SourceUnit]:
        narrowed = [
            replace(unit, params={**unit.params, "files": [file]}) for unit in units if file in unit.params["files"]
        ]
        if not narrowed:
            raise DataError(f"no file {file} in this source")
        return narrowed

    return in_units


def unidentified(path: str) -> tuple[str, int]:
    """Return a digest and a size that say nothing: what is read again is not looked up by its contents."""
    return "", 0


def rows_of(module: SourceModule, units: list[SourceUnit], numbers: set[int]) -> Iterator[Row | BadRow]:
    """Yield the rows `numbers` of the one file that `units` read."""
    last = max(numbers)
    for unit in only_row_groups(units, numbers):
        for row in module.rows(Task(unit.params, unit.inputs, Path(), "", attrgetter("path"))):
            if row.row in numbers:
                yield row
            if row.row >= last:
                return


def only_row_groups(units: list[SourceUnit], numbers: set[int]) -> list[SourceUnit]:
    """Return units for the row groups that hold the rows `numbers` of a parquet file; of any other file `units`."""
    if not all("groups" in unit.params for unit in units):
        return units
    with open_source(units[0].inputs[0], units[0].params.get("options")) as stream:
        footer = read_footer(stream)
    narrowed, start = [], 0
    for group in range(footer.num_row_groups):
        stop = start + footer.row_group(group).num_rows
        if any(start <= n < stop for n in numbers):
            params = {**units[0].params, "groups": [[group, group + 1]]}
            narrowed.append(replace(units[0], params=params))
        start = stop
    return narrowed
