"""Every kind of source: what it reads, how it is cut, bad rows, damaged files, messages."""

import csv
import gzip
import io
import itertools
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from stage_harness import identify, rows_of, run_unit

from stages.errors import DataError
from stages.schemas import document_id, table_digest
from stages.sources import installed_docs, parquet
from stages.sources.base import Row
from stages.sources.contents import decompress_zstd
from stages.sources.files import list_files
from stages.sources.jsonl import lines
from stages.sources.registry import SOURCES, SourceConfig, describe
from stages.sources.writer import GROUP_ROWS, parts_schema, write_parts

ADAPTER = TypeAdapter(SourceConfig)
folders = itertools.count()


def config(**keys):
    return ADAPTER.validate_python({"from" if k == "kind" else k: v for k, v in keys.items()})


def download(tmp_path, **keys):
    """All units of a source: (records, rows of all parts, rows of the quarantine)."""
    source = config(**keys)
    module = SOURCES[source.kind]
    place = tmp_path / f"out{next(folders)}"
    records = [run_unit(place, module.work, s.params, s.inputs) for s in module.units(source, identify)]
    rows = rows_of(p for r in records for p in r.named("part-"))
    return records, rows, rows_of(r.output("quarantine") for r in records)


def write_jsonl(path: Path, lines: list[bytes]) -> None:
    data = b"\n".join(lines) + b"\n"
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        half = len(data) // 2  # two frames: concatenated files are valid zstd
        data = zstandard.compress(data[:half]) + zstandard.compress(data[half:])
    path.write_bytes(data)


ROWS = [{"text": f"Text number {i}.", "url": f"http://x/{i}", "score": i / 2, "lang": "en"} for i in range(50)]
LINES = [json.dumps(row).encode() for row in ROWS]


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst", "json", "parquet", "csv", "arrow"])
def test_all_formats_give_the_same_documents(tmp_path, ending):
    file = tmp_path / f"data.{ending}"
    kind = {"json": "json_array", "parquet": "parquet", "csv": "csv", "arrow": "arrow"}.get(ending, "jsonl")
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), file, row_group_size=7)
    elif kind == "json_array":
        file.write_text(json.dumps(ROWS, indent=1))
    elif kind == "csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(ROWS[0]))
            writer.writeheader()
            writer.writerows(ROWS)
    elif kind == "arrow":
        table = pa.Table.from_pylist(ROWS)
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    else:
        write_jsonl(file, LINES)
    rules = [{"metadata": {"score": {"min": 1}, "lang": {"in": ["en"]}}}]
    records, rows, bad = download(tmp_path, kind=kind, path=str(tmp_path), rules=rules)
    assert not bad
    assert [r["text"] for r in rows] == [r["text"] for r in ROWS]
    assert [r["url"] for r in rows] == [r["url"] for r in ROWS]
    assert [(r["source_file"], r["source_row"]) for r in rows] == [(file.name, i) for i in range(50)]
    assert [r["meta.score"] for r in rows] == [r["score"] for r in ROWS]
    assert rows[0]["document_id"] == document_id(ROWS[0]["text"])
    counts = records[0].counts
    assert (counts["rows_in"], counts["rows_out"]) == (50, 50)
    assert counts["text_bytes"] == sum(len(r["text"]) for r in ROWS)


def test_bad_json_lines_are_quarantined(tmp_path):
    surrogate = rb'{"text": "a\ud800b"}'
    bad = [b'{"text": null}', b'{"text": 3}', b'{"other": "x"}', b'{"text": "x', b"[1]", b'{"text": "\xff"}', surrogate]
    good = [b'{"text": "nul \\u0000 is text"}', '{"text": "größer"}'.encode()]
    write_jsonl(tmp_path / "a.jsonl", [good[0], *bad, b"  ", good[1]])
    records, rows, quarantine = download(tmp_path, kind="jsonl", path=str(tmp_path / "a.jsonl"))
    assert [(r["text"], r["source_row"]) for r in rows] == [("nul \0 is text", 0), ("größer", 8)]
    reasons = [(q["source_row"], q["reason"]) for q in quarantine]
    words = ["null", "int", "no field 'text'", "broken JSON", "list", "UTF-8", "surrogate"]
    assert [row for row, _ in reasons] == list(range(1, 8))
    assert all(word in reason for word, (_, reason) in zip(words, reasons, strict=True))
    assert records[0].counts["quarantined"] == 7


