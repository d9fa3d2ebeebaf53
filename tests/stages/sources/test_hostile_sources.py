"""Text that attacks: each ends in the quarantine or in one clear error, and its neighbours arrive."""

from __future__ import annotations

import gzip
import itertools
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pydantic import TypeAdapter
from stage_harness import identify, rows_of, run_unit

from benchmarks import mutants
from stages.errors import DataError
from stages.sources import contents, parquet
from stages.sources.registry import SOURCES, SourceConfig
from stages.task import Task

ADAPTER: TypeAdapter[Any] = TypeAdapter(SourceConfig)
folders = itertools.count()


def download(tmp_path: Path, **keys: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All rows of a source, and of its quarantine."""
    config = ADAPTER.validate_python({"from" if k == "kind" else k: v for k, v in keys.items()})
    module = SOURCES[config.kind]
    place = tmp_path.with_name(f"{tmp_path.name}-out{next(folders)}")
    records = [run_unit(place, module.work, s.params, s.inputs) for s in module.units(config, identify)]
    parts = rows_of(p for r in records for p in r.named("part-"))
    return parts, rows_of(r.output("quarantine") for r in records)


def lines(*texts: bytes) -> bytes:
    return b"".join(text + b"\n" for text in texts)


GOOD = [b'{"text": "first"}', b'{"text": "last"}']
DEEP = b"[" * 100_000 + b"]" * 100_000


def test_rows_that_attack_leave_their_neighbours(tmp_path):
    bad = [
        (rb'{"text": "\ud800"}', "lone surrogate"),
        (b'{"text": "\xff\xfe"}', "not valid UTF-8"),
        (b'{"text": ' + DEEP + b"}", "broken JSON"),
        (b'{"txt": ' + DEEP[:900] + b"]" * 900 + b"}", "no field 'text'"),
        (b'{"text": ' + b"9" * 5000 + b"}", "a number of more digits"),
        (b'{"text": NaN}', "float"),
        (b"\0" * 1000, "broken JSON"),
        (b'{"text": "' + b"x" * 70_000 + b'"}', "larger than 65536"),
        (b'{"text": "' + b"x" * 2_000_000 + b'"}', "the line has more than"),
    ]
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD[0], *(b for b, _ in bad), b'{"text": "n\\u0000ul"}', GOOD[1]))
    rows, quarantine = download(tmp_path, kind="jsonl", path=str(tmp_path), largest_document=65536)
    assert [r["text"] for r in rows] == ["first", "n\0ul", "last"]
    assert [r["source_row"] for r in rows] == [0, len(bad) + 1, len(bad) + 2]
    for (_, word), row in zip(bad, quarantine, strict=True):
        assert word in row["reason"], row


@pytest.mark.slow
def test_a_document_of_100_mb_and_a_million_empty_ones(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(GOOD[0], b'{"text": "' + b"word " * 20_000_000 + b'"}', GOOD[1]))
    rows, quarantine = download(tmp_path, kind="jsonl", path=str(tmp_path / "a.jsonl"), largest_document="99MB")
    assert [r["text"] for r in rows] == ["first", "last"] and len(quarantine) == 1
    few = 100_000  # a tenth, and no row costs more than the one before
    (tmp_path / "b.jsonl").write_bytes(lines(*[b'{"text": ""}'] * few, GOOD[1]))
    rows, quarantine = download(tmp_path, kind="jsonl", path=str(tmp_path / "b.jsonl"))
    assert len(rows) == few + 1 and rows[-1]["text"] == "last" and not quarantine


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "text"])
def test_a_zstd_bomb_is_bounded_by_the_recipe_and_in_memory(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(contents, "SMALL_BYTES", 1 << 20)
    packer = zstandard.ZstdCompressor().compressobj()
    zeros = bytes(1 << 24)
    bomb = b"".join(packer.compress(zeros) for _ in range(24)) + packer.flush()  # 400 MB from a few kilobytes
    name = {"jsonl": "a.jsonl.zst", "text": "a.txt.zst"}[kind]
    (tmp_path / name).write_bytes(bomb)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"unpacks to more than 200 times its size; .* max_ratio"):
        download(tmp_path, kind=kind, path=str(tmp_path))
    assert tracemalloc.get_traced_memory()[1] < 300 << 20
    tracemalloc.stop()
    rows, bad = download(tmp_path, kind=kind, path=str(tmp_path), max_ratio=1e6, largest_document="1MB")
    assert not rows and len(bad) == 1


@pytest.mark.slow
def test_a_gzip_bomb_is_bounded_too(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(bytes(80 << 20)))
    with pytest.raises(DataError, match="unpacks to more than 200 times its size"):
        download(tmp_path, kind="jsonl", path=str(tmp_path))


def test_a_deep_element_of_an_array_is_an_error_that_says_where(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"text": "first"}, {"text": ' + DEEP + b'}, {"text": "last"}]')
    with pytest.raises(DataError, match=r"a\.json: an element is nested too deeply, at character 20"):
        download(tmp_path, kind="json_array", path=str(tmp_path))


def test_parquet_of_wrong_types_without_a_column_or_cut_in_half(tmp_path):
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "numbers.parquet")
    rows, bad = download(tmp_path, kind="parquet", path=str(tmp_path))
    assert not rows and {b["reason"] for b in bad} == {"text is int, not a string"}
    pq.write_table(pa.table({"text": [["a"]], "n": [1]}), tmp_path / "numbers.parquet")
    assert "text is list" in download(tmp_path, kind="parquet", path=str(tmp_path))[1][0]["reason"]
    with pytest.raises(DataError, match=r"no column 'answer'; its columns are text, n"):
        download(tmp_path, kind="parquet", path=str(tmp_path), template="{text} {answer}")
    with pytest.raises(DataError, match=r"where.n compares texts .in., and the column is int64"):
        download(tmp_path, kind="parquet", path=str(tmp_path), where={"n": {"in": ["1"]}})
    data = (tmp_path / "numbers.parquet").read_bytes()
    (tmp_path / "numbers.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"is damaged .*fetch the file again"):
        download(tmp_path, kind="parquet", path=str(tmp_path))


def test_a_template_that_names_an_unknown_field(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(*[b'{"question": "q"}'] * 1001))
    with pytest.raises(DataError, match=r"none of the first 1000 rows .* no field 'answer' \(there: question\)"):
        download(tmp_path, kind="jsonl", path=str(tmp_path), template="{question} {answer}")
    with pytest.raises(DataError, match="names no field"):
        download(tmp_path, kind="jsonl", path=str(tmp_path), template="{0.__class__}{}")


def test_names_and_links_lead_nowhere_else(tmp_path):
    inside, outside = tmp_path / "data", tmp_path / "secrets"
    inside.mkdir()
    outside.mkdir()
    (outside / "a.jsonl").write_bytes(lines(GOOD[0]))
    (inside / "b.jsonl").write_bytes(lines(GOOD[1]))
    (inside / "c.jsonl").symlink_to("b.jsonl")
    rows, _ = download(tmp_path, kind="jsonl", path=str(inside))
    assert [r["source_file"] for r in rows] == ["b.jsonl"], "a link to it is the same file"
    (inside / "a.jsonl").symlink_to(outside / "a.jsonl")
    for path in (inside, inside / "*.jsonl"):
        with pytest.raises(DataError, match=r"a\.jsonl is a link out of .*data; .*follow_links: true"):
            download(tmp_path, kind="jsonl", path=str(path))
        assert len(download(tmp_path, kind="jsonl", path=str(path), follow_links=True)[0]) == 2
    assert len(download(tmp_path, kind="jsonl", path=str(inside / "a.jsonl"))[0]) == 1, "it is named itself"
    (inside / "a.jsonl").unlink()
    (inside / "gone.jsonl").symlink_to(inside / "nowhere.jsonl")
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        download(tmp_path, kind="jsonl", path=str(inside / "gone.jsonl"))
    names = ["..", "...jsonl", "a\nb.jsonl", "-rf.jsonl", "%2e%2e%2f.jsonl", "ünï.jsonl"]
    for name in names[1:]:
        (tmp_path / "odd").mkdir(exist_ok=True)
        (tmp_path / "odd" / name).write_bytes(lines(GOOD[0]))
    rows, _ = download(tmp_path, kind="jsonl", path=str(tmp_path / "odd"))
    assert {r["source_file"] for r in rows} == set(names[2:]), "a leading dot hides a file"


def test_plain_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"One.\nStill one.\n\n \nTwo.\r\n\n\n" + b"\xff\n\n" + b"x" * 5000 + b"\n\nLast.")
    (tmp_path / "b.md.gz").write_bytes(gzip.compress("Grün.".encode()))
    rows, bad = download(tmp_path, kind="text", path=str(tmp_path), document="paragraph", largest_document=1000)
    assert [r["text"] for r in rows] == ["One.\nStill one.", "Two.\r", "Last.", "Grün."]
    assert [r["source_row"] for r in rows] == [0, 1, 4, 0]
    assert [b["reason"].split(";")[0] for b in bad] == [
        "not valid UTF-8 at byte 0",
        "the paragraph has more than 1,000 bytes",
    ]
    rows, bad = download(tmp_path, kind="text", path=str(tmp_path), largest_document=1000)
    assert [r["text"] for r in rows] == ["Grün."] and "the file has more than 1,000 bytes" in bad[0]["reason"]


def test_where_keeps_the_rows_that_pass(tmp_path):
    table = pa.table(
        {
            "text": [f"t{i}" for i in range(8)],
            "n": pa.array([1, 2, None, 4, 5, 6, 7, 8]),
            "lang": pa.array(["en", "de", "en", None, "fr", "en", "de", "en"]).dictionary_encode(),
            "m": [{"s": float(i)} for i in range(8)],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    for where, want in [
        ({"n": {"min": 2, "max": 7}}, [1, 3, 4, 5, 6]),
        ({"lang": {"in": ["en", "fr"]}}, [0, 2, 4, 5, 7]),
        ({"n": {"min": 2}, "lang": {"in": ["en"]}, "m.s": {"max": 6}}, [5]),
        ({"n": {"min": 99}}, []),
    ]:
        rows, bad = download(tmp_path, kind="parquet", path=str(tmp_path), where=where)
        assert [(r["text"], r["source_row"]) for r in rows] == [(f"t{i}", i) for i in want] and not bad


def test_text_column_is_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(b'{"body": "x", "meta": {"url": "http://u"}}'))
    rows, _ = download(tmp_path, kind="jsonl", path=str(tmp_path), text_column="body")
    assert (rows[0]["text"], rows[0]["url"]) == ("x", "http://u")
    assert json.loads(json.dumps(rows[0]["source_row"])) == 0


ROOM = 500 << 20  # bytes that reading may ask for


@pytest.mark.parametrize(
    ("rows", "row_bytes", "fits"),
    [(10, 60 << 20, False), (40, 1 << 20, True), (20_000, 1000, True)],
    ids=["a page of 600 MB", "40 MB", "one short text 20,000 times"],
)
def test_parquet_reads_within_a_bound_of_memory_or_names_what_does_not_fit(tmp_path, rows, row_bytes, fits):
    """A page is the least that arrow unpacks: one that is larger than the memory is refused, by name and for good."""
    file = tmp_path / "a.parquet"

    def write() -> None:
        one = row_bytes < 1 << 20
        many = [f"{i}" + "x" * row_bytes for i in range(1 if one else rows)]
        texts = pa.array(many).take(pa.array([0] * rows)) if one else pa.array(many)
        pq.write_table(pa.table({"text": texts}), file, compression="zstd", use_dictionary=fits)

    mutants.run(write, 120, 8 << 30)  # elsewhere: what is freed here would be room to read
    assert file.stat().st_size < 1 << 20

    def read() -> None:
        config = ADAPTER.validate_python({"from": "parquet", "path": str(file)})
        (unit,) = parquet.units(config, identify)
        try:
            print(sum(len(row.text) for row in parquet.rows(Task(unit.params, unit.inputs, tmp_path, "", str))))
        except DataError as error:
            print(error)

    outcome = mutants.run(read, 120, ROOM)
    if fits:
        assert int(outcome.output) >= rows * row_bytes
    else:
        assert outcome.output.startswith(f"{file} cannot be unpacked in the memory that there is (")
