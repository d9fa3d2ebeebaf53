"""Edits: what is replaced and what stays, and that an edit moves no document and breaks no lineage."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lineage_harness import RECIPE, every, recipe
from stage_harness import LocalContext, build, kept_documents
from stage_harness import recipe as mini

from stages.filter.edits import ADDRESSES, ADDRESSES_6, EMAILS, PHONES, apply_edits, parse_edits, pii
from stages.hashing import is_validation
from stages.lineage.rows import rows_table, shard_rows
from stages.lineage.trace import trace
from stages.schemas import document_id


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to jane.doe+x@mail.example.co.uk, or bob@b.org.", f"write to {EMAILS[0]}, or {EMAILS[1]}."),
        ("a@b.co c@d.co e@f.co", f"{EMAILS[0]} {EMAILS[1]} {EMAILS[0]}"),
        ("at 8.8.8.8 and 1.1.1.1:53", f"at {ADDRESSES[0]} and {ADDRESSES[1]}:53"),
        ("2606:4700:4700::1111 answers", "2001:db8::1 answers"),
        ("call (212) 736-5000 or +44 20 7946 0958", f"call {PHONES[0]} or {PHONES[1]}"),
        ("call 1-212-736-5000.", f"call {PHONES[0]}."),
    ],
)
def test_pii_is_replaced(text, expected):
    assert pii(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "10.0.0.1 192.168.1.77 127.0.0.1 172.16.0.9 169.254.1.1 fe80::1 ::1",
        "version 1.2.3.4.5, section 4.3.2.1a, 300.1.1.1 and 8.8.8.08",
        "@property x@y user@localhost 12:34:56 std::vector a::b 2024:1",
        "2024-01-31 1234567890 978-3-16-148410-0 3.14159-2.71828 100-200-3000 +1 234",
    ],
)
def test_what_is_no_pii_stays(text):
    assert pii(text) == text


def test_precision_and_recall_of_pii():
    """On made-up lines in which what is to go is marked, with the two known to be wrong."""
    lines = (Path(__file__).parent / "pii_lines.txt").read_text(encoding="utf-8").splitlines()
    stand_ins = re.compile("|".join(map(re.escape, (*EMAILS, *ADDRESSES, *ADDRESSES_6, *PHONES))))
    marked = replaced = right = 0
    wrong: list[tuple[str, str]] = []
    for line in lines:
        spans = re.findall("⟦(.*?)⟧", line)
        left = pii(re.sub("[⟦⟧]", "", line))
        gone = [span for span in spans if span not in left]
        made = len(stand_ins.findall(left))
        marked, replaced, right = marked + len(spans), replaced + made, right + len(gone)
        if not made == len(gone) == len(spans):
            wrong.append((line, left))
    assert len(lines) >= 200 and marked >= 100
    assert (right, replaced, marked) == (110, 112, 110), wrong  # precision 98.2 %, recall 100 %
    assert [line[:12] for line, _ in wrong] == ["tiles: 256-5", "2000::"]


@settings(max_examples=200)
@given(st.text(alphabet="a1.@:+-() 2é", max_size=80))
def test_pii_replaced_once_is_replaced(text):
    assert pii(pii(text)) == pii(text)


@pytest.mark.parametrize(
    "unit", ["a", "a!", "a.", "a@", "a@a.", "1.", "12.1", "2000:", "+1", "+1 ", "(", "212-", "(212) "]
)
def test_no_text_takes_long(unit):
    started = time.process_time()
    pii(unit * (400_000 // len(unit)))
    assert time.process_time() - started < 3


def test_edits_are_made_in_their_own_order():
    assert parse_edits(["pii"]) == ["pii"] and apply_edits("a@b.co", []) == "a@b.co"
    with pytest.raises(ValueError, match="the edits are mojibake, control_characters, pii"):
        parse_edits(["piii"])


def test_repairs():
    pytest.importorskip("ftfy", reason="ftfy, an extra, is not installed")
    assert parse_edits(["pii", "control_characters", "mojibake"]) == ["mojibake", "control_characters", "pii"]
    assert (
        apply_edits("schÃ¶n âœ” \x00\x1b[1mbold\x1b[0m\ttab\n", ["mojibake", "control_characters"])
        == "schön ✔ bold\ttab\n"
    )
    assert (
        apply_edits("schön, naïve, Ünïcode ✔ 漢字", ["mojibake", "control_characters"])
        == "schön, naïve, Ünïcode ✔ 漢字"
    )


def test_a_missing_library_is_named(monkeypatch):
    from importlib import metadata

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("stages.extras.metadata.version", missing)
    with pytest.raises(ValueError, match=r"pip install 'shardmill\[ftfy\]'"):
        parse_edits(["mojibake"])
    assert parse_edits(["pii"]) == ["pii"]


TEXTS = [
    f"Note {i}: mail user{i}@host{i}.org [1] now, please.\nToo short\nThe second line ends here." for i in range(600)
]


def filtered(tmp_path, **keys):
    """id -> (text, text hash) of TEXTS after a filter with these keys."""
    tmp_path.mkdir()
    path = tmp_path / "notes.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    context = LocalContext(tmp_path / "out", mini({"notes": {"from": "jsonl", "path": str(path), **keys}}))
    rows = kept_documents(build(context, "filter").docs["notes"])
    return {row["document_id"]: (row["text"], row["text_hash"]) for row in rows}


def test_an_edit_moves_no_document_across_the_split(tmp_path):
    plain = filtered(tmp_path / "a")
    edits = filtered(tmp_path / "b", edit=["pii"], rules=[{"c4": {"min_sentences": 1}}])
    assert plain.keys() == edits.keys() == {document_id(t) for t in TEXTS}
    assert all(a != b for (a, _), (b, _) in zip(plain.values(), edits.values(), strict=True))
    line = "The second line ends here."
    assert edits[document_id(TEXTS[7])][0] == f"Note 7: mail {EMAILS[0]}  now, please.\n{line}"
    held = {i for i in plain if is_validation_id(i)}
    assert held == {i for i in edits if is_validation_id(i)} and held


def is_validation_id(identity: bytes) -> bool:
    """Whether a document is held out."""
    return bool(is_validation(np.frombuffer(identity, np.uint8).reshape(1, 16))[0])


@pytest.mark.slow
def test_lineage_goes_through_edits(tmp_path):
    sources = recipe(tmp_path)["sources"]
    loose = {"min_sentences": 1, "curly_bracket": False}
    sources["web"] |= {"rules": [{"c4": loose}]}
    sources["maths"] |= {"edit": ["pii"], "template": "From: jane@doe.org\nQ: {query}\nA: {response}"}
    manifest = every(tmp_path, sources=sources, mixtures=RECIPE["mixtures"])
    pieces = [p for s in manifest.shards[:4] for p in shard_rows(s.path, rows_table(manifest, s))]
    chosen = [p for p in pieces if p.source in ("web", "maths")][:200]
    traced = trace(manifest, chosen)
    assert {t.origin.status for t in traced} <= {"equal", "prefix"}
    assert {t.row.source for t in traced} == {"web", "maths"}
    folder = tmp_path / "build" / "every" / "curated"
    texts = pq.read_table(folder / "maths-00000.parquet")["text"].to_pylist()
    assert texts and all(text.startswith(f"From: {EMAILS[0]}\nQ: ") for text in texts)
