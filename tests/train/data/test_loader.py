"""The reading of shards and batches."""

from __future__ import annotations

import dataclasses
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trainer_harness import VOCAB

from train.config import TrainConfig, TrainError
from train.data import loader
from train.data.format import HEADER_BYTES, Header
from train.data.loader import Loader
from train.data.manifest import ManifestError
from train.data.sampler import rows_of_step
from train.files import sha256_file

CFG = TrainConfig(steps=10, batch_size=8, seq_len=32, seed=3)


def test_ranks_together_read_what_one_reads(manifest):
    whole = Loader(manifest, CFG).batch(5).tokens.numpy()
    assert whole.shape == (8, 33)
    for world in (2, 4, 8):
        parts = [Loader(manifest, CFG, r, world).batch(5).tokens for r in range(world)]
        again = np.empty_like(whole)
        for r, part in enumerate(parts):
            again[r::world] = part
        assert np.array_equal(whole, again)


def test_rows_of_step_say_where_each_row_lies(manifest):
    for step in (0, 7, 70):  # 70: in the second epoch
        batch = Loader(manifest, CFG).batch(step).tokens
        for row, (path, first) in zip(batch, rows_of_step(manifest, CFG, step), strict=True):
            raw = manifest.file(path).read_bytes()[HEADER_BYTES:]
            assert np.array_equal(row, np.frombuffer(raw, "<u2")[first : first + 33])


def generate(count: int, seed: int) -> bytes:
    """The toy shards of research golf.md, section 5: a linear congruential generator's bits."""
    ids = []
    for _ in range(count):
        ids.append((seed >> 16) & 63)
        seed = (1103515245 * seed + 12345) % 2**31
    return np.array(ids, "<u2").tobytes()


def write_stream(manifest, folder, data):
    """A manifest of training shards that hold these tokens, and no documents."""
    shards = []
    for number, raw in enumerate(data):
        path = folder / f"{number}.bin"
        path.write_bytes(Header(len(raw) // 2, VOCAB, 256, 0, manifest.build_id[:16]).pack() + raw)
        shard = dataclasses.replace(manifest.shards[0], path=path.name, tokens=len(raw) // 2, documents=0)
        shards.append(dataclasses.replace(shard, bytes=path.stat().st_size, sha256=sha256_file(path)))
    return dataclasses.replace(manifest, shards=shards, folder=str(folder))


def test_sequential_order_is_that_of_the_parameter_golf_scripts(manifest, tmp_path):
    """Golden values of their own loader, from research golf.md, section 1.5."""
    stream = write_stream(manifest, tmp_path, [generate(3000, 1), generate(2000, 7)])
    cfg = TrainConfig(steps=12, batch_size=16, seq_len=16, order="sequential")
    steps = [Loader(stream, cfg).batch(step).tokens.clone() for step in range(12)]
    assert steps[0][0, :8].tolist() == [0, 6, 62, 1, 43, 11, 59, 34]  # span 0 of step 1
    assert steps[0][2, :4].tolist() == [42, 22, 19, 59]  # span 1: two rows of 16 and the last target lie before it
    assert steps[11][15, -4:].tolist() == [58, 7, 27, 30]  # the end of span 7 of step 12, in the second shard
    for world in (2, 4, 8):
        ranks = [Loader(stream, cfg, rank, world) for rank in range(world)]
        for step, whole in enumerate(steps):
            for rank, part in enumerate(ranks):
                assert torch.equal(part.batch(step).tokens, whole[rank::world])


@given(data=st.data())
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sequential_order_takes_spans_of_one_endless_stream(manifest, tmp_path, data):
    """Rows are what a plain take from the shards on end, repeated, gives, however small they are."""
    lengths = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any))
    ids = np.random.default_rng(sum(lengths)).integers(0, VOCAB, sum(lengths)).astype("<u2")
    stream = write_stream(manifest, tmp_path, [part.tobytes() for part in np.split(ids, np.cumsum(lengths)[:-1])])
    rows, T = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 25))  # rows a span
    loader = Loader(stream, TrainConfig(batch_size=8 * rows, seq_len=T, order="sequential"))
    place = 0
    for step in range(4):
        batch = loader.batch(step)
        for span in range(8):
            taken = np.take(ids, range(place, place + rows * T + 1), mode="wrap").astype(np.int64)
            place += rows * T + 1
            here = slice(span * rows, (span + 1) * rows)
            assert batch.inputs[here].flatten().tolist() == taken[:-1].tolist()
            assert batch.targets[here].flatten().tolist() == taken[1:].tolist()


def test_a_batch_the_ranks_do_not_divide_is_an_error(manifest):
    with pytest.raises(TrainError, match=r"cannot be shared by 3 processes: set train\.batch_size=6"):
        Loader(manifest, CFG, 0, 3)
    with pytest.raises(TrainError, match="micro_batch = 3 does not divide the 4"):
        Loader(manifest, dataclasses.replace(CFG, micro_batch=3), 0, 2)


