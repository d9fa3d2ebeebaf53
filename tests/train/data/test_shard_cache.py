"""Training from a bucket, against a real S3 server: the losses of local training, each file once a machine, bounds."""

from __future__ import annotations

import fcntl
import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server
from trainer_harness import MODEL, TRAIN, ended, losses, metrics, sets, start_ranks, text, write_manifest, write_shard

from train import bucket
from train.bucket import Bucket
from train.config import TrainError
from train.data import shard_cache
from train.data.loader import Loader
from train.data.manifest import ManifestError, load_manifest
from train.data.remote import open_manifest
from train.data.sampler import shards_in_order_of_need
from train.main import run
from train.overrides import configs

SHARDS = 8


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The manifest of a mixture of eight training shards in a folder, all of one length."""
    folder = tmp_path_factory.mktemp("mixture") / "tiny" / "pretrain"
    folder.mkdir(parents=True)
    documents = [[text(10 * n + i, 90)[:500] for i in range(6)] for n in range(SHARDS)]
    shards = [write_shard(folder, f"m_train_{n:06d}", "train", each) for n, each in enumerate(documents)]
    shards.append(write_shard(folder, "m_val_000000", "val", [text(200 + i, 80) for i in range(4)]))
    return write_manifest(folder, shards, MODEL, {"pretrain": TRAIN}, "pretrain")


@pytest.fixture(scope="module")
def losses_of_local(local: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    out = tmp_path_factory.mktemp("local") / "run"
    run(local, sets(out=str(out)))
    return losses(out)


def upload(folder: Path, s3: S3Server) -> str:
    """Put a folder into a new bucket. Returns the address of its manifest."""
    address = f"{s3.new_bucket()}/some/tiny/pretrain"
    for path in folder.iterdir():
        Bucket(address).put(f"{address}/{path.name}", path)
    s3.reset()
    return f"{address}/manifest.json"


def shards_fetched(s3: S3Server) -> list[str]:
    """The names of the shards that were asked for, one for each request."""
    return sorted(path.rpartition("/")[2] for path in s3.paths if path.startswith("GET") and path.endswith(".bin"))


def cached(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.bin"))


def test_training_from_a_bucket_has_the_losses_of_local_training(
    local: Path, losses_of_local: dict[int, float], s3: S3Server, tmp_path: Path
) -> None:
    manifest, cache = upload(local.parent, s3), str(tmp_path / "cache")
    cold, warm = tmp_path / "cold", tmp_path / "warm"
    run(manifest, sets(out=str(cold), cache=cache))
    assert losses(cold) == losses_of_local
    assert shards_fetched(s3) == sorted(path.name for path in local.parent.glob("*.bin")), "each once"
    assert json.loads((cold / "run.json").read_text())["manifest"] == manifest
    s3.reset()
    run(manifest, sets(out=str(warm), cache=cache))
    assert losses(warm) == losses_of_local
    assert shards_fetched(s3) == []
    assert all(line["seconds_waited"] >= 0 for line in metrics(warm) if "loss" in line)
    assert not [path for path in Path(cache).glob("*/.*") if path.suffix == ".part"]


@pytest.mark.slow
def test_a_bucket_that_fails_one_request_in_ten_costs_retries_and_once_warm_no_time(
    local: Path, losses_of_local: dict[int, float], s3: S3Server, tmp_path: Path
) -> None:
    manifest, cache = upload(local.parent, s3), str(tmp_path / "cache")
    s3.fault_rate = 0.1
    s3.fault = lambda environ: "503" if s3.paths.count(f"GET {environ['PATH_INFO']}") % 3 == 1 else None  # and more
    run(manifest, sets(out=str(tmp_path / "cold"), cache=cache))
    assert sum(s3.failed.values()) > 10
    assert losses(tmp_path / "cold") == losses_of_local
    s3.fault = None
    more = {"model__dim": 256, "batch_size": 16, "eval_tokens": 64}  # steps long enough to tell waiting from reading
    run(manifest, sets(out=str(tmp_path / "warm"), cache=cache, **more))
    lines = [line for line in metrics(tmp_path / "warm") if "loss" in line]
    assert sum(line["seconds_waited"] for line in lines) <= 0.01 * lines[-1]["seconds"]


@pytest.mark.slow
def test_two_processes_fetch_each_file_once(
    local: Path, losses_of_local: dict[int, float], s3: S3Server, launch: Any, tmp_path: Path
) -> None:
    manifest, out = upload(local.parent, s3), tmp_path / "pair"
    settings = sets(out=str(out), cache=str(tmp_path / "cache"))
    ranks = start_ranks(launch, 2, manifest, settings, variables=s3.environment(), home=tmp_path)
    ended(ranks)
    assert shards_fetched(s3) == sorted(path.name for path in local.parent.glob("*.bin"))
    assert losses(out) == pytest.approx(losses_of_local, abs=1e-5)


@pytest.mark.parametrize("order", ["shuffled", "sequential"])
def test_shards_are_fetched_in_the_order_of_need(local: Path, order: str) -> None:
    manifest = load_manifest(local)
    cfg = configs(manifest.recipe, "pretrain", sets(order=order), "")[1]
    for step in (0, 5):
        loader, read = Loader(manifest, cfg), []
        for later in range(step, step + 100):
            read += dict.fromkeys(loader._order.rows(later)[0].tolist())
        assert list(shards_in_order_of_need(manifest, cfg, step)) == list(dict.fromkeys(read))
        assert sorted(set(read)) == list(range(SHARDS))


def test_a_small_cache_keeps_its_bound_and_changes_no_loss(
    local: Path, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"order": "sequential", "steps": 38, "batch_size": 32, "epochs": 2, "model__dim": 16}
    run(local, sets(out=str(tmp_path / "local"), **settings))
    manifest, root = upload(local.parent, s3), tmp_path / "cache"
    size = next(local.parent.glob("*train*.bin")).stat().st_size
    limit = 4.5 * size + sum(path.stat().st_size for path in local.parent.glob("*val*.bin"))
    most = 0
    download = Bucket.download

    def watched(*arguments: Any) -> None:
        nonlocal most
        download(*arguments)
        most = max(most, shard_cache.bytes_below(root))

    monkeypatch.setattr(Bucket, "download", watched)
    monkeypatch.setattr(shard_cache, "FETCHING", 1)
    run(manifest, sets(out=str(tmp_path / "remote"), cache=str(root), cache_gb=limit / 1e9, **settings))
    assert losses(tmp_path / "remote") == losses(tmp_path / "local")
    assert most <= limit + size, "the one under way counts once it is there"
    assert len(shards_fetched(s3)) > SHARDS + 1, "some were pushed out and came again"
    with pytest.raises(TrainError, match=r"train\.cache_gb: .*\(a step reads from any shard\)\nmake room: --set train"):
        run(manifest, sets(out=str(tmp_path / "none"), cache=str(root), cache_gb=limit / 1e9))


def test_builds_that_nobody_uses_make_room_and_others_stay(local: Path, s3: S3Server, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    for name in ("old", "in use"):
        (root / name).mkdir(parents=True)
        (root / name / "x.bin").write_bytes(bytes(10_000))
        (root / name / ".used").touch()
    manifest = open_manifest(upload(local.parent, s3))
    size = sum(shard.bytes for shard in manifest.shards)
    with (root / "in use" / ".used").open() as used:
        fcntl.flock(used, fcntl.LOCK_SH)
        manifest.cache.use(str(root), (size + 12_000) / 1e9)
        for shard in manifest.shards:
            manifest.file(shard.path)
    assert {path.name for path in root.iterdir()} - {".room"} == {"in use", manifest.cache.name}


def test_what_is_damaged_or_missing_is_said_in_a_sentence(
    local: Path, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = upload(local.parent, s3)
    shard = manifest.replace("manifest.json", "m_train_000003.bin")
    client, contents = Bucket(manifest), Bucket(manifest).get(shard)
    settings = sets(out=str(tmp_path / "run"), cache=str(tmp_path / "cache"), resume="auto")
    client.put(shard, contents[:-1] + bytes([contents[-1] ^ 1]))
    with pytest.raises(
        ManifestError, match=r"m_train_000003\.bin: damaged: its sha256 is not .*python -m pipeline run"
    ):
        run(manifest, settings)
    client.delete([shard])
    with pytest.raises(ManifestError, match=r"m_train_000003\.bin: not there, and the manifest names it"):
        run(manifest, settings)
    client.put(shard, contents)
    run(manifest, settings)
    client.delete([manifest])
    with pytest.raises(ManifestError, match=r"no such manifest; build one with `python -m pipeline run pack_pretrain"):
        run(manifest, settings)
    monkeypatch.setattr(bucket, "PATIENCE", timedelta(seconds=1))
    s3.fault = lambda _: "503"
    with pytest.raises(bucket.UnavailableError, match="the store does not answer as it should"):
        run(manifest, settings)


def test_a_copy_that_was_damaged_or_deleted_comes_again(local: Path, s3: S3Server, tmp_path: Path) -> None:
    manifest, root = open_manifest(upload(local.parent, s3)), tmp_path / "cache"
    manifest.cache.use(str(root), None)
    loader = Loader(manifest, configs(manifest.recipe, "pretrain", [], "")[1])
    before = [loader.batch(step).tokens.clone() for step in range(12)]
    damaged, deleted, *_ = cached(root)
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    manifest.cache.drop_damaged(shard.path for shard in manifest.shards)
    deleted.unlink()
    assert all((loader.batch(step).tokens == before[step]).all() for step in range(12))
    assert damaged.read_bytes() == data
