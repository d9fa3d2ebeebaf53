"""The order of the data, forwards and backwards."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.config import ConfigError, TrainConfig, TrainError
from train.data.manifest import Manifest
from train.data.sampler import (
    Permutation,
    Sampler,
    check_epochs,
    permute,
    rows_at_step,
    rows_of_step,
    steps_that_read,
    stretches_of_step,
    tail_tokens,
    unpermute,
    windows_per_shard,
)

CFG = TrainConfig(steps=10, batch_size=8, seq_len=32, seed=3)


def with_shards(manifest: Manifest, *tokens: int) -> Manifest:
    """A manifest of training shards with so many tokens, which no file backs, and one validation shard."""
    train = [dataclasses.replace(manifest.shards[0], path=f"{i}.bin", tokens=t) for i, t in enumerate(tokens)]
    val = dataclasses.replace(manifest.split("val")[0], path="val.bin", tokens=50)
    return dataclasses.replace(manifest, shards=[*train, val], tokens=sum(tokens))


@pytest.mark.slow
@settings(max_examples=60)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**63 - 1), epoch=st.integers(0, 1000))
def test_the_order_is_a_permutation_and_runs_backwards(n, seed, epoch):
    p = np.arange(n, dtype=np.uint64)
    order = permute(p, n, seed, epoch)
    assert np.array_equal(np.sort(order), p)
    assert np.array_equal(Permutation(n, seed, epoch)(p.astype(np.int64)), order)
    assert np.array_equal(unpermute(order, n, seed, epoch), p)


def test_the_order_is_what_it_always_was():
    first = {
        (1, 0, 0): [0],
        (7, 3, 1): [3, 2, 1, 0, 6, 4, 5],
        (1000, 0, 0): [222, 886, 639, 876, 233, 149, 363],
        (1000, 0, 1): [719, 955, 64, 379, 748, 423, 917],
        (10**10, 5, 2): [2022399983, 8881220525, 8681527481, 5695761722, 1268875979, 4750224353, 4017128299],
        (2**40, 9, 7): [602770096523, 713178581304, 982962390579, 507979433363, 116507521727, 1014848032045],
    }
    for (n, seed, epoch), golden in first.items():
        assert permute(np.arange(len(golden), dtype=np.uint64), n, seed, epoch).tolist() == golden
        assert Permutation(n, seed, epoch)(np.arange(len(golden))).tolist() == golden
    whole = {
        (1000, 0, 0): "981141ea1c97e333",
        (4096, 1, 2): "e90c39388dfa1643",
        (100_003, 12345, 3): "d18b2ce70dc71b5b",
    }
    for (n, seed, epoch), golden in whole.items():
        order = permute(np.arange(n, dtype=np.uint64), n, seed, epoch)
        assert hashlib.sha256(order.astype("<u8").tobytes()).hexdigest()[:16] == golden


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
    assert windows_per_shard(with_shards(manifest, 32, 33, 64, 65, 0, 1), 32) == [0, 1, 1, 2, 0, 0]
    assert tail_tokens(with_shards(manifest, 64, 65), 32) == 32 + 1


def test_an_epoch_reads_each_window_once_and_none_crosses_shards(manifest):
    counts = windows_per_shard(manifest, 32)
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


@pytest.mark.slow
@pytest.mark.parametrize("order", ["shuffled", "sequential"])
@settings(max_examples=150)
@given(data=st.data())
def test_the_steps_that_read_a_token_are_those_whose_rows_hold_it(manifest, order, data):
    shards = with_shards(manifest, *data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=5)))
    cfg = TrainConfig(
        steps=data.draw(st.integers(1, 25)),
        batch_size=data.draw(st.integers(1, 9)) * (8 if order == "sequential" else 1),
        seq_len=data.draw(st.integers(1, 20)),
        seed=data.draw(st.integers(0, 99)),
        order=order,
    )
    shard = data.draw(st.sampled_from(shards.shards))
    start = data.draw(st.integers(0, shard.tokens))
    stop = data.draw(st.integers(start, shard.tokens))
    want = []
    if shards.tokens if order == "sequential" else sum(windows_per_shard(shards, cfg.seq_len)):
        for step in range(cfg.steps):
            found = [span for _, span in stretches_of_step(shards, cfg, step)]
            assert sum(last - first for _, first, last in found) == cfg.batch_size * (cfg.seq_len + 1)
            read = {t for path, first, last in found if path == shard.path for t in range(first, last)}
            if read & set(range(start, stop)):
                want.append(step)
    assert steps_that_read(shards, cfg, shard.path, start, stop) == want


@pytest.mark.slow
@settings(max_examples=60)
@given(data=st.data())
def test_a_block_of_steps_is_its_steps_one_by_one(data):
    counts = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any))
    world = data.draw(st.integers(1, 4))
    cfg = TrainConfig(batch_size=world * data.draw(st.integers(1, 5)), seed=data.draw(st.integers(0, 9)))
    orders = [Sampler(counts, cfg, rank, world) for rank in range(world)]
    for step in data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=6)):  # in any order
        shard, window = rows_at_step(counts, cfg, step)
        for rank, order in enumerate(orders):
            s, first, by_shard = order.rows(step)
            assert np.array_equal(s, shard[rank::world]) and np.array_equal(first, window[rank::world] * cfg.seq_len)
            assert np.array_equal(by_shard, np.argsort(s, kind="stable"))


def test_steps_of_what_is_not_there_are_an_error(manifest):
    with pytest.raises(TrainError, match=r"names no shard x\.bin"):
        steps_that_read(manifest, CFG, "x.bin", 0, 1)
    shard = manifest.shards[0]
    for start, stop in ((-1, 2), (3, 2), (0, shard.tokens + 1)):
        with pytest.raises(TrainError, match="are not inside"):
            steps_that_read(manifest, CFG, shard.path, start, stop)


def test_sequential_order_is_an_epoch_of_tokens(manifest):
    stream = with_shards(manifest, 100, 101)
    cfg = TrainConfig(steps=1, batch_size=8, seq_len=16, order="sequential", epochs=2)
    assert check_epochs(stream, cfg) == (8 * 16 + 8) / 201
    with pytest.raises(TrainError, match=r"\(201 tokens\)[\s\S]*set train\.steps=2"):
        check_epochs(stream, dataclasses.replace(cfg, steps=3))
    with pytest.raises(TrainError, match=r"train\.batch_size=8 or less"):
        check_epochs(stream, dataclasses.replace(cfg, batch_size=16, epochs=1))
    with pytest.raises(ConfigError, match="multiple of 8"):
        dataclasses.replace(cfg, batch_size=12)


def test_more_than_the_mixture_holds_is_an_error_with_the_figure(manifest):
    total = sum(windows_per_shard(manifest, 32))
    steps = total // 8 + 1
    with pytest.raises(TrainError, match=rf"are 1\.0\d\d epochs .*{total} windows") as error:
        check_epochs(manifest, dataclasses.replace(CFG, steps=steps))
    assert f"train.steps={total // 8}" in str(error.value)
    with pytest.raises(TrainError, match=rf"train\.batch_size={total} or less"):
        check_epochs(manifest, dataclasses.replace(CFG, steps=1, batch_size=total + 1))
    assert check_epochs(manifest, dataclasses.replace(CFG, steps=steps, epochs=1.1)) == steps * 8 / total
    with pytest.raises(TrainError, match="seq_len"):
        check_epochs(manifest, dataclasses.replace(CFG, seq_len=100_000))
