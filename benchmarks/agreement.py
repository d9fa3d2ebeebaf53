"""Whether our rules and datatrove's decide alike: each rule alone, on real documents of every file of a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks import curate_peer, measure
from stages.filter.apply import apply_to_column
from stages.filter.parse import parse_rules

RULES = ["gopher_repetition", "gopher_quality", "c4", "fineweb"]
LARGEST = 25_000  # characters of a document: datatrove reads 0.1 MB/s
# What of a record is its text: the first whose fields it has.
FIELDS = (("text",), ("question", "answer"), ("problem", "solution"), ("query", "response"))
# Words of ours, words of datatrove's: as both ship, what ours were before, and what is left when both count alike.
PAIRS = (("punctuation", "punctuation"), ("blanks", "punctuation"), ("blanks", "blanks"))
SHOWN = 8  # pairs of reasons

Decision = tuple[str, str]  # the reason, or ""; the text that is left


def text_of(record: dict[str, Any]) -> str:
    """Return the text of a record: the fields of FIELDS, or a question with its choices."""
    for fields in FIELDS:
        if all(isinstance(record.get(field), str) for field in fields):
            return "\n\n".join(record[field] for field in fields)
    return "\n".join([record["question"], *record["choices"]["text"]])


def documents(folder: Path, of_each: int) -> list[str]:
    """Return about `of_each` documents of every file of text under `folder`, evenly spaced, no longer than LARGEST."""
    texts: list[str] = []
    for file in sorted(path for path in folder.rglob("*") if path.suffix in (".parquet", ".zst", ".json")):
        of_file: list[str] = []
        for rows in measure.rows_of(file):
            of_file += [text_of(row) for row in (rows[0] if isinstance(rows[0], list) else rows)]
        steps = range(min(of_each, len(of_file)))
        chosen = (of_file[step * len(of_file) // len(steps)] for step in steps)
        texts += [text for text in chosen if 0 < len(text) <= LARGEST]
    return texts


def our_decisions(texts: list[str], words: str) -> dict[str, list[Decision]]:
    """Return what each of our rules says of each text, with `words` as the recipe's key of that name."""
    found = {}
    for rule in RULES:
        reasons, left = apply_to_column(pa.array(texts), None, parse_rules([rule], words))
        found[rule] = list(zip(reasons, left.to_pylist(), strict=True))
    return found


def datatrove_decisions(texts: list[str], words: str) -> dict[str, list[Decision]]:
    """Return what each of datatrove's filters says of each text, with its own words or what blanks separate."""
    from datatrove.data import Document

    found: dict[str, list[Decision]] = {rule: [] for rule in RULES}
    filters = dict(zip(RULES, curate_peer.filters(words), strict=True))
    for text in texts:  # all of one text in a row: datatrove remembers its words
        for rule, rule_set in filters.items():
            document = Document(text=text, id="")
            decision = rule_set.filter(document)
            found[rule].append(("" if decision is True else decision[1], document.text))
    return found


def agreement(texts: list[str]) -> dict[str, Any]:
    """Return for each pair of ways to count words how often each rule decides alike, and how it does not."""
    ours = {words: our_decisions(texts, words) for words in ("punctuation", "blanks")}
    theirs = {words: datatrove_decisions(texts, words) for words in ("punctuation", "blanks")}
    pairs = {
        f"words: {a}; datatrove {'as shipped' if b == 'punctuation' else 'with blanks'}": {
            rule: compare(ours[a][rule], theirs[b][rule]) for rule in RULES
        }
        for a, b in PAIRS
    }
    return {"documents": len(texts), "MB": round(measure.megabytes(texts), 2), **pairs}


def compare(ours: list[Decision], theirs: list[Decision]) -> dict[str, Any]:
    """Return the share of documents that both keep or both drop, how many each keeps, and what they say of the rest."""
    both = list(zip(ours, theirs, strict=True))
    differing = Counter(
        (mine or "keeps", other or "keeps") for (mine, _), (other, _) in both if bool(mine) != bool(other)
    )
    kept = [(mine, other) for (reason, mine), (their_reason, other) in both if not reason and not their_reason]
    return {
        "alike, %": round(100 * (1 - differing.total() / len(both)), 1),
        "kept, ours": sum(not reason for reason, _ in ours),
        "kept, datatrove's": sum(not reason for reason, _ in theirs),
        "kept with another text": sum(mine != other for mine, other in kept),
        "not alike": {f"ours {a}, datatrove {b}": n for (a, b), n in differing.most_common(SHOWN)},
    }


Filters = Callable[[str], tuple[str | None, str]]


def datatrove_in_a_row(words: str = "punctuation") -> Filters:
    """datatrove's four filters as FineWeb runs them: text -> (the name of the filter that drops it, the text left)."""
    from datatrove.data import Document

    filters = curate_peer.filters(words)

    def run(text: str) -> tuple[str | None, str]:
        document = Document(text=text, id="")
        for name, rule_set in zip(RULES, filters, strict=True):
            decision = rule_set.filter(document)
            if decision is not True and (not isinstance(decision, tuple) or not decision[0]):
                return name, document.text
        return None, document.text

    return run
