"""What a source will give, from a small sample of it and before it is downloaded: for `plan`.

A source is cut into pieces of one file each. Some are drawn with probability in proportion to their size, a few
hundred kilobytes of each are read by the source's own code, and pass through the source's own rules. Each draw
gives a rate (tokens per byte of input); their mean times the size of the source estimates its total, and their
spread the error: the estimator of Hansen and Hurwitz (1943) for sampling with probability proportional to size.
What is read is bounded, and nothing is written but to the folder that the caller gives and deletes.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stages.dedup import work as dedup
from stages.dedup.keys import write_keys
from stages.errors import DataError
from stages.filter import work as apply_rules
from stages.filter.edits import parse_edits
from stages.filter.rules import parse_rules
from stages.paths import is_remote
from stages.sources.base import BadRow, BaseConfig, Row, SourceUnit
from stages.sources.files import opened
from stages.sources.parquet import columns_of
from stages.sources.registry import SOURCES
from stages.sources.writer import reject, write_parts
from stages.task import Task

TEXT_BYTES = 2 << 20  # text of a source that goes through the rules and the tokenizer
FILE_BYTES = 2 << 20  # read of files that are streamed
GROUP_BYTES = 16 << 20  # a row group up to this size is read whole, of a larger one the beginning
MOST_BYTES = 64 << 20  # compressed, in a row group that is worth a sample
DRAWS = 16  # of local files
REMOTE_DRAWS = 4  # each costs a connection and a row group
CODE_DRAWS = 40  # of Python modules, some all documentation and most with little
ZSTD_BLOCK = 128 << 10  # text that zstd gives or withholds at a time
NEAR = {"ngram": 5, "bands": 14, "rows": 8}  # what near-duplicates are found with by default: only time is measured
# Student's t for two-sided 95 %, by degrees of freedom: two standard errors, and more where they are few.
STUDENT = {1: 12.7, 2: 4.3, 3: 3.2, 4: 2.8, 5: 2.6, 6: 2.5, 7: 2.4}


@dataclass(frozen=True)
class Piece:
    """One file of a unit. `weight` is in the unit's measure of input: bytes of the file, or of columns unpacked."""

    name: str
    params: dict[str, Any]
    artifact: Any
    weight: float


@dataclass
class Chunk:
    """Documents that one draw gave: each with the bytes of input that it stands for."""

    share: float  # of the draws
    rows: list[Row] = field(default_factory=list)
    used: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Sample:
    """What was read of one source. Arrays run over the documents of the sample."""

    weight: float  # bytes of input in the whole source
    read: int  # bytes of files that were read for it
    rows: int  # good and bad
    bad: Counter[str]  # rows that are quarantined, by reason
    texts: list[str]
    sizes: NDArray[np.float64]  # bytes of UTF-8
    used: NDArray[np.float64]  # bytes of input that each stands for
    chunk: NDArray[np.int64]
    shares: NDArray[np.float64]  # of the draws, by chunk
    kept: NDArray[np.bool_]  # by the rules
    dropped: Counter[str]
    seconds: dict[str, float]  # per byte of text, by stage
    stored: float  # bytes in the store per byte of text


@dataclass(frozen=True)
class Estimate:
    """Of a whole source, before a budget. `error` is relative: 95 % of such samples are nearer."""

    documents: float
    text: float  # bytes
    kept: float  # documents
    kept_text: float
    tokens: float  # of kept documents, BOS included
    error: float


def pieces_of(specs: list[SourceUnit]) -> list[Piece]:
    """All units cut into files, in an order that says nothing about what is in them."""
    found = []
    for spec in specs:
        if "package" in spec.params:
            root = Path(spec.inputs[0].path)
            for name in spec.params["files"]:
                params = spec.params | {"files": [name]}
                found.append(Piece(f"{spec.name} {name}", params, spec.inputs[0], (root / name).stat().st_size))
            continue
        size = sum(a.bytes for a in spec.inputs)
        for i, artifact in enumerate(spec.inputs):
            params = spec.params | {k: [spec.params[k][i]] for k in ("files", "groups") if k in spec.params}
            share = artifact.bytes / size if size else 1 / len(spec.inputs)
            found.append(Piece(f"{spec.name} {i}", params, artifact, spec.weight * share))
    return sorted(found, key=lambda p: hashlib.blake2b(p.name.encode(), digest_size=8).digest())


