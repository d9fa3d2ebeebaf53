"""What a source will give, from a small sample of it and before it is downloaded: for `plan`.

A source is cut into sampling units of one file each. Some are drawn with probability in proportion to their size, a few
hundred kilobytes of each are read by the source's own code, and pass through the source's own rules. Each draw
gives a rate (tokens per byte of input); their mean times the size of the source estimates its total, and their
spread the error: the estimator of Hansen and Hurwitz (1943) for sampling with probability proportional to size.
What is read is bounded, and nothing is written but to the folder that the caller gives and deletes.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.errors import DataError
from stages.filter.edits import parse_edits
from stages.filter.measure import measure_table
from stages.filter.parse import parse_rules
from stages.filter.verdict import columns_of_table, judge, measured_rules, numbers
from stages.filter.where import on_columns, shares, threshold_at, unlisted_rules, with_thresholds
from stages.hashing import is_validation
from stages.paths import is_remote
from stages.sources import arrow
from stages.sources.base import BadRow, BaseConfig, Row, SourceModule, SourceUnit
from stages.sources.contents import FormatError
from stages.sources.files import open_source
from stages.sources.parquet import columns_of, read_footer, what_is_wrong
from stages.sources.registry import SOURCES
from stages.sources.writer import rejection_reason, write_parts
from stages.task import Artifact, Task

Floats = NDArray[np.float64]

TEXT_BYTES = 2 << 20  # text of a source that goes through the rules and the tokenizer
FILE_BYTES = 2 << 20  # read of files that are streamed
GROUP_BYTES = 16 << 20  # a row group up to this size is read whole, of a larger one the beginning
MOST_BYTES = 64 << 20  # compressed, in a row group that is worth a sample
DRAWS = 16  # of local files
REMOTE_DRAWS = 4  # each costs a connection and a row group
SMALL_FILE_DRAWS = 40  # of files that are read whole: of Python modules some are all documentation, most have little
ZSTD_BLOCK = 128 << 10  # text that zstd gives or withholds at a time
# Student's t for two-sided 95 %, by degrees of freedom: two standard errors, and more where they are few.
STUDENT = {1: 12.7, 2: 4.3, 3: 3.2, 4: 2.8, 5: 2.6, 6: 2.5, 7: 2.4}


@dataclass(frozen=True)
class SamplingUnit:
    """One file of a source unit.

    `size` is in the unit's measure of input: bytes of the file, or of columns unpacked.
    """

    name: str
    params: dict[str, Any]
    artifact: Artifact
    size: float
    small: bool = False  # read whole


@dataclass
class Draw:
    """Documents that one draw gave: each with the bytes of input that it stands for."""

    share: float  # of the draws
    rows: list[Row] = field(default_factory=list)
    used: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Sample:
    """What was read of one source. Arrays run over the documents of the sample, but for `shares`."""

    size: float  # bytes of input in the whole source
    read: int  # bytes of files that were read for it
    bad: Counter[str]  # rows that are quarantined, by reason
    texts: list[str]
    text_bytes: Floats  # of UTF-8
    used: Floats  # bytes of input that each stands for
    draw: NDArray[np.int64]  # which draw gave it
    shares: Floats  # of the draws, by draw
    kept: NDArray[np.bool_]  # by the rules
    held_out: int  # of those kept, how many documents validation takes
    stored: float  # bytes in the store per byte of text

    @property
    def whole(self) -> bool:
        """Whether every document of the source is in the sample."""
        return bool(self.used.sum() >= self.size * (1 - 1e-9))


@dataclass(frozen=True)
class Estimate:
    """Of a whole source, before a budget. `error` is relative: 95 % of such samples are nearer."""

    documents: float
    text: float  # bytes
    kept: float  # documents
    kept_text: float
    tokens: float  # of kept documents, BOS included
    error: float


def sampling_units(units: list[SourceUnit]) -> list[SamplingUnit]:
    """Cut all units into files, in an order that says nothing about what is in them."""
    files = []
    for unit in units:
        input_bytes = sum(artifact.bytes for artifact in unit.inputs)
        for i, file in enumerate(unit.params["files"]):
            name = f"{unit.name} {i}"
            params = unit.params | {"files": [file]}
            if unit.file_bytes:  # one input stands for all files
                files.append(SamplingUnit(name, params, unit.inputs[0], unit.file_bytes[i], small=True))
                continue
            if "groups" in params:
                params["groups"] = [unit.params["groups"][i]]
            share = unit.inputs[i].bytes / input_bytes if input_bytes else 1 / len(unit.inputs)
            files.append(SamplingUnit(name, params, unit.inputs[i], unit.weight * share))
    return sorted(files, key=lambda file: hashlib.blake2b(file.name.encode(), digest_size=8).digest())


def draw(files: list[SamplingUnit], draws: int) -> Counter[int]:
    """Return how often each of `files` is drawn: systematic sampling, with probability proportional to size."""
    edges = np.cumsum([file.size for file in files])
    points = (np.arange(draws) + 0.5) / draws * edges[-1]
    return Counter(np.searchsorted(edges, points, side="right").clip(0, len(files) - 1).tolist())


@dataclass
class Reading:
    """Rows of one file, and how many bytes of input they stand for."""

    rows: list[Row | BadRow]
    used: float
    read: int  # bytes of files
    even: bool = False  # each row stands for as many bytes; else in proportion to its text


def read_groups(module: SourceModule, file: SamplingUnit, budget: float, draws: int) -> list[Reading]:
    """Read up to `draws` row groups of a parquet file, spread over it; of large ones the first `budget` bytes in all.

    Raises DataError for a damaged file, and for a row group that is too large for a sample.
    """
    path = file.artifact.path
    with open_source(file.artifact, file.params.get("options")) as stream:
        try:
            footer = read_footer(stream)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} {what_is_wrong(file.artifact, file.params, error)}") from error
    start, stop = file.params["groups"][0]
    stop = footer.num_row_groups if stop < 0 else stop
    if stop <= start:
        return []
    names = footer.schema.to_arrow_schema().names
    wanted = set(columns_of(file.params, names)) if "text" in file.params else set(names)
    unpacked = sum(footer.row_group(number).total_byte_size for number in range(start, stop))
    readings = []
    for number in sorted({start + int((k + 0.5) / draws * (stop - start)) for k in range(draws)}):
        group = footer.row_group(number)
        columns = [group.column(c) for c in range(group.num_columns)]
        read = sum(c.total_compressed_size for c in columns if c.path_in_schema.split(".")[0] in wanted)
        if read > MOST_BYTES:
            raise DataError(f"a row group of {path} has {read / 1e6:,.0f} MB: too much to read for a sample")
        rows = module.rows(reading_task(file.params | {"groups": [[number, number + 1]]}, file.artifact))
        used = file.size * group.total_byte_size / unpacked if unpacked else 0.0
        if group.total_byte_size <= GROUP_BYTES:
            readings.append(Reading(list(rows), used, read))
            continue
        first = first_rows(rows, budget / draws)
        before = sum(footer.row_group(n).num_rows for n in range(number))  # rows that `where` leaves out count too
        share = (first[-1].row + 1 - before) / group.num_rows if first else 1.0
        readings.append(Reading(first, used * share, read, even=True))
    return readings


def read_head(module: SourceModule, file: SamplingUnit, budget: float, folder: Path) -> Reading:
    """Read the first `budget` bytes of a file that can only be streamed: the rows that are complete in them.

    Raises DataError for a damaged file. `folder` is scratch space.
    """
    with open_source(file.artifact, file.params.get("options")) as stream:
        data = stream.read(int(budget))
        whole = len(data)
        if module is arrow and whole < file.artifact.bytes:
            while not (batches := arrow.complete_batches(data))[0] and len(data) < MOST_BYTES:
                if not (more := stream.read(len(data))):
                    break
                data += more
            whole = batches[1]  # the batch that the cut goes through gives no rows
    is_cut = len(data) < file.artifact.bytes
    name = Path(file.artifact.path).name
    head = folder / f"head.{name}"
    head.write_bytes(data)
    rows: list[Row | BadRow] = []
    try:
        for row in module.rows(reading_task(file.params, replace(file.artifact, path=str(head)))):
            rows.append(row)
    except DataError as error:
        if not is_cut or isinstance(error, FormatError):
            raise DataError(str(error).replace(str(head), file.artifact.path)) from error
    finally:
        head.unlink()
    if is_cut and rows and isinstance(rows[-1], BadRow):  # the line that the cut goes through
        rows.pop()
    text = sum(usable_bytes(row) for row in rows)
    # zstd holds back the block that the cut goes through, on average half of one.
    held = ZSTD_BLOCK / 2 if is_cut and name.lower().endswith((".zst", ".zstd")) else 0
    return Reading(rows, whole * (text / (text + held) if text else 1.0), len(data))


def reading_task(params: dict[str, Any], artifact: Artifact) -> Task:
    """Return a task that only reads `artifact`."""
    return Task(params, [artifact], Path(), "plan", attrgetter("path"))


def first_rows(rows: Iterable[Row | BadRow], text_bytes: float) -> list[Row | BadRow]:
    """Return the first rows, until their text has `text_bytes`."""
    first: list[Row | BadRow] = []
    for row in rows:
        first.append(row)
        text_bytes -= usable_bytes(row)
        if text_bytes <= 0:
            break
    return first


def usable_bytes(row: Row | BadRow) -> int:
    """Return the bytes of the row's text, 0 if it has none that can be used."""
    return 0 if isinstance(row, BadRow) or rejection_reason(row) else len(row.text.encode())


