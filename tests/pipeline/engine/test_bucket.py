"""A whole build in a bucket, against a real S3 server: the bytes of a local one, published builds, faults, requests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from built import Inline, small
from engine_harness import Work
from s3_server import S3Server

from pipeline.commands.open_build import open_build
from pipeline.engine.context import Context, drive
from pipeline.engine.locks import store_lock
from pipeline.engine.object_store import ObjectStore
from pipeline.engine.progress import Progress
from pipeline.engine.store import open_store
from pipeline.errors import UserError
from pipeline.recipe import parse_recipe
from stages.dedup import stage as dedup
from stages.estimate.tokens import known_tokenizer
from stages.pack.verify import verify
from stages.registry import STAGES
from stages.stage import Record
from stages.task import Artifact
from train import bucket
from train.data.manifest import load_manifest
from train.files import sha256_file

STAGE = "pack_anneal_mix"
BACKOFF = bucket.BACKOFF  # as users have it; the fixture `s3` makes it short


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published folder of a small local build."""
    return small(tmp_path_factory.mktemp("local"))


def build_in(out: str, local: Path, inline: Callable[[], Inline] = Inline, **keys: Any) -> Context:
    """Build the recipe of `local` again, into `out`, with keys of it replaced."""
    raw = {**load_manifest(local).recipe, **keys}
    context = Context(parse_recipe(raw, "test"), open_store(out), inline, Progress(True))
    with store_lock(context.store):
        drive(context, context.stage(STAGES[STAGE]))
        context.save_state()
    return context


def packed(folder: str | Path) -> list[tuple[str, str]]:
    """The files of a build with their sha256, as they are, and not as the manifest says."""
    manifest = open_build(str(folder))
    return [(name, sha256_file(manifest.file(name))) for name, _ in manifest.packed_files()]


def test_a_build_in_a_bucket_has_the_bytes_of_a_local_one(local: Path, s3: S3Server, tmp_path: Path) -> None:
    out = f"{s3.new_bucket()}/some/prefix"
    context = build_in(out, local)
    assert packed(f"{out}/small/anneal") == packed(local)
    manifest = open_build(f"{out}/small/anneal/manifest.json")
    assert manifest.to_json() == load_manifest(local).to_json()
    assert list(verify(manifest)) == []
    assert context.folder("anneal") == f"{out}/small/anneal", "the report has the scheme"
    made = len([p for p in s3.paths if p.startswith("PUT") and p.endswith("/record.json")])
    s3.reset()
    again = build_in(out, local)
    assert not again.dispatcher.started and not again.published
    assert s3.requests["PUT"] == 1, "its lease"
    assert s3.requests["HEAD"] == 0
    # A list for each stage, two for leases and one for each folder that is published.
    assert s3.requests["LIST"] <= len(again.states) + len(again.folders) + 1
    assert s3.requests["GET"] - s3.requests["LIST"] <= 1.5 * made + 3 * len(again.folders) + 2 * len(again.states)
    tokenizer, how = known_tokenizer(again, tmp_path)
    assert how.endswith("of the last build"), "a plan finds it there"
    assert tokenizer is not None and sha256_file(tokenizer) == manifest.tokenizer.sha256


def test_requests_for_a_unit_are_three_and_one_for_each_output_more(s3: S3Server, tmp_path: Path) -> None:
    store = open_store(f"{s3.new_bucket()}/out")
    s3.reset()
    for number in range(5):
        key = f"{number:040x}"
        assert store.find("filter", key) is None
        put_unit(store, tmp_path, key)
    assert s3.requests == {"GET": 5, "PUT": 10}, "look, output, record"
    fresh = open_store(store.out)
    s3.reset()
    fresh.list_outputs("filter")
    assert all(fresh.find("filter", f"{number:040x}") for number in range(5))
    assert s3.requests == {"GET": 5, "LIST": 1}


def put_unit(store: Any, tmp_path: Path, key: str, attempt: str = "one", content: bytes = b"x") -> Record:
    """Put a unit of one output."""
    file = tmp_path / f"{attempt}.docs.parquet"
    file.write_bytes(content)
    output = store.seal("filter", key, Artifact(str(file), "d" * 64, name="docs"), sha256_file(file))
    record: Record = store.put_record(Record(key, "filter", "x", [], [output], {}, 0, 0, {}, 0, 0, attempt))
    return record


