"""Runs compared: sides of one recipe each, the documents that all of them scored, and what differs by how much.

Two questions are kept apart. `documents` is of these very weights: would they differ on other text like this? `recipes`
is of what they were trained by: would other seeds of both differ? The second takes runs with several seeds, or a
deviation over seeds that was measured before; without it, it stays open.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.compare.scored import Key, ScoredRun
from stages.compare.stats import (
    Deviation,
    Difference,
    combine,
    holm,
    paired_right,
    pooled,
    ratio,
    verdict,
    with_seeds,
)
from stages.errors import DataError
from stages.lineage.diff import Change, changes

ALL = "all"  # the row of all sources together
FEWEST = (
    20  # documents, or works, of a source; over fewer an interval of 95 % covers less than 93 (benchmarks.intervals)
)
ANSWER, RIGHT = 3, 0  # columns of an item's row: bits per byte of the answer, and whether it is right
Deviations = dict[str, Deviation]  # by kind and name of a row: source/web


@dataclass(frozen=True)
class Side:
    """Runs of one recipe, by seed."""

    letter: str
    runs: tuple[ScoredRun, ...]


@dataclass(frozen=True)
class Row:
    """One thing that both sides were scored on: a source, all of them, or the answers of an evaluation set."""

    name: str
    kind: str  # source | all | set
    a: float  # bits per byte
    b: float
    n: int  # documents, or questions
    clusters: int
    documents: Difference  # of these weights
    seeds: Deviation | None
    recipes: Difference | None  # with the error of the seeds; None: not known
    p_documents: float = 1.0  # Holm's, over the rows of all sides
    p_recipes: float | None = None
    verdict_documents: str = "unknown"
    verdict_recipes: str | None = None
    right: Difference | None = None  # of a set: the share that is right, of these weights
    right_ab: tuple[float, float] | None = None


@dataclass(frozen=True)
class Mover:
    """A document that moves the result: without it, all together would differ by `without`."""

    key: Key
    source: str
    a: float  # bits per byte
    b: float
    bytes: int
    moves: float
    without: float


@dataclass(frozen=True)
class Compared:
    """One side against the first."""

    a: Side
    b: Side
    rows: tuple[Row, ...]
    movers: tuple[Mover, ...]
    changed: tuple[Change, ...]
    documents: int
    bytes: int
    left_out: tuple[int, int, int]  # documents of A alone, of B alone, and scored in part on one side
    stored: bool  # the deviation over seeds is one that was measured before

    def row(self, name: str) -> Row:
        """Return a row by its name."""
        return next(row for row in self.rows if row.name == name)


# ---------------------------------------------------------------------------------------------------------------------
# Sides


def sides_of(groups: Sequence[Sequence[ScoredRun]]) -> list[Side]:
    """Return the sides of runs as they were given: those given together are one, others are by recipe.

    Runs of one recipe alone are a side each: seeds against each other. Raises DataError for a single run.
    """
    sides: list[list[ScoredRun]] = []
    if any(len(group) > 1 for group in groups):
        sides = [list(group) for group in groups]
    else:
        by_recipe: dict[str, list[ScoredRun]] = {}
        for (run,) in groups:
            by_recipe.setdefault(json.dumps(run.recipe, sort_keys=True), []).append(run)
        sides = list(by_recipe.values())
        if len(sides) == 1:
            sides = [[run] for run in sides[0]]
    if len(sides) < 2:
        raise DataError("compare: name two runs at least, or two groups of seeds: A0,A1 B0,B1")
    letters = [chr(ord("A") + i) if i < 26 else f"#{i + 1}" for i in range(len(sides))]
    return [Side(letter, tuple(runs)) for letter, runs in zip(letters, sides, strict=True)]


def changed_facts(a: ScoredRun, b: ScoredRun) -> list[Change]:
    """Return what differs in recipe, data, code and machine of two runs, by dotted name."""
    found = changes(facts_of(a), facts_of(b))
    manifests = a.manifest, b.manifest
    if manifests[0] is not None and manifests[1] is not None and manifests[0].build_id != manifests[1].build_id:
        recipes = [{k: v for k, v in m.recipe.items() if k not in ("model", "train")} for m in manifests if m]
        found += [(f"recipe.{name}", x, y) for name, x, y in changes(*recipes)]
        code = changes(manifests[0].code, manifests[1].code)
        found += [("code of the data", f"{len(code)} modules", "differ")] if code else []
        versions = changes(manifests[0].versions, manifests[1].versions)
        found += [(f"versions of the data.{name}", x, y) for name, x, y in versions]
    return found


def facts_of(run: ScoredRun) -> dict[str, Any]:
    """Return what a run was made of and by, and how it was scored."""
    facts, about = run.facts, run.about
    machine = {key: facts.get(key) for key in ("device_name", "world_size")}
    scored = {key: about.get(key) for key in ("average", "seq_len", "stride", "document_mask")}
    trainer = {"trainer": facts["code"]} if "code" in facts else {}
    return {**run.recipe, "machine": machine, "versions": facts.get("versions", {}), "scored": scored, **trainer}


# ---------------------------------------------------------------------------------------------------------------------
# Documents


@dataclass(frozen=True)
class Common:
    """The documents that all runs of two sides scored from end to end."""

    keys: list[Key]
    sources: list[str]  # names
    source: npt.NDArray[np.int64]  # (n,): place in `sources`
    cluster: npt.NDArray[np.uint64]
    bytes: npt.NDArray[np.float64]
    bits_a: npt.NDArray[np.float64]  # (seeds of A, n)
    bits_b: npt.NDArray[np.float64]
    left_out: tuple[int, int, int]


def common_documents(a: Side, b: Side) -> Common:
    """Pair the documents of two sides. Raises DataError, naming both, where there is none."""
    in_a, in_b = (set.intersection(*(set(run.documents) for run in side.runs)) for side in (a, b))
    runs = [*a.runs, *b.runs]
    shared = sorted(in_a & in_b)
    keys = [key for key in shared if len({run.documents[key].bytes for run in runs}) == 1]
    if not keys:
        raise DataError(
            f"{a.runs[0].name} and {b.runs[0].name} cannot be compared: they have no document in common that both "
            f"scored to its end (held out there: {len(in_a):,} and {len(in_b):,}, in both {len(shared):,})\n"
            "documents are held out by their text, so builds of the same sources share them; score more of them with "
            "`python -m train.score RUN --rows --tokens 0`"
        )
    documents = [a.runs[0].documents[key] for key in keys]
    sources = sorted({document.source for document in documents})
    bits = [np.array([[run.documents[key].nats for key in keys] for run in s.runs]) / math.log(2) for s in (a, b)]
    return Common(
        keys=keys,
        sources=sources,
        source=np.array([sources.index(document.source) for document in documents]),
        cluster=np.array([document.cluster for document in documents], np.uint64),
        bytes=np.array([document.bytes for document in documents], np.float64),
        bits_a=bits[0],
        bits_b=bits[1],
        left_out=(len(in_a - in_b), len(in_b - in_a), len(shared) - len(keys)),
    )


def source_weights(common: Common, weights: Mapping[str, float] | None) -> npt.NDArray[np.float64]:
    """Return what each source counts for in all of them together, summing to 1: the bytes held out, or `weights`."""
    held_out = np.bincount(common.source, common.bytes)
    given = held_out if weights is None else np.array([weights.get(name, 0.0) for name in common.sources])
    return np.asarray(given / given.sum(), np.float64)


def rows_of_documents(common: Common, stored: Deviations, weights: Mapping[str, float] | None = None) -> list[Row]:
    """Return a row a source, and one of all where there are several, weighted as `source_weights` says."""
    difference = common.bits_b.mean(0) - common.bits_a.mean(0)
    shares = source_weights(common, weights)
    rows, parts = [], []
    for number, name in enumerate(common.sources):
        own = common.source == number
        measured = ratio(difference[own], common.bytes[own], common.cluster[own])
        parts.append((float(shares[number]), measured))
        rows.append(_row(name, "source", common, own / common.bytes[own].sum(), measured, stored))
    if len(rows) > 1:
        of_a_byte = (shares / np.bincount(common.source, common.bytes))[common.source]
        counted = [part for part in parts if part[0]]
        rows.append(_row(ALL, "all", common, of_a_byte, combine(counted), stored))
    return rows


def _row(
    name: str,
    kind: str,
    common: Common,
    of_a_byte: npt.NDArray[np.float64],
    measured: Difference,
    stored: Deviations,
) -> Row:
    """Return a row. of_a_byte (n,): what a bit of each document's counts for in its score, 0 for those of others."""
    own = of_a_byte > 0
    clusters = len(np.unique(common.cluster[own]))
    if kind == "source" and clusters < FEWEST:
        measured = Difference(measured.value, math.inf, 0)
    a, b = ((bits @ of_a_byte).tolist() for bits in (common.bits_a, common.bits_b))
    seeds = pooled(a, b) or stored.get(f"{kind}/{name}")
    recipes = None if seeds is None else with_seeds(measured, seeds, len(a), len(b))
    return Row(name, kind, float(np.mean(a)), float(np.mean(b)), int(own.sum()), clusters, measured, seeds, recipes)


