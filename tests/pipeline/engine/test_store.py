"""The store: commit, reuse and publishing, on a disk and on a file system without renames or links."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from pipeline.engine.local_store import switch_link
from pipeline.engine.locks import active_runs, run_lock, store_lock
from pipeline.engine.object_store import ObjectStore
from pipeline.engine.store import RECORD, Store, open_store
from pipeline.errors import UserError
from stages.stage import Record
from stages.task import Artifact
from train.files import sha256_file


def make_record(store: Store, tmp_path: Path, attempt: str, content: bytes, key: str = "ab" * 20) -> Record:
    """A record of one output, sealed but not put."""
    folder = Path(store.folder("filter", key)) if store.local else tmp_path / attempt
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{attempt}.docs.parquet"
    path.write_bytes(content)
    sealed = store.seal("filter", key, Artifact(str(path), "d" * 64, name="docs"), sha256_file(path))
    return Record(key, "filter", "x", [], [sealed], {}, 0, 0, {}, 0, 0, attempt)


@pytest.fixture(params=["disk", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store, local and remote."""
    if request.param == "disk":
        return open_store(str(tmp_path / "out"))
    return open_store(f"{request.getfixturevalue('s3').new_bucket()}/a b/out")


def put(store: Store, path: str, contents: bytes) -> None:
    """Write a file of the store past it."""
    if isinstance(store, ObjectStore):
        store.bucket.put(path, contents)
    else:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(contents)


def remove(store: Store, path: str) -> None:
    """Delete a file of the store past it."""
    if isinstance(store, ObjectStore):
        store.bucket.delete([path])
    else:
        Path(path).unlink()


def test_the_first_record_wins(store: Store, tmp_path: Path) -> None:
    first, second = (make_record(store, tmp_path, a, a.encode()) for a in ("one", "two"))
    assert store.find("filter", first.key) is None
    assert store.put_record(first).attempt == "one"
    assert store.put_record(second).attempt == "one"
    found = store.find("filter", first.key)
    assert found is not None
    assert (found.attempt, found.outputs) == ("one", first.outputs)
    assert [(s, k) for s, k, _ in store.units()] == [("filter", first.key)]


def test_a_record_whose_outputs_are_gone_is_replaced(store: Store, tmp_path: Path) -> None:
    first = make_record(store, tmp_path, "one", b"1111")
    store.put_record(first)
    remove(store, store.absolute(first.outputs[0]))
    fresh = open_store(store.out)
    assert fresh.find("filter", first.key) is None
    assert fresh.look("filter", first.key) == (None, True)
    assert fresh.put_record(make_record(fresh, tmp_path, "two", b"2222")).attempt == "two"
    found = fresh.find("filter", first.key)
    assert found is not None
    assert found.attempt == "two"


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": 1}', "null", "[" * 10**5, '{"key": ' + "9" * 5000 + "}"])
def test_a_damaged_record_counts_as_none(store: Store, tmp_path: Path, damage: str) -> None:
    record = make_record(store, tmp_path, "one", b"1111")
    put(store, f"{store.folder('filter', record.key)}/{RECORD}", damage.encode())
    assert store.find("filter", record.key) is None
    assert store.put_record(record).attempt == "one"
    assert store.find("filter", record.key) is not None


@pytest.mark.parametrize(
    ("field", "value"),
    [("counts", 3), ("counts", {"quarantined": "x"}), ("outputs", [3]), ("seconds", None), ("key", "ef" * 20)],
)
def test_a_record_of_an_earlier_version_is_checked_by_its_types(
    store: Store, tmp_path: Path, field: str, value: object
) -> None:
    record = store.put_record(make_record(store, tmp_path, "one", b"1111"))
    path = f"{store.folder('filter', record.key)}/{RECORD}"
    put(store, path, json.dumps(record.to_dict()).encode())
    assert store.find("filter", record.key) == record
    put(store, path, json.dumps({**record.to_dict(), field: value}).encode())
    assert store.look("filter", record.key) == (None, True)