def draw(pieces: list[Piece], draws: int) -> Counter[int]:
    """How often each piece is drawn: systematic sampling, with probability proportional to size."""
    edges = np.cumsum([p.weight for p in pieces])
    places = (np.arange(draws) + 0.5) / draws * edges[-1]
    return Counter(np.searchsorted(edges, places, side="right").clip(0, len(pieces) - 1).tolist())


@dataclass
class Reading:
    """The rows of one piece, and how many bytes of input they stand for."""

    rows: list[Row | BadRow]
    used: float
    read: int  # bytes of files
    even: bool = False  # each row stands for as many bytes; else in proportion to its text


def read_groups(module: ModuleType, piece: Piece, budget: float, draws: int) -> list[Reading]:
    """Up to `draws` row groups of a parquet file, spread over the piece; of a large one the first `budget` bytes."""
    path = piece.artifact.path
    with opened(piece.artifact, piece.params.get("options")) as stream:
        try:
            footer = pq.ParquetFile(stream).metadata
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path} is damaged ({str(error)[:100]}); fetch the file again") from error
    start, stop = piece.params["groups"][0]
    stop = footer.num_row_groups if stop < 0 else stop
    names = footer.schema.to_arrow_schema().names
    wanted = set(columns_of(piece.params, names)) if "text" in piece.params else set(names)
    whole = sum(footer.row_group(g).total_byte_size for g in range(start, stop))
    found = []
    for g in sorted({start + int((k + 0.5) / draws * (stop - start)) for k in range(draws)}) if stop > start else ():
        group = footer.row_group(g)
        columns = [group.column(c) for c in range(group.num_columns)]
        read = sum(c.total_compressed_size for c in columns if c.path_in_schema.split(".")[0] in wanted)
        if read > MOST_BYTES:
            raise DataError(f"a row group of {path} has {read / 1e6:,.0f} MB: too much to read for a sample")
        rows = module.rows(task_of(piece.params | {"groups": [[g, g + 1]]}, piece))
        used = piece.weight * group.total_byte_size / whole if whole else 0.0
        if group.total_byte_size <= GROUP_BYTES:
            found.append(Reading(list(rows), used, read))
        else:
            first = until(rows, budget / draws)
            before = sum(footer.row_group(n).num_rows for n in range(g))  # rows that `where` leaves out count too
            share = (first[-1].row + 1 - before) / group.num_rows if first else 1.0
            found.append(Reading(first, used * share, read, even=True))
    return found


def read_head(module: ModuleType, piece: Piece, budget: float, folder: Path) -> Reading:
    """The first `budget` bytes of a file that can only be streamed, and the rows that are complete in them."""
    with opened(piece.artifact, piece.params.get("options")) as stream:
        data = stream.read(int(budget))
    cut = len(data) < piece.artifact.bytes
    name = Path(piece.artifact.path).name
    head = folder / f"head.{name}"
    head.write_bytes(data)
    rows: list[Row | BadRow] = []
    try:
        for row in module.rows(task_of(piece.params, piece, str(head))):
            rows.append(row)
    except DataError:
        if not cut:
            raise
    finally:
        head.unlink()
    if cut and rows and isinstance(rows[-1], BadRow):  # the line that the cut goes through
        rows.pop()
    text = sum(size_of(row) for row in rows)
    # zstd holds back the block that the cut goes through, on average half of one.
    held = ZSTD_BLOCK / 2 if cut and name.endswith(".zst") else 0
    return Reading(rows, len(data) * (text / (text + held) if text else 1.0), len(data))


def task_of(params: dict[str, Any], piece: Piece, path: str = "") -> Task:
    """A task that only reads."""
    artifact = replace(piece.artifact, path=path) if path else piece.artifact
    return Task(params, [artifact], Path(), "plan", lambda a: a.path)


