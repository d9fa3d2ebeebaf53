"""The same text in two places: duplicates within and across sources, and pieces of evaluation sets."""

from __future__ import annotations

import difflib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from pipeline.report.charts import LEFT, RIGHT, Axes, bar, plot
from pipeline.report.facts import Facts
from pipeline.report.markup import LONG_TEXT, counted, escape, listed, number, omitted, share, title_of
from stages.task import Artifact

PAIRS, ITEMS = 20, 50  # pairs of duplicates, items of an evaluation set
BEFORE = 300  # characters that are shown before the first difference of a pair
AROUND = 260  # characters before and after a piece of an evaluation set
ITEM_TEXT = 700  # characters of an item
FULL_BAR = 0.1  # share at which a bar is full
WORDS = re.compile(r"\s+|\w+|[^\w\s]")
Place = tuple[str, str, int]  # source, file and row


def page(facts: Facts) -> dict[str, Any]:
    """Return what the template shows."""
    pairs = duplicate_pairs(facts)
    return {
        "lead": lead(facts, pairs),
        "looked": facts.duplicates is not None,
        "rows": [duplicate_row(facts, name) for name in facts.accounts],
        "curve": curve(facts, pairs),
        "near": facts.duplicates and facts.duplicates.get("near-duplicates"),
        "pairs": [pair_shown(pair) for pair in pairs] if facts.may_show_pairs else [],
        "all_pairs": number(sum(each.repeats.get("near_duplicate", 0) for each in facts.accounts.values())),
        "hidden": not facts.may_show_pairs,
        "sets": [leak_section(facts, name) for name in facts.build.items],
    }


def lead(facts: Facts, pairs: Sequence[Mapping[str, Any]]) -> Markup:
    """Return the answer in sentences."""
    if facts.duplicates is None:
        return escape(
            "Duplicates were not looked for: the recipe has `dedup: {exact: false}`, or the build ended before."
        )
    repeats = sum(sum(each.repeats.values()) for each in facts.accounts.values())
    passed = sum(each.kept + each.later_documents for each in facts.accounts.values())
    across = [
        (n, name, kept_in)
        for name, each in facts.accounts.items()
        for kept_in in sorted({*each.duplicate_of, *each.near_duplicate_of} - {name})
        if (n := each.duplicate_of.get(kept_in, 0) + each.near_duplicate_of.get(kept_in, 0))
    ]
    text = Markup("<b>{}</b> of {} documents that passed the rules repeat another").format(
        number(repeats), number(passed)
    )
    if not repeats:
        return Markup("No document that passed the rules repeats another.")
    if across:
        n, name, kept_in = max(across)
        text += Markup(', <b class="hot">{} of them one in another source</b>: {} of <b>{}</b> are kept in <b>{}</b>.')
        text = text.format(number(sum(each[0] for each in across)), number(n), name, kept_in)
    else:
        text += escape(", every one within its own source.")
    unlike = sum(pair["jaccard"] < 0.75 for pair in pairs)
    if unlike:
        text += Markup(
            " Of {} drawn by hash, those that share less than three quarters of their words in a row: {}."
        ).format(counted(len(pairs), "pair"), number(unlike))
    return text


def duplicate_row(facts: Facts, name: str) -> dict[str, Any]:
    """Return a source's row of the table."""
    account = facts.accounts[name]
    passed = account.kept + account.later_documents
    repeats = sum(account.repeats.values())
    kept_in = {
        other: account.duplicate_of.get(other, 0) + account.near_duplicate_of.get(other, 0)
        for other in sorted({*account.duplicate_of, *account.near_duplicate_of})
    }
    first = sorted(kept_in.items(), key=lambda item: (-item[1], item[0]))
    return {
        "name": name,
        "passed": passed,
        "same": sum(account.duplicate_of.values()),
        "near": sum(account.near_duplicate_of.values()),
        "share": share(repeats, passed),
        "bar": bar(repeats / max(1, passed) / FULL_BAR, hot=True),
        "kept_in": ", ".join(f"{other} {number(n)}" for other, n in first),
    }


# ---------------------------------------------------------------------------------------------------------------------
# Pairs


