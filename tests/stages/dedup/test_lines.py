"""Lines that many documents have: cut as a plain count says, for any parts, ranges of hashes and sources."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stage_harness import LocalContext, build, kept_documents, recipe, rows_of

from stages.dedup import stage as dedup
from stages.dedup.config import Dedup
from stages.dedup.lines import LEAST

MENU, NOTICE = "Home | Products | About this company | Contact", "This notice stands under every page of the site."
LINES = (
    MENU,
    MENU.upper(),
    f"  {MENU.replace(' ', '  ')}\t",
    NOTICE,
    "}",
    "short",
    "",
    " ",
    "\x0b",
    "Über " * 9,
    "x\r",
)
LINES += tuple(f"A sentence of its own, with the number {i}, stands here." for i in range(6))


def key(line: str) -> str | None:
    """What makes two lines the same; None of a short one."""
    blanks = " \t\x0b\x0c\r"
    words = [word for word in line.translate(str.maketrans(blanks, " " * 5)).split(" ") if word]
    lower = " ".join(words).translate({ord(c): ord(c) + 32 for c in map(chr, range(65, 91))})
    return lower if len("".join(words).encode()) >= LEAST else None


def cut(texts: list[str], most: int) -> list[str]:
    """The readable form."""
    documents = Counter(line for text in texts for line in {key(line) for line in text.split("\n")} - {None})
    left = []
    for text in texts:
        lines = [line for line in text.split("\n") if documents.get(key(line), 0) <= most]
        if len(lines) == len(text.split("\n")) or "\n".join(lines).strip():
            left.append("\n".join(lines))
    return left


def run(folder: Path, texts: list[str], most: int, **keys: Any) -> tuple[list[str], LocalContext]:
    """What is left of texts in two sources of several files each."""
    sources = {}
    for number, name in enumerate("ab"):
        for at in range(2):
            (folder / name).mkdir(exist_ok=True, parents=True)
            rows = [json.dumps({"text": text, "n": i}) + "\n" for i, text in enumerate(texts)][2 * number + at :: 4]
            (folder / name / f"{at}.jsonl").write_text("".join(rows))
        sources[name] = {"from": "jsonl", "path": str(folder / name)}
    config = Dedup(exact=False, near=False, lines=most, **keys)
    context = LocalContext(folder / "out", recipe(sources, dedup=config))
    return [row["text"] for parts in build(context, "dedup").docs.values() for row in rows_of(parts)], context


@pytest.mark.slow
@settings(max_examples=15)
@given(
    texts=st.lists(
        st.lists(st.sampled_from(LINES), min_size=1, max_size=6).map("\n".join).filter(bool), min_size=4, max_size=24
    ),
    most=st.integers(1, 5),
    entries=st.sampled_from([3, 1 << 20]),
)
def test_lines_are_cut_as_a_plain_count_says(tmp_path_factory, texts, most, entries):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stages.sources.base.UNIT_BYTES", 1)  # a unit a file
        patch.setattr(dedup, "ENTRIES", entries)
        left, context = run(tmp_path_factory.mktemp("lines"), texts, most)
    assert sorted(left) == sorted(cut(texts, most))
    counts = context.counts(dedup.DEDUP)
    assert counts["kept"] == len(left) and counts.get("dropped.repeated_lines", 0) == len(texts) - len(left)
    assert counts["text_bytes"] == sum(len(text.encode()) for text in left)


def test_what_is_left_keeps_its_id_and_what_had_nothing_else_leaves(tmp_path):
    texts = [f"{MENU}\nPage {i} has something to say.\n{NOTICE}" for i in range(8)] + [f"{NOTICE}\n{MENU}", "a\n\nb"]
    left, context = run(tmp_path, texts, 3)
    assert sorted(left) == [*(f"Page {i} has something to say." for i in range(8)), "a\n\nb"]
    assert context.counts(dedup.DEDUP)["lines_cut"] == 18
    parts = [part for parts in build(context, "filter").docs.values() for part in parts]
    filtered = {row["document_id"] for row in kept_documents(parts)}
    assert {r["document_id"] for parts in build(context, "dedup").docs.values() for r in rows_of(parts)} < filtered


def test_another_limit_counts_no_line_again(tmp_path):
    texts = [f"{MENU}\nPage {i} has something to say." for i in range(8)]
    run(tmp_path, texts, 3)
    left, context = run(tmp_path, texts, 10)
    assert len(left[0].split("\n")) == 2
    assert not [label for _, label in context.ran if " lines 0" in label]
