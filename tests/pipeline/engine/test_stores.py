"""What the store asks of a bucket, of each kind: S3 and Google's XML API by moto, Azure's by its own emulator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from azure_server import AzureServer
from built import small
from gcs_server import GcsServer
from s3_server import S3Server
from test_bucket import build_in, packed, put_unit

from pipeline.commands.open_build import open_build
from pipeline.engine.leases import has_conditional_writes
from pipeline.engine.locks import store_lock
from pipeline.engine.object_store import ObjectStore
from pipeline.engine.store import RECORD, open_store
from stages.pack.verify import verify
from train import bucket
from train.bucket import Bucket, BucketError

Server = S3Server | AzureServer
KINDS: dict[str, Callable[[], Server]] = {"s3": S3Server, "gs": GcsServer, "az": AzureServer}
WRITERS = 16


@pytest.fixture(scope="module", params=list(KINDS))
def running(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of one kind."""
    pytest.importorskip("moto", reason="moto, of the extra dev, is not installed")
    pytest.importorskip("obstore", reason="obstore, of the extra s3, is not installed")
    server = KINDS[request.param]()
    yield server
    server.close()


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch) -> Server:
    """The same, with its address in the environment."""
    for name, value in running.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(bucket, "_user", 0)  # and again at the end: later tests may fork
    return running


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published folder of a small local build."""
    return small(tmp_path_factory.mktemp("local"))


def test_objects_are_written_listed_copied_and_deleted(server: Server, tmp_path: Path) -> None:
    base = server.new_bucket()
    client = Bucket(base)
    stamps = {name: client.put(f"{base}/a/{name}", name.encode()) for name in ("x", "y z", "ü%")}
    assert {o.path: (o.size, o.stamp) for o in client.objects(f"{base}/a")} == {
        f"{base}/a/{name}": (len(name.encode()), stamp) for name, stamp in stamps.items()
    }, "a list says the etag that the write said"
    assert all(client.head(f"{base}/a/{name}").stamp == stamp for name, stamp in stamps.items())
    assert client.names(base) == ["a"] and sorted(client.names(f"{base}/a")) == sorted(stamps)
    client.copy(f"{base}/a/x", f"{base}/b/x")
    assert client.get(f"{base}/b/x") == b"x"
    client.delete([f"{base}/a/x", f"{base}/a/gone", f"{base}/a/y z", f"{base}/a/ü%"])
    assert [found.path for found in client.objects(base)] == [f"{base}/b/x"]
    with pytest.raises(FileNotFoundError):
        client.get(f"{base}/a/x")
    with pytest.raises(FileNotFoundError):
        client.head(f"{base}/a/x")
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * (bucket.PART // 100))
    client.put(f"{base}/large", large)
    client.download(f"{base}/large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == large.read_bytes(), "in several parts"


@pytest.mark.soak  # a second for each hundred objects
def test_lists_of_more_than_a_page_are_whole(server: Server) -> None:
    base = server.new_bucket()
    client = Bucket(base)
    names = [f"{base}/many/{number:04d}" for number in range(1203)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: client.put(name, b""), names))
    assert [found.path for found in client.objects(f"{base}/many")] == names
    client.delete(names)
    assert list(client.objects(base)) == []


def test_of_many_who_write_at_once_one_wins(server: Server) -> None:
    base = server.new_bucket()
    client = Bucket(base)

    def won(number: int, **condition: str | bool) -> bool:
        try:
            client.put(f"{base}/one", str(number).encode(), **condition)  # type: ignore[arg-type]
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(WRITERS) as pool:
        assert sum(pool.map(lambda number: won(number, create=True), range(WRITERS))) == 1
        for round_ in range(5):
            stamp = client.head(f"{base}/one").stamp
            first = WRITERS * (round_ + 1)
            wins = pool.map(lambda number, stamp=stamp: won(number, replaces=stamp), range(first, first + WRITERS))
            assert sum(wins) == 1
    assert client.get(f"{base}/one") != b"0"


def test_a_bucket_that_is_not_there_is_named(server: Server) -> None:
    base = f"{server.new_bucket()}x"
    client = Bucket(base)
    for call in (lambda: client.put(f"{base}/a", b""), lambda: list(client.objects(base)), lambda: client.names(base)):
        with pytest.raises(BucketError, match=f"{base}: there is no such bucket; make it first"):
            call()


def test_units_and_leases_hold(server: Server, tmp_path: Path) -> None:
    store, key = open_store(f"{server.new_bucket()}/out"), "ab" * 20
    assert isinstance(store, ObjectStore)
    assert [put_unit(store, tmp_path, key, attempt).attempt for attempt in ("one", "two")] == ["one", "one"]
    (unit,) = store.units()
    assert {file.path.rpartition("/")[2] for file in unit.folder.files} == {RECORD, "one.docs.parquet"}
    assert has_conditional_writes(store, f"{unit.folder.path}/{RECORD}")
    fresh = open_store(store.out)
    fresh.list_outputs("filter")
    fresh.stat = None  # type: ignore[method-assign, assignment]  # the list is enough
    assert fresh.find("filter", key) is not None
    with store_lock(store), store_lock(fresh), pytest.raises(BlockingIOError), store_lock(store, exclusive=True):
        pass


@pytest.mark.parametrize("running", ["gs", "az"], indirect=True)  # test_bucket.py has more of S3
def test_a_build_has_the_bytes_of_a_local_one(local: Path, server: Server) -> None:
    out = f"{server.new_bucket()}/some/prefix"
    build_in(out, local)
    assert packed(f"{out}/small/anneal") == packed(local)
    assert list(verify(open_build(f"{out}/small/anneal"))) == []
    again = build_in(out, local)
    assert not again.dispatcher.started and not again.published