def duplicate_pairs(facts: Facts) -> list[dict[str, Any]]:
    """Return the pairs of the report on duplicates, the most alike first, with as much of their texts as there is."""
    pairs = sorted(
        (facts.duplicates or {}).get("pairs", []), key=lambda pair: (-pair["jaccard"], pair["dropped"]["document_id"])
    )[:PAIRS]
    if not facts.may_show_pairs:
        return pairs
    wanted = {place_of(pair[side]) for pair in pairs for side in ("dropped", "kept")}
    texts = texts_at(facts, facts.build.downloaded, wanted)
    sides = ("dropped", "kept")
    return [
        {
            **pair,
            **{side: {**pair[side], "text": texts.get(place_of(pair[side]), pair[side]["text"])} for side in sides},
        }
        for pair in pairs
    ]


def place_of(document: Mapping[str, Any]) -> Place:
    """Return where a document of the report stands."""
    return document["source"], document["source_file"], document["source_row"]


def texts_at(facts: Facts, tables: Mapping[str, Sequence[Artifact]], wanted: Iterable[Place]) -> dict[Place, str]:
    """Return the texts of documents by their places, as they stand in some tables."""
    by_source: dict[str, set[tuple[str, int]]] = defaultdict(set)
    for source, file, row in wanted:
        by_source[source].add((file, row))
    texts: dict[Place, str] = {}
    for source, places in by_source.items():
        for artifact in tables.get(source, ()):
            names = facts.reader.table(artifact, ["source_file", "source_row"])
            found = [
                i
                for i, place in enumerate(zip(*(names[name].to_pylist() for name in names.column_names), strict=True))
                if place in places
            ]
            if found:
                table = facts.reader.table(artifact, ["source_file", "source_row", "text"]).take(found)
                for row in table.to_pylist():
                    texts[source, row["source_file"], row["source_row"]] = row["text"]
    return texts


def pair_shown(pair: Mapping[str, Any]) -> dict[str, Any]:
    """Return a pair with what differs marked on either side."""
    dropped, kept = marked_pair(pair["dropped"]["text"], pair["kept"]["text"])
    return {
        "title": title_of(pair["dropped"]["text"]),
        "jaccard": f"{pair['jaccard']:.2f}",
        "sides": [("dropped", pair["dropped"], dropped), ("kept", pair["kept"], kept)],
    }


