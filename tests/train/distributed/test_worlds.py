"""One, two and four processes over gloo: the same training, shares of Muon's work, checkpoints for any number."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import traceback
from pathlib import Path

import pytest
import torch
from rounding import LOSS
from trainer_harness import losses, sets

from train import main
from train.checkpoint import checkpoint
from train.checkpoint.checkpoint import find_checkpoint
from train.config import ModelConfig, TrainConfig, TrainError
from train.distributed.runtime import join_processes
from train.main import run
from train.model.transformer import build
from train.optim.optimizer import Optimizer

pytestmark = pytest.mark.slow

WORLDS = (1, 2, 4)
# three blocks: stacks of 12, 6 and 3 matrices, so that some ranks own fewer than a share and the last of four none
TINY = ModelConfig(dim=16, n_layers=3, n_heads=2, max_seq_len=32, attention_pattern="all_global")


def together(world: int, work, *given) -> None:
    """`work` in `world` new processes, which find each other as a launcher's do. One process: this one."""
    if world == 1:
        return work(*given)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    context = multiprocessing.get_context("forkserver")  # torch is loaded once, by the server
    context.set_forkserver_preload(["torch", "torch.distributed", "safetensors.torch"])
    failed = context.SimpleQueue()
    ranks = [context.Process(target=_rank, args=(r, world, port, failed, work, given)) for r in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(90)
        if process.exitcode is None:
            process.kill()
    assert all(process.exitcode == 0 for process in ranks), failed.get() if not failed.empty() else "killed"
    return None


def _rank(rank, world, port, failed, work, given) -> None:
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({k: str(v) for k, v in place.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    try:
        work(*given)
    except BaseException:
        failed.put(traceback.format_exc())
        raise


def states(folder: Path) -> list[dict[str, torch.Tensor]]:
    """All tensors of a run's newest checkpoint."""
    found = find_checkpoint(folder, "k")
    return [found.tensors(name) for name in checkpoint.TENSOR_FILES]


# ---------------------------------------------------------------------------------------------------------------------
# The optimizer by itself


def updates(out: str, start: str | None = None) -> None:
    """Four updates with set gradients, the first two or the last two; the state is written to `out`."""
    with join_processes() as rt:
        model = build(TINY, 64, 0)
        optimizer = Optimizer(model, TrainConfig(), rt.rank, rt.world_size)
        if start is not None:
            held = torch.load(start)
            model.load_state_dict(held["model"])
            optimizer.load(held["optimizer"], held["steps"])
        for step in range(optimizer.steps, optimizer.steps + 2):
            optimizer.grads.copy_(torch.randn(len(optimizer.grads), generator=torch.Generator().manual_seed(step)))
            optimizer.step(1.0)
        if rt.world_size > 1:
            share = {s.weights.shape[0]: (len(s.momentum), s.own.stop - s.own.start) for s in optimizer.muon_groups}
            wanted = [-(-k // rt.world_size) for k in (12, 6, 3)]
            own = [max(0, min(k, (rt.rank + 1) * w) - rt.rank * w) for k, w in zip((12, 6, 3), wanted, strict=True)]
            assert share == dict(zip((12, 6, 3), zip(wanted, own, strict=True), strict=True))
        state = optimizer.state_tensors()  # by all
        assert len(state) == sum(1 if n in optimizer.muon_names else 2 for n in optimizer.parameters)
        if rt.is_rank0:
            torch.save({"model": model.state_dict(), "optimizer": state, "steps": optimizer.steps}, out)


def test_shares_make_the_same_updates_to_the_bit_and_state_goes_to_any_number(tmp_path):
    """On one thread a matrix's products do not depend on the batch they are in, so here not even bits differ."""
    together(1, updates, str(tmp_path / "a1"))
    together(1, updates, str(tmp_path / "b1"), str(tmp_path / "a1"))
    whole = [torch.load(tmp_path / name) for name in ("a1", "b1")]
    together(4, updates, str(tmp_path / "a4"))
    together(2, updates, str(tmp_path / "b2"), str(tmp_path / "a4"))
    for name, wanted in zip(("a4", "b2"), whole, strict=True):
        got = torch.load(tmp_path / name)
        for part in ("model", "optimizer"):
            assert got[part].keys() == wanted[part].keys()
            assert all(torch.equal(got[part][key], value) for key, value in wanted[part].items()), name


# ---------------------------------------------------------------------------------------------------------------------
# Whole runs

LONG = {"steps": 14, "schedule__kind": "constant", "schedule__warmup": 2, "checkpoint_every": 10, "epochs": 9}


@pytest.fixture(scope="module")
def worlds(pretrain, tmp_path_factory):
    """14 steps with each number of processes, at the full rate after two: the folders."""
    top = tmp_path_factory.mktemp("worlds")
    for world in WORLDS:
        together(world, run, pretrain, sets(**LONG, out=str(top / str(world))))
    return {world: top / str(world) for world in WORLDS}


def test_one_two_and_four_processes_have_the_same_losses(worlds):
    curves = {world: losses(folder) for world, folder in worlds.items()}
    assert all(list(curve) == list(range(1, 15)) for curve in curves.values())
    spread = max(max(c[s] for c in curves.values()) - min(c[s] for c in curves.values()) for s in curves[1])
    print(f"largest spread of a loss over {WORLDS} processes: {spread:.1e} nats")
    assert spread < LOSS
    assert all(curve[14] < curve[1] - 1 for curve in curves.values())


def test_a_checkpoint_of_two_continues_with_two_to_the_bit_and_with_one_and_four_alike(pretrain, worlds, tmp_path):
    start = str(worlds[2] / "checkpoints/step_000010")
    wanted = losses(worlds[2])
    for world in WORLDS:
        together(world, run, pretrain, sets(**LONG, out=str(tmp_path / str(world)), resume=start))
        got = losses(tmp_path / str(world))
        assert list(got) == list(range(11, 15)) and max(abs(got[s] - wanted[s]) for s in got) < LOSS
    for mine, theirs in zip(states(tmp_path / "2"), states(worlds[2]), strict=True):
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_sequential_order_goes_on_where_it_was_with_any_number(pretrain, tmp_path):
    """From the sixth step of a run of two on; what it read before, and another order, would give other losses."""
    keys = {"order": "sequential", "steps": 10, "checkpoint_every": 6, "schedule__kind": "constant"}
    together(2, run, pretrain, sets(**keys, out=str(tmp_path / "whole")))
    wanted = losses(tmp_path / "whole")
    for world in WORLDS:
        start, out = str(tmp_path / "whole/checkpoints/step_000006"), tmp_path / str(world)
        together(world, run, pretrain, sets(**keys, out=str(out), resume=start))
        got = losses(out)
        assert list(got) == [7, 8, 9, 10] and max(abs(got[s] - wanted[s]) for s in got) < LOSS
    run(pretrain, sets(**{**keys, "order": "shuffled", "steps": 10}, out=str(tmp_path / "other")))
    assert max(abs(losses(tmp_path / "other")[s] - wanted[s]) for s in wanted) > 100 * LOSS


def test_the_parts_of_training_are_the_same_for_any_number_and_a_warm_up_is_undone_by_all(pretrain, tmp_path):
    parts = {
        "muon__scale": "aspect",
        "muon__decay_order": "after",
        "muon__momentum_warmup": 9,
        "groups__tokens": {"lr": 0.02, "weight_decay": 0.1},
        "schedule__kind": "warmdown",
        "schedule__warmdown": 9,
        "qat__start_frac": 0.6,
        "artefact": {"keep_numel": 0},
        "ema__decay": 0.9,
        "ema__every": 2,
    }
    for world in WORLDS:
        for warmup in {1: (0,), 2: (0, 2), 4: (2,)}[world]:
            out = str(tmp_path / f"{world}-{warmup}")
            together(world, run, pretrain, sets(**parts, kernel_warmup=warmup, out=out))
    wanted = losses(tmp_path / "1-0")
    cold, warm, four = (losses(tmp_path / name) for name in ("2-0", "2-2", "4-2"))
    assert cold == warm
    for mine, theirs in zip(states(tmp_path / "2-0"), states(tmp_path / "2-2"), strict=True):
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in theirs)
    for world, got in ((2, warm), (4, four)):
        assert max(abs(got[s] - wanted[s]) for s in wanted) < LOSS
        assert (tmp_path / f"{world}-2/summary.json").exists()


@pytest.mark.soak
def test_in_bf16_newton_schulz_the_spread_is_small(pretrain, tmp_path):
    for world in WORLDS:
        together(world, run, pretrain, sets(**LONG, muon__ns_dtype="bfloat16", out=str(tmp_path / str(world))))
    curves = [losses(tmp_path / str(world)) for world in WORLDS]
    spread = max(max(c[s] for c in curves) - min(c[s] for c in curves) for s in curves[0])
    print(f"largest spread of a loss over {WORLDS} processes, Newton-Schulz in bf16: {spread:.1e} nats")
    assert spread < 5e-3


def stopped_by_rank_loss(manifest: Path, folder: str) -> None:
    """A run that is to end on every rank with one error."""
    name = "blocks.1.attn.o.weight"

    def plant(*given):
        model = build(*given)
        with torch.no_grad():
            model.get_parameter(name)[0] = 0
        return model

    main.build = plant
    options = {**LONG, "rank_loss__every": 1, "rank_loss__policy": "stop", "muon__lr": 1e-9}
    with pytest.raises(TrainError, match=f"rank loss: {name}"):
        run(manifest, sets(**options, out=folder))


def test_a_lost_rank_stops_every_process_at_the_same_step(pretrain, tmp_path):
    together(2, stopped_by_rank_loss, pretrain, str(tmp_path / "r"))
    saved = find_checkpoint(tmp_path / "r", "k")
    assert saved.step == max(losses(tmp_path / "r")) <= 14 and saved.state["world_size"] == 2
    assert "rank loss" in {json.loads(line)["event"] for line in (tmp_path / "r/events.jsonl").read_text().splitlines()}