def test_shards_are_opened_when_read_and_few_stay_open(manifest, monkeypatch):
    shards = [dataclasses.replace(s) for s in manifest.split("train") for _ in range(4)]
    many = dataclasses.replace(manifest, shards=shards)
    want = [Loader(many, CFG).batch(s).tokens.clone() for s in range(6)]
    monkeypatch.setattr(loader, "OPEN_SHARDS", 2)
    opened = []
    real = loader.open_shard
    monkeypatch.setattr(loader, "open_shard", lambda m, s, w: (opened.append(s), real(m, s, w))[1])
    feed = Loader(many, CFG)
    assert not opened
    for step, tokens in enumerate(want):
        assert torch.equal(feed.batch(step).tokens, tokens)
        assert len(feed._tokens.values) == 2
    assert len(opened) > 8


def test_the_limit_of_open_files_is_raised_as_far_as_it_may():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, before[1]), before[1]))
        held = loader.max_mapped_shards()
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert soft == min(before[1], 2 * loader.OPEN_SHARDS) and held == min(loader.OPEN_SHARDS, soft // 2)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_two_blocks_are_used_in_turn(manifest):
    loader = Loader(manifest, CFG)
    places = [loader.batch(step).tokens.data_ptr() for step in range(4)]
    assert places[:2] == places[2:] and places[0] != places[1]


@pytest.fixture
def copy(manifest, tmp_path):
    """The mixture in a folder of its own, to damage."""
    shutil.copytree(manifest.folder, tmp_path / "copy")
    return dataclasses.replace(manifest, folder=str(tmp_path / "copy"))


@pytest.mark.parametrize(
    ("byte", "message"), [(0, "not a token shard"), (8, "tokens"), (16, "vocab"), (28, "build_id")]
)
def test_one_flipped_bit_of_a_header_is_an_error(copy, byte, message):
    path = copy.file(copy.shards[0].path)
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 4
    path.write_bytes(raw)
    with pytest.raises(ManifestError, match=message) as error:
        loader.open_shard(copy, copy.shards[0])
    assert str(path) in str(error.value)


def test_a_flipped_token_a_cut_and_a_missing_shard_are_errors(copy, monkeypatch):
    assert loader.check_hashes(copy, 0, 1)
    path = copy.file(copy.shards[1].path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1, whole[-1]]))
    with pytest.raises(ManifestError, match="sha256 differs"):
        loader.check_hashes(copy, 1, 2)  # the second of two ranks has the second shard
    assert loader.check_hashes(copy, 0, 2)
    monkeypatch.setattr(loader, "HASH_LIMIT", 10)
    assert not loader.check_hashes(copy, 0, 1)  # too large to hash at the start, and that is said
    path.write_bytes(whole[:-2])
    with pytest.raises(ManifestError, match="cut or overwritten"):
        loader.open_shard(copy, copy.shards[1])
    path.unlink()
    with pytest.raises(ManifestError, match="missing"):
        loader.open_shard(copy, copy.shards[1])


@pytest.mark.parametrize("long", [1, 1024])
def test_a_token_outside_the_vocabulary_is_an_error(copy, monkeypatch, long):
    monkeypatch.setattr(loader, "LONG", long)
    path = copy.file(copy.shards[0].path)
    raw = path.read_bytes()
    path.write_bytes(raw[:HEADER_BYTES] + (VOCAB + 1).to_bytes(2, "little") * copy.shards[0].tokens)
    with pytest.raises(ManifestError, match=f"read token {VOCAB + 1}"):
        Loader(copy, CFG).batch(0)


def cut(path):
    with path.open("r+b") as file:
        file.truncate(50)


def overwrite(path):
    data = path.read_bytes()
    path.write_bytes(data[:34] + bytes(len(data) - 34))


def swap(path):
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[:-2] + b"\1\0")


def copy_back(path):
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


CHANGES = {
    cut: "cut or overwritten",
    overwrite: "overwritten while it was read: its sha256",
    swap: "overwritten while it was read: its sha256",
    Path.unlink: "deleted or moved away",
}


@pytest.mark.parametrize("change", [*CHANGES, copy_back, Path.touch])
@pytest.mark.parametrize("file", ["path", "index"])
def test_files_that_change_under_a_run_are_named_before_they_are_used(file, change, manifest, tmp_path):
    shutil.copytree(manifest.folder, tmp_path / "m")
    shards = [dataclasses.replace(s, index_sha256=sha256_file(manifest.file(s.index))) for s in manifest.shards]
    copy = dataclasses.replace(manifest, folder=tmp_path / "m", shards=shards)
    cfg = dataclasses.replace(CFG, document_mask=True)
    feed, whole = Loader(copy, cfg), Loader(manifest, cfg)
    for step in range(10):
        feed.batch(step, document_mask=True)
    for shard in copy.split("train"):
        change(copy.file(getattr(shard, file)))
    if change in CHANGES:
        with pytest.raises(ManifestError, match=CHANGES[change]) as raised:
            feed.batch(1, document_mask=True)
        assert any(getattr(shard, file) in str(raised.value) for shard in copy.split("train"))
    else:
        assert torch.equal(feed.batch(1).tokens, whole.batch(1).tokens)