def marked_pair(one: str, other: str) -> tuple[Markup, Markup]:
    """Return two texts from shortly before their first difference on, with what the other lacks marked in each."""
    words, others = WORDS.findall(one), WORDS.findall(other)
    same = next(
        (i for i, (a, b) in enumerate(zip(words, others, strict=False)) if a != b), min(len(words), len(others))
    )
    start = same
    while start and sum(map(len, words[start:same])) < BEFORE:
        start -= 1
    skipped = sum(map(len, words[:start]))
    sides = (window(words, start), window(others, start))
    pieces: list[list[Markup]] = [[omitted(skipped, "before, the same in both")] if skipped else [] for _ in sides]
    matcher = difflib.SequenceMatcher(None, sides[0], sides[1], autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        for side, stretch in ((0, sides[0][a:b]), (1, sides[1][c:d])):
            text = "".join(stretch)
            is_mark = kind != "equal" and text.strip()
            pieces[side].append(Markup("<mark>{}</mark>").format(escape(text)) if is_mark else escape(text))
    ends = [len(text) - skipped - sum(map(len, side)) for text, side in zip((one, other), sides, strict=True)]
    first, second = (Markup("").join([*side, omitted(end, "more")]) for side, end in zip(pieces, ends, strict=True))
    return first, second


def window(words: list[str], start: int) -> list[str]:
    """Return the words from one on, LONG_TEXT characters of them at the most."""
    size, stop = 0, start
    while stop < len(words) and size + len(words[stop]) <= LONG_TEXT:
        size += len(words[stop])
        stop += 1
    return words[start:stop]


def curve(facts: Facts, pairs: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Return the chance that a pair is found by its similarity, with the pairs that were found."""
    near = (facts.duplicates or {}).get("near-duplicates")
    if not near:
        return None
    points = [(float(alike), chance) for alike, chance in near["chance to be found by Jaccard similarity"].items()]
    axes = Axes(0.3, 1, 0, 1)
    found = sorted({max(0.3, pair["jaccard"]) for pair in pairs})
    ticks = [
        Markup(f'<path class="tick" d="M{1000 * axes.x(jaccard):.1f} 1000V880"/>') for jaccard in found if jaccard < 1
    ]
    half = min(points, key=lambda point: abs(point[1] - 0.9))
    labels = [
        axes.ticks_below([(value, f"{value:g}") for value in (0.3, 0.5, 0.7, 0.9, 1)]),
        axes.ticks_left([(0, "0"), (0.5, "50%"), (1, "100%")]),
        axes.note(half[0], half[1], "chance that a pair is found", LEFT),
        axes.note(0.3, 0.2, f"{counted(len(pairs), 'pair')} drawn", RIGHT, "hot"),
    ]
    summary = f"Chance that a pair is found against its similarity; {counted(len(pairs), 'pair')} that were found"
    return plot([axes.grid([0.5, 1]), axes.line(points), *ticks], labels, summary, 180)


# ---------------------------------------------------------------------------------------------------------------------
# Pieces of evaluation sets


def leak_section(facts: Facts, name: str) -> dict[str, Any]:
    """Return what of an evaluation set was found, and the stretches in their context."""
    items, unsearched = facts.build.items[name]
    excluded = {
        document
        for artifact in facts.build.excluded
        for document in facts.reader.table(artifact, ["document_id"])["document_id"].to_pylist()
    }
    rows = [
        row
        for artifact in facts.build.evidence
        for row in facts.reader.table(artifact).to_pylist()
        if row["set"] == name and row["document_id"] not in excluded
    ]
    by_item: dict[bytes, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_item[row["item_id"]].append(row)
    documents = {(row["source"], row["document_id"]): row["done"] for row in rows}
    by_source = sorted({source: sum(s == source for s, _ in documents) for source, _ in documents}.items())
    counts = [
        ("found in the corpus", len(by_item), True),
        ("looked for, not found", items - unsearched - len(by_item), False),
        ("not looked for: too short, or in words that many items share", unsearched, False),
    ]
    first = sorted(by_item.items(), key=lambda item: (-len({r["document_id"] for r in item[1]}), item[0]))[:ITEMS]
    longest = [max(found, key=lambda row: (row["stop"] - row["start"], row["document_id"])) for _, found in first]
    texts = texts_at(facts, facts.build.deduplicated, {place_of(row) for row in longest})
    wordings = item_texts(facts, name, [item for item, _ in first])
    return {
        "name": name,
        "looked_at": items,
        "counts": [(title, n, share(n, items), bar(n / max(1, items), hot)) for title, n, hot in counts],
        "found": len(by_item),
        "documents": len(documents),
        "sources": listed(f"{number(n)} of {source}" for source, n in by_source),
        "dropped": sum(done == "dropped" for done in documents.values()),
        "evidence": [
            evidence_shown(row, texts.get(place_of(row), row["text"]), wordings.get(item, ""), found)
            for row, (item, found) in zip(longest, first, strict=True)
        ],
    }


def item_texts(facts: Facts, name: str, wanted: list[bytes]) -> dict[bytes, str]:
    """Return the items of a set in words: a question with its choices, or named passages."""
    texts: dict[bytes, str] = {}
    for artifact in facts.build.item_tables.get(name, ()):
        for row in facts.reader.table(artifact).to_pylist():
            if row["item_id"] in wanted:
                if "question" in row:
                    texts[row["item_id"]] = "\n".join([row["question"], *json.loads(row["choices"])])
                else:
                    texts[row["item_id"]] = "\n".join(json.loads(row["passages"]).values())
    return texts


def evidence_shown(row: Mapping[str, Any], text: str, item: str, found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a matched stretch in its context, beside the item."""
    raw = text.encode()
    before, after = (raw[a:b].decode(errors="ignore") for a, b in ((0, row["start"]), (row["stop"], len(raw))))
    documents = len({each["document_id"] for each in found})
    many = f", {counted(documents, 'document')}" if documents > 1 else ""
    return {
        "title": " ".join(row["text"].split())[:160],
        "value": counted(len(row["text"].split()), "word") + many,
        "item_meta": f"item {row['item_id'].hex()[:8]} of {row['set']}, its {row['passage']}",
        "item": escape(item[:ITEM_TEXT]) + omitted(len(item) - ITEM_TEXT, "more"),
        "done": row["done"],
        "meta": f"{row['source']}: {row['source_file']} row {row['source_row']}",
        "text": Markup("{}{}<mark>{}</mark>{}{}").format(
            omitted(len(before) - AROUND, "before"),
            escape(before[-AROUND:]),
            escape(row["text"][:LONG_TEXT]),
            escape(after[:AROUND]),
            omitted(len(after) - AROUND, "more"),
        ),
    }
