"""What the report says of a training, and that its bytes are the packed texts'."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from pipeline.commands.report import break_words, grid
from stages.exclude.stage import EXCLUDE
from stages.pack.describe import documents_kept, drop_reasons, mixture_table
from stages.stage import Stage, Table
from stages.tokenize.stage import engine_lines
from stages.train.report import report
from train.data.manifest import load_manifest
from train.eval.validation import Validation


def shown(tables):
    console = Console(width=200, record=True, file=io.StringIO())
    for table in tables:
        console.print(grid(table.title, table.header, table.rows, table.left))
    return [" ".join(line.split()) for line in console.export_text().splitlines()]


@pytest.mark.parametrize(("width", "heads"), [(80, 2), (100, 1), (120, 1), (40, None)])
def test_a_table_too_wide_breaks_no_word_and_no_figure(width, heads):
    header = ("source", "from", "units", "MB", "documents", "kept", "bytes/token", "tokens to train on", "tokens/doc")
    rows = [("sections", "parquet", 1, "5.9", "~1.23 M", "100.0%", "11.83", "~1.21 M ± 12%", "7,185")]
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(grid("Sources", header, rows))
    lines = console.export_text().splitlines()[1:]
    assert max(map(len, lines)) <= width
    if heads:
        assert len(lines) == heads + 1
        assert lines[-1].split() == " ".join(map(str, rows[0])).split()
        assert {w for line in lines[:-1] for w in line.split()} >= {"source", "documents", "kept", "units"}
    else:
        assert sorted("".join("".join(lines).split())) == sorted(
            "".join("".join(map(str, [*header, *rows[0]])).split())
        )


@pytest.mark.parametrize(
    ("header", "width", "broken"),
    [
        ("tokens to train on", 12, "tokens to\ntrain on"),
        ("bytes/token", 3, "bytes/\ntoken"),
        ("documents", 2, "documents"),
        ("", 0, ""),
        ("a/ b c", 1, "a/\nb\nc"),
    ],
)
def test_headers_break_between_words(header, width, broken):
    assert break_words(header, width) == broken


def score(bits, **sources):
    return {"nats": 1.0, "bits_per_byte": bits, "tokens": 9, "bytes": 3000, "sources": sources}


def test_a_new_stage_that_drops_documents_is_counted():
    short = Stage("short", "", "", lambda _: None, after=(EXCLUDE,), drops_documents=True)
    counts = {
        "filter": {"kept": 90, "dropped.length_short": 10},
        "dedup": {"rows_in": 90, "kept": 80, "dropped.duplicate": 10},
        "exclude": {"dropped.excluded": 1},
        "short": {"dropped.too_short": 7},
    }
    context = SimpleNamespace(counts=lambda stage, source: counts.get(stage.name, {}), built=lambda stage: stage)
    assert (documents_kept(context, EXCLUDE, "a"), documents_kept(context, short, "a")) == (79, 72)
    assert sum(drop_reasons(context, short, "a").values()) == 100 - 72


def test_training_by_phase_and_by_source(tmp_path):
    summary = {
        "parameters": 1234,
        "steps": 5,
        "tokens_per_second": 99.0,
        "before": score(3.0, web=score(4.0)),
        "unigram": score(2.0, web=score(2.5), maths=score(1.5)),
        "after": score(1.0, web=score(2.75), maths=score(0.75)),
        "samples": [],
    }
    old = {key: value | {"sources": {}} if key == "after" else value for key, value in summary.items()}
    context, done = SimpleNamespace(artifact_path=str), {}
    for phase, value in (("pretrain", summary), ("anneal", summary | {"before": None}), ("old", old)):
        (tmp_path / phase).write_text(json.dumps(value))
        done[phase] = SimpleNamespace(output=lambda _, phase=phase: tmp_path / phase)
    groups = list(report(context, done))
    lines = shown(table for (table,) in groups)
    assert "pretrain 1,234 5 99 3.0000 2.0000 1.0000 50.0% below" in lines
    assert "pretrain web 9 3,000 4.0000 2.5000 2.7500 10.0% above" in lines
    assert "pretrain maths 9 3,000 - 1.5000 0.7500 50.0% below" in lines
    assert "anneal web 9 3,000 - 2.5000 2.7500 10.0% above" in lines
    assert not any(line.startswith("old web") for line in lines)
    assert len(list(report(context, {"old": done["old"]}))) == 1
    sampled = summary | {"samples": [{"prompt": "a", "text": "b"}]}
    (tmp_path / "pretrain").write_text(json.dumps(sampled))
    *tables, samples = report(context, {"pretrain": done["pretrain"]})
    assert all(isinstance(table, Table) for (table,) in tables) and samples == ["[pretrain] 'a' -> 'b'"]


def test_documents_in_a_window_and_who_encoded():
    source = {"name": "qa", "ratio_asked": 1.0, "ratio_got": 1.0, "tokens": 4096, "documents": 64, "epochs": 1.0}
    manifest = {
        "mixture": "anneal",
        "tokens": 4096,
        "val_tokens": 0,
        "shards": [],
        "sources": [source | {"max_epochs": 1}],
    }
    assert shown([mixture_table(manifest, 256)])[1:3] == [
        "source asked got tokens documents epochs cap documents/window",
        "qa 100.00% 100.0000% 4,096 64 1.000 1 4.00",
    ]
    assert shown([mixture_table(manifest)])[2].endswith("1.000 1")
    counts = {"tokens": 5, "encoded_by.fastokens 1.0": 3, "encoded_by.tokenizers 2.0; fastokens 1.0: differs": 1}
    first, second = engine_lines(SimpleNamespace(counts=lambda stage: counts))
    assert first.startswith("Encoded by fastokens 1.0 (3 of 4 units)")
    assert second.startswith("Encoded by tokenizers 2.0; fastokens 1.0: differs (1 of 4 units)")


@pytest.mark.slow
def test_the_bytes_scored_of_each_source_are_those_of_its_held_out_texts(reference):
    """From the curated text, by the ids that the shard's rows name."""
    curated = reference.out / "small" / "curated"
    texts = {
        row["document_id"]: row["text"] for path in curated.glob("*.parquet") for row in pq.read_table(path).to_pylist()
    }
    manifest = load_manifest(reference.out / "small" / "pretrain")
    groups = Validation(manifest, 64, 0, None, 0, 1).groups
    assert set(groups) == {"", "web", "maths", "notes"}
    for source in ("web", "maths", "notes"):
        (shard,) = manifest.split("val", source)
        rows = pq.read_table(manifest.file(shard.rows)).to_pylist()
        assert {row["source"] for row in rows} == {source} and not any(row["truncated"] for row in rows)
        assert groups[source].bytes == sum(len(texts[row["document_id"]].encode()) for row in rows) > 0