def movers_of(common: Common, weights: Mapping[str, float] | None = None, count: int = 3) -> list[Mover]:
    """Return the documents that move the result of all most: by (x - D b) / bytes of their source, times its weight."""
    difference = common.bits_b.mean(0) - common.bits_a.mean(0)
    shares = source_weights(common, weights)
    by_source = np.array([difference[common.source == s].sum() for s in range(len(common.sources))])
    bytes_of_source = np.array([common.bytes[common.source == s].sum() for s in range(len(common.sources))])
    own = (by_source / bytes_of_source)[common.source]
    moves = (difference - own * common.bytes) * (shares / bytes_of_source)[common.source]
    found = []
    for i in np.argsort(-np.abs(moves), kind="stable")[:count].tolist():
        size = float(common.bytes[i])
        a, b = (float(bits[:, i].mean()) / size for bits in (common.bits_a, common.bits_b))
        rest = bytes_of_source.copy(), by_source.copy()
        rest[0][common.source[i]] -= size
        rest[1][common.source[i]] -= difference[i]
        with np.errstate(invalid="ignore"):
            rates = np.where(rest[0] > 0, rest[1] / rest[0], 0.0)
        without = float((rates * shares).sum())
        source = common.sources[common.source[i]]
        found.append(Mover(common.keys[i], source, a, b, int(size), float(moves[i]), without))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Questions


