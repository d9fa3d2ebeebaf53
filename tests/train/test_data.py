"""The order of the data and the reading of shards."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_harness import VOCAB

from train import data
from train.config import TrainConfig, TrainError
from train.data import Loader, check_epochs, permute, rows_of_step, tail_tokens, windows_of
from train.manifest import HEADER_BYTES, ManifestError

CFG = TrainConfig(steps=10, batch_size=8, seq_len=32, seed=3)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000))
def test_the_order_is_a_permutation(n, seed, epoch):
    order = permute(np.arange(n, dtype=np.uint64), n, seed, epoch)
    assert np.array_equal(np.sort(order), np.arange(n))


def test_the_order_changes_with_seed_and_epoch_and_mixes():
    n = 2000
    p = np.arange(n, dtype=np.uint64)
    orders = [permute(p, n, s, e) for s, e in ((0, 0), (1, 0), (0, 1))]
    for i in range(3):
        assert (orders[i] == orders[i - 1]).mean() < 0.01
        assert abs(np.corrcoef(orders[i].astype(float), p.astype(float))[0, 1]) < 0.1
    # a position by itself gives what it gives in an array: no state
    assert permute(np.array([77], np.uint64), n, 0, 0)[0] == orders[0][77]


def test_a_window_needs_the_token_after_it(manifest):
    def shards(*tokens):
        new = [dataclasses.replace(manifest.shards[0], tokens=t) for t in tokens]
        return dataclasses.replace(manifest, shards=new, tokens=sum(tokens))

    assert windows_of(shards(32, 33, 64, 65, 0, 1), 32) == [0, 1, 1, 2, 0, 0]
    assert tail_tokens(shards(64, 65), 32) == 32 + 1


def test_ranks_together_read_what_one_reads(manifest):
    whole = Loader(manifest, CFG).batch(5)
    assert whole.shape == (8, 33)
    for world in (2, 4, 8):
        parts = [Loader(manifest, CFG, r, world).batch(5) for r in range(world)]
        again = np.empty_like(whole)
        for r, part in enumerate(parts):
            again[r::world] = part
        assert np.array_equal(whole, again)


def test_rows_of_step_say_where_each_row_lies(manifest):
    for step in (0, 7, 70):  # 70: in the second epoch
        batch = Loader(manifest, CFG).batch(step)
        for row, (path, first) in zip(batch, rows_of_step(manifest, CFG, step), strict=True):
            raw = manifest.file(path).read_bytes()[HEADER_BYTES:]
            assert np.array_equal(row, np.frombuffer(raw, "<u2")[first : first + 33])


def test_an_epoch_reads_each_window_once_and_none_crosses_shards(manifest):
    counts = windows_of(manifest, 32)
    total = sum(counts)
    cfg = dataclasses.replace(CFG, batch_size=4)
    assert total % 4 == 0  # so that steps end where the epoch does
    seen = [row for step in range(total // 4) for row in rows_of_step(manifest, cfg, step)]
    assert len(set(seen)) == total == len(seen)
    tokens = {s.path: s.tokens for s in manifest.split("train")}
    assert all(first + 33 <= tokens[path] for path, first in seen)
    assert tail_tokens(manifest, 32) == sum(t - 32 * ((t - 1) // 32) for t in tokens.values())
    second = [row for step in range(total // 4, total // 2) for row in rows_of_step(manifest, cfg, step)]
    assert set(second) == set(seen) and second != seen


def test_a_batch_the_ranks_do_not_divide_is_an_error(manifest):
    with pytest.raises(TrainError, match=r"cannot be shared by 3 processes: set train\.batch_size=6"):
        Loader(manifest, CFG, 0, 3)
    with pytest.raises(TrainError, match="micro_batch = 3 does not divide the 4"):
        Loader(manifest, dataclasses.replace(CFG, micro_batch=3), 0, 2)


def test_more_than_the_mixture_holds_is_an_error_with_the_figure(manifest):
    total = sum(windows_of(manifest, 32))
    steps = total // 8 + 1
    with pytest.raises(TrainError, match=rf"are 1\.0\d\d epochs .*{total} windows") as error:
        check_epochs(manifest, dataclasses.replace(CFG, steps=steps))
    assert f"train.steps={total // 8}" in str(error.value)
    assert check_epochs(manifest, dataclasses.replace(CFG, steps=steps, epochs=1.1)) == steps * 8 / total
    with pytest.raises(TrainError, match="seq_len"):
        check_epochs(manifest, dataclasses.replace(CFG, seq_len=100_000))


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
        data.open_shard(copy, copy.shards[0])
    assert str(path) in str(error.value)


def test_a_flipped_token_a_cut_and_a_missing_shard_are_errors(copy, monkeypatch):
    assert data.check_hashes(copy, 0, 1)
    path = copy.file(copy.shards[1].path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1, whole[-1]]))
    with pytest.raises(ManifestError, match="sha256 differs"):
        data.check_hashes(copy, 1, 2)  # the second of two ranks has the second shard
    assert data.check_hashes(copy, 0, 2)
    monkeypatch.setattr(data, "HASH_LIMIT", 10)
    assert not data.check_hashes(copy, 0, 1)  # too large to hash at the start, and that is said
    path.write_bytes(whole[:-2])
    with pytest.raises(ManifestError, match="cut or overwritten"):
        data.open_shard(copy, copy.shards[1])
    path.unlink()
    with pytest.raises(ManifestError, match="not there"):
        data.open_shard(copy, copy.shards[1])


def test_a_token_outside_the_vocabulary_is_an_error(copy):
    path = copy.file(copy.shards[0].path)
    raw = path.read_bytes()
    path.write_bytes(raw[:HEADER_BYTES] + (VOCAB + 1).to_bytes(2, "little") * copy.shards[0].tokens)
    with pytest.raises(ManifestError, match=f"read token {VOCAB + 1}"):
        Loader(copy, CFG).batch(0)