def test_bad_json_array_elements(tmp_path):
    (tmp_path / "a.json").write_bytes(b'[{"text": "a"}, 5, {"text": "\xff"}, {"text": "b"}]')
    _, rows, quarantine = download(tmp_path, kind="json_array", path=str(tmp_path / "a.json"))
    assert [(r["text"], r["source_row"]) for r in rows] == [("a", 0), ("b", 3)]
    assert [q["source_row"] for q in quarantine] == [1, 2]


@pytest.mark.parametrize("large", [False, True])
def test_bad_parquet_rows(tmp_path, large):
    raw = pa.array([b"good", b"bad \xff", None, b"", "grün".encode()], pa.large_binary() if large else pa.binary())
    column = raw.view(pa.large_string() if large else pa.string())
    pq.write_table(pa.table({"text": column, "n": [1, 2, 3, 4, 5]}), tmp_path / "a.parquet")
    _, rows, quarantine = download(tmp_path, kind="parquet", path=str(tmp_path / "*.parquet"))
    assert [(r["text"], r["source_row"]) for r in rows] == [("good", 0), ("", 3), ("grün", 4)]
    assert [(q["source_row"], q["reason"]) for q in quarantine] == [
        (1, "field 'text' is not valid UTF-8 at byte 4"),
        (2, "text is null"),
    ]


def test_parquet_types(tmp_path):
    texts = pa.array(["x", "y", "x"]).dictionary_encode()
    meta = pa.array([{"url": "u0", "n": 1}, {"url": None, "n": 2}, None])
    pq.write_table(pa.table({"body": texts, "meta": meta}), tmp_path / "a.parquet")
    _, rows, bad = download(tmp_path, kind="parquet", path=str(tmp_path), text="body", url="meta.url")
    assert [(r["text"], r["url"]) for r in rows] == [("x", "u0"), ("y", None)]
    assert "no field 'meta.url'" in bad[0]["reason"]


def test_template(tmp_path):
    pq.write_table(pa.table({"q": ["1+1?", "2+2?"], "a": [2, None], "x": ["-", "-"]}), tmp_path / "a.parquet")
    template = "Question: {q}\nAnswer: {a} {{sic}}"
    _, rows, bad = download(tmp_path, kind="parquet", path=str(tmp_path), template=template)
    assert [r["text"] for r in rows] == ["Question: 1+1?\nAnswer: 2 {sic}"]
    assert bad[0]["reason"] == "field 'a' is null, not text"
    for broken, message in (("{", "Single"), ("no field", "names no field"), ("{}", "names no field")):
        with pytest.raises(DataError, match=message):
            download(tmp_path, kind="parquet", path=str(tmp_path), template=broken)


def test_wrong_schema_names_the_columns(tmp_path):
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'text'; its columns are body, n"):
        download(tmp_path, kind="parquet", path=str(tmp_path))
    with pytest.raises(DataError, match="no column 'score'"):
        rules = [{"metadata": {"score": {"min": 1}}}]
        download(tmp_path, kind="parquet", path=str(tmp_path), text="body", rules=rules)
    write_jsonl(tmp_path / "a.jsonl", [b'{"body": "x"}'] * 2000)
    with pytest.raises(DataError, match=r"a\.jsonl: none of the first 1000 rows .*there: body"):
        download(tmp_path, kind="jsonl", path=str(tmp_path))


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json_array", "ai2_arc"])
def test_nothing_matches(tmp_path, kind):
    for path in (tmp_path, tmp_path / "*.x", tmp_path / "gone"):
        with pytest.raises(DataError, match=f"no files match {path}".replace("*", r"\*")):
            download(tmp_path, kind=kind, path=str(path))


