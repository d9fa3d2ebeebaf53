"""One batch ahead is the loader's own batch, at any order of steps, and fails in the step that needs it."""

from __future__ import annotations

import dataclasses
import shutil
import threading
import time

import pytest
import torch
from trainer_harness import VOCAB

from train.config import TrainConfig
from train.data.format import HEADER_BYTES
from train.data.loader import Loader
from train.data.manifest import ManifestError
from train.data.prefetch import Prefetcher

CFG = TrainConfig(steps=10, batch_size=8, seq_len=32, seed=3)


def test_the_same_batches_while_the_next_is_read(manifest):
    plain, ahead = Loader(manifest, CFG), Prefetcher(Loader(manifest, CFG))
    for step in (0, 1, 2, 3, 9, 4, 5, 5, 6, 130, 131):
        mine = ahead.batch(step).tokens
        ahead.pending[step + 1, False].result()  # the next is there, in the other block
        assert torch.equal(mine, plain.batch(step).tokens), step


def test_it_reads_while_the_step_runs(manifest, monkeypatch):
    loader = Loader(manifest, CFG)
    real, done = loader.batch, []

    def slow(step, documents):
        time.sleep(0.05)
        done.append((step, threading.current_thread().name))
        return real(step)

    monkeypatch.setattr(loader, "batch", slow)
    ahead = Prefetcher(loader)
    ahead.batch(0)
    ahead.pending[1, False].result()
    start = time.perf_counter()
    ahead.batch(1)
    assert time.perf_counter() - start < 0.04
    assert [step for step, _ in done] == [0, 1] and all(name.startswith("batch") for _, name in done)


def test_an_error_belongs_to_its_step(manifest, tmp_path):
    shutil.copytree(manifest.folder, tmp_path / "copy")
    copy = dataclasses.replace(manifest, folder=str(tmp_path / "copy"))
    good = Loader(copy, CFG)
    path = copy.file(copy.shards[1].path)
    raw = path.read_bytes()
    path.write_bytes(raw[:HEADER_BYTES] + (VOCAB + 1).to_bytes(2, "little") * copy.shards[1].tokens)

    def fails(step):
        try:
            good.batch(step)
        except ManifestError:
            return True
        return False

    bad = [fails(step) for step in range(40)]
    first = next(s for s in range(39) if not bad[s] and bad[s + 1])
    ahead = Prefetcher(Loader(copy, CFG))
    ahead.batch(first)
    with pytest.raises(ManifestError, match=f"step {first + 1} read token"):
        ahead.batch(first + 1)
    later = next(s for s in range(first + 1, 40) if not bad[s])
    assert torch.equal(ahead.batch(later).tokens, Loader(copy, CFG).batch(later).tokens)
