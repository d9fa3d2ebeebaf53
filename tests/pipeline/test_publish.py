"""What is published is read by others' own code, on the disk and from a hub that fails; nothing in it is guessed."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import mlcroissant
import pyarrow.parquet as pq
import pytest
import yaml
from engine_harness import Work
from huggingface_hub import DatasetCard, ModelCard
from hypothesis import given
from hypothesis import strategies as st
from writable_hub import WritableHub

from pipeline.errors import UsageError, UserError
from pipeline.publish import licenses
from pipeline.publish.dataset_card import cell, table
from pipeline.publish.facts import gather
from pipeline.publish.publish import publish
from pipeline.publish.training_content import OPEN
from train.data.manifest import load_manifest, manifest_text

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, reference: Work) -> Work:
    """A small build whose two phases were trained for a few steps."""
    folder = tmp_path_factory.mktemp("trained")
    work = Work(folder, shared=reference.corpus)
    sources = work.write()["sources"]
    sources["web"]["license"], sources["notes"]["license"] = "ODC-By 1.0", "CC BY-NC-SA 4.0"
    work.write(sources=sources)
    shutil.copytree(reference.out, work.out, symlinks=True)
    work.run("train")
    (work.out / "small/report/static").mkdir(parents=True)
    (work.out / "small/report/index.html").write_text("pages")
    (work.out / "small/report/static/report.css").write_text("")
    return work


@pytest.fixture(scope="module")
def published(trained: Work, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `publish` writes of it."""
    folder = tmp_path_factory.mktemp("published")
    publish(str(trained.out / "small/anneal"), folder, str(trained.out / "small/train/anneal"), None, False)
    return folder


def texts(folder: Path) -> list[str]:
    return [text for path in sorted(folder.glob("*.parquet")) for text in pq.read_table(path)["text"].to_pylist()]


def test_others_read_the_text_and_its_metadata(trained: Work, published: Path, tmp_path: Path) -> None:
    curated = texts(trained.out / "small/curated")
    loaded = datasets.load_dataset(str(published / "dataset"), split="train", cache_dir=str(tmp_path))
    assert list(loaded["text"]) == curated
    one = datasets.load_dataset(str(published / "dataset"), "notes", split="train", cache_dir=str(tmp_path))
    assert set(one["source"]) == {"notes"}
    described = mlcroissant.Dataset(str(published / "dataset/croissant.json"))
    assert not described.metadata.issues.errors
    read = [row["web/text"].decode() for row in described.records("web")]
    assert read == [row["text"] for row in loaded if row["source"] == "web"]


def test_the_cards_say_what_the_manifest_says(trained: Work, published: Path) -> None:
    manifest = load_manifest(trained.out / "small/anneal")
    card = DatasetCard.load(published / "dataset/README.md")
    assert card.data.license == ["unknown", "cc-by-nc-sa-4.0", "odc-by"]
    assert card.data.size_categories == ["1K<n<10K"] and f"{manifest.tokens:,} training tokens" in card.text
    for source in manifest.sources:
        assert f"| {source.name} |" in card.text and f"| {source.tokens:,} |" in card.text
    assert "notes (6,000 tokens): its license is non-commercial" in card.text
    assert "maths (10,000 tokens): its license is not known" in card.text
    assert "web (4,000 tokens): its license" not in card.text
    model = ModelCard.load(published / "model/README.md")
    assert "| pretrain | 4 |" in model.text and "| anneal | 2 |" in model.text and "bits per byte" in model.text
    assert (published / "dataset/shards/manifest.json").read_text() == manifest.to_json()
    assert (published / "dataset/report/static/report.css").exists() and "`report/`" in card.text


def test_the_european_facts_cover_all_phases_and_leave_open_what_no_record_says(published: Path) -> None:
    page = (published / "model/training-content.md").read_text()
    assert "512 in pretrain; 256 in anneal" in page and "tokens in pretrain | tokens in anneal |" in page
    assert "size of the data, pretrain: 50,000 tokens: less than 1 billion tokens" in page
    for name in ("provider and contact", "languages", "measures against unlawful content"):
        assert f"* {name}: {OPEN}\n" in page
    assert f"latest date of acquisition: {OPEN}" not in page