def test_a_new_build_leaves_the_old_one_whole_and_readers_follow_the_pointer(local: Path, s3: S3Server) -> None:
    out = f"{s3.new_bucket()}/out"
    build_in(out, local)
    store = open_store(out)
    old, before = store.published("small", "anneal"), open_build(f"{out}/small/anneal")
    s3.reset()
    build_in(out, local, seed=6)
    new, after = store.published("small", "anneal"), open_build(f"{out}/small/anneal")
    assert after.build_id != before.build_id
    assert not set(old.values()) & set(new.values()), "nothing is overwritten, nothing lies beside"
    puts = [path for path in s3.paths if path.startswith("PUT") and "/small/" in path and "/units/" not in path]
    puts = [path for path in puts if "/anneal" in path]
    order = [puts.index(next(p for p in puts if p.endswith(end))) for end in ("/manifest.json", "/anneal.json")]
    assert order == [len(puts) - 3, len(puts) - 1], "manifest, list of the build, pointer: last"
    # The old build is found under its own name.
    folder = next(iter(old.values())).rpartition("/")[0]
    assert list(verify(open_build(folder))) == [] == list(verify(before))
    s3.reset()
    build_in(out, local)
    assert open_build(f"{out}/small/anneal").build_id == before.build_id
    assert not [path for path in s3.paths if path.startswith("PUT") and path.endswith(".bin")], "no copy is made twice"


@pytest.mark.parametrize("damage", ["deleted", "cut", "same size", "manifest", "index", "pointer"])
def test_a_published_file_that_was_damaged_or_deleted_is_mended(local: Path, s3: S3Server, damage: str) -> None:
    out = f"{s3.new_bucket()}/out"
    build_in(out, local)
    store = open_store(out)
    assert isinstance(store, ObjectStore)
    files = store.published("small", "anneal")
    shard = next(path for name, path in files.items() if name.endswith(".bin"))
    contents = store.read(shard)
    if damage == "deleted":
        store.bucket.delete([shard])
    elif damage == "cut":
        store.bucket.put(shard, contents[:-2])
    elif damage == "same size":
        store.bucket.put(shard, contents[:-1] + bytes([contents[-1] ^ 1]))
    elif damage == "manifest":
        store.bucket.delete([files["manifest.json"]])
        with pytest.raises(UserError, match=r"manifest\.json is gone; bring it back with `python -m pipeline run"):
            open_build(f"{out}/small/anneal")
    else:
        build = shard.rpartition("/")[0]
        store.bucket.put(f"{build}.json" if damage == "index" else f"{out}/small/anneal.json", b"{")
    if damage in ("deleted", "cut", "same size"):
        assert [problem for problem in verify(open_build(f"{out}/small/anneal")) if shard.rpartition("/")[2] in problem]
    if damage == "pointer":
        with pytest.raises(UserError, match="no build is published there"):
            open_build(f"{out}/small/anneal")
    context = build_in(out, local)
    assert context.published == ([] if damage == "index" else ["anneal"])
    assert not context.dispatcher.started
    assert packed(f"{out}/small/anneal") == packed(local)


def test_an_output_of_the_store_that_was_damaged_is_made_again(local: Path, s3: S3Server) -> None:
    out = f"{s3.new_bucket()}/out"
    context = build_in(out, local)
    store = open_store(out)
    assert isinstance(store, ObjectStore)
    output = next(found for found in store.bucket.objects(f"{store.root}/tokenize") if "record" not in found.path)
    store.bucket.put(output.path, bytes(output.size))
    again = build_in(out, local)
    assert again.dispatcher.started
    assert again.states["tokenize"].reasons == {"its output is missing or damaged": 1}
    assert packed(f"{out}/small/anneal") == packed(local)
    assert context.folders == again.folders