DAMAGE = ["a.parquet", "b.jsonl.zst", "c.jsonl.gz", "d.json"]


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.98])
def test_a_file_cut_off_is_named(tmp_path, name, keep):
    file = tmp_path / name
    words = [{"text": f"{i} {i * 7919 % 10007} {i * i % 9973}"} for i in range(5000)]
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(words), file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(words))
    else:
        write_jsonl(file, [json.dumps(w).encode() for w in words])
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep)])
    kind = {".parquet": "parquet", ".json": "json_array"}.get(file.suffix, "jsonl")
    with pytest.raises(DataError, match=rf"{name}.*fetch the file again"):
        download(tmp_path, kind=kind, path=str(file))


def test_a_damaged_parquet_page_is_named_and_neighbours_are_units_of_their_own(tmp_path):
    for i in range(3):
        pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / f"{i}.parquet", compression="zstd")
    broken = bytearray((tmp_path / "1.parquet").read_bytes())
    broken[20:400] = bytes(380)
    (tmp_path / "1.parquet").write_bytes(bytes(broken))
    with pytest.raises(DataError, match=r"1\.parquet"):
        download(tmp_path, kind="parquet", path=str(tmp_path / "1.parquet"))
    (tmp_path / "1.parquet").write_bytes(b"PAR1 nonsense")
    units = parquet.units(config(kind="parquet", path=f"{tmp_path}/?.parquet"), identify)
    assert [u.params["files"] for u in units] == [["0.parquet"], ["1.parquet"], ["2.parquet"]]


def test_parquet_units_are_row_group_ranges(tmp_path):
    rows = [{"text": f"{i:06d}" * 50, "big": "y" * 5000} for i in range(400)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=50, use_dictionary=False)
    pq.write_table(pa.Table.from_pylist(rows[:20]), tmp_path / "b.parquet")
    source = config(kind="parquet", path=str(tmp_path))
    units = parquet.units(source, identify, unit_bytes=32_000)
    assert [u.params["groups"][0] for u in units[:4]] == [[0, 2], [2, 4], [4, 6], [6, 8]]
    got = []
    for i, unit in enumerate(units):
        record = run_unit(tmp_path / "out" / str(i), parquet.work, unit.params, unit.inputs)
        got += [(r["source_file"], r["source_row"], r["text"]) for r in rows_of(record.named("part-"))]
    want = [("a.parquet", i, r["text"]) for i, r in enumerate(rows)]
    assert got == want + [("b.parquet", i, r["text"]) for i, r in enumerate(rows[:20])]


