"""The micro-batch that fits: the search, trials that leave no trace, the estimate, resumes that keep the choice."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from trainer_harness import MODEL, TRAIN, losses, sets

from train import main, micro_batch
from train.config import ModelConfig, TrainConfig, TrainError
from train.data.manifest import load_manifest
from train.distributed import hardware
from train.distributed.runtime import join_processes
from train.model.transformer import build


@given(share=st.integers(1, 512), limit=st.integers(0, 600), data=st.data())
def test_the_largest_that_fits_is_found_from_any_expectation(share, limit, data):
    sizes = [n for n in range(1, share + 1) if share % n == 0]
    asked = []
    expected = data.draw(st.sampled_from(sizes))
    found, fit = micro_batch.largest(sizes, lambda n: (asked.append(n), n <= limit)[1], expected)
    right = max((n for n in sizes if n <= limit), default=None)
    assert (found, fit) == ((1, False) if right is None else (right, True))
    assert len(asked) == len(set(asked))
    if expected == right:
        assert len(asked) <= 2


@given(
    share=st.sampled_from([1, 6, 48, 64, 512]),
    fixed=st.floats(0, 0.3),
    each=st.floats(1e-3, 0.3),
    data=st.data(),
)
def test_hopeless_sizes_are_not_tried_and_nothing_is_missed(share, fixed, each, data):
    """needs grow by `each` a sequence on top of `fixed` of the first's; the limit is 1."""
    sizes = [n for n in range(1, share + 1) if share % n == 0]
    need = {n: each * (n + fixed) for n in sizes}
    trials = micro_batch.Trials(None, 0.0, 1.0)
    tried = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            micro_batch, "trial", lambda run, n: (tried.append(n), need[n] if need[n] <= 1.2 else math.inf)[1]
        )
        found, fit = micro_batch.largest(sizes, trials.fits, data.draw(st.sampled_from(sizes)))
    assert fit == (need[1] <= 1)
    assert found == max((n for n in sizes if need[n] <= 1), default=1)


@pytest.fixture
def ready(pretrain, tmp_path):
    """A run before its first step, with dropout, so that a pass draws numbers."""
    manifest = load_manifest(pretrain)
    cfg = TrainConfig(steps=4, batch_size=8, seq_len=32, out=str(tmp_path / "ready"))
    with join_processes() as rt:
        yield main.build_run(rt, manifest, ModelConfig(**MODEL, dropout=0.1), cfg, None)


def bits(run):
    """All that a trial must leave alone."""
    tensors = [*run.model.state_dict().values(), run.optimizer.grads_and_loss, *run.optimizer.state_tensors().values()]
    return [*(t.clone() for t in tensors), run.anomalies.stats.clone(), torch.get_rng_state()]


