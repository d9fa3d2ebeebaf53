"""Documents of one source, drawn by a hash of their ids, with what became of each and the figures that rules look at.

The draw is a threshold on a hash, so that the same documents are drawn from every table that a stage left, in every
build; of a small source they are all. What rules measured and decided stands in tables.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stages.filter.document import Document
from stages.filter.edits import apply_edits, parse_edits
from stages.filter.measure import measure_column, one_array
from stages.filter.parse import parse_rules
from stages.filter.rules import EDITING, RULES, ParsedRule
from stages.filter.verdict import BOUND_OF, REASONS_OF, columns_of_table, judge, measured_rules, numbers
from stages.filter.where import ON_MEASURES, RULE_OF
from stages.hashing import draw, is_validation
from stages.lineage.drop_reason import RecordReader
from stages.review.account import BUDGET, Judged, StoredBuild
from stages.review.figures import FIGURES
from stages.schemas import ID
from stages.selectors import select_documents
from stages.task import Artifact

TAG_REPORT = 0x2545F4914F6CDD1D  # of `stages.hashing.draw`: independent of all other draws
SHAPES = ("gopher_short_doc", "gopher_mean_word_length", "gopher_alphabetic", "gopher_repeated_line_chars")

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Sample:
    """The documents drawn from one source, by id, then place; arrays are of shape (documents,)."""

    source: str
    of: int  # documents that it was drawn from
    share: float  # of them that were drawn, 1 where all
    rules: Sequence[ParsedRule]
    edits: Sequence[str]
    parts: Sequence[Artifact]
    ids: Sequence[bytes]
    files: Sequence[str]
    part: Int64s  # which of `parts`
    row: Int64s  # of the part
    file_row: Int64s
    sizes: Int64s  # bytes of UTF-8
    chars: Int64s
    fate: Sequence[str]  # why it is not in the corpus, "" where it is
    held_out: Mask
    tokens: Int64s  # 0 where it has none
    hidden: Mask  # taken down: its text is not shown
    figures: Mapping[str, Floats]  # reason -> its figure, NaN where it was not measured
    scores: Mapping[str, Floats]  # by name, of those of the recipe
    stale: bool  # whether the recipe's rules would drop others than they did

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def kept(self) -> Mask:
        """Which documents are in the corpus."""
        return np.array([not fate for fate in self.fate], bool)

    def dropped_for(self, reason: str) -> Mask:
        """Return which documents a reason dropped."""
        return np.array([fate == reason for fate in self.fate], bool)

    def bytes_of(self, reason: str) -> float:
        """Return the bytes of the documents that a reason dropped, of the whole source."""
        return float(self.sizes[self.dropped_for(reason)].sum() / self.share)

    @property
    def edited(self) -> bool:
        """Whether its texts may be others after its rules."""
        return bool(self.edits) or any(name in EDITING for name, _ in self.rules)

    @property
    def whole(self) -> bool:
        """Whether it is all documents of the source."""
        return self.share == 1


def thresholds_of(sample: Sample, reason: str) -> dict[str, Any]:
    """Return the thresholds of the rule that a reason belongs to; the defaults of none are empty."""
    for name, thresholds in sample.rules:
        if reason in REASONS_OF.get(name, ()):
            return thresholds
    return {}


def as_reached(sample: Sample, reason: str, text: str) -> str:
    """Return a text of the source as the rule that a reason belongs to sees it: after edits, and rules that edit."""
    text = apply_edits(text, list(sample.edits)) if sample.edits else text
    for name, thresholds in sample.rules:
        if reason in REASONS_OF.get(name, ()):
            break
        if name in EDITING:
            outcome = RULES[name](Document(text, {}), **thresholds)
            text = outcome.text if isinstance(outcome, Document) else text
    return text


def reached(sample: Sample, reason: str) -> Mask:
    """Return which documents a reason of a compiled rule was asked about: those that nothing before it dropped."""
    order = {"": len(sample.rules) * 100}
    for i, (name, _) in enumerate(sample.rules):
        order.update({each: i * 100 + j for j, each in enumerate(REASONS_OF.get(name, ()))})
        if name not in REASONS_OF:
            order[name] = i * 100
    last = order[""]
    places = [order.get(fate, order.get(fate.partition("_")[0], last)) for fate in sample.fate]
    return np.array(places, np.int64) >= order[reason]


def draw_sample(
    reader: RecordReader, build: StoredBuild, recipe: Mapping[str, Any], source: str, of: int, limit: int
) -> Sample:
    """Draw about `limit` of the `of` documents of a source, and say what became of each."""
    config = recipe["sources"][source]
    rules = parse_rules(config.get("rules", []), config.get("words", "blanks"))  # builds before the key counted so
    share = min(1.0, limit / max(1, of))
    parts = build.downloaded.get(source, [])
    tables: list[pa.Table] = []
    for number, (part, judged) in enumerate(zip(parts, build.judged.get(source, []), strict=True)):
        rows = np.flatnonzero(drawn(reader.table(part, ["document_id"])["document_id"], share))
        if len(rows):
            table = described(reader.table(part).take(pa.array(rows)), number, rows, recipe.get("exclude", {}))
            table = table.append_column("reason", reasons_of(reader, judged, rows))
            measures = measures_of(reader, judged, rows, table["text"], config.get("words", "blanks"))
            tables.append(pa.table({**dict(zip(table.schema.names, table, strict=True)), **measures}).drop(["text"]))
    names = (*COLUMNS, "reason")
    table = pa.concat_tables(tables) if tables else pa.table({name: [] for name in names})
    table = table.sort_by([("document_id", "ascending"), ("part", "ascending"), ("row", "ascending")])
    columns: dict[str, Any] = {name: table[name].to_pylist() for name in ("document_id", "source_file", "reason")}
    counts = {name: table[name].to_numpy().astype(np.int64) for name in ("part", "row", "source_row", "size", "chars")}
    ids = columns["document_id"]
    places = list(zip(columns["source_file"], counts["source_row"].tolist(), strict=True))
    taken_down = ids_in(reader, build.excluded, pa.array(sorted(set(ids)), ID))  # copies among them
    fates, tokens = later_fates(reader, build, source, ids, places, columns["reason"])
    scores = [name for name in recipe.get("scores", {}) if name in table.schema.names]
    bare = Sample(
        source=source,
        of=of,
        share=share,
        rules=rules,
        edits=parse_edits(config.get("edit", [])),
        parts=parts,
        ids=ids,
        files=columns["source_file"],
        part=counts["part"],
        row=counts["row"],
        file_row=counts["source_row"],
        sizes=counts["size"],
        chars=counts["chars"],
        fate=fates,
        held_out=is_validation(ids) if ids else np.zeros(0, bool),
        tokens=tokens,
        hidden=np.array(
            [flag or i in taken_down for flag, i in zip(table["hidden"].to_pylist(), ids, strict=True)], bool
        ),
        figures={},
        scores={name: numbers(table[name].combine_chunks()) for name in scores},
        stale=bool(tables) and would_differ(table, rules),
    )
    return replace(bare, figures=figures_of(bare, table))


COLUMNS = ("document_id", "source_file", "source_row", "size", "chars", "hidden", "part", "row")


def drawn(ids: pa.ChunkedArray, share: float) -> Mask:
    """Return which documents belong to the sample of a share."""
    if share == 1:
        return np.ones(len(ids), bool)
    return draw(TAG_REPORT, ids) < np.uint64(int(share * 2**64))


def described(table: pa.Table, number: int, rows: Int64s, exclude: Mapping[str, Any]) -> pa.Table:
    """Return COLUMNS of downloaded documents, their place and size, and their `text`."""
    selectors = {name: exclude.get(name, []) for name in ("ids", "urls", "domains")}
    hidden = np.zeros(len(table), bool)
    if any(selectors.values()):
        hidden, _ = select_documents(table["document_id"], table["url"], **selectors)
    return pa.table(
        {
            "document_id": table["document_id"].combine_chunks(),
            "source_file": table["source_file"],
            "source_row": table["source_row"],
            "size": pc.binary_length(table["text"]),
            "chars": pc.utf8_length(table["text"]),
            "hidden": pa.array(hidden),
            "part": pa.array(np.full(len(table), number, np.int64)),
            "row": pa.array(rows),
            "text": table["text"],
        }
    )


def reasons_of(reader: RecordReader, judged: Judged, rows: Int64s) -> pa.Array:
    """Return the reason for which the rules dropped each of some rows of a part, or ""."""
    reasons = dict.fromkeys(rows.tolist(), "")
    if judged.ruled_out is not None:
        table = reader.table(judged.ruled_out, ["row", "reason"])
        table = table.filter(pc.is_in(table["row"], value_set=pa.array(rows)))
        reasons.update(zip(*(column.to_pylist() for column in table.columns), strict=True))
    return pa.array([reasons[row] for row in rows.tolist()], pa.string())


def measures_of(
    reader: RecordReader, judged: Judged, rows: Int64s, texts: pa.ChunkedArray, words: str
) -> dict[str, pa.Array]:
    """Return what was measured of some rows of a part; of what SHAPES need and no rule of the source asks, now."""
    known: dict[str, pa.Array] = {}
    if judged.measures is not None:
        table = reader.table(judged.measures).take(pa.array(rows)).drop(["document_id"])
        known = columns_of_table(table)
    missing = sorted({RULE_OF[BOUND_OF[reason].measure] for reason in SHAPES if BOUND_OF[reason].measure not in known})
    return known | measure_column(one_array(texts), None, measured_rules(parse_rules(missing, words)))[0]


def later_fates(
    reader: RecordReader,
    build: StoredBuild,
    source: str,
    ids: Sequence[bytes],
    places: Sequence[tuple[str, int]],
    reasons: Sequence[str],
) -> tuple[list[str], Int64s]:
    """Return why each document is not in the corpus, "" where it is, and its tokens."""
    tokens: dict[tuple[str, int], int] = defaultdict(int)
    kept_tables = build.tokenized.get(source) or build.deduplicated.get(source, [])
    wanted = pa.array(sorted(set(ids)), ID)
    for artifact in kept_tables:
        counted = bool(build.tokenized.get(source))
        names = ["document_id", "source_file", "source_row", *(["token_count"] if counted else [])]
        table = reader.table(artifact, names)
        table = table.filter(pc.is_in(table["document_id"], value_set=wanted))
        counts = table["token_count"].to_pylist() if counted else [0] * len(table)
        for file, row, count in zip(*(table[name].to_pylist() for name in names[1:3]), counts, strict=True):
            tokens[file, row] += count
    excluded = ids_in(reader, build.excluded, wanted)
    leaked = ids_in(reader, build.evidence, wanted)
    near = {True: set[bytes](), False: set[bytes]()}
    for path in dict.fromkeys(artifact.path for artifact in build.drops):
        table = reader.table(Artifact(path, ""), ["document_id", "near"])
        table = table.filter(pc.is_in(table["document_id"], value_set=wanted))
        for document, is_near in zip(table["document_id"].to_pylist(), table["near"].to_pylist(), strict=True):
            near[is_near].add(document)
    fates = list(reasons)
    for i, (document, place, reason) in enumerate(zip(ids, places, reasons, strict=True)):
        if reason or not kept_tables or place in tokens:
            continue
        named = {"excluded": excluded, "contaminated": leaked, "near_duplicate": near[True], "duplicate": near[False]}
        fates[i] = next((name for name, members in named.items() if document in members), BUDGET)
    return fates, np.array([tokens.get(place, 0) for place in places], np.int64)


def ids_in(reader: RecordReader, tables: Iterable[Artifact], wanted: pa.Array) -> set[bytes]:
    """Return which of the ids `wanted` stand in any of the tables."""
    found: set[bytes] = set()
    for artifact in tables:
        column = reader.table(artifact, ["document_id"])["document_id"]
        found.update(column.filter(pc.is_in(column, value_set=wanted)).to_pylist())
    return found


def would_differ(table: pa.Table, rules: Sequence[ParsedRule]) -> bool:
    """Return whether rules would drop others than the build did, as far as measures tell; shares of a source are not.

    table: reasons and measures of documents.
    """
    asked = [rule for rule in rules if rule[0] not in ON_MEASURES]
    columns = columns_of_table(table)
    try:
        now = judge(columns, asked).of_each()
    except KeyError:  # a rule that measured nothing then
        return True
    of_rules = tuple(f"{name}_" for name in ON_MEASURES)
    then = columns["reason"].to_pylist()
    return any(old != new for old, new in zip(then, now, strict=True) if not old.startswith(of_rules))


def figures_of(sample: Sample, table: pa.Table) -> dict[str, Floats]:
    """Return the figures of the reasons that dropped anything, for the documents that reached them, and of SHAPES.

    table: the columns of measures, in the order of the sample.
    """
    dropping = sorted({fate for fate in sample.fate if fate in FIGURES})
    figures = {}
    for reason in [*dropping, *(reason for reason in SHAPES if reason not in dropping)]:
        places = reached(sample, reason) if reason in dropping else sample.kept
        name = BOUND_OF[reason].measure
        values = numbers(table[name].combine_chunks()) if name in table.schema.names else np.full(len(sample), np.nan)
        figures[reason] = np.where(places | (sample.kept if reason in SHAPES else False), values, np.nan)
    return figures


def read_texts(reader: RecordReader, sample: Sample, numbers: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yield the texts of documents of a sample, by part: one part is in memory at a time."""
    by_part: dict[int, list[int]] = defaultdict(list)
    for number in numbers:
        by_part[int(sample.part[number])].append(number)
    for part, members in sorted(by_part.items()):
        column = reader.table(sample.parts[part], ["text"])["text"]
        texts = column.take(pa.array(sample.row[members]))
        for number, text in zip(members, texts.to_pylist(), strict=True):
            yield number, text or ""
