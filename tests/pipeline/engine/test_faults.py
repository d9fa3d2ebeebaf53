"""Bad input and bad luck on the command line: a clear message, a non-zero exit, and what is built stays usable."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from commands import cli
from engine_harness import Work, documents, new_work, small_recipe, write_jsonl

pytestmark = pytest.mark.slow


def with_source(work: Work, name: str = "web", **changes: Any) -> None:
    """Rewrite the recipe with keys of one source replaced."""
    recipe = small_recipe(work.corpus)
    recipe["sources"][name] = {**recipe["sources"][name], **changes}
    work.recipe.write_text(yaml.safe_dump(recipe, sort_keys=False))


def still_works(work: Work, stage: str = "filter") -> None:
    """The recipe as it was builds."""
    work.write()
    work.run(stage)


def test_empty_inputs(work: Work) -> None:
    folder = work.folder / "empty"
    folder.mkdir()
    with_source(work, path=str(folder))
    assert f"no files match {folder}" in work.fails("run", "dedup", "--executor", "local")
    (folder / "nothing.jsonl").touch()
    assert "source web has no rows" in work.fails("run", "dedup", "--executor", "local")
    with_source(work, path=str(work.folder / "nowhere"))
    assert "no files match" in work.fails("run", "download", "--executor", "local")
    still_works(work)


def test_rules_that_leave_nothing(packed: Work) -> None:
    work = packed
    with_source(work, rules=[{"length": {"min_chars": 10**8}}])
    text = work.fails("run", "dedup", "--executor", "local")
    assert "the rules dropped all 1,360 documents, 1,360 of them for length_short" in text
    assert "sources.web.rules" in text
    shown = work.cli("dropped", "--recipe", str(work.recipe), "--out", str(work.out))
    assert "length_short" in shown.stdout and "web" in shown.stdout, shown.stderr
    still_works(work)


def test_a_wrong_schema(work: Work) -> None:
    with_source(work, name="maths", text="body")
    text = work.fails("run", "dedup", "--executor", "local")
    assert "no column 'body'" in text
    assert "text, url" in text
    with_source(work, text="body")
    text = work.fails("run", "dedup", "--executor", "local")
    assert "no field 'body'" in text
    assert "score" in text
    still_works(work)


def test_a_parquet_cut_in_half(work: Work) -> None:
    file = work.corpus / "maths/m1.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    text = work.fails("run", "pack_pretrain", "--executor", "local")
    assert "m1.parquet" in text
    # One file may be lost if the recipe says so, and the manifest tells.
    work.write(quarantine={"files": 1})
    work.run("pack_pretrain")
    manifest = json.loads((work.out / "small/pretrain/manifest.json").read_text())
    lost = {s["name"]: (s["files_lost"], s["rows_in"]) for s in manifest["sources"]}
    assert lost["maths"] == (1, 350)
    assert lost["web"][0] == 0
    shown = work.cli("status").stdout
    assert "failed: download maths m1.parquet" in shown
    file.write_bytes(whole)
    still_works(work, "pack_pretrain")


def spoil(work: Work, rows: int) -> None:
    """Invalid UTF-8 in `rows` lines of a jsonl file, and in one string of a parquet file."""
    file = work.corpus / "notes/n.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    lines[:rows] = [line.replace(b'{"text": "', b'{"text": "\xff\xfe') for line in lines[:rows]]
    file.write_bytes(b"".join(lines))
    strings = pa.array([b"caf\xe9 " * 30, *(t.encode() for t in documents(9, 20))], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": strings}), work.corpus / "maths/bad.parquet")


def test_invalid_utf8_is_quarantined_and_tolerated_only_as_far_as_the_recipe_says(work: Work) -> None:
    spoil(work, 30)
    text = work.fails("run", "pack_pretrain", "--executor", "local")
    assert "32 of 2,402 rows are in quarantine" in text
    assert "quarantine.tolerate=0.100%" in text
    assert not list(work.out.glob("store/pack_pretrain/*")), "nothing is packed"
    rows = [r for f in sorted((work.out / "small/quarantine").glob("*")) for r in pq.read_table(f).to_pylist()]
    assert len(rows) == 32
    reasons = {r["source_file"]: r["reason"] for r in rows}
    assert "UTF-8" in reasons["n.jsonl"]
    assert "UTF-8" in reasons["bad.parquet"]
    assert "null" in reasons["w1.jsonl"]
    assert "quarantined rows: 32" in work.cli("status").stdout
    work.run("pack_pretrain", "--set", "quarantine.tolerate=5%")
    manifest = json.loads((work.out / "small/pretrain/manifest.json").read_text())
    assert {s["name"]: s["quarantined"] for s in manifest["sources"]} == {"web": 1, "maths": 1, "notes": 30}


def test_a_vocabulary_larger_than_the_text_supports(packed: Work) -> None:
    work = packed
    text = work.fails("run", "tokenize", "--executor", "local", "--set", "tokenizer.vocab_size=60000")
    assert "the text supports only" in text
    assert "lower tokenizer.vocab_size (now 60,000)" in text
    still_works(work, "build_tokenizer")


def test_a_mixture_that_asks_for_too_much(packed: Work) -> None:
    work = packed
    text = work.cli("run", "pack_pretrain", "--executor", "local", "--set", "mixtures.pretrain.tokens=1M")
    assert text.returncode == 1
    assert "source web is short by" in text.stderr
    assert "Traceback" not in text.stderr
    still_works(work, "pack_pretrain")


@pytest.fixture
def small_disk(work: Work) -> Any:
    """The store on a file system of its own, of 1.5 MB."""
    work.out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", work.out], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield work.out
    subprocess.run(["umount", "-l", work.out], check=True)


@pytest.mark.parametrize("executor", ["local"])
def test_a_full_disk(work: Work, small_disk: Path, reference: Work, executor: str) -> None:
    text = work.fails("run", "pack_pretrain", "--executor", executor)
    assert "no space left on the disk" in text
    assert "run the same command again" in text
    built = work.records()
    assert built
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    work.run("pack_pretrain")
    after = work.records()
    assert {k: after[k]["attempt"] for k in built} == {k: r["attempt"] for k, r in built.items()}
    mine, theirs = work.results(), reference.results()
    shards = {name: digest for name, digest in mine.items() if name.endswith((".bin", ".idx", ".parquet"))}
    assert shards == {name: theirs[name] for name in shards}


def test_missing_manifests_and_wrong_usage(work: Work) -> None:
    for command in ("verify", "inspect"):
        assert "no such manifest" in work.fails(command, str(work.folder / "nowhere"))
    assert "no stage 'nonsense'; the stages are download, build_scores, measure, filter" in work.fails(
        "run", "nonsense", status=2
    )
    assert "allowed are auto, ray, local" in work.fails("run", "filter", "--executor", "dask", status=2)
    assert "--workers" in work.fails("run", "filter", "--workers", "0", status=2)
    assert "--address needs" in work.fails("run", "filter", "--executor", "local", "--address", "x:1", status=2)
    assert "no mixtures.anneal" in work.fails("run", "pack_anneal_mix", *without_anneal(work))


def without_anneal(work: Work) -> tuple[str, ...]:
    """Write a recipe with one mixture; returns the options to run it with."""
    recipe = small_recipe(work.corpus)
    del recipe["mixtures"]["anneal"], recipe["train"]["anneal"]
    work.recipe.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return ("--executor", "local")


def test_two_drivers_of_one_store(reference: Work, tmp_path: Path) -> None:
    work = new_work(tmp_path, corpus=reference.corpus)
    command = ("run", "pack_pretrain", "--executor", "local", "--workers", "2")
    with ThreadPoolExecutor(2) as pool:
        drivers = [pool.submit(work.cli, *command) for _ in range(2)]
    ended = [driver.result() for driver in drivers]
    assert [each.returncode for each in ended] == [0, 0], ended
    work.run("pack_anneal_mix")
    assert work.results() == reference.results()


def test_a_folder_of_the_users_is_left_alone(work: Work) -> None:
    mine = work.out / "small/tokenizer"
    mine.mkdir(parents=True)
    (mine / "precious").write_text("mine")
    text = work.fails("run", "build_tokenizer", "--executor", "local")
    assert "tokenizer is a folder that Shardmill did not make; move it away" in text
    assert [p.name for p in mine.iterdir()] == ["precious"]
    shutil.rmtree(mine)
    assert "cached" in work.run("build_tokenizer").stderr


def test_outputs_that_were_deleted_or_cut_are_made_again(reference: Work, packed: Work) -> None:
    work = packed
    before = work.records()
    victims = {
        next(u for u, r in before.items() if r["label"] == label and u[0] == stage): damage
        for stage, label, damage in (
            ("tokenize", "maths 00000", "delete"),
            ("filter", "notes n.jsonl part-000", "cut"),
            ("pack_pretrain", "train 000001", "flip"),
        )
    }
    for unit, damage in victims.items():
        path = work.out / "store" / before[unit]["outputs"][0]["path"]
        data = path.read_bytes()
        path.unlink()  # published folders hold a link to the same file
        if damage != "delete":
            path.write_bytes(data[:-1] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:])
    work.run("pack_pretrain")
    after = work.records()
    assert {u for u in before if after[u]["attempt"] != before[u]["attempt"]} == set(victims)
    theirs = reference.results()
    assert all(theirs[name] == digest for name, digest in work.results().items())
    assert work.cli("verify", str(work.out / "small/pretrain")).returncode == 0


def test_a_flipped_bit_of_a_published_shard_is_found_and_mended(reference: Work, packed: Work) -> None:
    work = packed
    manifest = str(work.out / "small/anneal/manifest.json")
    shard = next((work.out / "small/anneal").glob("*train_000000.bin"))
    data = bytearray(shard.read_bytes())
    data[2000] ^= 4
    shard.write_bytes(data)
    done = work.cli("verify", manifest)
    assert done.returncode == 1
    assert f"differs: {shard.name}: sha256" in done.stdout
    work.run("pack_anneal_mix")
    assert work.cli("verify", manifest).returncode == 0
    theirs = reference.results()
    assert all(theirs[name] == digest for name, digest in work.results().items() if name.startswith("anneal"))


def test_a_read_only_store_says_so(work: Work) -> None:
    work.out.write_text("a file where the folder should be")
    text = work.fails("run", "filter", "--executor", "local")
    assert str(work.out) in text


def test_a_recipe_from_another_folder(work: Work, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    recipe = os.path.relpath(work.recipe, elsewhere)
    given = ["--recipe", recipe, "--out", str(work.out), "--executor", "local"]
    done = cli("run", "filter", *given, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert list(elsewhere.iterdir()) == []


def test_a_row_that_grows_worse_does_not_change_its_neighbours(work: Work) -> None:
    work.run("filter")
    before = {r["label"]: r["outputs"] for r in work.records().values() if r["stage"] == "filter"}
    write_jsonl(work.corpus / "notes/n.jsonl", [*documents(3, 300), {"not": "text"}])
    work.run("filter", "--set", "quarantine.tolerate=1")
    after = {r["label"]: r["outputs"] for r in work.records().values() if r["stage"] == "filter"}
    assert after["web w0.jsonl+2 part-000"] == before["web w0.jsonl+2 part-000"]