def small(limit):
    """`backward` on a device that holds `limit` sequences."""
    real = micro_batch.backward

    def backward(run, part):
        real(run, part)
        if len(part.ids) > limit:
            raise torch.OutOfMemoryError("no more")

    return backward


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 1, 3, 8])
def test_trials_choose_what_fits_and_leave_everything_as_it_was(ready, monkeypatch, limit, capsys):
    cuda = torch.device("cuda")
    monkeypatch.setattr(micro_batch, "backward", small(limit))
    before = bits(ready)
    for size in (8, 4, 2, 1):
        assert math.isinf(micro_batch.trial(ready, size)) == (size > limit)
    assert all(torch.equal(a, b) for a, b in zip(before, bits(ready), strict=True))
    # as on a GPU, whose figures are made up
    for name, value in (("held_bytes", 0), ("available_bytes", 10**12), ("peak_bytes", 1), ("forget_peak", None)):
        monkeypatch.setattr(hardware, name, lambda device, value=value: value)
    monkeypatch.setattr(micro_batch, "trial", lambda run, size: 1.0 if size <= limit else math.inf)
    object.__setattr__(ready.rt, "device", cuda)
    if limit:
        assert micro_batch.choose(ready, {}) == {1: 1, 3: 2, 8: 8}[limit]
        assert f"micro-batch {micro_batch.choose(ready, {})} of 8 sequences" in capsys.readouterr().out
        assert micro_batch.choose(ready, {"micro_batch": 2, "world_size": 1}) == min(2, limit)
        assert micro_batch.choose(ready, {"micro_batch": 1, "world_size": 2}) == {1: 1, 3: 2, 8: 8}[limit]
    else:
        with pytest.raises(TrainError, match="not one sequence"):
            micro_batch.choose(ready, {})


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("more", [{}, {"dropout": 0.1}, {"lm_head_logit_cap": None, "z_loss_weight": 0.0}])
def test_the_estimate_is_above_what_autograd_keeps(documents, dtype, more):
    cfg = ModelConfig(dim=64, n_layers=4, n_heads=4, max_seq_len=128, sliding_window=32, **more)
    model = build(cfg, 512, 0)
    model.dtype = dtype
    own, kept, alive = {p.data_ptr() for p in model.parameters()}, {}, []

    def keep(tensor):
        alive.append(tensor)
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes() if storage.data_ptr() not in own else 0
        return tensor

    ids = torch.randint(512, (8, 128))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        model(ids, ids, None, torch.arange(0, 1025, 64, dtype=torch.int32) if documents else None)
    estimate = micro_batch.activation_bytes(cfg, 512, ids.numel(), dtype.itemsize)
    estimate += micro_batch.mask_bytes(cfg, 8 if documents else 0, 128, dtype.itemsize)
    assert 1.2 * sum(kept.values()) < estimate < 3.5 * sum(kept.values())


@pytest.mark.slow
def test_little_memory_means_smaller_passes_that_a_resume_keeps(pretrain, tmp_path, monkeypatch, capsys):
    common = sets(out=str(tmp_path / "r"), schedule__kind="constant", steps=4)
    model = ModelConfig(**MODEL)
    need = micro_batch.activation_bytes(model, 264, 2 * TRAIN["seq_len"], 4) + micro_batch.mask_bytes(
        model, 0, TRAIN["seq_len"], 4
    )
    with monkeypatch.context() as patch:
        patch.setattr(hardware, "available_bytes", lambda device: need / micro_batch.USABLE)
        main.run(pretrain, common)
    assert "micro-batch 2 of 8 sequences" in capsys.readouterr().out
    state = json.loads((tmp_path / "r/checkpoints/step_000004/state.json").read_text())
    assert state["micro_batch"] == 2 and json.loads((tmp_path / "r/run.json").read_text())["micro_batch"] == 2
    longer = [*common, *sets(steps=8, resume="auto")]
    main.run(pretrain, longer)
    assert "micro-batch 2 of 8 sequences" in capsys.readouterr().out
    main.run(pretrain, [*longer, *sets(out=str(tmp_path / "two"), resume="never", micro_batch=2)])
    assert losses(tmp_path / "r") == losses(tmp_path / "two")
    with monkeypatch.context() as patch:
        patch.setattr(hardware, "available_bytes", lambda device: need / 2 / micro_batch.USABLE)
        main.run(pretrain, [*longer, *sets(steps=9)])
    shown = capsys.readouterr().out
    assert "micro-batch 1 of 8" in shown and "warning: the checkpoint's micro-batch 2 does not fit" in shown


def test_memory_of_a_machine_and_of_its_container(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    assert 2**20 < hardware.available_bytes(cpu) <= 2**50
    for name, text in (("max", "3000000\n"), ("current", "2500000\n"), ("stat", "anon 5\ninactive_file 700000\n")):
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    assert hardware.available_bytes(cpu) == 1_200_000
    (tmp_path / "memory.max").write_text("max\n")
    assert hardware.available_bytes(cpu) > 1_200_000