def row_of_set(name: str, a: Side, b: Side, stored: Deviations) -> Row | None:
    """Return the row of an evaluation set, paired by question; None where not all runs answered two of the same."""
    runs = [*a.runs, *b.runs]
    if not all(name in run.items for run in runs):
        return None
    ids = sorted(set.intersection(*(set(run.items[name]) for run in runs)))
    if len(ids) < 2:
        return None
    tables = [np.array([[run.items[name][i] for i in ids] for run in side.runs]) for side in (a, b)]
    answers = [table[:, :, ANSWER] for table in tables]  # (seeds, questions)
    measured = ratio(answers[1].mean(0) - answers[0].mean(0), np.ones(len(ids)))
    means = [answer.mean(1).tolist() for answer in answers]
    seeds = pooled(*means) or stored.get(f"set/{name}")
    recipes = None if seeds is None else with_seeds(measured, seeds, len(a.runs), len(b.runs))
    right = [table[:, :, RIGHT].mean(0) for table in tables]
    apart = right[1] - right[0]
    shares = paired_right(float(-apart[apart < 0].sum()), float(apart[apart > 0].sum()), len(ids))
    ab = (float(right[0].mean()), float(right[1].mean()))
    mean_a, mean_b = (float(np.mean(values)) for values in means)
    n = len(ids)
    return Row(name, "set", mean_a, mean_b, n, n, measured, seeds, recipes, right=shares, right_ab=ab)


# ---------------------------------------------------------------------------------------------------------------------
# All together


