"""What the rules decide: each compares measures of a document with thresholds, and reads no text.

`BOUNDS` says which measure each reason is about, and which threshold bounds it. Measures are kept
(`stages.filter.measure`), so that another threshold needs these comparisons alone. Every rule that `BOUNDS` names is
compiled; the readable forms beside this module decide alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from stages.filter.document import META, SAID, MeasuredRule
from stages.hashing import draw

NOT_MEASURED = ("metadata", "where", "sample")  # rules about columns that are there already
LANGUAGE = ("language", "language_score")
COLUMNS = ("document_id", "text_hash", "edited", "bytes", *LANGUAGE)  # that are there beside measures and scores
NEWLINES_ABOVE = 0.1  # line breaks to a word: FineWeb's threshold is 0.3
TAG_SAMPLED = 0xD6E8FEB86659FD93  # of `stages.hashing.draw`: independent of all other draws

Columns = Mapping[str, pa.Array]
Rules = Sequence[tuple[str, dict[str, Any]]]


class Bound(NamedTuple):
    """A reason, and its measure. A document goes where that is below `low` or above `high`.

    Bounds are the names of thresholds, or numbers that stand fast.
    """

    reason: str
    measure: str
    low: str | float | None = None
    high: str | float | None = None

    def edges(self, thresholds: Mapping[str, Any]) -> tuple[float | None, float | None]:
        """Return the numbers that `low` and `high` are, None where there is none on that side."""
        low, high = (thresholds[edge] if isinstance(edge, str) else edge for edge in (self.low, self.high))
        return low, high


# Of each compiled rule, in the order in which they are tried.
BOUNDS: dict[str, tuple[Bound, ...]] = {
    "length": (
        Bound("length_short", "length_chars", low="min_chars"),
        Bound("length_long", "length_chars", high="max_chars"),
    ),
    "gopher_quality": (
        Bound("gopher_short_doc", "gopher_words", low="min_words"),
        Bound("gopher_short_doc", "gopher_words", low=1),
        Bound("gopher_long_doc", "gopher_words", high="max_words"),
        Bound(
            "gopher_mean_word_length",
            "gopher_mean_word_length",
            low="min_mean_word_length",
            high="max_mean_word_length",
        ),
        Bound("gopher_symbol_ratio", "gopher_symbol_ratio", high="max_symbol_ratio"),
        Bound("gopher_bullet_lines", "gopher_bullet_lines", high="max_bullet_lines"),
        Bound("gopher_ellipsis_lines", "gopher_ellipsis_lines", high="max_ellipsis_lines"),
        Bound("gopher_alphabetic", "gopher_alphabetic", low="min_alphabetic_words"),
        Bound("gopher_stop_words", "gopher_stop_words", low="min_stop_words"),
    ),
    "gopher_repetition": (
        Bound("gopher_repeated_paragraphs", "gopher_repeated_paragraphs", high="max_paragraphs"),
        Bound("gopher_repeated_paragraph_chars", "gopher_repeated_paragraph_chars", high="max_paragraph_chars"),
        Bound("gopher_repeated_lines", "gopher_repeated_lines", high="max_lines"),
        Bound("gopher_repeated_line_chars", "gopher_repeated_line_chars", high="max_line_chars"),
        *(Bound(f"gopher_top_{n}_gram", f"gopher_top_{n}_gram", high=f"max_top_{n}_gram") for n in (2, 3, 4)),
        *(
            Bound(f"gopher_repeated_{n}_grams", f"gopher_repeated_{n}_grams", high=f"max_{n}_grams")
            for n in range(5, 11)
        ),
    ),
    "c4": (
        Bound("c4_lorem_ipsum", "c4_lorem_ipsum", high=0),
        Bound("c4_curly_bracket", "c4_curly_bracket", high=0),
        Bound("c4_few_sentences", "c4_sentences", low="min_sentences"),
    ),
    "fineweb": (
        Bound("fineweb_blank", "fineweb_lines", low=1),
        Bound("fineweb_line_punctuation", "fineweb_line_punctuation", low="min_line_punctuation"),
        Bound("fineweb_short_lines", "fineweb_short_lines", high="max_short_lines"),
        Bound("fineweb_repeated_chars", "fineweb_repeated_chars", high="max_repeated_chars"),
        Bound("fineweb_newlines", "fineweb_newlines", high="max_newlines_per_word"),
    ),
}
BOUND_OF = {bound.reason: bound for bounds in BOUNDS.values() for bound in reversed(bounds)}  # the first of a reason
REASONS_OF = {name: tuple(dict.fromkeys(bound.reason for bound in bounds)) for name, bounds in BOUNDS.items()}


def columns_of_table(table: pa.Table) -> dict[str, pa.Array]:
    """Return the columns of a table by name, each in one piece."""
    table = table.combine_chunks()
    return {name: column.chunk(0) for name, column in zip(table.schema.names, table, strict=True)}


def settings_of(name: str, thresholds: Mapping[str, Any]) -> dict[str, Any]:
    """Return the thresholds of a rule that change what it measures or leaves; of one that is not compiled all."""
    compared = {edge for bound in BOUNDS.get(name, ()) for edge in (bound.low, bound.high)}
    return {key: value for key, value in thresholds.items() if key not in compared}


def measured_rules(rules: Rules) -> list[MeasuredRule]:
    """Return the rules that are to be measured, without the thresholds that only compare.

    `fineweb_newlines` is exact above NEWLINES_ABOVE, or a lower threshold, or wherever a rule on measures asks for it;
    else it is a bound, by words that are not cut.
    """
    asked = {column for name, given in rules if name in NOT_MEASURED for column in given}
    measured = []
    for name, given, end in numbered(rules):
        settings = settings_of(name, given)
        if name == "fineweb":
            exact = {"fineweb_newlines", f"fineweb_newlines{end}"} & asked
            settings["newlines_above"] = -1 if exact else min(NEWLINES_ABOVE, given["max_newlines_per_word"])
        if name not in NOT_MEASURED:
            measured.append((name, settings, end))
    return measured


def numbered(rules: Rules) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield rules with what ends the names of their columns: nothing, and `_2` of one that stands there again."""
    times: Counter[str] = Counter()
    for name, given in rules:
        times[name] += 1
        yield name, given, f"_{times[name]}" if times[name] > 1 else ""


