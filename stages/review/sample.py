"""Documents of one source, drawn by a hash of their ids, with what became of each and the figures that rules look at.

The draw is a threshold on a hash, so that the same documents are drawn from every table that a stage left, in every
build; of a small source they are all. Rules run again on what is drawn: they are compiled, and records hold no more
than counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stages.filter.document import Document
from stages.filter.edits import apply_edits, parse_edits
from stages.filter.rules import EDITING, RULES, ParsedRule, parse_rules
from stages.filter.work import META, apply_to_column
from stages.hashing import draw, is_validation
from stages.kernels.rules import REASONS_OF
from stages.lineage.drop_reason import RecordReader
from stages.review.account import BUDGET, StoredBuild
from stages.review.figures import FIGURES, MEASURES, Form
from stages.schemas import ID
from stages.selectors import select_documents
from stages.task import Artifact

TAG_REPORT = 0x2545F4914F6CDD1D  # of `stages.hashing.draw`: independent of all other draws
QUICK_BYTES, SLOW_BYTES = 32_000_000, 4_000_000  # of text of a source that figures are measured on
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

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def kept(self) -> Mask:
        """Which documents are in the corpus."""
        return np.array([not fate for fate in self.fate], bool)

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


def counting_of(sample: Sample) -> str:
    """Return what the rules count as words, the source's key `words`."""
    return next((thresholds["words"] for _, thresholds in sample.rules if "words" in thresholds), "punctuation")


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
    edits = parse_edits(config.get("edit", []))
    share = min(1.0, limit / max(1, of))
    parts = build.downloaded.get(source, [])
    tables: list[pa.Table] = []
    for number, part in enumerate(parts):
        table = reader.table(part)
        is_drawn = drawn(table["document_id"], share)
        rows = np.flatnonzero(is_drawn)
        if len(rows):
            tables.append(described(table.take(pa.array(rows)), number, rows, rules, edits, recipe.get("exclude", {})))
    empty = pa.table({name: [] for name in COLUMNS})
    table = pa.concat_tables(tables) if tables else empty
    table = table.sort_by([("document_id", "ascending"), ("part", "ascending"), ("row", "ascending")])
    columns: dict[str, Any] = {name: table[name].to_pylist() for name in ("document_id", "source_file", "reason")}
    numbers = {name: table[name].to_numpy().astype(np.int64) for name in ("part", "row", "source_row", "size", "chars")}
    ids = columns["document_id"]
    places = list(zip(columns["source_file"], numbers["source_row"].tolist(), strict=True))
    taken_down = ids_in(reader, build.excluded, pa.array(sorted(set(ids)), ID))  # copies among them
    fates, tokens = later_fates(reader, build, source, ids, places, columns["reason"])
    bare = Sample(
        source=source,
        of=of,
        share=share,
        rules=rules,
        edits=edits,
        parts=parts,
        ids=ids,
        files=columns["source_file"],
        part=numbers["part"],
        row=numbers["row"],
        file_row=numbers["source_row"],
        sizes=numbers["size"],
        chars=numbers["chars"],
        fate=fates,
        held_out=is_validation(ids) if ids else np.zeros(0, bool),
        tokens=tokens,
        hidden=np.array(
            [flag or i in taken_down for flag, i in zip(table["hidden"].to_pylist(), ids, strict=True)], bool
        ),
        figures={},
    )
    return Sample(
        **{**{name: getattr(bare, name) for name in Sample.__dataclass_fields__}, "figures": measured(reader, bare)}
    )


COLUMNS = ("document_id", "source_file", "source_row", "size", "chars", "reason", "hidden", "part", "row")


def drawn(ids: pa.ChunkedArray, share: float) -> Mask:
    """Return which documents belong to the sample of a share."""
    if share == 1:
        return np.ones(len(ids), bool)
    return draw(TAG_REPORT, ids) < np.uint64(int(share * 2**64))


def described(
    table: pa.Table,
    number: int,
    rows: Int64s,
    rules: Sequence[ParsedRule],
    edits: list[str],
    exclude: Mapping[str, Any],
) -> pa.Table:
    """Return COLUMNS of downloaded documents: their place, their size, and the reason of the rule that drops them."""
    metas = None
    if meta_columns := [name for name in table.schema.names if name.startswith(META)]:
        plain_names = [name.removeprefix(META) for name in meta_columns]
        metas = table.select(meta_columns).rename_columns(plain_names).to_pylist()
    texts = table["text"].combine_chunks()
    texts = texts if isinstance(texts, pa.Array) else texts.chunk(0)
    edited = pa.array([apply_edits(text or "", edits) for text in texts.to_pylist()], pa.string()) if edits else texts
    reasons, _ = apply_to_column(edited, metas, rules)
    selectors = {name: exclude.get(name, []) for name in ("ids", "urls", "domains")}
    hidden = np.zeros(len(table), bool)
    if any(selectors.values()):
        hidden, _ = select_documents(table["document_id"], table["url"], **selectors)
    return pa.table(
        {
            "document_id": table["document_id"].combine_chunks(),
            "source_file": table["source_file"],
            "source_row": table["source_row"],
            "size": pc.binary_length(texts),
            "chars": pc.utf8_length(texts),
            "reason": pa.array(reasons, pa.string()),
            "hidden": pa.array(hidden),
            "part": pa.array(np.full(len(table), number, np.int64)),
            "row": pa.array(rows),
        }
    )


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


def measured(reader: RecordReader, sample: Sample) -> dict[str, Floats]:
    """Return the figures of the reasons that dropped anything, and of SHAPES, for the documents that reached them."""
    dropping = sorted({fate for fate in sample.fate if fate in FIGURES})
    reasons = [*dropping, *(reason for reason in SHAPES if reason not in dropping)]
    figures = {reason: np.full(len(sample), np.nan) for reason in reasons}
    places = {reason: reached(sample, reason) if reason in dropping else sample.kept for reason in reasons}
    for reason in SHAPES:
        places[reason] = places[reason] | sample.kept
    before = np.cumsum(sample.sizes) - sample.sizes  # bytes of the documents drawn before it
    for reason in reasons:
        places[reason] = places[reason] & (before < (SLOW_BYTES if FIGURES[reason].slow else QUICK_BYTES))
    wanted = np.logical_or.reduce([*places.values(), np.zeros(len(sample), bool)])
    thresholds = {reason: thresholds_of(sample, reason) for reason in reasons}
    counting = counting_of(sample)
    for number, text in read_texts(reader, sample, np.flatnonzero(wanted).tolist()):
        form = Form(text, counting)
        for reason in reasons:
            if places[reason][number]:
                seen = Form(as_reached(sample, reason, text), counting) if sample.edited else form
                if seen.written:
                    figures[reason][number] = MEASURES[reason](seen, thresholds[reason])
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
