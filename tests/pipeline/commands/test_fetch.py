"""`fetch`: a build of a bucket in a folder, byte for byte, gone on with where it was cut, and never a damaged file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from built import Inline, flip, small
from s3_server import S3Server

from pipeline.commands.fetch import fetch_build
from pipeline.engine.context import Context, drive
from pipeline.engine.progress import Progress
from pipeline.engine.store import open_store
from pipeline.errors import UserError
from pipeline.recipe import parse_recipe
from stages.pack.verify import verify
from stages.registry import STAGES
from train.bucket import Bucket
from train.data.manifest import ManifestError, load_manifest
from train.data.remote import open_manifest


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("local"))


def in_bucket(local: Path, s3: S3Server) -> str:
    """The address of the build of `local`, made again in a new bucket."""
    out = f"{s3.new_bucket()}/out"
    context = Context(parse_recipe(load_manifest(local).recipe, "test"), open_store(out), Inline, Progress(True))
    drive(context, context.stage(STAGES["pack_anneal_mix"]))
    s3.reset()
    return f"{out}/small/anneal"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_build_is_fetched_byte_for_byte_and_gone_on_with(
    local: Path, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, folder = in_bucket(local, s3), tmp_path / "there"
    download, calls = Bucket.download, 0

    def cut(self: Bucket, path: str, target: Path, *more: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 6:
            target.write_bytes(b"half")
            raise KeyboardInterrupt
        download(self, path, target, *more)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "download", cut)
        with pytest.raises(KeyboardInterrupt):
            fetch_build(address, folder)
    assert not (folder / "manifest.json").exists()
    whole = [path for path in folder.iterdir() if not path.name.endswith(".part")]
    damaged = whole[0]
    flip(damaged, -1)
    s3.reset()
    s3.fault_rate = 0.1
    fetch_build(f"{address}/manifest.json", folder)
    asked = [path.rpartition("/")[2] for path in s3.paths]
    assert {path.name for path in whole[1:]}.isdisjoint(asked) and damaged.name in asked
    assert contents(folder) == contents(local)
    assert list(verify(load_manifest(folder))) == []
    s3.reset()
    fetch_build(address, folder)
    assert not [path for path in s3.paths if path.endswith(".bin")]
    fetch_build(str(local), tmp_path / "of a disk")
    assert contents(tmp_path / "of a disk") == contents(local)


def test_what_is_damaged_missing_or_in_the_way_is_said(local: Path, s3: S3Server, tmp_path: Path) -> None:
    address = in_bucket(local, s3)
    manifest = open_manifest(address)
    shard = f"{manifest.cache.build}/{manifest.shards[0].path}"
    data = Bucket(address).get(shard)
    Bucket(address).put(shard, data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(
        UserError, match=r"_000000\.bin is damaged: .* bring it back: python -m pipeline run pack_anneal"
    ):
        fetch_build(address, tmp_path / "a")
    assert not (tmp_path / "a" / manifest.shards[0].path).exists()
    Bucket(address).delete([shard])
    with pytest.raises(ManifestError, match=r"_000000\.bin is not there; bring it back"):
        fetch_build(address, tmp_path / "a")
    Bucket(address).put(shard, data)
    fetch_build(address, tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds other things \(thesis\.tex\); name a new folder"):
        fetch_build(address, tmp_path / "b")
    other = small(tmp_path / "other", seed=6)
    with pytest.raises(UserError, match=r"a holds build .*, this is .*; name a new folder"):
        fetch_build(str(other), tmp_path / "a")
