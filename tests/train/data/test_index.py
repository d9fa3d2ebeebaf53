"""Borders of documents and padding, against a scan of the tokens; and what padding does to a loss: nothing."""

from __future__ import annotations

import dataclasses
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from trainer_harness import BOS, MODEL, PAD, metrics, sets, text, write_manifest, write_shard

from train.config import ModelConfig, TrainConfig
from train.data import loader as data_module
from train.data.index import read_shard_index
from train.data.loader import Loader, open_shard
from train.data.manifest import Manifest, ManifestError, load_manifest
from train.data.sampler import stretches_of_step, tail_tokens
from train.eval.validation import Validation
from train.main import run
from train.model import loss as loss_module
from train.model.loss import IGNORE, cap_logits, head_loss, head_loss_reference
from train.model.transformer import build


def mixture(folder: Path, shards: list[list[tuple[bytes, int]]]) -> Manifest:
    """Shards of (document, padding after it), and a padded validation shard."""
    made = [
        write_shard(folder, f"m_train_{i:06}", "train", [d for d, _ in docs], [p for _, p in docs])
        for i, docs in enumerate(shards)
    ]
    made.append(write_shard(folder, "m_val_000000", "val", [text(i, 20) for i in range(3)], [0, 7, 2]))
    return load_manifest(write_manifest(folder, made, MODEL, {"pretrain": {}}, "pretrain"))


@pytest.fixture(scope="module")
def padded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("padded")
    return mixture(folder, [[(text(10 * k + i, 12), 5 * i) for i in range(9)] for k in range(3)])


documents = st.lists(st.tuples(st.binary(max_size=12), st.integers(0, 5)), min_size=1, max_size=12)


@pytest.mark.slow
@settings(max_examples=40)
@given(data=st.data())
def test_borders_and_padding_are_those_a_scan_finds(data):
    seq_len, world = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3))
    shards = data.draw(st.lists(documents, min_size=1, max_size=4))
    shards.append([(b"long enough", 0), (b"", 2)])
    if data.draw(st.booleans()):
        shards = [[(d, 0) for d, _ in docs] for docs in shards]
    order = data.draw(st.sampled_from(["shuffled", "sequential"]))
    batch_size = world * data.draw(st.integers(1, 4)) * (8 if order == "sequential" else 1)
    cfg = TrainConfig(batch_size=batch_size, seq_len=seq_len, seed=data.draw(st.integers(0, 9)), order=order)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_module, "LONG", data.draw(st.sampled_from([1, 1024])))  # both ways of reading rows
        manifest = mixture(Path(folder), shards)
        tokens = {s.path: np.fromfile(manifest.file(s.path), "<u2", offset=1024) for s in manifest.shards}
        for step in range(4):
            in_step = 0
            read = [np.zeros(0, np.int64)] * cfg.batch_size
            for number, (path, first, last) in stretches_of_step(manifest, cfg, step):
                read[number] = np.append(read[number], tokens[path][first:last])
            for rank in range(world):
                batch = Loader(manifest, cfg, rank, world).batch(step, document_mask=True)
                rows = read[rank::world]
                assert np.array_equal(batch.tokens, rows)
                starts = [
                    r * seq_len + t for r, row in enumerate(rows) for t in range(seq_len) if t == 0 or row[t] == BOS
                ]
                assert batch.cu_seqlens.dtype == torch.int32
                assert batch.cu_seqlens.tolist() == [*starts, len(rows) * seq_len]
                want = [[IGNORE if PAD in row[t : t + 2] else row[t + 1] for t in range(seq_len)] for row in rows]
                assert batch.targets.tolist() == want
                if batch.num_targets_in_step != cfg.batch_size * seq_len:
                    assert batch.num_targets.tolist() == [sum(t != IGNORE for t in row) for row in want]
                in_step += sum(t != IGNORE for row in want for t in row)
            assert batch.num_targets_in_step == in_step


def test_an_index_that_does_not_fit_is_an_error(tmp_path):
    manifest = mixture(tmp_path, [[(text(1, 30), 3)]])
    cfg = TrainConfig(batch_size=2, seq_len=8)
    path = manifest.file(manifest.shards[0].index)
    whole = path.read_bytes()
    other = dataclasses.replace(manifest, shards=[dataclasses.replace(manifest.shards[0], padding=4)])
    with pytest.raises(ManifestError, match=r"3 tokens in no document, 4 by the manifest"):
        Loader(other, cfg).batch(0)
    moved = bytearray(whole)
    moved[38] += 8  # the document's place: four tokens further, beyond the end
    for damaged, message in ((whole[:-8], "damaged Megatron index"), (bytes(moved), "overlap, or leave")):
        path.write_bytes(damaged)
        with pytest.raises(ManifestError, match=message):
            Loader(manifest, cfg).batch(0)
    path.unlink()
    with pytest.raises(ManifestError, match="missing"):
        Loader(manifest, cfg).batch(0)


def test_shards_without_padding_do_not_need_their_index(manifest, monkeypatch):
    monkeypatch.setattr("train.data.loader.MappedIndex", lambda *_: pytest.fail("read"))
    batch = Loader(manifest, TrainConfig(batch_size=4, seq_len=16)).batch(0)
    assert batch.num_targets is None and batch.targets.data_ptr() == batch.tokens.data_ptr() + 8


# ---------------------------------------------------------------------------------------------------------------------
# The loss