def test_ranges_of_keys_and_tokens_are_read_by_their_bytes(
    local: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many ranges of keys: the documents of a local build in one range."""
    for name, value in (("ENTRIES", 500), ("PAIRS", 100)):
        monkeypatch.setattr(dedup, name, value)
    ranges: list[str] = []
    out = f"{s3.new_bucket()}/out"
    s3.fault = lambda environ: ranges.append(environ["PATH_INFO"]) if "HTTP_RANGE" in environ else None
    build_in(out, local)
    assert packed(f"{out}/small/anneal") == packed(local)
    kinds = {path.rpartition(".")[0].rpartition(".")[2] for path in ranges}
    assert kinds == {"exact", "near", "pairs", "ids", "tokens"}
    whole = [path for path in s3.paths if path.startswith("GET") and path.endswith((".exact.npy", ".pairs.npy"))]
    assert len(whole) == len([path for path in ranges if path.endswith((".exact.npy", ".pairs.npy"))])


def test_of_attempts_at_a_unit_one_wins_and_the_others_leave_nothing(s3: S3Server, tmp_path: Path) -> None:
    store, key = open_store(f"{s3.new_bucket()}/out"), "ab" * 20
    assert put_unit(store, tmp_path, key, "one").attempt == "one"
    assert put_unit(store, tmp_path, key, "two").attempt == "one"
    (unit,) = store.units()
    assert {file.path.rpartition("/")[2] for file in unit.folder.files} == {"record.json", "one.docs.parquet"}
    # Ours was put, and the answer was lost: it is not taken for somebody else's.
    s3.fault = lambda environ: (
        "lost" if s3.failed["lost"] < 1 and environ["PATH_INFO"].endswith("record.json") else None
    )
    assert put_unit(store, tmp_path, "cd" * 20, "three").attempt == "three"
    assert s3.failed["lost"] == 1
    assert store.find("filter", "cd" * 20) is not None


def test_the_same_bytes_come_out_while_one_request_in_ten_fails(local: Path, s3: S3Server) -> None:
    out = f"{s3.new_bucket()}/out"
    build_in(out, local)
    undisturbed = sum(s3.requests.values())
    out = f"{s3.new_bucket()}/out"
    s3.fault_rate = 0.1
    build_in(out, local)
    assert sum(s3.failed.values()) > 10
    assert set(s3.failed) == {"503", "500", "lost", "short", "reset"}
    assert sum(s3.requests.values()) < 1.5 * undisturbed, "each failure costs a request or two"
    s3.fault_rate = 0.0
    assert packed(f"{out}/small/anneal") == packed(local)
    store = open_store(out)
    assert all(len([f for f in unit.folder.files if f.path.endswith("record.json")]) == 1 for unit in store.units())


@pytest.mark.parametrize("fault", ["503", "reset", "silence"])
def test_a_store_that_never_answers_is_named_after_a_while(
    s3: S3Server, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"{s3.new_bucket()}/out"
    monkeypatch.setattr(bucket, "BACKOFF", BACKOFF)
    monkeypatch.setattr(bucket, "PATIENCE", timedelta(seconds=1.5))
    monkeypatch.setattr(bucket, "SILENCE", timedelta(seconds=0.5))
    s3.fault = lambda _: fault
    with pytest.raises(bucket.UnavailableError, match=rf"{out}/.*: the store does not answer as it should") as error:
        open_store(out).find("filter", "ab" * 20)
    assert len(str(error.value).splitlines()) == 1 and "Debug source" not in str(error.value)
    assert s3.requests["GET"] <= 2 * bucket.ATTEMPTS


def test_wrong_addresses_are_said_in_a_line(s3: S3Server) -> None:
    with pytest.raises(bucket.BucketError, match="memory://: results are kept in a folder or in a bucket"):
        open_store("memory://x")
    s3.new_bucket()
    store = open_store("s3://no-such-bucket/out")
    with (
        pytest.raises(Exception, match="s3://no-such-bucket: there is no such bucket; make it first"),
        store_lock(store),
    ):
        pass
    with pytest.raises(UserError, match=r"no build is published there; build one with `python -m pipeline run pack_"):
        open_build(f"{s3.new_bucket()}/out/small/pretrain")


def test_a_process_that_was_forked_from_one_that_used_the_bucket_says_so(s3: S3Server, monkeypatch: Any) -> None:
    store = open_store(f"{s3.new_bucket()}/out")
    store.names(store.out)
    monkeypatch.setattr(bucket, "_user", 1)  # as in a child: another pid
    with pytest.raises(RuntimeError, match="was forked from one that used the bucket"):
        open_store(store.out).names(store.out)


def cli(work: Work, *arguments: str, **environment: str) -> str:
    """Run a command, which must succeed, and return what it printed."""
    done = work.cli(*arguments, **environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_every_command_reads_a_bucket(
    work: Work, reference: Work, s3: S3Server, tmp_path: Path, monkeypatch: Any
) -> None:
    """The workers are processes of the pool; what the commands print is what they print of a local build."""
    out = f"{s3.new_bucket()}/out"
    shutil.copy(reference.recipe, work.recipe)
    scratch = tmp_path / "tmp"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    options = ("--recipe", str(work.recipe), "--out", out)
    run = cli(work, "run", "pack_pretrain", "--executor", "local", "--workers", "2", "--out", out)
    assert f"  {out}/small/pretrain" in run
    there, here = f"{out}/small/pretrain", str(reference.out / "small/pretrain")
    assert packed(there) == packed(here)
    assert "agree" in cli(work, "verify", there)
    assert "no difference" in cli(work, "diff", there, here)
    assert cli(work, "inspect", there) == cli(work, "inspect", here)
    commands = [
        ("trace", "{}", "--shard", "0", "--token", "10", "--json"),
        ("find", "{}", "--domain", "example.org", "--json"),
    ]
    for command in commands:
        remote, on_disk = (cli(work, *(word.format(place) for word in command)) for place in (there, here))
        assert remote == on_disk and remote
    status = [line.split() for line in cli(work, "status", "--out", out).splitlines()]
    assert {words[2] for words in status if words[:1] in (["filter"], ["tokenize"], ["pack_pretrain"])} == {"0"}
    assert out in cli(work, "plan", "pack_pretrain", "--out", out)
    assert "length_short" in cli(work, "dropped", *options)
    assert "no row" not in cli(work, "quarantined", *options)
    assert "every sha256 as the manifest has it" in cli(
        work, "rebuild", there, "--out", f"{out}-again", "--executor", "local", "--workers", "2"
    )
    assert list(scratch.iterdir()) == [], "nothing is left in the temporary folder"
