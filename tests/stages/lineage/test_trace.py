"""Lineage: any token leads to its document, to the curated text and to the row of the source file; and back."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from built import copy_of, patch_hashes, replace
from commands import cli
from lineage_harness import every, points, published, run_folder

from pipeline.commands.rebuild import recipe_of
from pipeline.commands.trace import open_run, spans_of_step
from pipeline.errors import UserError
from stages.errors import DataError
from stages.lineage.rows import find_shard, rows_of_spans, rows_table, shard_rows
from stages.lineage.trace import source_config, trace
from stages.pack.format import ROWS
from train.config import TrainConfig
from train.data.loader import Loader
from train.data.manifest import ManifestError, load_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("every")
    every(folder)
    return folder


@pytest.fixture(scope="module")
def manifest(folder):
    return load_manifest(published(folder))


@pytest.mark.slow
def test_a_recipe_that_lacks_a_key_is_named(manifest):
    (piece,) = rows_of_spans(manifest, points(manifest, 1))[0]
    for gone in ("sources", "mixtures", "shard_tokens"):
        left = {key: value for key, value in manifest.recipe.items() if key != gone}
        with pytest.raises(ManifestError, match=rf"manifest\.json: recipe\.{gone} is missing"):
            trace(dataclasses.replace(manifest, recipe=left), [piece])
    recipe = copy.deepcopy(manifest.recipe)
    recipe["sources"][piece.source]["max_ratio"] = "x"
    with pytest.raises(DataError, match=rf"recipe\.sources\.{piece.source} is none .*max_ratio is 'x'"):
        source_config(dataclasses.replace(manifest, recipe=recipe), piece.source, {})
    with pytest.raises(UserError, match=r"the manifest's recipe: .* is required and missing"):
        recipe_of(dataclasses.replace(manifest, recipe={}), {})


@pytest.mark.slow
def test_a_thousand_random_tokens(manifest, monkeypatch):
    opened = []
    from stages.sources import files, jsonl

    real = files.open_source
    monkeypatch.setattr(jsonl, "open_source", lambda file, options=None: opened.append(file) or real(file, options))
    spans = points(manifest, 1000)
    found = rows_of_spans(manifest, spans)
    assert all(len(one) == 1 for one in found)
    pieces = [one[0] for one in found]
    for (shard, start, _), piece in zip(spans, pieces, strict=True):
        assert piece.shard == shard and piece.token_start <= start < piece.stop
    traced = trace(manifest, pieces)
    assert {p.source for p in pieces} == {"web", "notes", "maths", "quiz", "docs"}
    everything = [p for s in manifest.shards for p in shard_rows(s.path, rows_table(manifest, s))]
    holders = {s.path: (s.split, s.source) for s in manifest.shards}
    cut = {(holders[p.shard], p.document_id, p.copy) for p in everything if p.truncated}
    for one in traced:
        status = "prefix" if (holders[one.row.shard], one.row.document_id, one.row.copy) in cut else "equal"
        assert (one.curated.status, one.origin.status) == (status, status), one
    assert any("parts" in t.curated.detail for t in traced), "the long document is put together"
    assert any(p.copy for p in pieces)
    assert len(opened) == 1, "a file is read once, however many of its rows are wanted"


@pytest.mark.slow
def test_what_the_texts_are(manifest, folder):
    """Against the files themselves, not through the readers that the sources share."""
    pieces = [p[0] for p in rows_of_spans(manifest, points(manifest, 400, 1))]
    whole = [t for t in trace(manifest, pieces) if t.curated.status == "equal" and "parts" not in t.curated.detail]
    pairs = json.loads((folder / "corpus/maths.json").read_text())
    web = {f"w{i}.parquet": pq.read_table(folder / f"corpus/web/w{i}.parquet").to_pylist() for i in range(2)}
    seen = set()
    for one in whole:
        piece = one.row
        seen.add(piece.source)
        if piece.source == "maths":
            pair = pairs[piece.source_row]
            assert one.text == f"Q: {pair['query']}\nA: {pair['response']}"
        elif piece.source == "web":
            row = web[piece.source_file][piece.source_row]
            assert (one.text, piece.url) == (row["text"], row["url"])
        elif piece.source == "quiz":
            assert one.text.endswith("Answer: B. quartz")
    assert {"maths", "web", "quiz"} <= seen


def test_a_changed_source_row_is_seen(manifest, folder, tmp_path):
    piece = next(p[0] for p in rows_of_spans(manifest, points(manifest, 300)) if p[0].source == "maths")
    pairs = json.loads((folder / "corpus/maths.json").read_text())
    pairs[piece.source_row]["query"] += "!"
    moved = tmp_path / "maths.json"
    moved.write_text(json.dumps(pairs))
    (one,) = trace(manifest, [piece], {"maths": str(moved)})
    assert one.curated.status in ("equal", "prefix") and one.origin.status == "differs" and not one.proven
    moved.unlink()
    (one,) = trace(manifest, [piece], {"maths": str(moved)})
    assert one.origin.status == "absent" and str(moved) in one.origin.detail and one.proven
    moved.write_text(json.dumps(pairs[: piece.source_row]))
    (one,) = trace(manifest, [piece], {"maths": str(moved)})
    assert one.origin.status == "absent" and "no such row" in one.origin.detail
    with pytest.raises(DataError, match="no source 'nobody'; the manifest has docs, maths"):
        trace(manifest, [piece], {"nobody": "x"})


def test_a_forged_rows_table_is_seen(folder, tmp_path):
    """Two rows that trade places in the rows table, every checksum mended."""
    copy = copy_of(published(folder), tmp_path / "pretrain")
    shutil.copytree(folder / f"build/{load_manifest(copy).name}/curated", tmp_path / "curated")
    path = copy / load_manifest(copy).shards[0].rows
    table = pq.read_table(path)
    ids = table["document_id"].to_pylist()
    ids[3], ids[4] = ids[4], ids[3]
    table = table.set_column(2, ROWS.field(2), pa.array(ids, ROWS.field(2).type))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    replace(path, sink.getvalue().to_pybytes())
    patch_hashes(copy)
    forged = load_manifest(copy)
    start = table["token_start"].to_pylist()
    found = [p[0] for p in rows_of_spans(forged, [(forged.shards[0].path, start[i], start[i] + 1) for i in (2, 3, 4)])]
    assert [t.proven for t in trace(forged, found)] == [True, False, False]


@pytest.mark.parametrize("name", ROWS.names)
@pytest.mark.parametrize("damage", ["renamed", "retyped"])
def test_a_rows_table_of_other_columns_is_damaged(manifest, tmp_path, name, damage):
    copy = copy_of(Path(manifest.folder), tmp_path / "pretrain")
    path = copy / manifest.shards[0].rows
    table = pq.read_table(path)
    if damage == "renamed":
        table = table.rename_columns([f"{n}_" if n == name else n for n in table.column_names])
    else:
        at = ROWS.names.index(name)
        table = table.set_column(at, name, pa.array([[1]] * len(table)))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    replace(path, sink.getvalue().to_pybytes())
    with pytest.raises(DataError, match=rf"rows\.parquet is damaged .*{name}.*; mend it with `python -m"):
        rows_table(load_manifest(copy), manifest.shards[0])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_step_lists_what_its_batch_holds(manifest, tmp_path, world):
    """Rows taken apart at BOS: every stretch of the batch is a stretch of the document that trace names."""
    run = open_run(manifest, run_folder(manifest, tmp_path / "run", world_size=world))
    cfg = TrainConfig(seed=11, batch_size=8, seq_len=48, steps=40)
    bos = manifest.tokenizer.bos_id
    for step in (1, 7, 40):
        shares = [Loader(manifest, cfg, rank, world).batch(step - 1) for rank in range(world)]
        batch = np.empty((8, 49), np.int64)
        for rank, share in enumerate(shares):
            batch[rank::world] = share.tokens
        spans = [span for _, span in spans_of_step(manifest, run, step)]
        for row, (shard, start, stop), found in zip(batch, spans, rows_of_spans(manifest, spans), strict=True):
            borders = [p.token_start - start for p in found if p.token_start >= start and p.part == 0]
            assert borders == np.flatnonzero(row == bos).tolist()
            assert found[0].token_start <= start and found[-1].stop >= stop and stop - start == len(row)
            tokens = np.fromfile(manifest.file(shard), "<u2", offset=1024)
            assert np.array_equal(tokens[start:stop], row)


def test_runs_that_do_not_belong(manifest, tmp_path):
    with pytest.raises(UserError, match=r"no run\.json there"):
        open_run(manifest, str(tmp_path))
    with pytest.raises(UserError, match="trained on build beef"):
        open_run(manifest, run_folder(manifest, tmp_path / "a", build_id="beef"))
    run = open_run(manifest, run_folder(manifest, tmp_path / "b"))
    for step in (0, 41):
        with pytest.raises(UserError, match="steps 1 to 40"):
            spans_of_step(manifest, run, step)


def test_names_of_shards(manifest):
    assert find_shard(manifest, "1") is manifest.shards[1]
    assert find_shard(manifest, manifest.shards[2].path) is manifest.shards[2]
    for wrong in ("99", "x.bin", "-1"):
        with pytest.raises(DataError, match=f"no shard {wrong}: there are {len(manifest.shards)}"):
            find_shard(manifest, wrong)


@pytest.mark.slow
def test_the_command_line(manifest, folder, tmp_path):
    where = str(published(folder))
    piece = next(p[0] for p in rows_of_spans(manifest, points(manifest, 300)) if p[0].source == "web" and not p[0].part)
    done = cli("trace", where, "--shard", piece.shard, "--token", str(piece.token_start), "--full")
    assert done.returncode == 0, done.stderr
    (one,) = trace(manifest, [piece])
    said = (piece.document_id.hex(), f"web: {piece.source_file} row {piece.source_row}", piece.url, one.text)
    assert all(what in done.stdout for what in said) and "begins the document" in done.stdout
    assert "curated   equal: the same" in done.stdout and "origin    equal: the same" in done.stdout
    run = run_folder(manifest, tmp_path / "run")
    done = cli("trace", where, "--run", run, "--step", "3", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {r["row"] for r in rows} == set(range(8)) and {r["origin"]["status"] for r in rows} <= {"equal", "prefix"}
    wrong = cli("trace", where, "--shard", "0", "--step", "3")
    assert wrong.returncode == 2 and "--run DIR --step K" in wrong.stderr
    wrong = cli("trace", where, "--shard", "0", "--token", "999999")
    assert wrong.returncode == 1 and "has tokens 0 to" in wrong.stderr