def until(rows: Iterable[Row | BadRow], size: float) -> list[Row | BadRow]:
    """The first rows, until their text has `size` bytes."""
    found: list[Row | BadRow] = []
    for row in rows:
        found.append(row)
        size -= size_of(row)
        if size <= 0:
            break
    return found


def size_of(row: Row | BadRow) -> int:
    """Bytes of the row's text, 0 if it has none that can be used."""
    return 0 if isinstance(row, BadRow) or reject(row) else len(row.text.encode())


def read_piece(module: ModuleType, piece: Piece, draws: int, of: int, folder: Path) -> list[Reading]:
    """What `draws` of `of` draws read of a piece. Raises DataError when it cannot be read."""
    if "groups" in piece.params:
        return read_groups(module, piece, TEXT_BYTES * draws / of, draws)
    if "package" in piece.params:
        size = int(piece.weight)
        return [Reading(list(module.rows(task_of(piece.params, piece))), size, size)]
    return [read_head(module, piece, FILE_BYTES * draws / of, folder)]


def thin(reading: Reading, limit: float, share: float, pieces: int, bad: Counter[str]) -> list[Chunk]:
    """Evenly spaced rows of a reading, about `limit` bytes of text, as `pieces` chunks; bad rows are counted."""
    good = []
    for row in reading.rows:
        reason = row.reason if isinstance(row, BadRow) else reject(row)
        if reason is None:
            assert isinstance(row, Row)
            good.append(row)
        else:
            bad[reason] += 1
    sizes = [len(row.text.encode()) for row in good]
    text = sum(sizes)
    step = max(1, math.ceil(text / limit))
    chosen = list(islice(zip(good, sizes, strict=True), step // 2, None, step)) or list(zip(good, sizes, strict=True))
    number = max(1, min(pieces, len(chosen)))
    chunks = [Chunk(share / number) for _ in range(number)]
    for i, (row, size) in enumerate(chosen):
        chunk = chunks[i * number // len(chosen)]
        chunk.rows.append(row)
        chunk.used.append(reading.used / len(good) if reading.even else reading.used * size / max(1, text))
    whole = sum(sum(chunk.used) for chunk in chunks)
    for chunk in chunks if whole else ():
        chunk.share = share * sum(chunk.used) / whole  # so that their mean is the rate of the reading
    return chunks


def sample_source(config: BaseConfig, specs: list[SourceUnit], folder: Path) -> Sample:
    """Read a sample of a source whose units are `specs`. Raises DataError (or an OSError) when it cannot be read."""
    kind: str = config.kind
    module, pieces = SOURCES[kind], pieces_of(specs)
    weight = sum(p.weight for p in pieces)
    if kind == "hub_dataset":
        raise DataError("what `datasets` streams has no known size, so nothing is predicted of it")
    if not weight:
        raise DataError("its files are empty")
    remote = any(is_remote(p.artifact.path) for p in pieces)
    draws = CODE_DRAWS if "package" in pieces[0].params else REMOTE_DRAWS if remote else DRAWS
    drawn = draw(pieces, draws)
    if not remote and weight <= FILE_BYTES:  # so little that all is read
        drawn = Counter({i: max(1, drawn[i]) for i in range(len(pieces))})
        shares = {i: pieces[i].weight / weight for i in drawn}
    else:
        shares = {i: n / draws for i, n in drawn.items()}
    bad: Counter[str] = Counter()
    chunks: list[Chunk] = []
    read = rows = 0
    started = time.perf_counter()
    readings = {i: read_piece(module, pieces[i], n, draws, folder) for i, n in sorted(drawn.items())}
    seconds = time.perf_counter() - started
    text = sum(size_of(row) for r in readings.values() for one in r for row in one.rows)
    for i, found in readings.items():
        read += sum(r.read for r in found)
        rows += sum(len(r.rows) for r in found)
        for reading in found:
            limit = TEXT_BYTES * shares[i] / len(found)
            chunks += thin(reading, limit, shares[i] / len(found), drawn[i] if len(found) == 1 else 1, bad)
    sample = Sample(
        weight=weight,
        read=read,
        rows=rows,
        bad=bad,
        texts=[row.text for c in chunks for row in c.rows],
        sizes=np.array([len(row.text.encode()) for c in chunks for row in c.rows], float),
        used=np.array([u for c in chunks for u in c.used], float),
        chunk=np.repeat(np.arange(len(chunks)), [len(c.rows) for c in chunks]),
        shares=np.array([c.share for c in chunks], float),
        kept=np.empty(0, bool),
        dropped=Counter(),
        seconds={"download": seconds / max(1, text)},
        stored=0.0,
    )
    if not sample.texts:
        reason = f"none of its {rows:,} rows can be used ({bad.most_common(1)[0][0]})" if bad else "it has no rows"
        raise DataError(f"in the sample {reason}; check what it points at")
    return filtered(sample, config, module, pieces[0].params, [row for c in chunks for row in c.rows], folder)


def filtered(
    sample: Sample, config: BaseConfig, module: ModuleType, params: dict[str, Any], rows: list[Row], folder: Path
) -> Sample:
    """The sample written and filtered by the code that a run uses: what is kept, how long it takes, how large it is."""
    meta = {"meta": params.get("meta", {})}
    text = float(sample.sizes.sum()) or 1.0
    started = time.perf_counter()
    download = Task(meta, [], folder, "download", lambda a: a.path)
    write_parts(download, rows)
    written = time.perf_counter()
    parts = [a for a in download.outputs if a.name.startswith("part-")]
    kept: dict[tuple[str, int], str] = {}
    dropped: Counter[str] = Counter()
    spent = 0.0
    for part in parts:
        rules = {"rules": [list(rule) for rule in parse_rules(config.rules)], "edit": parse_edits(config.edit)}
        task = Task(rules, [part], folder, f"filter-{part.name}", lambda a: a.path)
        apply_rules.work(task)
        table = pq.read_table(task.outputs[0].path, columns=["source_file", "source_row", "text"])
        curate = Task(
            {"source": ""}, [replace(task.outputs[0], name="docs")], folder, f"dedup-{part.name}", lambda a: a.path
        )
        moment = time.perf_counter()
        write_keys(Task({"near": NEAR}, curate.inputs, folder, f"sign-{part.name}", lambda a: a.path))
        dedup.work(curate)
        spent += time.perf_counter() - moment
        files, numbers, texts = (column.to_pylist() for column in table.columns)
        kept.update(zip(zip(files, numbers, strict=True), texts, strict=True))
        dropped.update({k.removeprefix("dropped."): n for k, n in task.counts.items() if k.startswith("dropped.")})
    done = time.perf_counter()
    seconds = sample.seconds | {
        "download": sample.seconds["download"] + (written - started) / text,
        "filter": (done - written - spent) / text,
        "dedup": spent / text,
    }
    return replace(
        sample,
        texts=[kept.get((row.file, row.row), row.text) for row in rows],
        kept=np.array([(row.file, row.row) in kept for row in rows], bool),
        dropped=dropped,
        seconds=seconds,
        stored=sum(Path(part.path).stat().st_size for part in parts) / text,
    )


def estimate(sample: Sample, tokens: NDArray[np.float64]) -> Estimate:
    """Totals of the source, given the tokens of each document of the sample."""
    measures = np.stack(
        [np.ones_like(sample.sizes), sample.sizes, sample.kept, sample.sizes * sample.kept, tokens * sample.kept]
    )
    n = len(sample.shares)
    used = np.bincount(sample.chunk, sample.used, n)
    rates = np.stack([np.bincount(sample.chunk, m, n) for m in measures]) / np.where(used > 0, used, 1.0)
    share = sample.shares / sample.shares.sum()
    mean = rates @ share
    documents, text, kept, kept_text, total = (float(m) * sample.weight for m in mean)
    spread = (rates[-1] - mean[-1]) * share
    left = max(0.0, 1 - float(sample.used.sum()) / sample.weight)
    error = math.sqrt(n / (n - 1) * float(spread @ spread) * left) * STUDENT.get(n - 1, 2.1) if n > 1 else 0.0
    if n == 1 and left:
        error = float(mean[-1])  # one draw says nothing of its own error
    return Estimate(documents, text, kept, kept_text, total, error / float(mean[-1]) if mean[-1] else 0.0)