def test_source_files_are_relative_to_the_root(tmp_path):
    for name in ("x/1.jsonl", "x/y/2.jsonl", ".hidden/3.jsonl", "x/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(tmp_path / name, LINES)
    endings = (".jsonl",)
    assert [n for _, n in list_files(str(tmp_path), endings)] == ["x/1.jsonl", "x/y/2.jsonl"]
    assert [n for _, n in list_files(f"{tmp_path}/x/**/*.jsonl", endings)] == ["1.jsonl", "y/2.jsonl"]
    assert [n for _, n in list_files(f"{tmp_path}/x/1.jsonl", endings)] == ["1.jsonl"]
    (tmp_path / "z").mkdir()
    write_jsonl(tmp_path / "z/1.jsonl", LINES)
    with pytest.raises(DataError, match="both be called"):
        list_files([f"{tmp_path}/x/1.jsonl", f"{tmp_path}/z/1.jsonl"], endings)


def test_a_uri(tmp_path):
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/data/a.jsonl", b"\n".join(LINES))
    source = config(kind="jsonl", path="memory://bucket/data/*.jsonl")

    def look(path):
        return "digest", memory.size(path)

    (unit,) = SOURCES["jsonl"].units(source, look)
    record = run_unit(tmp_path, SOURCES["jsonl"].work, unit.params, unit.inputs)
    rows = rows_of(record.named("part-"))
    assert [r["source_file"] for r in rows] == ["a.jsonl"] * 50


def test_small_files_share_a_unit(tmp_path):
    for i in range(5):
        write_jsonl(tmp_path / f"{i}.jsonl", LINES)
    records, rows, _ = download(tmp_path, kind="jsonl", path=str(tmp_path))
    assert len(records) == 1
    assert len(rows) == 250
    assert {r["source_file"] for r in rows} == {f"{i}.jsonl" for i in range(5)}


def test_ai2_arc(tmp_path):
    rows = [
        ("Which is a mineral?", ["A", "B"], ["wood", "quartz"], "B"),
        ("Which is wet?", ["1", "2"], ["water", "sand"], "1"),
        ("Which?", ["A", "B"], ["x", "y"], "C"),
    ]
    table = [
        {"id": str(i), "question": q, "choices": {"text": t, "label": c}, "answerKey": k}
        for i, (q, c, t, k) in enumerate(rows)
    ]
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "arc.parquet")
    _, got, bad = download(tmp_path, kind="ai2_arc", path=str(tmp_path))
    assert got[0]["text"] == "Question: Which is a mineral?\nA. wood\nB. quartz\nAnswer: B. quartz"
    assert got[1]["text"] == "Question: Which is wet?\n1. water\n2. sand\nAnswer: 1. water"
    assert "'C' is not among the labels" in bad[0]["reason"]
    pq.write_table(pa.table({"question": ["x"]}), tmp_path / "arc.parquet")
    with pytest.raises(DataError, match="no column 'answerKey' or 'choices'"):
        download(tmp_path, kind="ai2_arc", path=str(tmp_path))


def test_installed_docs(tmp_path, monkeypatch):
    package = tmp_path / "site" / "demo"
    (package / "tests").mkdir(parents=True)
    (package / "tests" / "test_x.py").write_text('"""Not documentation."""')
    (package / "__init__.py").write_text(
        '"""Demo package."""\n'
        "common_args = parse_kwargs('''\n    input (Tensor): the input.\n    dim (int): the\n        axis.\n''')\n"
        "if True:\n    def f():\n        '''Does f.\n\n        Well.\n        '''\n"
        "class C:\n    'A class.'\n    def m(self): 'A method.'\n    def n(self): 'surrogate \\ud800'\n"
        'add_docstr(demo.abs, "abs({input}, {other}) {{x}}\\n" + "Args: {dim}".format(**common_args))\n'
        'add_newdoc("demo", "nd", ("sort", "Sorts."))\n'
        'raise RuntimeError("imported")\n'
    )
    (package / "broken.py").write_text("def (:")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    _, rows, bad = download(tmp_path, kind="installed_docs", packages=["demo"])
    assert not rows or "surrogate" not in rows[0]["text"]
    assert {b["source_file"] for b in bad} == {"demo/broken.py", "demo/__init__.py"}
    source = (package / "__init__.py").read_text().replace("\\ud800", "")
    (package / "__init__.py").write_text(source)
    _, rows, bad = download(tmp_path, kind="installed_docs", packages=["demo"])
    text = rows[0]["text"]
    assert rows[0]["source_file"] == "demo/__init__.py"
    for part in (
        "demo\n\nDemo package.",
        "demo.f\n\nDoes f.\n\nWell.",
        "demo.C.m\n\nA method.",
        "demo.nd.sort\n\nSorts.",
    ):
        assert part in text
    assert "Args: dim (int): the\n        axis." in text
    with pytest.raises(DataError, match="'no_such_thing' is not installed"):
        download(tmp_path, kind="installed_docs", packages=["no_such_thing"])