def test_a_push_through_faults_is_private_and_others_load_it(trained: Work, tmp_path: Path) -> None:
    """Attempts end at a hub that refuses; the next one sends nothing again that came through."""
    words = ["publish", str(trained.out / "small/anneal"), str(tmp_path / "p"), "--push", "me/small"]
    words += ["--run", str(trained.out / "small/train/anneal")]
    with WritableHub() as hub:
        there = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        there |= {"PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        refused = trained.fails(*words, HF_TOKEN="wrong", **there)
        assert "the hub answered 403; log in with a token that may write: hf auth login" in refused
        hub.refuse_after = 6
        broken = trained.fails(*words, HF_TOKEN="token", **there)
        assert "--push me/small: the hub answered 507; give the same command again" in broken
        hub.refuse_after, hub.every = 0, 13
        for _ in range(8):  # what the client does not ask again ends an attempt
            done = trained.cli(*words, HF_TOKEN="token", **there)
            if done.returncode == 0:
                break
        assert done.returncode == 0, done.stderr
        assert len(hub.put) == len(set(hub.put)) and any(asked.fault for asked in hub.asked)
        assert {asked["visibility"] for asked in hub.created.values()} == {"private"}
        for name, folder in (("me/small", "dataset"), ("me/small.model", "model")):
            written = {str(p.relative_to(tmp_path / "p" / folder)): p for p in (tmp_path / "p" / folder).rglob("*")}
            files = {name: path.read_bytes() for name, path in written.items() if path.is_file()}
            assert hub.datasets[name].files == files
        hub.every = 0
        loads = (
            "import datasets, transformers\n"
            "print(len(datasets.load_dataset('me/small', split='train')))\n"
            "m = transformers.AutoModelForCausalLM.from_pretrained('me/small', trust_remote_code=True)\n"
            "t = transformers.AutoTokenizer.from_pretrained('me/small', trust_remote_code=True)\n"
            "print(m(**t(['some words'], return_tensors='pt')).logits.shape[-1])\n"
        )
        environment = trained.environment(**there, HF_TOKEN="token")
        read = subprocess.run([sys.executable, "-c", loads], env=environment, capture_output=True, text=True)
        assert read.stdout.split() == [str(len(texts(trained.out / "small/curated"))), "600"], read.stderr


def test_what_cannot_be_published_is_said(trained: Work, published: Path, tmp_path: Path) -> None:
    anneal, run = str(trained.out / "small/anneal"), str(trained.out / "small/train/pretrain")
    with pytest.raises(UsageError, match="a repository of the hub is OWNER/NAME"):
        publish(anneal, tmp_path, None, "small", False)
    with pytest.raises(UserError, match=r"publish a model with its own data: .*small/pretrain"):
        publish(anneal, tmp_path, run, None, False)
    moved = tmp_path / "out/small"
    shutil.copytree(trained.out / "small/anneal", moved / "anneal")
    assert gather(str(moved / "anneal")).fetched is None and not gather(str(moved / "anneal")).text
    shutil.copytree(trained.out / "small/curated", moved / "curated")
    next((moved / "curated").glob("web-*")).unlink()
    with pytest.raises(UserError, match="curated/ beside it has 0 documents of web, this build kept "):
        gather(str(moved / "anneal"))
    value = json.loads((moved / "anneal/manifest.json").read_text())
    (moved / "anneal/manifest.json").write_text(manifest_text({**value, "adopted": True}))
    with pytest.raises(UserError, match="adopted: there are no records"):
        gather(str(moved / "anneal"))


@pytest.mark.parametrize(
    ("license", "names", "concerns"),
    [
        ("", ["unknown"], ["unknown"]),
        ("Apache-2.0", ["apache-2.0"], []),
        ("MIT License", ["mit"], []),
        ("ODC-BY-1.0", ["odc-by"], []),
        ("CC-BY-NC-ND 4.0", ["cc-by-nc-nd-4.0"], ["non-commercial", "no derivatives"]),
        ("cc by-sa 4.0", ["cc-by-sa-4.0"], ["share-alike"]),
        ("GPL-3.0-or-later OR MIT", ["gpl-3.0", "mit"], ["share-alike"]),
        ("Apache-2.0 WITH LLVM-exception AND BSD-2-Clause, PSF-2.0", ["apache-2.0", "bsd-2-clause", "other"], []),
        ("for non-commercial research only", ["other"], ["non-commercial"]),
        ("Encyclopaedia's own, since 1990", ["other"], []),
    ],
)
def test_a_license_has_the_hubs_name_and_its_concerns(license: str, names: list[str], concerns: list[str]) -> None:
    assert (licenses.hub_names(license), licenses.concerns(license)) == (names, concerns)


@given(st.text(st.characters(exclude_categories=())))
def test_no_text_leaves_its_cell(text: str) -> None:
    inside = cell(text)
    assert len(table(["a", "b"], [[text, 1]]).splitlines()) == 3
    bare = inside.replace("\\\\", "")
    assert all(bare[i - 1] == "\\" for i, mark in enumerate(bare) if mark in "`*_[]<>|#")


def test_the_metadata_of_a_card_is_the_same_whatever_a_source_is_called(trained: Work) -> None:
    facts = gather(str(trained.out / "small/anneal"))
    from pipeline.publish.dataset_card import dataset_card

    hostile = [dataclasses.replace(s, origin="a | b\n---\n<script>", license="x\n---\ny: z") for s in facts.sources]
    changed = dataclasses.replace(facts, manifest=dataclasses.replace(facts.manifest, sources=hostile))
    card = dataset_card(changed, "", False)
    assert yaml.safe_load(card.split("---\n")[1])["license"] == ["other"]
    assert "<script>" not in card and "\n---\n\n#" in card