@pytest.mark.parametrize("cap", [None, 30.0, 100.0])
@pytest.mark.parametrize("z_weight", [0.0, 0.3])
def test_ignored_targets_give_no_loss_and_no_gradient(monkeypatch, cap, z_weight):
    monkeypatch.setattr(loss_module, "CHUNK_CPU", 37 * 5)
    torch.manual_seed(0)
    h, w, t = torch.randn(23, 8) * 3, torch.randn(37, 8), torch.randint(0, 37, (23,))
    t[3:9] = IGNORE  # a whole chunk, and parts of its neighbours
    t[22] = IGNORE
    results = []
    for f in (head_loss_reference, lambda *given: head_loss(*given, int((t != IGNORE).sum()))):
        a, b = h.clone().requires_grad_(), w.clone().requires_grad_()
        total, ce = f(a, b, t, cap, z_weight)
        (total * 0.5).backward()
        results.append((total.detach(), ce.detach(), a.grad, b.grad))
    for mine, theirs in zip(*results, strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert not results[1][2][3:9].any()
    total, ce = head_loss(h.requires_grad_(), w, torch.full((23,), IGNORE), cap, z_weight, 0)
    total.backward()
    assert total.item() == ce.item() == 0 and not h.grad.any()


def test_micro_batches_and_ranks_make_one_mean(padded):
    """The gradient of a step is that of the mean over its counted targets, however the rows are shared out."""
    cfg = TrainConfig(batch_size=8, seq_len=16, seed=1)
    whole = Loader(padded, cfg).batch(2)
    assert 0 < whole.num_targets_in_step == int((whole.targets != IGNORE).sum()) < 8 * 16
    model = build(ModelConfig(**MODEL), padded.tokenizer.vocab_size, 0)
    logits = model.trunk(whole.inputs) @ model.head_weight.T
    capped = cap_logits(logits, model.cfg.lm_head_logit_cap)
    want = F.cross_entropy(capped.flatten(0, 1), whole.targets.flatten())
    for world, micro in ((1, 8), (1, 2), (2, 4), (4, 1)):
        ce = 0.0
        for rank in range(world):
            for part in Loader(padded, cfg, rank, world).batch(2).micro_batches(micro):
                ce += model(part.ids, part.targets, part.num_targets)[1].item() * part.share
        assert ce == pytest.approx(want.item(), rel=1e-5)


@pytest.mark.slow
def test_document_masks_hold_in_training_and_validation(padded, tmp_path):
    """However the rows are cut: a step's loss is the mean over documents read alone, and so is the validation's."""
    small = {"steps": 3, "batch_size": 8, "seq_len": 16, "log_every": 1, "sample_tokens": 0}
    losses = {}
    for masked, micro in ((True, 8), (True, 2), (False, 8)):
        out = tmp_path / f"{masked}{micro}"
        run(padded.folder, sets(out=str(out), micro_batch=micro, document_mask=masked, **small))
        losses[masked, micro] = [m.get("loss", m.get("val_loss")) for m in metrics(out)]
    assert losses[True, 2] == pytest.approx(losses[True, 8], abs=1e-5)
    assert losses[False, 8] != pytest.approx(losses[True, 8], abs=1e-5)
    model = build(ModelConfig(**MODEL), padded.tokenizer.vocab_size, 0)
    nll, count = 0.0, 0
    tokens = open_shard(padded, padded.split("val")[0]).astype(np.int64)
    starts = read_shard_index(padded, padded.split("val")[0]).starts
    for first in range(0, len(tokens) - 1, 16):
        window = tokens[first : first + 17]
        for a, b in pairwise([0, *(s - first for s in starts if first < s < first + len(window) - 1), len(window) - 1]):
            part = torch.from_numpy(window[a : b + 1])[None]
            counts = (part[0, 1:] != PAD) & (part[0, :-1] != PAD)
            nll += model.score(part[:, :-1], part[:, 1:])[0][counts].double().sum().item()
            count += int(counts.sum())
    assert losses[True, 8][0] == pytest.approx(nll / count, rel=1e-5)


def test_validation_leaves_padding_out(padded):
    v = Validation(padded, 32, 0, None, 0, 1)
    tokens = open_shard(padded, padded.split("val")[0]).astype(np.int64)
    counts = (tokens[1:] != PAD) & (tokens[:-1] != PAD)
    assert v.groups[""].tokens == counts.sum() < len(tokens) - 1 - 9
    model = build(ModelConfig(**MODEL), padded.tokenizer.vocab_size, 0)
    nll = 0.0
    for start in range(0, len(tokens) - 1, 32):
        ids = torch.from_numpy(tokens[start : start + 33])[None]
        scored = model.score(ids[:, :-1], ids[:, 1:])[0].double().numpy()
        nll += scored[counts[start : start + 32]].sum()
    assert v.score(model, torch.device("cpu")).nats == pytest.approx(nll / counts.sum(), rel=1e-6)
    train = np.concatenate([open_shard(padded, s) for s in padded.split("train")])
    seen = np.bincount(train[train != PAD], minlength=padded.tokenizer.vocab_size) + 1
    assert v.unigram(padded).nats == pytest.approx(-np.log(seen / seen.sum())[tokens[1:][counts]].mean())


def test_the_tail_counts_padding_as_tokens(padded):
    shards = padded.split("train")
    assert tail_tokens(padded, 16) == sum(s.tokens - 16 * ((s.tokens - 1) // 16) for s in shards)