def test_truncated_and_altered_outputs_are_noticed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    record = store.put_record(make_record(store, tmp_path, "one", b"12345678"))
    path = Path(store.absolute(record.outputs[0]))
    path.write_bytes(b"1234567")
    assert open_store(store.out).find("filter", record.key) is None
    path.write_bytes(b"12345679")
    assert open_store(store.out).find("filter", record.key) is None
    path.write_bytes(b"12345678")  # another time, the same contents: as after a copy
    assert open_store(store.out).find("filter", record.key) is not None


def test_no_leftovers_of_a_commit(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    for attempt in ("one", "two"):
        store.put_record(make_record(store, tmp_path, attempt, b"1"))
    names = {p.name for p in Path(store.folder("filter", "ab" * 20)).iterdir()}
    assert names == {RECORD, "one.docs.parquet", "two.docs.parquet"}


def test_publishing_switches_whole_folders(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    old = store.put_record(make_record(store, tmp_path, "one", b"old")).outputs[0]
    new = store.put_record(make_record(store, tmp_path, "two", b"new", "cd" * 20)).outputs[0]
    link = tmp_path / "out/r/pretrain"
    assert store.publish("r", "pretrain", {"a": old, "b": old})
    before = link.resolve()
    assert not store.publish("r", "pretrain", {"a": old, "b": old})
    assert store.publish("r", "pretrain", {"a": new})
    assert {p.name: p.read_bytes() for p in link.iterdir()} == {"a": b"new"}
    assert {p.name for p in before.iterdir()} == {"a", "b"}, "the old build is as it was"
    assert (link / "a").samefile(store.absolute(new)), "no second copy of the bytes"
    assert not list(link.parent.rglob(".*")), "no temporary names are left"


def test_a_folder_of_the_users_is_not_touched(tmp_path: Path) -> None:
    mine = tmp_path / "pretrain"
    mine.mkdir()
    (mine / "precious").write_text("x")
    with pytest.raises(FileExistsError, match="move it away"):
        switch_link(mine, tmp_path)
    assert (mine / "precious").read_text() == "x"


def test_the_digest_of_an_input_follows_its_contents(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    file = tmp_path / "big"
    file.write_bytes(b"x" * (2 << 20))
    first = store.identify(str(file))
    assert open_store(store.out).identify(f"file://{file}") == first == (sha256_file(file), 2 << 20)
    file.write_bytes(b"y" * (2 << 20))
    assert store.identify(str(file)) == (sha256_file(file), 2 << 20) != first


def test_state_is_written_only_when_it_says_something_new(store: Store) -> None:
    assert store.read_state("r", "units.json") is None
    store.write_state("r", "units.json", {"a": 1})
    assert store.read_state("r", "units.json") == {"a": 1}
    if store.local:
        path = Path(store.out) / "r/units.json"
        before = path.stat()
        store.write_state("r", "units.json", {"a": 1})
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        for damage in ("{", path.read_text().replace("1", "2", 1), "[1]", "[" * 10**5):
            path.write_text(damage)
            with pytest.raises(ValueError):
                store.read_state("r", "units.json")


def test_two_runs_of_one_store_both_count_as_running(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "out"))
    assert active_runs(store) == []
    with run_lock(store, "run a"):
        with run_lock(store, "run b"):
            assert sorted(run["command"] for run in active_runs(store)) == ["run a", "run b"]
        # The end of one run must not hide the other.
        assert active_runs(store) == [{"pid": os.getpid(), "command": "run a"}]
    assert active_runs(store) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_store_that_may_only_be_read_is_read_without_a_lock_and_named_where_units_have_to_run(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(str(tmp_path / "build"))

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    for method in ("open", "touch", "mkdir"):
        monkeypatch.setattr(Path, method, refuse)
    with store_lock(store):
        pass
    with pytest.raises(UserError, match="may only be read"), run_lock(store, "run"):
        pass
    number = errno.ENOSPC
    with pytest.raises(OSError, match="No space"), store_lock(store):
        pass