def compare(
    sides: Sequence[Side],
    interest: float,
    stored: Mapping[str, Deviations] | None = None,
    weights: Mapping[str, float] | None = None,
) -> list[Compared]:
    """Compare every side with the first. Raises DataError as `common_documents`.

    interest: the smallest difference that matters, in bits per byte. stored: deviations over seeds that were measured
    before, by `seed_key`; used where the sides have one run each. weights: of sources in all of them together; by
    default the bytes that are held out.
    """
    base = sides[0]
    known = (stored or {}).get(seed_key(base.runs[0]), {})
    found = []
    for side in sides[1:]:
        own = {} if len(base.runs) + len(side.runs) > 2 else known
        common = common_documents(base, side)
        rows = rows_of_documents(common, own, weights)
        sets = sorted({name for run in (*base.runs, *side.runs) for name in run.items})
        rows += [row for name in sets if (row := row_of_set(name, base, side, own)) is not None]
        facts = tuple(changed_facts(base.runs[0], side.runs[0]))
        movers = tuple(movers_of(common, weights))
        size = int(common.bytes.sum())
        is_stored = bool(own) and any(row.seeds is not None for row in rows)
        found.append(
            Compared(base, side, tuple(rows), movers, facts, len(common.keys), size, common.left_out, is_stored)
        )
    return judged(found, interest)


def judged(found: Sequence[Compared], interest: float) -> list[Compared]:
    """Return the comparisons with a verdict on each row: Holm's correction is over all rows of all of them."""
    named = {(i, row.kind, row.name): row for i, compared in enumerate(found) for row in compared.rows}
    p_documents = holm({key: row.documents.p for key, row in named.items() if row.documents.df > 0})
    p_recipes = holm(
        {key: row.recipes.p for key, row in named.items() if row.recipes is not None and row.recipes.df > 0}
    )
    result = []
    for i, compared in enumerate(found):
        rows = []
        for row in compared.rows:
            key = (i, row.kind, row.name)
            p = p_documents.get(key, 1.0)
            p_both = None if row.recipes is None else p_recipes.get(key, 1.0)
            said = None
            if row.recipes is not None and p_both is not None:
                said = verdict(row.recipes, p_both, interest)
            first = verdict(row.documents, p, interest)
            values = {"p_documents": p, "p_recipes": p_both, "verdict_documents": first, "verdict_recipes": said}
            rows.append(Row(**{**vars(row), **values}))
        result.append(Compared(**{**vars(compared), "rows": tuple(rows)}))
    return result


def seed_key(run: ScoredRun) -> str:
    """Return what a deviation over seeds is kept under: model, steps, batch, tokenizer and sources."""
    facts = run.facts
    value = {
        "model": facts["identity"]["model"],
        "tokenizer": facts["identity"]["tokenizer_sha256"],
        "sources": sorted({document.source for document in run.documents.values()}),
        **{key: facts[key] for key in ("steps", "batch_size", "seq_len")},
    }
    return json.dumps(value, sort_keys=True)


def deviations_of(compared: Compared) -> Deviations:
    """Return the deviations over seeds that a comparison measured, by row."""
    rows = () if compared.stored else compared.rows
    return {f"{row.kind}/{row.name}": row.seeds for row in rows if row.seeds is not None}


def to_dict(compared: Compared, interest: float) -> dict[str, Any]:
    """Return a comparison as JSON values; null for what is infinite."""

    def difference(value: Difference | None) -> dict[str, Any] | None:
        if value is None:
            return None
        low, high = value.interval()
        figures = {"value": value.value, "error": value.error, "df": value.df, "low": low, "high": high, "p": value.p}
        return {key: number if math.isfinite(number) else None for key, number in figures.items()}

    def row_dict(row: Row) -> dict[str, Any]:
        return {
            **vars(row),
            "documents": difference(row.documents),
            "recipes": difference(row.recipes),
            "right": difference(row.right),
            "seeds": None if row.seeds is None else asdict(row.seeds),
        }

    return {
        "a": [run.name for run in compared.a.runs],
        "b": [run.name for run in compared.b.runs],
        "interest": interest,
        "rows": [row_dict(row) for row in compared.rows],
        "movers": [
            {**asdict(mover), "key": {"document_id": mover.key[0].hex(), "part": mover.key[1]}}
            for mover in compared.movers
        ],
        "changed": [{"name": name, "a": x, "b": y} for name, x, y in compared.changed],
        "documents": compared.documents,
        "bytes": compared.bytes,
        "left_out": dict(zip(("in_a_alone", "in_b_alone", "scored_in_part"), compared.left_out, strict=True)),
        "stored_deviation": compared.stored,
    }