@pytest.mark.slow
def test_standard_library_has_its_reference(tmp_path):
    source = config(kind="installed_docs", packages=["stdlib"])
    names = [n for u in installed_docs.units(source, identify) for n in u.params["files"]]
    assert "stdlib/pydoc_data/topics.py" in names
    assert not any("test" in n.split("/") for n in names)
    assert installed_docs.module_name("torch/nn/__init__.py") == "torch.nn"
    assert installed_docs.module_name("stdlib/json/decoder.py") == "json.decoder"
    assert "python 3" in describe(source)["revision"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"from": "parquet", "path": "x", "rules": ["gofer"]}, "the rules are"),
        ({"from": "parquet", "path": "x", "pth": "y"}, "pth"),
        ({"from": "xlsx", "path": "x"}, "xlsx"),
        ({"from": "installed_docs", "packages": []}, "at least 1"),
    ],
)
def test_configuration_errors(keys, message):
    with pytest.raises(ValidationError, match=message):
        ADAPTER.validate_python(keys)


def test_thresholds_are_not_part_of_a_download(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", LINES)
    params = []
    for low in (1, 2):
        source = config(kind="jsonl", path=str(tmp_path), rules=[{"metadata": {"score": {"min": low}}}])
        params.append(SOURCES["jsonl"].units(source, identify)[0].params)
    assert params[0] == params[1]


def test_parts_are_cut_by_size_and_digests_are_of_values(tmp_path):
    rows = [Row("f", i, f"{i:04d}" * 25) for i in range(100)]
    record = run_unit(tmp_path, lambda t: write_parts(t, rows, part_bytes=1000), {"files": ["f"]})
    parts = record.named("part-")
    assert [p.rows for p in parts] == [10] * 10
    assert [p.name for p in parts[:2]] == ["part-000", "part-001"]
    assert parts[0].meta["text_bytes"] == 1000
    for part in parts:
        assert part.digest == table_digest(pq.read_table(part.path).cast(parts_schema({})))


@given(st.lists(st.binary(max_size=20)), st.lists(st.integers(0, 200), max_size=5))
def test_lines_of_any_chunking(parts, cuts):
    data = b"\n".join(p.replace(b"\n", b"") for p in parts)
    edges = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    chunks = [data[a:b] for a, b in itertools.pairwise(edges)]
    want = data.split(b"\n")
    assert list(lines(chunks)) == (want if want[-1] else want[:-1])


@settings(max_examples=50)
@given(st.lists(st.binary(min_size=1, max_size=3000), min_size=1, max_size=4), st.integers(1, 500))
def test_zstd_frames_and_cuts(frames, size):
    packed = b"".join(zstandard.compress(f) for f in frames)
    assert b"".join(decompress_zstd(io.BytesIO(packed), "x", size)) == b"".join(frames)
    with pytest.raises(DataError, match="x is cut off"):
        list(decompress_zstd(io.BytesIO(packed[:-1]), "x", size))


def test_local_paths_are_absolute(tmp_path, monkeypatch):
    write_jsonl(tmp_path / "a.jsonl", LINES)
    monkeypatch.chdir(tmp_path)
    for path in (".", "*.jsonl", "a.jsonl", "../" + tmp_path.name):
        (pair,) = list_files(path, (".jsonl",))
        assert Path(pair[0]).is_absolute()
        assert pair[1] == "a.jsonl"


def test_a_place_that_cannot_be_asked(monkeypatch):
    with pytest.raises(DataError, match=r"nosuch://bucket/x.jsonl cannot be listed"):
        list_files("nosuch://bucket/x.jsonl", (".jsonl",))

    def refuse(*_, **__):
        raise RuntimeError("401: who are you")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "glob", refuse)
    with pytest.raises(DataError, match=r"memory://b/.*401: who are you.*access"):
        list_files("memory://b/*.jsonl", (".jsonl",))


def test_a_row_group_has_an_end_in_rows_too(tmp_path):
    """Texts of nothing fill no row group by their bytes."""
    rows = (Row("f", i, "") for i in range(2 * GROUP_ROWS + 1))
    part = run_unit(tmp_path, lambda task: write_parts(task, rows), {}).output("part-000")
    assert pq.ParquetFile(part.path).num_row_groups == 3 and part.rows == 2 * GROUP_ROWS + 1
