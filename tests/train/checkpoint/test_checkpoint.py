"""Checkpoints on the disk: whole, or not there, or said to be damaged."""

from __future__ import annotations

import threading

import pytest
import torch

from train.checkpoint import checkpoint
from train.checkpoint.background import BackgroundWriter
from train.checkpoint.checkpoint import (
    delete_partial_checkpoints,
    find_checkpoint,
    list_checkpoints,
    newest_intact_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    save_checkpoint,
)
from train.config import TrainError


def put(folder, step, value=1.0):
    return save_checkpoint(folder, step, {"w": torch.full((3,), value)}, {"m": torch.zeros(2)}, {"note": "x"})


def test_a_checkpoint_comes_back_and_latest_names_it(tmp_path):
    put(tmp_path, 4)
    path = put(tmp_path, 120, 2.0)
    assert path.name == "step_000120" == (tmp_path / "latest").read_text().strip()
    for where in (path, tmp_path):
        found = find_checkpoint(where, "train.resume")
        assert found.step == 120 and found.state["note"] == "x"
        assert torch.equal(found.tensors("model.safetensors")["w"], torch.full((3,), 2.0))
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".pt", ".pkl") or p.name.startswith(".")]


def test_a_kill_before_the_rename_leaves_the_earlier_ones(tmp_path, monkeypatch):
    put(tmp_path, 4)

    class Killed(BaseException):
        pass

    def die(path):
        raise Killed

    with monkeypatch.context() as m:
        m.setattr(checkpoint, "fsync_path", die)
        with pytest.raises(Killed):
            put(tmp_path, 8)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_000004"]
    assert find_checkpoint(tmp_path, "k").step == 4
    assert list(tmp_path.glob(".part-*"))
    delete_partial_checkpoints(tmp_path)
    assert not list(tmp_path.glob(".part-*"))


def test_a_full_disk_is_one_clear_error_and_leaves_nothing_half(tmp_path, monkeypatch):
    put(tmp_path, 4)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(TrainError, match=r"step_000008: not written: .*No space left"):
        put(tmp_path, 8)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_000004"]


@pytest.mark.parametrize("name", checkpoint.TENSOR_FILES)
def test_cut_and_damaged_files_are_named_with_the_newest_whole_one(tmp_path, name):
    put(tmp_path, 4)
    newest = put(tmp_path, 8)
    raw = (newest / name).read_bytes()
    for bad, word in ((raw[: len(raw) // 2], "cut"), (raw[:-1] + bytes([raw[-1] ^ 1]), "damaged")):
        (newest / name).write_bytes(bad)
        with pytest.raises(TrainError, match=word) as error:
            find_checkpoint(tmp_path, "train.resume")
        assert "step_000004" in str(error.value) and "\n" in str(error.value)
    whole, broken = newest_intact_checkpoint(tmp_path)
    assert whole is not None and whole.step == 4 and len(broken) == 1


def test_a_cut_state_and_a_missing_file_are_errors(tmp_path):
    newest = put(tmp_path, 8)
    text = (newest / "state.json").read_text()
    (newest / "state.json").write_text(text[: len(text) // 2])
    with pytest.raises(TrainError, match="not a whole checkpoint"):
        read_checkpoint(newest)
    (newest / "state.json").write_text(text)
    (newest / "optimizer.safetensors").unlink()
    with pytest.raises(TrainError, match="not a whole checkpoint"):
        read_checkpoint(newest)
    with pytest.raises(TrainError, match=r"--set train.init_from=none"):
        find_checkpoint(tmp_path / "nowhere", "train.init_from")


def test_the_newest_are_kept_and_none_is_overwritten(tmp_path):
    for step in (2, 4, 10):
        put(tmp_path, step)
    prune_checkpoints(tmp_path, 0)
    assert len(list_checkpoints(tmp_path)) == 3
    prune_checkpoints(tmp_path, 2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step_000010", "step_000004"]
    with pytest.raises(TrainError, match="never overwritten"):
        put(tmp_path, 10)


# ---------------------------------------------------------------------------------------------------------------------
# In the background


def test_what_is_written_is_of_the_moment_of_the_copy(tmp_path):
    writer, go = BackgroundWriter(), threading.Event()
    model, moments = {"w": torch.arange(6.0).view(2, 3).mT}, {"w": torch.ones(2, dtype=torch.bfloat16)}
    (a, b), ready = writer.copy_to_host(model, moments)

    def work():
        go.wait(10)
        ready()
        save_checkpoint(tmp_path, 1, a, b, {})

    writer.start(work)
    model["w"] += 100  # the next step
    go.set()
    assert 0 <= writer.wait() < 10
    point = read_checkpoint(tmp_path / "step_000001")
    assert torch.equal(point.tensors("model.safetensors")["w"], torch.arange(6.0).view(2, 3).mT)
    assert point.tensors("optimizer.safetensors")["w"].dtype == torch.bfloat16
    (again, _), _ = writer.copy_to_host(model, moments)
    assert again["w"].data_ptr() == a["w"].data_ptr() and torch.equal(again["w"], model["w"])  # the buffer, used again


def test_an_error_of_the_thread_is_raised_once_where_it_is_waited_for(capsys):
    def work():
        raise TrainError("no room")

    writer = BackgroundWriter()
    assert writer.wait() < 1 and not writer.failed
    for last in (writer.wait, writer.close):
        writer.start(work)
        while not writer.failed:
            pass
        if last == writer.wait:
            with pytest.raises(TrainError, match="no room"):
                writer.wait()
        else:
            writer.close()
            assert "warning: no room" in capsys.readouterr().err
        assert not writer.failed


def test_the_best_and_where_the_decay_began_are_spared(tmp_path):
    for step, names in ((1, (checkpoint.DECAY_START,)), (2, (checkpoint.BEST,)), (3, ()), (4, ()), (5, ())):
        save_checkpoint(tmp_path, step, {}, {}, {}, names)
    prune_checkpoints(tmp_path, 1)
    assert [p.name[5:] for p in list_checkpoints(tmp_path)] == ["000005", "000002", "000001"]
    save_checkpoint(tmp_path, 6, {}, {}, {}, (checkpoint.BEST,))
    prune_checkpoints(tmp_path, 1)
    assert [p.name[5:] for p in list_checkpoints(tmp_path)] == ["000006", "000001"]
    assert find_checkpoint(tmp_path / "best", "k").step == 6 == find_checkpoint(tmp_path / "latest", "k").step