def read_file(module: SourceModule, file: SamplingUnit, draws: int, of: int, folder: Path) -> list[Reading]:
    """Read of a file what `draws` of all `of` draws ask for. Raises DataError when it cannot be read."""
    if "groups" in file.params:
        return read_groups(module, file, TEXT_BYTES * draws / of, draws)
    if file.small:
        size = int(file.size)
        return [Reading(list(module.rows(reading_task(file.params, file.artifact))), size, size)]
    return [read_head(module, file, FILE_BYTES * draws / of, folder)]


def thin_out(reading: Reading, text_bytes: float, share: float, parts: int, bad: Counter[str]) -> list[Draw]:
    """Take evenly spaced rows of a reading, about `text_bytes` of text, as up to `parts` draws of `share` together.

    Rows that cannot be used are counted in `bad`, by reason.
    """
    rows = []
    for row in reading.rows:
        reason = row.reason if isinstance(row, BadRow) else rejection_reason(row)
        if reason is None:
            assert isinstance(row, Row)
            rows.append(row)
        else:
            bad[reason] += 1
    sized = [(row, len(row.text.encode())) for row in rows]
    text = sum(size for _, size in sized)
    step = max(1, math.ceil(text / text_bytes))
    chosen = list(islice(sized, step // 2, None, step)) or sized
    number = max(1, min(parts, len(chosen)))
    draws = [Draw(share / number) for _ in range(number)]
    for i, (row, size) in enumerate(chosen):
        part = draws[i * number // len(chosen)]
        part.rows.append(row)
        part.used.append(reading.used / len(sized) if reading.even else reading.used * size / max(1, text))
    used = sum(sum(part.used) for part in draws)
    for part in draws if used else ():
        part.share = share * sum(part.used) / used  # so that their mean is the rate of the reading
    return draws


def draw_files(files: list[SamplingUnit]) -> tuple[int, Counter[int], dict[int, float]]:
    """Return (number of draws, how often each file is drawn, its share of the draws), files by their place in `files`.

    Of a local source so small that all of it is read, each file has its share of the source.
    """
    remote = any(is_remote(file.artifact.path) for file in files)
    draws = REMOTE_DRAWS if remote else SMALL_FILE_DRAWS if files[0].small else DRAWS
    drawn = draw(files, draws)
    size = sum(file.size for file in files)
    if remote or size > FILE_BYTES:
        return draws, drawn, {i: count / draws for i, count in drawn.items()}
    drawn = Counter({i: max(1, drawn[i]) for i in range(len(files))})
    return draws, drawn, {i: file.size / size for i, file in enumerate(files)}


def sample_source(config: BaseConfig, units: list[SourceUnit], folder: Path) -> Sample:
    """Read a sample of a source. Raises DataError, TransientError or OSError when it cannot be read.

    `folder` is scratch space.
    """
    module, files = SOURCES[config.kind], sampling_units(units)
    size = sum(file.size for file in files)
    if not size:
        raise DataError("its files are empty, or of a size that nobody knows before they are read")
    of, drawn, shares = draw_files(files)
    bad: Counter[str] = Counter()
    draws: list[Draw] = []
    read = 0
    for i, count in sorted(drawn.items()):
        readings = read_file(module, files[i], count, of, folder)
        for reading in readings:
            read += reading.read
            share = shares[i] / len(readings)
            draws += thin_out(reading, TEXT_BYTES * share, share, count if len(readings) == 1 else 1, bad)
    rows = [row for part in draws for row in part.rows]
    if not rows:
        number = bad.total()
        reason = f"none of its {number:,} rows can be used ({bad.most_common(1)[0][0]})" if bad else "it has no rows"
        raise DataError(f"in the sample {reason}; check what it points at")
    kept, held_out, stored = filter_rows(config, files[0].params.get("meta", {}), rows, folder)
    return Sample(
        size=size,
        read=read,
        bad=bad,
        texts=[kept.get((row.file, row.row), row.text) for row in rows],
        text_bytes=np.array([len(row.text.encode()) for row in rows], float),
        used=np.array([used for part in draws for used in part.used], float),
        draw=np.repeat(np.arange(len(draws)), [len(part.rows) for part in draws]),
        shares=np.array([part.share for part in draws], float),
        kept=np.array([(row.file, row.row) in kept for row in rows], bool),
        held_out=held_out,
        stored=stored,
    )


def filter_rows(
    config: BaseConfig, meta: dict[str, str], rows: list[Row], folder: Path
) -> tuple[dict[tuple[str, int], str], int, float]:
    """Write, measure and judge `rows` by the code that a run uses.

    Returns the text of each row that is kept, by (file, row), how many of these are held out for validation, and bytes
    in the store per byte of text. `meta` is the parameter of that name of the rows' units; `folder` is scratch space.
    """
    download = Task({"meta": meta}, [], folder, "download", attrgetter("path"))
    write_parts(download, rows)
    parts = [artifact for artifact in download.outputs if artifact.name.startswith("part-")]
    rules = parse_rules(config.rules, config.words)
    measuring = measured_rules([*rules, *parse_rules(unlisted_rules(rules), config.words)])
    tables = [pq.read_table(part.path).combine_chunks() for part in parts]
    measured = [measure_table(table, measuring, parse_edits(config.edit)) for table in tables]
    columns = [columns_of_table(measures) for measures, _ in measured]
    rules = on_columns(rules, columns[0] if columns else ())
    values = {name: np.concatenate([numbers(each[name]) for each in columns]) for name, _, _ in shares(rules)}
    values = {name: column[~np.isnan(column)] for name, column in values.items()}
    rules = with_thresholds(rules, [threshold_at(values[name], edge, share) for name, edge, share in shares(rules)])
    kept: dict[tuple[str, int], str] = {}
    held_out = 0
    for table, (_, texts), known in zip(tables, measured, columns, strict=True):
        stays = pa.array(judge(known, rules).codes == 0)
        held_out += int(is_validation(table["document_id"].filter(stays)).sum())
        names, places = (table[name].filter(stays).to_pylist() for name in ("source_file", "source_row"))
        kept.update(zip(zip(names, places, strict=True), texts.filter(stays).to_pylist(), strict=True))
    text = sum(len(row.text.encode()) for row in rows)
    return kept, held_out, sum(Path(part.path).stat().st_size for part in parts) / max(1, text)


def estimate(sample: Sample, tokens: Floats) -> Estimate:
    """Estimate totals of the source, given the tokens of each document of the sample."""
    kept = sample.kept
    measures = np.stack(
        [np.ones_like(sample.text_bytes), sample.text_bytes, kept, sample.text_bytes * kept, tokens * kept]
    )
    n = len(sample.shares)
    used = np.bincount(sample.draw, sample.used, n)
    rates = np.stack([np.bincount(sample.draw, m, n) for m in measures]) / np.where(used > 0, used, 1.0)
    share = sample.shares / sample.shares.sum()
    mean = rates @ share
    documents, text, kept_documents, kept_text, total = (float(m) * sample.size for m in mean)
    spread = (rates[-1] - mean[-1]) * share
    unread = max(0.0, 1 - float(sample.used.sum()) / sample.size)
    error = 0.0
    if n > 1:
        error = math.sqrt(n / (n - 1) * float(spread @ spread) * unread) * STUDENT.get(n - 1, 2.1)
    elif unread:
        error = float(mean[-1])  # one draw says nothing of its own error
    return Estimate(documents, text, kept_documents, kept_text, total, error / float(mean[-1]) if mean[-1] else 0.0)