class Verdict(NamedTuple):
    """What rules decide of some documents."""

    codes: npt.NDArray[np.int64]  # 0 where it stays, else the place of its reason in `reasons`
    reasons: list[str]  # "", then the reasons in the order in which they were asked about
    values: npt.NDArray[np.float64]  # the measure that the reason is about; NaN where there is none

    def of_each(self) -> list[str]:
        """Return the reason of each document, or ""."""
        return [self.reasons[code] for code in self.codes.tolist()]


def judge(columns: Columns, rules: Rules) -> Verdict:
    """Return what rules decide of documents, by the columns of `stages.filter.measure`; the first that objects counts.

    A text that is empty, or that an edit leaves empty, goes.
    """
    sizes = numbers(columns["bytes"])
    verdict = Verdict(np.zeros(len(sizes), np.int64), [""], np.full(len(sizes), np.nan))
    edited_first = [f"c4_lorem_ipsum{suffix}" for name, _, suffix in numbered(rules) if name == "c4"]

    def drop(reason: str, goes: npt.NDArray[np.bool_], values: npt.NDArray[np.float64] | None = None) -> None:
        if reason not in verdict.reasons:
            verdict.reasons.append(reason)
        here = goes & (verdict.codes == 0)
        verdict.codes[here] = verdict.reasons.index(reason)
        if values is not None:
            verdict.values[here] = values[here]

    def drop_empty() -> None:
        """Drop what is empty before the next edit, which would else have measured it."""
        is_empty = sizes == 0
        drop("empty", is_empty & np.isnan(numbers(columns[edited_first[0]])) if edited_first else is_empty)

    drop_empty()
    for name, thresholds, suffix in numbered(rules):
        if name == "sample":
            for column, how in thresholds.items():
                values = numbers(columns[column])
                drop(f"sample_{column}", passed_over(columns["document_id"], values, **how), values)
        elif name in NOT_MEASURED:
            for column, test in thresholds.items():
                test_column(name, column, columns[META + column if name == "metadata" else column], test, drop)
        elif name not in BOUNDS:
            said = columns[SAID + name + suffix]
            for reason in sorted(set(pc.unique(said).drop_null().to_pylist())):
                drop(reason, flags(pc.equal(said, reason)))
        for bound in BOUNDS.get(name, ()):
            values = numbers(columns[bound.measure + suffix])
            drop(bound.reason, beyond(values, *bound.edges(thresholds)), values)
        if name == "c4":
            edited_first.pop(0)
            drop_empty()
    return verdict


def beyond(values: npt.NDArray[np.float64], low: float | None, high: float | None) -> npt.NDArray[np.bool_]:
    """Return which values are below `low` or above `high`; what was not measured is neither."""
    goes = np.zeros(len(values), bool)
    if low is not None:
        goes |= values < low
    if high is not None:
        goes |= values > high
    return goes


def passed_over(ids: pa.Array, values: npt.NDArray[np.float64], full: float, power: float = 1) -> npt.NDArray[np.bool_]:
    """Return which documents a sample by score leaves out: each is taken with probability (value / full) ** power.

    Drawn from the id alone, so that a higher score, or a lower `full`, never loses a document that was taken.
    """
    chance = np.clip(values / full, 0, 1) ** power
    return ~(draw(TAG_SAMPLED, ids) / 2.0**64 < chance)


def test_column(rule: str, name: str, column: pa.Array, test: Mapping[str, Any], drop: Any) -> None:
    """Drop by the test of one column, as the rules `metadata` and `where` have it. A null or NaN is missing."""
    is_text = pa.types.is_string(column.type)
    drop(f"{rule}_{name}_missing", flags(pc.is_null(column, nan_is_null=True)))
    if "in" in test:
        drop(f"{rule}_{name}", ~flags(pc.is_in(column, value_set=pa.array(test["in"], pa.string()))))
    if not is_text:
        values = numbers(column)
        drop(f"{rule}_{name}", beyond(values, test.get("min"), test.get("max")), values)


def numbers(column: pa.Array) -> npt.NDArray[np.float64]:
    """Return a column of numbers; a null is NaN."""
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)


def flags(column: pa.Array) -> npt.NDArray[np.bool_]:
    """Return a column of truths; a null is false."""
    return column.fill_null(False).to_numpy(zero_copy_only=False)
