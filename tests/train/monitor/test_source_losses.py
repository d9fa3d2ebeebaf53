"""The training loss by source: it adds up to the loss, changes none of its bits, and names the source of a spike."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trainer_harness import MODEL, PAD, ended, losses, metrics, sets, start_ranks, text, write_manifest, write_shard

from train.checkpoint import checkpoint
from train.checkpoint.checkpoint import list_checkpoints
from train.config import TrainConfig
from train.data.loader import Loader
from train.data.manifest import Manifest, ManifestError, Source, load_manifest
from train.data.sampler import row_order, steps_that_read, stretches
from train.main import run
from train.monitor.anomalies import WARM
from train.monitor.source_losses import losses_at_end
from train.monitor.text import event_text

PHASE = {"muon": {"lr": 0.003}, "adamw": {"lr": 0.003}, "schedule": {"kind": "constant"}}
OPTIONS = {"steps": 9, "batch_size": 8, "seq_len": 32, "log_every": 1, "checkpoint_every": 0, "sample_tokens": 0}
NAMES = ["web", "maths"]
GARBAGE = 10  # a document of maths


def source(name: str, tokens: int) -> Source:
    return Source(name, "jsonl", "", "", "", 0, 0, {}, 0, tokens, tokens, 0, 0.5, 0.5, 1.0, 1.0, 0, 0)


def mixture(folder: Path, documents: list[list[bytes]], padding: list[int] | None = None) -> Path:
    """Training shards whose documents are of `web` and `maths` in turn, but that every fifth one is of maths."""
    folder.mkdir(parents=True)
    shards = []
    for number, texts in enumerate(documents):
        shards.append(write_shard(folder, f"m_train_{number:06d}", "train", texts, padding))
        column = [NAMES[1 if i % 5 == 0 else i % 2] for i in range(len(texts))]
        pq.write_table(pa.table({"source": column}), folder / shards[-1].rows)
    shards.append(write_shard(folder, "m_val_000000", "val", [text(200 + i, 80) for i in range(4)]))
    path = write_manifest(folder, shards, MODEL, {"pretrain": PHASE}, "pretrain")
    sources = [source(name, shards[0].tokens) for name in NAMES]
    path.write_text(dataclasses.replace(load_manifest(path), sources=sources).to_json())
    return path


DOCUMENTS = [[text(100 * s + i, 8 + i) for i in range(25)] for s in range(2)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return mixture(tmp_path_factory.mktemp("whole") / "tiny" / "pretrain", DOCUMENTS)


@pytest.fixture(scope="module")
def padded(tmp_path_factory) -> Path:
    return mixture(tmp_path_factory.mktemp("padded") / "tiny" / "pretrain", DOCUMENTS, [3, 0, 17, 1, 40] * 5)


def sums(record: dict[str, float]) -> tuple[float, float]:
    """The losses of all sources weighted by their shares, and the sum of these."""
    shares = {k.removeprefix("share/"): v for k, v in record.items() if k.startswith("share/")}
    return sum(record[f"loss/{name}"] * share for name, share in shares.items()), sum(shares.values())


def source_of_tokens(manifest: Manifest) -> dict[str, np.ndarray]:
    """By shard, the source of every token, from documents alone: each opens with its BOS."""
    return {
        shard.path: np.array([NAMES.index(n) for n in pq.read_table(manifest.file(shard.rows))["source"].to_pylist()])[
            np.cumsum(np.fromfile(manifest.file(shard.path), "<u2", offset=1024) == 256) - 1
        ]
        for shard in manifest.split("train")
    }


@pytest.mark.parametrize("order", ["shuffled", "sequential"])
@pytest.mark.parametrize("fixture", ["whole", "padded"])
def test_a_batch_knows_the_source_of_each_target(fixture, order, request):
    manifest = load_manifest(request.getfixturevalue(fixture))
    cfg = TrainConfig(steps=9, batch_size=8, seq_len=32, order=order)
    loader, wanted = Loader(manifest, cfg, sources=NAMES), source_of_tokens(manifest)
    tokens = [shard.tokens for shard in manifest.split("train")]
    for step in range(9):
        batch = loader.batch(step)
        shards, firsts, _ = row_order(manifest, cfg, 0, 1).rows(step)
        for row, (shard, first) in enumerate(zip(shards.tolist(), firsts.tolist(), strict=True)):
            parts = [wanted[manifest.shards[s].path][a:b] for s, a, b in stretches(tokens, shard, first, 33)]
            counts = batch.targets[row].numpy() != -100
            assert batch.sources is not None and batch.targets[row].ne(PAD).numpy()[counts].all()
            assert np.array_equal(batch.sources[row].numpy()[counts], np.concatenate(parts)[1:][counts])


@pytest.mark.parametrize(
    ("fixture", "more"),
    [
        ("whole", {}),
        ("whole", {"micro_batch": 2, "model__lm_head_logit_cap": None, "model__z_loss_weight": 0.0}),
        ("padded", {"micro_batch": 2, "document_mask": True}),
        ("padded", {"model__memory_tokens": 4, "order": "sequential"}),
        ("padded", {"model__lm_head_logit_cap": None, "model__z_loss_weight": 0.0}),
    ],
)
def test_sources_add_up_to_the_loss_and_change_no_bit_of_it(fixture, more, request, tmp_path):
    path = request.getfixturevalue(fixture)
    options = {**OPTIONS, "epochs": 9, **more}
    run(path, sets(**options, out=str(tmp_path / "with")))
    for record in metrics(tmp_path / "with"):
        if "loss" in record:
            total, shares = sums(record)
            assert total == pytest.approx(record["loss"], rel=2e-6) and shares == pytest.approx(1, abs=1e-6)
    blind = tmp_path / "blind" / "tiny" / "pretrain"
    shutil.copytree(path.parent, blind)
    for table in blind.glob("*_train_*.rows.parquet"):
        table.unlink()
    run(blind / "manifest.json", sets(**options, out=str(tmp_path / "without")))
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert not any("/" in key and key.startswith("loss") for r in metrics(tmp_path / "without") for key in r)
    files = [list_checkpoints(tmp_path / name / "checkpoints")[0] for name in ("with", "without")]
    for name in checkpoint.TENSOR_FILES:
        assert (files[0] / name).read_bytes() == (files[1] / name).read_bytes(), name


def test_a_line_has_the_mean_of_the_steps_since_the_one_before(whole, tmp_path):
    each, every = tmp_path / "each", tmp_path / "every"
    run(whole, sets(**OPTIONS, out=str(each)))
    run(whole, sets(**{**OPTIONS, "log_every": 4}, out=str(every)))
    lines = {r["step"]: r for r in metrics(every) if "loss" in r}
    assert set(lines) == {1, 4, 8, 9}
    loss = losses(each)
    for first, last in ((1, 1), (2, 4), (5, 8), (9, 9)):
        steps = range(first, last + 1)
        assert sums(lines[last])[0] == pytest.approx(sum(loss[s] for s in steps) / len(steps), rel=2e-6)
    summary = json.loads((every / "summary.json").read_text())
    assert summary["training_loss"] == pytest.approx({n: lines[9][f"loss/{n}"] for n in NAMES})
    page = (every / "summary.md").read_text()
    assert "plots/loss_by_source.svg" in page and "in training" in page


def test_the_loss_at_the_end_is_that_of_its_last_tenth():
    lines = [{"step": s, "loss/a": float(s), "share/a": 0.5 if s < 95 else 0.25} for s in range(5, 101, 5)]
    assert losses_at_end([{"step": 0, "val_loss": 1.0}, *lines, {"step": 101, "val_loss": 2.0}]) == {"a": 97.5}


@pytest.mark.slow
def test_four_processes_add_up_what_they_know(padded, tmp_path, launch):
    options = {**OPTIONS, "epochs": 9}
    run(padded, sets(**options, out=str(tmp_path / "one")))
    ended(start_ranks(launch, 4, padded, sets(**options, out=str(tmp_path / "four"))))
    one, four = metrics(tmp_path / "one"), metrics(tmp_path / "four")
    compared = 0
    for a, b in zip(one, four, strict=True):
        if "loss" in b:
            assert sums(b) == pytest.approx((b["loss"], 1.0), rel=2e-6)
        for key in a:
            if key.startswith(("loss/", "share/")):
                assert b[key] == pytest.approx(a[key], rel=1e-5), key
                compared += 1
    assert compared == 4 * len([r for r in one if "loss" in r])


@pytest.mark.slow
def test_a_spike_names_the_source_that_made_it(tmp_path):
    """Web's text is learned; one document of maths is bytes at random, late in the run."""
    documents = [[text(i, 40) for i in range(60)], [text(100 + i, 40) for i in range(60)]]
    clean = mixture(tmp_path / "clean" / "pretrain", documents)
    options = {**OPTIONS, "seq_len": 64, "log_every": 7, "epochs": 9}
    run(clean, sets(**{**options, "steps": 150}, out=str(tmp_path / "before")))
    planted = [list(texts) for texts in documents]
    planted[0][GARBAGE] = random.Random(1).randbytes(199)
    path = mixture(tmp_path / "planted" / "pretrain", planted)
    manifest, first = load_manifest(path), sum(len(d) + 1 for d in planted[0][:GARBAGE])
    seed, read = 0, [0]
    while read[0] < WARM + 9:  # all of it behind the steps that are not judged
        seed += 1
        cfg = TrainConfig(**{**options, "steps": 90, "seed": seed})
        read = steps_that_read(manifest, cfg, manifest.shards[0].path, first, first + 200)
    begin = {"seed": seed, "init_from": str(tmp_path / "before"), "out": str(tmp_path / "r")}
    run(path, sets(**{**options, **begin, "steps": 90}))
    events = [json.loads(line) for line in (tmp_path / "r" / "events.jsonl").read_text().splitlines()]
    spikes = [event for event in events if "loss spike" in event["event"]]
    assert spikes
    for event in spikes:
        assert event["source"] == "maths" and event["step"] - 1 in read
        assert event["source_loss"] > event["source_usual"] + 0.1
        assert math.isclose(event["source_losses"]["maths"], event["source_loss"])
        assert f"most of it in maths ({event['source_loss']:.4f}, usually" in event_text(event)


def test_a_damaged_table_is_named_with_the_way_to_mend_it(whole, tmp_path):
    folder = tmp_path / "tiny" / "pretrain"
    shutil.copytree(whole.parent, folder)
    pq.write_table(pa.table({"source": ["web"]}), folder / "m_train_000000.rows.parquet")
    with pytest.raises(ManifestError, match=r"m_train_00000\d.rows.parquet: damaged.*--force.*delete it"):
        run(folder / "manifest.json", sets(**OPTIONS, out=str(tmp_path / "r")))
